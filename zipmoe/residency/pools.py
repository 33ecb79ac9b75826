"""What the brain and whoever executes its decisions tell each other, where every arena slot is of one of three pools.

    E pool        the E-chunks of one expert         about a quarter of a record
    SM pool       the SM-chunks of one expert        the rest of it
    tensor pool   one recovered expert               bf16

What an expert holds is its residency: nothing ABSENT, an E slot E_ONLY, an SM slot SM_ONLY, both PACKED, a tensor FULL.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from zipmoe.residency.state import Residency
from zipmoe.types import ExpertKey, Part, SlotRef


class Pool(enum.Enum):
    """What a slot can hold."""

    E = "e"
    SM = "sm"
    TENSOR = "tensor"

    __hash__ = object.__hash__  # see Residency


class Phase(enum.StrEnum):
    """What a step does: read a prompt, or generate a token for every running request."""

    PREFILL = "prefill"
    DECODE = "decode"


class Urgency(enum.IntEnum):
    """Who waits for an operation; the smaller goes first."""

    NEEDED = 0
    PREFETCH = 1
    FILL = 2


class Grid(NamedTuple):
    """The experts of a model: `expert_count` is that of the layer with most."""

    layer_count: int
    expert_count: int

    @property
    def size(self) -> int:
        """Length of an array with an entry for every expert, in the order of `key`."""
        return self.layer_count * self.expert_count

    def key(self, index: int) -> ExpertKey:
        """The expert at a place of such an array: layer by layer."""
        return ExpertKey(*divmod(index, self.expert_count))


class PoolSlots(NamedTuple):
    """The slots of one pool that the brain may assign: indices `0 .. slot_count - 1`."""

    pool: Pool
    owner_id: str
    arena_epoch: int
    slot_count: int
    first_generation: int


class DecoderSlots(NamedTuple):
    """A decoder that has attached, and what it brings: at least one slot for E and for SM; tensor slots as planned."""

    decoder_id: str
    worker_count: int
    pools: Sequence[PoolSlots]


class Release(NamedTuple):
    """Give a slot back: the brain no longer relies on what is in it."""

    pool: Pool
    slot: SlotRef


class Read(NamedTuple):
    """Read `parts` of an expert, one contiguous run of its record, into a slot for each part; None for the others."""

    operation_id: int
    key: ExpertKey
    parts: Part
    e_slot: SlotRef | None
    sm_slot: SlotRef | None
    urgency: Urgency


class Recover(NamedTuple):
    """Recover an expert's tensor from its chunks, once both are there, into a tensor slot."""

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
        cancels: ids of reads that are no longer wanted. One that has not begun is dropped and completed with an error;
            one that has begun completes as usual.
        deadline_s: on `time.monotonic`, until when somebody waits for what is needed of this; the brain, which knows no
            clock, leaves it to whoever sends. What has not begun by then is dropped and completed with an error.
    """

    cancels: list[int] = field(default_factory=list)
    releases: list[Release] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    recoveries: list[Recover] = field(default_factory=list)
    deadline_s: float = math.inf

    def begin_by_s(self, operation: Read | Recover) -> float:
        """By when a read or recovery of this has to have begun; the others, for whoever comes next, never."""
        return self.deadline_s if operation.urgency is Urgency.NEEDED else math.inf

    def __bool__(self) -> bool:
        return bool(self.releases or self.reads or self.recoveries or self.cancels)


class Usable(NamedTuple):
    """An expert that can be computed from the slots of `form`, FULL or PACKED, until `done` is called for it.

    Unless `complete`, only its first tensor is there so far; `Brain.complete` tells when the others are.
    """

    key: ExpertKey
    form: Residency
    tensor_slot: SlotRef | None
    e_slot: SlotRef | None
    sm_slot: SlotRef | None
    complete: bool = True
