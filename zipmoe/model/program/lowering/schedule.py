"""Orders the entries of a recording for the replay, and plans their memory.

Three things change against the recorded order. A layer that is left eager becomes one call of its module. Constants are
taken out. What does not depend on the routed experts, and what the gate does not need, moves to the time in which the
experts are read: a shared expert, wherever stock computes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zipmoe.model.program.lowering.pass_memory import PassMemory, StorageUse
from zipmoe.model.program.recording.record import LayerCall, Recording
from zipmoe.model.program.recording.tape import Kind, TapeEntry, storage_of, tensors_in

FOLDED_BYTES = 64 << 10
"""Largest result of constants that is kept instead of computed in every pass."""


@dataclass(frozen=True, eq=False)
class Gate:
    """A call of routed experts, and the entries that are computed while the experts are read."""

    entry: TapeEntry
    beside: tuple[TapeEntry, ...]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The entries in the order of the replay, with their memory."""

    order: tuple[TapeEntry | Gate, ...]
    memory: PassMemory


def schedule(recording: Recording, eager: Mapping[str, str]) -> Schedule:
    """Plans a replay.

    Args:
        recording: the recorded pass.
        eager: names of the layers that are left eager.
    """
    entries = _with_eager_layers(recording, eager)
    results = recording.logits, recording.hidden_states
    lasting = [storage_of(each) for each in (recording.token_ids, recording.positions, *results)]
    entries, written = _without_constants(entries, lasting[:2])
    order = _with_gates(entries)
    uses: list[StorageUse] = []
    for each in order:
        if isinstance(each, Gate):
            asks, computes = _use(each.entry), _use(each.entry)
            uses += [asks, *map(_use, each.beside), computes]
        else:
            uses.append(_use(each))
    sizes = dict(written)
    for tensor in (recording.token_ids, recording.positions):
        sizes[storage_of(tensor)] = tensor.untyped_storage().nbytes()
    return Schedule(tuple(order), PassMemory(uses, sizes, lasting))


def _use(entry: TapeEntry) -> StorageUse:
    return StorageUse.of(entry.inputs, entry.outputs)


def _with_eager_layers(recording: Recording, eager: Mapping[str, str]) -> list[TapeEntry]:
    calls = {call.part: call for call in recording.layers if call.part in eager}
    entries: list[TapeEntry] = []
    for entry in recording.entries:
        if entry.part not in calls:
            entries.append(entry)
        elif not entries or entries[-1].part != entry.part:
            entries.append(_layer_entry(calls[entry.part]))
    return entries


def _layer_entry(call: LayerCall) -> TapeEntry:
    results = tensors_in(call.result)
    return TapeEntry(Kind.LAYER, "layer", call.part, call.call, call.args, call.kwargs, results, None, call.module)


def _without_constants(entries: Sequence[TapeEntry], inputs: Sequence[int]) -> tuple[list[TapeEntry], dict[int, int]]:
    """Leaves out the entries that give the same in every pass; returns the others and the storages that they write."""
    writers: dict[int, int] = {}
    for entry in entries:
        for storage in {storage_of(each) for each in entry.outputs}:
            writers[storage] = writers.get(storage, 0) + 1
    varying, kept = set(inputs), []
    for entry in entries:
        once = all(writers[storage_of(each)] == 1 for each in entry.outputs)
        small = sum(each.untyped_storage().nbytes() for each in entry.outputs) <= FOLDED_BYTES
        pure = entry.kind is Kind.ATEN and not entry.mutates
        varies = any(storage_of(each) in varying for each in entry.inputs)
        if pure and once and (entry.value is not None or (small and not varies)):
            continue
        kept.append(entry)
        varying.update(storage_of(each) for each in entry.outputs)
    sizes: dict[int, int] = {}
    for entry in kept:
        sizes.update((storage_of(each), each.untyped_storage().nbytes()) for each in entry.outputs)
    return kept, sizes


def _with_gates(entries: Sequence[TapeEntry]) -> list[TapeEntry | Gate]:
    order: list[TapeEntry | Gate] = []
    pending: list[TapeEntry] = []
    remaining = list(entries)
    while remaining:
        entry = remaining.pop(0)
        if entry.kind is not Kind.EXPERTS:
            pending.append(entry)
            continue
        before, deferred = _deferrable(pending, entry)
        after = _up_to_next_gate(remaining)
        advanced, rest = _independent(after, entry)
        remaining = rest + remaining[len(after) :]
        order += [*before, Gate(entry, (*deferred, *advanced))]
        pending = []
    return order + pending


def _deferrable(entries: Sequence[TapeEntry], gate: TapeEntry) -> tuple[list[TapeEntry], list[TapeEntry]]:
    """Splits the entries before routed experts: those that the experts' arguments need, and those that may wait."""
    kept: list[TapeEntry] = []
    deferred: list[TapeEntry] = []
    stays = StorageUse(_use(gate).reads, frozenset())
    for entry in reversed(entries):
        use = _use(entry)
        if _movable(entry) and use.may_follow(stays):
            deferred.append(entry)
        else:
            kept.append(entry)
            stays = stays.joined(use)
    return kept[::-1], deferred[::-1]


def _independent(entries: Sequence[TapeEntry], gate: TapeEntry) -> tuple[list[TapeEntry], list[TapeEntry]]:
    """Splits the entries after routed experts: those that do not depend on the experts' sum, and the others."""
    advanced: list[TapeEntry] = []
    rest: list[TapeEntry] = []
    stays = _use(gate)
    for entry in entries:
        use = _use(entry)
        if _movable(entry) and stays.may_follow(use):
            advanced.append(entry)
        else:
            rest.append(entry)
            stays = stays.joined(use)
    return advanced, rest


def _movable(entry: TapeEntry) -> bool:
    return entry.kind in (Kind.ATEN, Kind.LINEAR)


def _up_to_next_gate(entries: Sequence[TapeEntry]) -> list[TapeEntry]:
    found = []
    for entry in entries:
        if entry.kind in (Kind.EXPERTS, Kind.LAYER):
            break
        found.append(entry)
    return found
