"""Converts messages of the internal protocol to and from domain types; checks every message that arrives.

Router, decoder and store say the same to each other: `Operations` go down, `Completed` comes up. So each type has one
converter for both links.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from zipmoe.arena.description import ArenaDescription
from zipmoe.errors import InvalidRequest
from zipmoe.internal.v1 import types_pb2 as pb
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.residency.pools import Completed, Operations, Pool, Read, Recover, Release, Urgency
from zipmoe.rpc.status import error_of, operation_status
from zipmoe.types import ExpertKey, Part, SlotRef


def slot_message(ref: SlotRef) -> pb.SlotRef:
    """Converts a slot reference to a message."""
    return pb.SlotRef(owner_id=ref.owner_id, arena_epoch=ref.arena_epoch, slot=ref.slot, generation=ref.generation)


def slot_of(message: pb.SlotRef) -> SlotRef:
    """Converts a message to a slot reference."""
    return SlotRef(message.owner_id, message.arena_epoch, message.slot, message.generation)


def key_message(key: ExpertKey) -> pb.ExpertKey:
    """Converts an expert key to a message."""
    return pb.ExpertKey(layer=key.layer, expert=key.expert)


def key_of(message: pb.ExpertKey) -> ExpertKey:
    """Converts a message to an expert key."""
    return ExpertKey(message.layer, message.expert)


def arena_message(arena: ArenaDescription) -> pb.ArenaDescriptor:
    """Converts an arena's description to a message."""
    return pb.ArenaDescriptor(
        owner_id=arena.owner_id,
        arena_epoch=arena.arena_epoch,
        broker_path=arena.broker_path,
        slot_bytes=arena.slot_bytes,
        slot_count=arena.slot_count,
    )


def arena_of(message: pb.ArenaDescriptor) -> ArenaDescription:
    """Converts a message to an arena's description."""
    return ArenaDescription(
        message.owner_id, message.arena_epoch, message.broker_path, message.slot_bytes, message.slot_count
    )


def opened_message(first_generations: PoolSizes) -> pb.SessionOpened:
    """Converts the smallest generations that a session may use on each arena to a message; 0 without an arena."""
    return pb.SessionOpened(
        first_e_generation=first_generations.e,
        first_sm_generation=first_generations.sm,
        first_tensor_generation=first_generations.tensor,
    )


def generations_of(message: pb.SessionOpened) -> PoolSizes:
    """Converts a message to the smallest generations that a session may use on each arena."""
    return PoolSizes(message.first_e_generation, message.first_sm_generation, message.first_tensor_generation)


def operations_message(operations: Operations) -> pb.Operations:
    """Converts a batch to a message.

    The message carries the seconds that are left until the deadline, negative after it: clocks of two hosts have
    nothing in common.
    """
    endless = math.isinf(operations.deadline_s)
    return pb.Operations(
        cancels=operations.cancels,
        e_releases=_release_messages(Pool.E, operations),
        sm_releases=_release_messages(Pool.SM, operations),
        tensor_releases=_release_messages(Pool.TENSOR, operations),
        reads=[_read_message(read) for read in operations.reads],
        recoveries=[_recover_message(recovery) for recovery in operations.recoveries],
        remaining_s=None if endless else operations.deadline_s - time.monotonic(),
    )


def operations_of(message: pb.Operations) -> tuple[Operations, list[Completed]]:
    """Converts a message to a batch, with the deadline on the local monotonic clock.

    Returns:
        The well-formed operations, and the refusals of the malformed ones.
    """
    operations = Operations(
        cancels=list(message.cancels),
        releases=[
            *_releases_of(Pool.E, message.e_releases),
            *_releases_of(Pool.SM, message.sm_releases),
            *_releases_of(Pool.TENSOR, message.tensor_releases),
        ],
        deadline_s=time.monotonic() + message.remaining_s if message.HasField("remaining_s") else math.inf,
    )
    refused: list[Completed] = []
    for read in message.reads:
        try:
            operations.reads.append(_read_of(read))
        except InvalidRequest as refusal:
            refused.append(Completed(read.operation_id, refusal))
    for recovery in message.recoveries:
        try:
            operations.recoveries.append(_recover_of(recovery))
        except InvalidRequest as refusal:
            refused.append(Completed(recovery.operation_id, refusal))
    return operations, refused


def completed_message(completed: Completed) -> pb.Completed:
    """Converts a result to a message."""
    return pb.Completed(
        operation_id=completed.operation_id,
        status=operation_status(completed.error),
        bytes_read=completed.bytes_read,
        work_s=completed.work_s,
        first_tensor_only=completed.first_tensor_only,
    )


def completed_of(message: pb.Completed) -> Completed:
    """Converts a message to a result."""
    return Completed(
        message.operation_id, error_of(message.status), message.bytes_read, message.work_s, message.first_tensor_only
    )


def _release_messages(pool: Pool, operations: Operations) -> list[pb.SlotRef]:
    return [slot_message(release.slot) for release in operations.releases if release.pool is pool]


def _releases_of(pool: Pool, refs: Iterable[pb.SlotRef]) -> list[Release]:
    return [Release(pool, slot_of(ref)) for ref in refs]


def _read_message(read: Read) -> pb.Read:
    return pb.Read(
        operation_id=read.operation_id,
        key=key_message(read.key),
        e_slot=None if read.e_slot is None else slot_message(read.e_slot),
        sm_slot=None if read.sm_slot is None else slot_message(read.sm_slot),
        urgency=int(read.urgency),
    )


def _read_of(message: pb.Read) -> Read:
    e_slot = slot_of(message.e_slot) if message.HasField("e_slot") else None
    sm_slot = slot_of(message.sm_slot) if message.HasField("sm_slot") else None
    parts = (Part.E if e_slot else Part.NONE) | (Part.SM if sm_slot else Part.NONE)
    if not message.HasField("key") or not parts:
        raise InvalidRequest(f"read {message.operation_id} names no expert or no slot")
    return Read(message.operation_id, key_of(message.key), parts, e_slot, sm_slot, _urgency_of(message.urgency))


def _recover_message(recovery: Recover) -> pb.Recover:
    return pb.Recover(
        operation_id=recovery.operation_id,
        key=key_message(recovery.key),
        e_slot=slot_message(recovery.e_slot),
        sm_slot=slot_message(recovery.sm_slot),
        tensor_slot=slot_message(recovery.tensor_slot),
        urgency=int(recovery.urgency),
    )


def _recover_of(message: pb.Recover) -> Recover:
    if not message.HasField("key") or not message.HasField("tensor_slot"):
        raise InvalidRequest(f"recovery {message.operation_id} names no expert or no tensor slot")
    if not message.HasField("e_slot") or not message.HasField("sm_slot"):
        raise InvalidRequest(f"recovery {message.operation_id} does not name both chunk slots")
    return Recover(
        message.operation_id,
        key_of(message.key),
        slot_of(message.e_slot),
        slot_of(message.sm_slot),
        slot_of(message.tensor_slot),
        _urgency_of(message.urgency),
    )


def _urgency_of(number: int) -> Urgency:
    try:
        return Urgency(number)
    except ValueError:
        raise InvalidRequest(f"urgency has to be 0 (needed), 1 (a prefetch) or 2 (a fill), not {number}") from None
