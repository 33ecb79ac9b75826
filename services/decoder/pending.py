"""A recovery between being asked for and being reported, and the two chunk slots that it depends on."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from zipmoe.services.decoder.job import RecoverJob
from zipmoe.types import ExpertKey


class ReadStage(enum.IntEnum):
    """How far the read into a chunk slot has come."""

    BEGUN = 0
    FIRST_TENSOR = 1
    WHOLE = 2
    FAILED = 3


@dataclass(slots=True)
class ChunkSlot:
    """One use of one chunk slot.

    Attributes:
        key: the expert whose E-chunks or SM-chunks are in it.
        stage: how much of them is.
        waiting: recoveries that go on when the read does.
        pin_count: recoveries that need the content, waiting ones included.
        released: whether the client is done with it; the store is told when the last pin goes.
    """

    key: ExpertKey
    stage: ReadStage = ReadStage.BEGUN
    waiting: list[PendingRecovery] = field(default_factory=list)
    pin_count: int = 0
    released: bool = False

    @property
    def reading(self) -> bool:
        """Whether the store is still reading into it."""
        return self.stage < ReadStage.WHOLE


@dataclass(slots=True, eq=False)
class PendingRecovery:
    """One recovery that has not been reported.

    It works on the first tensor as soon as both slots hold that one's chunks. It is not reported before both reads
    have ended, even where it has failed earlier.

    Attributes:
        job: the recovery.
        e_chunks: the slot of its E-chunks.
        sm_chunks: the slot of its SM-chunks.
        begun: whether the workers have it.
        over: whether it has ended, with them or without having begun.
    """

    job: RecoverJob
    e_chunks: ChunkSlot
    sm_chunks: ChunkSlot
    begun: bool = False
    over: bool = False

    def attach(self) -> None:
        """Pins both slots, and waits for those that are still being read into."""
        for chunk in (self.e_chunks, self.sm_chunks):
            chunk.pin_count += 1
            if chunk.reading:
                chunk.waiting.append(self)

    @property
    def reading(self) -> bool:
        """Whether a read that it waits for is under way."""
        return self.e_chunks.reading or self.sm_chunks.reading

    @property
    def stage(self) -> ReadStage:
        """How much of the expert is there in both slots."""
        return min(self.e_chunks.stage, self.sm_chunks.stage)
