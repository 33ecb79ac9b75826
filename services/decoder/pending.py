"""Recoveries that have been accepted and not yet reported, and the chunk slots that they depend on."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from zipmoe.services.decoder.job import RecoverJob
from zipmoe.types import ExpertKey, SlotRef


class ReadStage(enum.IntEnum):
    """Progress of the read into a chunk slot."""

    BEGUN = 0
    FIRST_TENSOR = 1
    WHOLE = 2
    FAILED = 3


@dataclass(slots=True, eq=False)
class ChunkSlot:
    """A use of a chunk slot, from the read to the release.

    Attributes:
        ref: the slot.
        key: expert of the E-chunks or SM-chunks.
        stage: progress of the read.
        waiting: recoveries that wait for the read.
        pin_count: number of recoveries that need the content, waiting ones included.
        released: whether the client has released the slot; the store is told when the last pin goes.
    """

    ref: SlotRef
    key: ExpertKey
    stage: ReadStage = ReadStage.BEGUN
    waiting: list[PendingRecovery] = field(default_factory=list)
    pin_count: int = 0
    released: bool = False

    @property
    def reading(self) -> bool:
        """Whether the store is still reading into the slot."""
        return self.stage < ReadStage.WHOLE


@dataclass(slots=True, eq=False)
class PendingRecovery:
    """A recovery that has not been reported.

    The recovery of the first tensor begins as soon as both slots hold that tensor's chunks. The end is not reported
    before both reads have ended, even if the recovery has failed earlier.

    Attributes:
        job: the recovery.
        e_chunks: slot of the E-chunks.
        sm_chunks: slot of the SM-chunks.
        begun: whether the workers have the job.
        over: whether the job has ended, in the workers or without having begun.
    """

    job: RecoverJob
    e_chunks: ChunkSlot
    sm_chunks: ChunkSlot
    begun: bool = False
    over: bool = False

    def attach(self) -> None:
        """Pins both slots and joins the waiting recoveries of a slot that is still being read into."""
        for chunk in (self.e_chunks, self.sm_chunks):
            chunk.pin_count += 1
            if chunk.reading:
                chunk.waiting.append(self)

    @property
    def reading(self) -> bool:
        """Whether a read into either slot is under way."""
        return self.e_chunks.reading or self.sm_chunks.reading

    @property
    def stage(self) -> ReadStage:
        """Progress of the read that is further behind."""
        return min(self.e_chunks.stage, self.sm_chunks.stage)
