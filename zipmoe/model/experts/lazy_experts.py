"""Runs stock's own experts module, whose matrices are fetched while the module's code asks for them.

This is the way of modules that are more than a sum of experts called with rows, ids and weights: experts that return
their input (longcat_flash), a factor on the output (nllb_moe), matrices of another rank (dbrx), another call (jetmoe).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zipmoe.errors import InternalError, UnsupportedModel
from zipmoe.model.experts.provider import Arrival
from zipmoe.model.experts.supply import ExpertSupply
from zipmoe.model.linear.matrices import unpacked
from zipmoe.model.meeting import meet
from zipmoe.model.stock.experts_module import expert_children
from zipmoe.planning.workspace import COPIED_EXPERT_BYTES
from zipmoe.store.format.layout import ExpertSpec


class StackStandIn:
    """Takes the place of a parameter that holds a matrix of each expert; `[expert]` gives the matrix of an expert."""

    def __init__(self, experts: LazyExperts, index: int, shape: torch.Size) -> None:
        """Stands for the matrices `index` of all experts; `shape` is the parameter's."""
        self._experts = experts
        self._index = index
        self.shape = shape
        self.ndim = len(shape)
        self.dtype = torch.bfloat16
        self.device = experts.device

    def view(self, *_: Any) -> StackStandIn:
        """Returns the stand-in itself: a flattened parameter is viewed as a stack before it is indexed."""
        return self

    def __getitem__(self, expert: int | torch.Tensor) -> torch.Tensor:
        return self._experts.matrix(int(expert), self._index)


class LazyCall:
    """A call of stock's experts module, to be computed after or before calls of other passes."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: dict[int, int]) -> None:
        """Takes the arguments, and the number of rows by expert id."""
        self.args = args
        self.kwargs = kwargs
        self.rows = rows
        self.result: Any = None


class LazyExperts:
    """Provides stock's experts module of one layer with matrices, during each call of the module.

    The module stays in the model, with its code and its other parameters. `forward` of the module is replaced by
    `LazyExperts.forward`, which runs stock's.

    Thread: one call at a time.
    """

    def __init__(
        self,
        layer: int,
        expert_count: int,
        module: nn.Module,
        spec: ExpertSpec,
        supply: ExpertSupply,
        reason: str,
    ) -> None:
        """Takes over a stock module on the meta device and removes the parameters of the experts.

        Args:
            layer: ordinal of the MoE layer in forward order, from 0.
            expert_count: experts that have matrices.
            module: stock's module.
            spec: matrices of an expert.
            supply: source of the experts.
            reason: difference that keeps the experts from being computed one by one.

        Raises:
            UnsupportedModel: a call of the module does not tell which experts are chosen.
        """
        _check_call(module)
        self.layer = layer
        self.reason = reason
        self.device = supply.placement.device
        self._count = expert_count
        self._spec = spec
        self._supply = supply
        self._together = max(1, COPIED_EXPERT_BYTES // spec.weight_bytes)
        self._rows: dict[int, int] = {}
        self._rows_of_all: dict[int, int] = {}
        self._kept: dict[int, tuple[torch.Tensor, ...]] = {}
        self._stock_forward = module.forward
        children = expert_children(module)
        if children:
            for expert, child in enumerate(children.values()):
                self._take_over(expert, child)
        else:
            self._stand_in(module)
        module.forward = self.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs stock's forward, for several passes in turn if the running pass is a coroutine.

        Takes and returns what stock takes and returns.

        Raises:
            ZipMoeError: error of the provider; the next pass may be tried.
        """
        call = LazyCall(args, kwargs, chosen_experts([*args, *kwargs.values()], self._count))
        if not meet(self, call):
            self.compute([call])
        return call.result

    def compute(self, calls: Sequence[LazyCall]) -> None:
        """Runs stock's forward for one call after the other; they share the experts if all of them can be kept.

        Raises:
            ZipMoeError: error of the provider; the calls may be computed again.
        """
        rows = Counter[int]()
        for call in calls:
            rows.update(call.rows)
        self._rows_of_all = rows
        try:
            for call in calls:
                self._rows = call.rows
                call.result = self._stock_forward(*call.args, **call.kwargs)
        finally:
            self._rows, self._rows_of_all, self._kept = {}, {}, {}

    def matrix(self, expert: int, index: int) -> torch.Tensor:
        """Returns a matrix of an expert, shape (rows, cols), valid until the call of the module ends.

        An expert that no row of the call chooses has a matrix of NaNs: stock's code may multiply no rows with it.
        """
        if not 0 <= expert < self._count:
            raise InternalError(f"stock's code asks for expert {expert} of {self._count} of MoE layer {self.layer}")
        if expert not in self._rows:
            spec = self._spec.tensors[index]
            return torch.full((), torch.nan, dtype=torch.bfloat16, device=self.device).expand(spec.rows, spec.cols)
        if expert not in self._kept:
            self._fetch(expert)
        return self._kept[expert][index]

    def _fetch(self, expert: int) -> None:
        """Fetches the experts of all calls if they can be kept together.

        Otherwise fetches an expert of the call and those after it that fit, and announces the ones after those.
        """
        rows = self._rows_of_all
        if len(rows) > self._together:
            rows = {each: count for each, count in self._rows.items() if each >= expert}
        wanted = sorted(rows)
        now, later = wanted[: self._together], wanted[self._together : 2 * self._together]
        self._kept = {}
        provider, placement = self._supply.provider, self._supply.placement

        def announce() -> None:
            if later and provider.wants_announcements:
                provider.announce(self.layer, later)

        def keep(arrival: Arrival) -> None:
            loaded = placement.load(unpacked(arrival.one_by_one()))
            self._kept[arrival.expert] = tuple(matrix.clone() for matrix in loaded)
            placement.settle()  # from here on the provider may reuse the memory of the matrices

        self._supply.fetch(self.layer, {each: rows[each] for each in now}, announce, keep)

    def _stand_in(self, module: nn.Module) -> None:
        for index, tensor in enumerate(self._spec.tensors):
            owner_path, _, name = tensor.name.rpartition(".")
            owner = module.get_submodule(owner_path)
            shape = getattr(owner, name).shape
            delattr(owner, name)
            owner.__dict__[name] = StackStandIn(self, index, shape)

    def _take_over(self, expert: int, child: nn.Module) -> None:
        """Makes an expert of a module dict set its matrices before it computes."""
        places = []
        for tensor in self._spec.tensors:
            owner_path, _, name = tensor.name.rpartition(".")
            owner = child.get_submodule(owner_path)
            delattr(owner, name)
            places.append((owner, name))
        forward = child.forward

        def compute(*args: Any, **kwargs: Any) -> Any:
            try:
                for index, (owner, name) in enumerate(places):
                    owner.__dict__[name] = self.matrix(expert, index)
                return forward(*args, **kwargs)
            finally:
                for owner, name in places:
                    owner.__dict__.pop(name, None)

        child.forward = compute


