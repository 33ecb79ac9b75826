"""Writes down the operations that a model runs: ATen operations as torch dispatches them, and calls of our kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zipmoe.model.linear.compressed import held_memory

OUTSIDE = "outside the layers"
"""Part of entries that belong to no layer: embeddings, rotary angles, the last norm, the head."""


class Kind(Enum):
    """What an entry calls."""

    ATEN = "aten"
    LINEAR = "linear"
    ATTEND = "attend"
    EXPERTS = "experts"
    LAYER = "layer"


@dataclass(frozen=True, eq=False)
class TapeEntry:
    """One call that a pass made, with the tensors of that pass. Views have no entry: they only name memory.

    Attributes:
        kind: what was called.
        name: ATen's name of the operation, or the kind's.
        part: layer of the call, such as `layer 3`, or `OUTSIDE`.
        call: the readable twin: called with the arguments again, it computes the results again.
        args, kwargs: the arguments.
        outputs: tensors that the call returned or changed.
        value: copy of the content for an operation that makes a constant, such as `zeros`; else None.
        subject: module of an attention, of routed experts or of a layer; else None.
    """

    kind: Kind
    name: str
    part: str
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[torch.Tensor, ...]
    value: torch.Tensor | None = None
    subject: Any = None

    @cached_property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """Tensors among the arguments."""
        return tensors_in((self.args, self.kwargs))

    @cached_property
    def mutates(self) -> bool:
        """Whether an ATen operation changes one of its arguments."""
        return self.kind is Kind.ATEN and bool(self.call._schema.is_mutable)  # type: ignore[attr-defined]


def reason_of(call: Any) -> str:
    """Says why no other pass may repeat an ATen operation: its shape or a branch follows the data, or it draws."""
    tags = getattr(call, "tags", ())
    for tag in (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded):
        if tag in tags:
            return f"{call} has a {tag.name.replace('_', ' ')}"
    return ""


def tensors_in(tree: Any) -> tuple[torch.Tensor, ...]:
    """Returns the tensors of nested arguments, in order."""
    return tuple(leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def storage_of(tensor: torch.Tensor) -> int:
    """Identifies the memory of a tensor, which its views share, while that memory is alive."""
    return held_memory(tensor).untyped_storage().data_ptr()


@dataclass
class Tape:
    """The entries of a pass in order. The tape keeps all tensors of the pass alive, so that addresses identify them."""

    entries: list[TapeEntry] = field(default_factory=list)
    part: str = OUTSIDE
    made: set[int] = field(default_factory=set)
    """Storages that the pass itself has allocated."""

    _kept: list[Any] = field(default_factory=list)
    _pauses: int = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Writes down every operation of the block."""
        with _Dispatch(self):
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Writes down nothing of the block: the caller notes the block as a whole."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def pause(self) -> None:
        """Writes down nothing until the matching `resume`; pauses may nest."""
        self._pauses += 1

    def resume(self) -> None:
        """Ends the last pause."""
        self._pauses -= 1

    def note(self, kind: Kind, call: Callable[..., Any], args: Sequence[Any], result: Any, subject: Any = None) -> None:
        """Adds a call of one of our kernels or modules, unless the tape is paused."""
        if not self._pauses:
            self._kept.append((args, result))
            made = tensors_in(result)
            self.made.update(map(storage_of, made))
            self.entries.append(TapeEntry(kind, kind.value, self.part, call, tuple(args), {}, made, None, subject))

    def dispatched(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Adds an ATen operation, unless it only made views or uninitialised memory."""
        if self._pauses:
            return
        self._kept.append((args, kwargs, result))
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(result)
        known = {storage_of(each) for each in inputs}
        self.made.update(storage_of(each) for each in outputs if storage_of(each) not in known)
        if not func._schema.is_mutable and outputs and all(storage_of(each) in known for each in outputs):
            return
        name = str(func)
        if (not outputs and not reason_of(func)) or name.split(".")[1] in UNINITIALISED:
            return
        makes = bool(outputs) and (not inputs or name.split(".")[1] in CONSTANT)
        value = outputs[0].detach().clone() if makes else None
        self.entries.append(TapeEntry(Kind.ATEN, name, self.part, func, args, kwargs, outputs, value))


UNINITIALISED = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
"""Operations whose results have no content; a later entry writes it."""

CONSTANT = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
"""Operations whose results depend on the shape of their argument alone."""


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows a tape every operation that torch dispatches."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tape = tape

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Returns False: nothing here is compiled, and True would import torch._dynamo, 70 MB for nothing."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._tape.dispatched(func, args, kwargs or {}, result)
        return result
