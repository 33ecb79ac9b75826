"""Records a pass of single rows: runs stock's modules once and writes down every operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zipmoe.model.attention.ragged_attention import RaggedPass, ragged_attention
from zipmoe.model.linear.compressed import CompressedMatrix
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.program.recording.row_model import PassRow, RowModel
from zipmoe.model.program.recording.tape import OUTSIDE, Kind, Tape, TapeEntry


@dataclass(frozen=True, eq=False)
class LayerCall:
    """The call of a layer in a recorded pass.

    Attributes:
        part: name of the layer.
        module: stock's module.
        call: computes the layer again, attending as in a shared pass.
        args, kwargs, result: arguments and result.
    """

    part: str
    module: nn.Module
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


@dataclass(frozen=True, eq=False)
class Recording:
    """A recorded pass.

    Attributes:
        tape: the entries; keeps all tensors of the pass alive.
        token_ids, positions: the inputs, int64, shape (1, rows).
        cache: the cache of the pass, which a replay replaces by its own.
        logits: the result, shape (rows, vocabulary).
        hidden_states: output of the model's body, shape (rows, hidden).
        layers: calls of the layers, in order.
    """

    tape: Tape
    token_ids: torch.Tensor
    positions: torch.Tensor
    cache: RaggedPass
    logits: torch.Tensor
    hidden_states: torch.Tensor
    layers: tuple[LayerCall, ...]

    @property
    def entries(self) -> list[TapeEntry]:
        """The entries in order."""
        return self.tape.entries


class _NotedPass(RaggedPass):
    """The cache of a pass whose attention is noted as one call, with the writing of keys and values."""

    tape: Tape

    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Attends as `RaggedPass` does."""
        with self.tape.paused():
            output = super().attend(module, query, key, value, **kwargs)
        self.tape.note(Kind.ATTEND, attend_again, (self, module, query, key, value, kwargs), output, module)
        return output


def attend_again(
    cache: RaggedPass,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Repeats a noted attention in the pass `cache`."""
    return cache.attend(module, query, key, value, **kwargs)


def record(model: RowModel, rows: Sequence[PassRow]) -> Recording:
    """Computes rows eagerly and records the pass.

    Raises:
        ZipMoeError: error of the provider.
    """
    tape = Tape()
    layers: list[LayerCall] = []
    ids = torch.tensor([[row.token_id for row in rows]])
    places = torch.tensor([[row.position for row in rows]])
    plain = model.cache(rows)
    cache = _NotedPass(plain.pool, plain.spans, plain.slots, model.attention)
    cache.tape = tape
    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(_noting_experts(model, tape))
        stack.enter_context(_noting_layers(model, tape, layers))
        stack.enter_context(model.linears.watched_by(noting_linear(tape)))
        stack.enter_context(tape.running())
        logits, hidden_states = model.eager(ids, places, cache)
    cache.tape = Tape()  # steps of a replay keep the cache, which should not keep all tensors of the pass
    return Recording(tape, ids, places, cache, logits, hidden_states, tuple(layers))


def noting_linear(tape: Tape) -> Callable[..., torch.Tensor]:
    """Returns a function that computes a linear and notes it as one call."""

    def watch(
        linears: Linears, x: torch.Tensor, weight: torch.Tensor | CompressedMatrix, bias: torch.Tensor | None
    ) -> torch.Tensor:
        with tape.paused():
            result = linears(x, weight, bias)
        tape.note(Kind.LINEAR, linears, (x, weight, bias), result)
        return result

    return watch


@contextmanager
def _noting_experts(model: RowModel, tape: Tape) -> Iterator[None]:
    with ExitStack() as stack:
        for module in model.experts:

            def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
                tape.pause()

            def end(module: nn.Module, args: Any, kwargs: Any, result: torch.Tensor) -> None:
                tape.resume()
                tape.note(Kind.EXPERTS, module, (*args, *kwargs.values()), result, module)

            stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(end, with_kwargs=True).remove)
        yield


@contextmanager
def _noting_layers(model: RowModel, tape: Tape, calls: list[LayerCall]) -> Iterator[None]:
    with ExitStack() as stack:
        layers: Any = model.body.layers
        for index, layer in enumerate(layers):

            def begin(module: nn.Module, args: Any, kwargs: Any, index: int = index) -> None:
                tape.part = f"layer {index}"

            def end(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
                calls.append(LayerCall(tape.part, module, _attending(model, module), args, kwargs, result))
                tape.part = OUTSIDE

            stack.callback(layer.register_forward_pre_hook(begin, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(end, with_kwargs=True).remove)
        yield


def _attending(model: RowModel, module: nn.Module) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with ragged_attention(model.body):
            return module(*args, **kwargs)

    return call