def _check_call(module: nn.Module) -> None:
    """Refuses a module whose call does not tell which experts are chosen."""
    arguments = list(inspect.signature(module.forward).parameters)
    if len(arguments) < 2:
        raise UnsupportedModel(
            f"{type(module).__name__}: experts are called with ({', '.join(arguments)}), the chosen experts are needed",
            next_step="serve this model with transformers: it multiplies with every expert for every token",
        )


def chosen_experts(arguments: list[Any], expert_count: int) -> dict[int, int]:
    """Reads the rows of each expert from the arguments of a call of stock's experts module.

    Args:
        arguments: the arguments: among them a tensor of expert ids, of any shape; or one-hot rows, shape
            (rows, 1, experts); or a list with the number of rows of each expert.
        expert_count: experts that have matrices; larger ids are of experts without.

    Returns:
        The number of rows by expert id, ascending, without experts that have no rows.

    Raises:
        InternalError: no argument tells the experts.
    """
    for argument in arguments:
        if isinstance(argument, list) and all(isinstance(each, int) for each in argument):
            return {expert: rows for expert, rows in enumerate(argument[:expert_count]) if rows}
        if isinstance(argument, torch.Tensor) and not argument.is_floating_point():
            ids = argument.nonzero()[:, 2] if argument.dim() == 3 else argument.reshape(-1)
            experts, counts = torch.unique(ids, return_counts=True)
            pairs = zip(experts.tolist(), counts.tolist(), strict=True)
            return {expert: rows for expert, rows in pairs if expert < expert_count}
    raise InternalError("the call of an experts module names no experts")
