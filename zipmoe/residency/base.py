"""The contract between the router's brain and whoever executes its decisions.

Events go in (`need`, `completed`, `done`, `abandon`), operations come out; the brain never waits, reads no clock and
does no I/O, so a recorded run can be replayed. The executor sends every non-empty `Operations` as one message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from zipmoe.residency.state import Residency
from zipmoe.types import ExpertKey, Part, SlotRef


class ArenaSlots(NamedTuple):
    """The slots of one arena that the brain may assign: indices `0 .. slot_count - 1`."""

    owner_id: str
    arena_epoch: int
    slot_count: int
    first_generation: int


class Read(NamedTuple):
    """Read `parts` of an expert into a chunk slot."""

    operation_id: int
    key: ExpertKey
    parts: Part
    chunk_slot: SlotRef


class Recover(NamedTuple):
    """Recover an expert's tensor from a chunk slot, once all its parts are there, into a tensor slot."""

    operation_id: int
    key: ExpertKey
    chunk_slot: SlotRef
    tensor_slot: SlotRef


@dataclass(slots=True)
class Operations:
    """Work for the decoder: releases first, then reads and recoveries, most urgent first."""

    chunk_releases: list[SlotRef] = field(default_factory=list)
    tensor_releases: list[SlotRef] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    recoveries: list[Recover] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.chunk_releases or self.tensor_releases or self.reads or self.recoveries)


class Usable(NamedTuple):
    """An expert whose tensor can be read until `done` is called for it."""

    key: ExpertKey
    tensor_slot: SlotRef


@dataclass(slots=True)
class Counters:
    """Totals since the start; hits and misses count expert activations, one per expert and layer pass."""

    full_hits: int = 0
    packed_hits: int = 0
    misses: int = 0
    evictions: int = 0


class ResidencyPolicy(ABC):
    """Decides which slot holds which expert, and what is fetched in which order.

    Thread: not thread safe; one thread, the model's, owns it.
    """

    counters: Counters

    @abstractmethod
    def need(self, layer: int, expert_ids: Sequence[int]) -> Operations:
        """The running step needs these experts of a layer; each becomes usable once, and is then to be `done`."""

    @abstractmethod
    def next_usable(self) -> Usable | None:
        """The next needed expert that can be computed now, resident ones first; None while all others are under way.

        Raises:
            ZipMoeError: a needed expert could not be fetched; the error of its read or recovery. Call `abandon` next.
        """

    @abstractmethod
    def done(self, key: ExpertKey) -> Operations:
        """The step has finished with an expert that `next_usable` returned."""

    @abstractmethod
    def completed(self, operation_id: int, error: Exception | None) -> Operations:
        """An operation has ended; with an error, the slot it wrote is free and undefined."""

    @abstractmethod
    def abandon(self) -> Operations:
        """The step has failed or was cancelled: forgets its needs. Operations under way complete as usual."""

    @abstractmethod
    def residency(self, key: ExpertKey) -> Residency:
        """The stable state of an expert."""

    @abstractmethod
    def resident_counts(self) -> Counter[tuple[int, Residency]]:
        """Experts by layer and state, those that are not absent; for the metrics.

        Thread: any. What is decided meanwhile may or may not be in it.
        """

    @abstractmethod
    def slot_counts(self) -> dict[str, int]:
        """Arena slots by use, for the metrics: full and packed (valid content), loading, recovering, free."""
