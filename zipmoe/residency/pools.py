"""Vocabulary of the brain's interface: pools, slots, phases, urgencies, operations and reports on them.

Every arena slot belongs to one of three pools:

    E pool        the E-chunks of one expert         about a quarter of a record
    SM pool       the SM-chunks of one expert        the rest of the record
    tensor pool   one recovered expert               bf16

The valid slots of an expert make its residency state: none ABSENT, E alone E_ONLY, SM alone SM_ONLY, E and SM PACKED,
a tensor FULL.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from zipmoe.errors import ZipMoeError
from zipmoe.residency.state import Residency
from zipmoe.types import ExpertKey, Part, SlotRef


class Pool(enum.Enum):
    """Kind of slot, by its content."""

    E = "e"
    SM = "sm"
    TENSOR = "tensor"

    __hash__ = object.__hash__  # see Residency


class Phase(enum.StrEnum):
    """Kind of step: a prefill computes prompts, a decode step generates a token for every running request."""

    PREFILL = "prefill"
    DECODE = "decode"


class Urgency(enum.IntEnum):
    """Priority of an operation; smaller values go first. The running step waits for NEEDED operations."""

    NEEDED = 0
    PREFETCH = 1
    FILL = 2


class Grid(NamedTuple):
    """Shape of a model's experts; `expert_count` is the count of the layer with the most experts."""

    layer_count: int
    expert_count: int

    @property
    def size(self) -> int:
        """Length of an array with an entry for every expert."""
        return self.layer_count * self.expert_count

    def key(self, index: int) -> ExpertKey:
        """Returns the expert at an index of an array with an entry for every expert, layer by layer."""
        return ExpertKey(*divmod(index, self.expert_count))


class PoolSlots(NamedTuple):
    """Slots of one pool that the brain may assign, with indices `0 .. slot_count - 1`."""

    pool: Pool
    owner_id: str
    arena_epoch: int
    slot_count: int
    first_generation: int


class DecoderSlots(NamedTuple):
    """Pools of a decoder that attaches: at least one E slot and one SM slot, and tensor slots as planned."""

    decoder_id: str
    worker_count: int
    pools: Sequence[PoolSlots]


class Release(NamedTuple):
    """Releases a slot; the brain no longer relies on the slot's content."""

    pool: Pool
    slot: SlotRef


class Read(NamedTuple):
    """Reads `parts` of an expert, a contiguous range of the record, into a slot for each part.

    The slot of a part that is not read is None.
    """

    operation_id: int
    key: ExpertKey
    parts: Part
    e_slot: SlotRef | None
    sm_slot: SlotRef | None
    urgency: Urgency


class Recover(NamedTuple):
    """Recovers an expert into a tensor slot once its E-chunks and SM-chunks have arrived."""

    operation_id: int
    key: ExpertKey
    e_slot: SlotRef
    sm_slot: SlotRef
    tensor_slot: SlotRef
    urgency: Urgency


@dataclass(slots=True)
class Operations:
    """Work for the decoders: cancels and releases first, then reads and recoveries, most urgent first.

    Attributes:
        cancels: ids of reads that are no longer wanted. A read that has not begun is dropped and completes with an
            error. A read that has begun completes as usual.
        releases: slots to release.
        reads: reads to start.
        recoveries: recoveries to start.
        deadline_s: last deadline of the requests that wait for the NEEDED operations, on `time.monotonic`. The sender
            of the message sets it, since the brain has no clock. A NEEDED operation that has not begun by then is
            dropped and completes with an error.
    """

    cancels: list[int] = field(default_factory=list)
    releases: list[Release] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    recoveries: list[Recover] = field(default_factory=list)
    deadline_s: float = math.inf

    def begin_by_s(self, operation: Read | Recover) -> float:
        """Returns the time by which a read or recovery has to begin; `inf` unless the operation is NEEDED."""
        return self.deadline_s if operation.urgency is Urgency.NEEDED else math.inf

    def __bool__(self) -> bool:
        return bool(self.releases or self.reads or self.recoveries or self.cancels)


class Completed(NamedTuple):
    """Report on a read or recovery: the operation has ended, or the first tensor is complete.

    Attributes:
        operation_id: id of the operation.
        error: cause of the failure; None if the parts or the tensors are in their slots. After an error the slots that
            the operation was to write are free and their content is undefined.
        bytes_read: bytes that came from disk; 0 for a recovery.
        work_s: seconds that the operation itself took, waiting excluded: of a read, from the first request to the disk
            until the last checksum was verified.
        first_tensor_only: the chunks or the weights of the expert's first tensor are complete, the rest is under way;
            another report follows when the operation has ended. An operation has at most one such report.
    """

    operation_id: int
    error: ZipMoeError | None
    bytes_read: int = 0
    work_s: float = 0.0
    first_tensor_only: bool = False


class SessionLost(NamedTuple):
    """A session has ended without a `close` by the client; no report follows, all leases are gone."""

    error: ZipMoeError


class Usable(NamedTuple):
    """An expert that can be computed from the slots of `form` (FULL or PACKED) until `Brain.done` is called.

    If not `complete`, only the first tensor has arrived; `Brain.complete` tells when the rest has.
    """

    key: ExpertKey
    form: Residency
    tensor_slot: SlotRef | None
    e_slot: SlotRef | None
    sm_slot: SlotRef | None
    complete: bool = True
