"""Converts messages of the internal protocol to and from domain types; checks every message that arrives.

The decoder's `wire` uses the same conversions of slots, experts, reads, releases and deadlines.
"""

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
    """Location of an arena, and number and size of the slots.

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
    """Converts a slot reference to a message."""
    return types_pb2.SlotRef(
        owner_id=ref.owner_id, arena_epoch=ref.arena_epoch, slot=ref.slot, generation=ref.generation
    )


def slot_of(message: types_pb2.SlotRef) -> SlotRef:
    """Converts a message to a slot reference."""
    return SlotRef(message.owner_id, message.arena_epoch, message.slot, message.generation)


def key_message(key: ExpertKey) -> types_pb2.ExpertKey:
    """Converts an expert key to a message."""
    return types_pb2.ExpertKey(layer=key.layer, expert=key.expert)


def key_of(message: types_pb2.ExpertKey) -> ExpertKey:
    """Converts a message to an expert key."""
    return ExpertKey(message.layer, message.expert)


def urgency_of(number: int) -> Urgency:
    """Converts a number of a message to an urgency.

    Raises:
        InvalidRequest: there is no such urgency.
    """
    try:
        return Urgency(number)
    except ValueError:
        raise InvalidRequest(f"urgency has to be 0 (needed), 1 (a prefetch) or 2 (a fill), not {number}") from None


def releases_of(pool: Pool, refs: Iterable[types_pb2.SlotRef]) -> list[Release]:
    """Converts messages to releases of a pool's slots."""
    return [Release(pool, slot_of(ref)) for ref in refs]


def release_messages(pool: Pool, operations: Operations) -> list[types_pb2.SlotRef]:
    """Converts the releases of a pool's slots to messages."""
    return [slot_message(release.slot) for release in operations.releases if release.pool is pool]


def deadline_of(message: pb.ReadChunksRequest | decoder_pb2.FetchExpertsRequest) -> float:
    """Converts the remaining time of an arriving batch to a deadline on the local monotonic clock; infinite if absent.

    Messages carry the remaining seconds, since the clocks of two hosts have nothing in common. The messages
    to store and decoder have the same field.
    """
    return time.monotonic() + message.remaining_s if message.HasField("remaining_s") else math.inf


def remaining_s(operations: Operations) -> float | None:
    """Returns the seconds from now to a batch's deadline, negative after the deadline; None without a deadline."""
    return None if math.isinf(operations.deadline_s) else operations.deadline_s - time.monotonic()


def read_of(message: pb.ReadOperation | decoder_pb2.ReadFetch) -> Read:
    """Converts a message to a read; the messages to store and decoder have the same fields.

    Raises:
        InvalidRequest: the message names no expert or no slot, or an urgency that does not exist.
    """
    e_slot = slot_of(message.e_slot) if message.HasField("e_slot") else None
    sm_slot = slot_of(message.sm_slot) if message.HasField("sm_slot") else None
    parts = (Part.E if e_slot else Part.NONE) | (Part.SM if sm_slot else Part.NONE)
    if not message.HasField("key") or not parts:
        raise InvalidRequest(f"read {message.operation_id} names no expert or no slot")
    return Read(message.operation_id, key_of(message.key), parts, e_slot, sm_slot, urgency_of(message.urgency))


def read_message(kind: Callable[..., _Message], read: Read) -> _Message:
    """Converts a read to a message of the `kind` that store or decoder takes."""
    return kind(
        operation_id=read.operation_id,
        key=key_message(read.key),
        e_slot=None if read.e_slot is None else slot_message(read.e_slot),
        sm_slot=None if read.sm_slot is None else slot_message(read.sm_slot),
        urgency=int(read.urgency),
    )


def arena_message(arena: ArenaDescription) -> types_pb2.ArenaDescriptor:
    """Converts an arena's description to a message."""
    return types_pb2.ArenaDescriptor(
        owner_id=arena.owner_id,
        arena_epoch=arena.arena_epoch,
        broker_path=arena.broker_path,
        slot_bytes=arena.slot_bytes,
        slot_count=arena.slot_count,
    )


def arena_of(message: types_pb2.ArenaDescriptor) -> ArenaDescription:
    """Converts a message to an arena's description."""
    return ArenaDescription(
        message.owner_id, message.arena_epoch, message.broker_path, message.slot_bytes, message.slot_count
    )


def operations_of(request: pb.ReadChunksRequest) -> tuple[Operations, list[ReadResult]]:
    """Converts a message to a batch.

    Returns:
        The well-formed operations, and the refusals of the malformed ones.
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
    """Converts the store's share of a batch to a message."""
    return pb.ReadChunksRequest(
        cancels=operations.cancels,
        e_releases=release_messages(Pool.E, operations),
        sm_releases=release_messages(Pool.SM, operations),
        reads=[read_message(pb.ReadOperation, read) for read in operations.reads],
        remaining_s=remaining_s(operations),
    )


def completed_message(result: ReadResult) -> pb.ReadChunksResponse:
    """Converts a result to a message."""
    return pb.ReadChunksResponse(
        completed=pb.ReadCompleted(
            operation_id=result.operation_id,
            status=operation_status(result.error),
            bytes_read=result.bytes_read,
            read_s=result.read_s,
            first_tensor_only=result.first_tensor_only,
        )
    )
