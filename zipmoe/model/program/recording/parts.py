"""Decides which layers of a recording may be replayed: compares two recordings of passes at different positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, zip_longest
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from zipmoe.errors import UnsupportedModel
from zipmoe.model.program.recording.record import Recording
from zipmoe.model.program.recording.tape import OUTSIDE, Kind, TapeEntry, reason_of, storage_of


def left_eager(first: Recording, second: Recording) -> dict[str, str]:
    """Finds the layers whose operations no other pass may repeat, and says why, by the name of the part.

    Args:
        first: the recording that would be replayed.
        second: a recording of another token at another position.

    Raises:
        UnsupportedModel: that is so outside the layers, where nothing could run instead.
    """
    reasons = _foreign_writes(first)
    ours, theirs = _by_part(first), _by_part(second)
    for part in dict.fromkeys([*ours, *theirs]):
        for one, other in zip_longest(ours.get(part, []), theirs.get(part, [])):
            reason = _difference(one, other)
            if reason:
                reasons.setdefault(part, reason)
                break
    if OUTSIDE in reasons:
        raise UnsupportedModel(f"{reasons[OUTSIDE]} {OUTSIDE}")
    return reasons


def _by_part(recording: Recording) -> Mapping[str, Sequence[TapeEntry]]:
    found: dict[str, list[TapeEntry]] = {}
    for part, entries in groupby(recording.entries, key=lambda entry: entry.part):
        found.setdefault(part, []).extend(entries)
    return found


def _difference(one: TapeEntry | None, other: TapeEntry | None) -> str:
    if one is None or other is None or one.name != other.name:
        names = [each.name if each is not None else "nothing" for each in (one, other)]
        return f"the operations depend on the position ({names[0]} or {names[1]})"
    if one.kind is Kind.ATEN and (reason := reason_of(one.call)):
        return reason
    if _form(one) != _form(other):
        return f"{one.name} has arguments that depend on the position"
    if one.value is not None and other.value is not None and not torch.equal(one.value, other.value):
        return f"{one.name} has a result that depends on the position"
    return ""


def _form(entry: TapeEntry) -> list[Any]:
    """Returns what has to be equal in every pass: shapes and strides of tensors, and arguments of other kinds."""
    if entry.kind is Kind.ATTEND:
        tensors: Any = entry.args[2:5]
        return [_form_of(each) for each in (*tensors, *entry.outputs)]
    leaves = tree_leaves((entry.args, entry.kwargs))
    return [_form_of(each) for each in (*leaves, *entry.outputs)]


def _form_of(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        strides = [stride for stride, size in zip(leaf.stride(), leaf.shape, strict=True) if size != 1]
        return leaf.dtype, tuple(leaf.shape), strides, leaf.storage_offset()
    return leaf if isinstance(leaf, int | float | str | bool | None) else str(leaf)


def _foreign_writes(recording: Recording) -> dict[str, str]:
    """Finds the entries that change memory from before the pass."""
    reasons: dict[str, str] = {}
    for entry in recording.entries:
        if entry.mutates and any(storage_of(output) not in recording.tape.made for output in entry.outputs):
            reasons.setdefault(entry.part, f"{entry.name} changes memory of the model")
    return reasons
