"""The nouns of the internal protocol to and from the domain's; messages are checked here, once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from zipmoe.arena.arena import Arena
from zipmoe.errors import InvalidRequest
from zipmoe.internal.v1 import expert_store_pb2 as pb
from zipmoe.internal.v1 import types_pb2
from zipmoe.residency.pools import Operations, Pool, Read, Release, Urgency
from zipmoe.rpc.status import operation_status
from zipmoe.services.expert_store.operations import ReadResult
from zipmoe.types import ExpertKey, Part, SlotRef

if TYPE_CHECKING:
    from zipmoe.internal.v1 import decoder_pb2

_Message = TypeVar("_Message")


class ArenaDescription(NamedTuple):
    """Where an arena is and how it is cut into slots.

    Attributes:
        broker_path: path of the UNIX socket that hands out a read-only file descriptor.
        slot_bytes: bytes of one slot, a multiple of 4096.
    """

    owner_id: str
    arena_epoch: int
    broker_path: str
    slot_bytes: int
    slot_count: int

    @classmethod
    def of(cls, arena: Arena, broker_path: Path) -> ArenaDescription:
        """Describes an arena that a broker hands out."""
        return cls(arena.owner_id, arena.epoch, str(broker_path), arena.slot_bytes, arena.slot_count)


def slot_message(ref: SlotRef) -> types_pb2.SlotRef:
    """A slot reference as it travels."""
    return types_pb2.SlotRef(
        owner_id=ref.owner_id, arena_epoch=ref.arena_epoch, slot=ref.slot, generation=ref.generation
    )


def slot_of(message: types_pb2.SlotRef) -> SlotRef:
    """A slot reference that arrived."""
    return SlotRef(message.owner_id, message.arena_epoch, message.slot, message.generation)


def key_message(key: ExpertKey) -> types_pb2.ExpertKey:
    """An expert as it travels."""
    return types_pb2.ExpertKey(layer=key.layer, expert=key.expert)


def key_of(message: types_pb2.ExpertKey) -> ExpertKey:
    """An expert that arrived."""
    return ExpertKey(message.layer, message.expert)


def urgency_of(number: int) -> Urgency:
    """The urgency of an operation that arrived.

    Raises:
        InvalidRequest: there is no such urgency.
    """
    try:
        return Urgency(number)
    except ValueError:
        raise InvalidRequest(f"urgency has to be 0 (needed), 1 (a guess) or 2 (a fill), not {number}") from None


def releases_of(pool: Pool, refs: Iterable[types_pb2.SlotRef]) -> list[Release]:
    """The releases of one pool's slots that arrived."""
    return [Release(pool, slot_of(ref)) for ref in refs]


def release_messages(pool: Pool, operations: Operations) -> list[types_pb2.SlotRef]:
    """The releases of one pool's slots as they travel."""
    return [slot_message(release.slot) for release in operations.releases if release.pool is pool]


def deadline_of(message: pb.ReadChunksRequest | decoder_pb2.FetchExpertsRequest) -> float:
    """The deadline of a batch that arrives now, on this process's monotonic clock; infinite if it has none.

    Store and decoder are told it in the same words, as what remains, since the clocks of two hosts have nothing in
    common.
    """
    return time.monotonic() + message.remaining_s if message.HasField("remaining_s") else math.inf


def remaining_s(operations: Operations) -> float | None:
    """What remains of a batch's deadline now, in seconds, negative if it is over; None if it has none."""
    return None if math.isinf(operations.deadline_s) else operations.deadline_s - time.monotonic()


def read_of(message: pb.ReadOperation | decoder_pb2.ReadFetch) -> Read:
    """A read that arrived; store and decoder are asked for it in the same words.

    Raises:
        InvalidRequest: it names no expert or no slot, or an urgency that does not exist.
    """
    e_slot = slot_of(message.e_slot) if message.HasField("e_slot") else None
    sm_slot = slot_of(message.sm_slot) if message.HasField("sm_slot") else None
    parts = (Part.E if e_slot else Part.NONE) | (Part.SM if sm_slot else Part.NONE)
    if not message.HasField("key") or not parts:
        raise InvalidRequest(f"read {message.operation_id} names no expert or no slot")
    return Read(message.operation_id, key_of(message.key), parts, e_slot, sm_slot, urgency_of(message.urgency))


def read_message(kind: Callable[..., _Message], read: Read) -> _Message:
    """A read as it travels, as a message of the `kind` that store or decoder takes."""
    return kind(
        operation_id=read.operation_id,
        key=key_message(read.key),
        e_slot=None if read.e_slot is None else slot_message(read.e_slot),
        sm_slot=None if read.sm_slot is None else slot_message(read.sm_slot),
        urgency=int(read.urgency),
    )


def arena_message(arena: ArenaDescription) -> types_pb2.ArenaDescriptor:
    """An arena's description as it travels."""
    return types_pb2.ArenaDescriptor(
        owner_id=arena.owner_id,
        arena_epoch=arena.arena_epoch,
        broker_path=arena.broker_path,
        slot_bytes=arena.slot_bytes,
        slot_count=arena.slot_count,
    )


def arena_of(message: types_pb2.ArenaDescriptor) -> ArenaDescription:
    """An arena's description that arrived."""
    return ArenaDescription(
        message.owner_id, message.arena_epoch, message.broker_path, message.slot_bytes, message.slot_count
    )


def operations_of(request: pb.ReadChunksRequest) -> tuple[Operations, list[ReadResult]]:
    """A batch that arrived.

    Returns:
        The well-formed operations, and the refusals of the others.
    """
    operations = Operations(
        cancels=list(request.cancels),
        releases=releases_of(Pool.E, request.e_releases) + releases_of(Pool.SM, request.sm_releases),
        deadline_s=deadline_of(request),
    )
    refused: list[ReadResult] = []
    for message in request.reads:
        try:
            operations.reads.append(read_of(message))
        except InvalidRequest as refusal:
            refused.append(ReadResult(message.operation_id, refusal))
    return operations, refused


def operations_message(operations: Operations) -> pb.ReadChunksRequest:
    """A batch as it travels: what of it is the store's."""
    return pb.ReadChunksRequest(
        cancels=operations.cancels,
        e_releases=release_messages(Pool.E, operations),
        sm_releases=release_messages(Pool.SM, operations),
        reads=[read_message(pb.ReadOperation, read) for read in operations.reads],
        remaining_s=remaining_s(operations),
    )


def completed_message(result: ReadResult) -> pb.ReadChunksResponse:
    """A result as it travels."""
    return pb.ReadChunksResponse(
        completed=pb.ReadCompleted(
            operation_id=result.operation_id,
            status=operation_status(result.error),
            bytes_read=result.bytes_read,
            read_s=result.read_s,
            first_tensor_only=result.first_tensor_only,
        )
    )
