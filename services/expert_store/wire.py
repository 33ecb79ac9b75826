"""The nouns of the internal protocol to and from the domain's; messages are checked here, once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.expert_store.operations import ReadResult
from zipmoe.errors import InvalidRequest, ZipMoeError
from zipmoe.internal.v1 import expert_store_pb2, types_pb2
from zipmoe.residency.base import Read
from zipmoe.rpc.status import operation_status
from zipmoe.types import ExpertKey, Part, SlotRef


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


def parts_of(bits: int) -> Part:
    """The parts of an expert that arrived.

    Raises:
        InvalidRequest: no part, or one that does not exist.
    """
    if not Part.NONE < bits <= Part.ALL:
        raise InvalidRequest(f"parts have to be 1 (E), 2 (SM) or 3 (both), not {bits}")
    return Part(bits)


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


def reads_of(request: expert_store_pb2.ReadChunksRequest) -> tuple[list[Read], list[ReadResult]]:
    """The well-formed reads of a batch that arrived, and the refusals of the others."""
    reads: list[Read] = []
    refused: list[ReadResult] = []
    for message in request.reads:
        read = _read_of(message)
        if isinstance(read, Read):
            reads.append(read)
        else:
            refused.append(ReadResult(message.operation_id, read))
    return reads, refused


def reads_message(releases: Sequence[SlotRef], reads: Sequence[Read]) -> expert_store_pb2.ReadChunksRequest:
    """A batch as it travels."""
    return expert_store_pb2.ReadChunksRequest(
        releases=[slot_message(ref) for ref in releases],
        reads=[
            expert_store_pb2.ReadOperation(
                operation_id=read.operation_id,
                key=key_message(read.key),
                parts=int(read.parts),
                slot=slot_message(read.chunk_slot),
            )
            for read in reads
        ],
    )


def completed_message(result: ReadResult) -> expert_store_pb2.ReadChunksResponse:
    """A result as it travels."""
    return expert_store_pb2.ReadChunksResponse(
        completed=expert_store_pb2.ReadCompleted(
            operation_id=result.operation_id,
            status=operation_status(result.error),
            bytes_read=result.bytes_read,
            read_s=result.read_s,
        )
    )


def _read_of(message: expert_store_pb2.ReadOperation) -> Read | ZipMoeError:
    if not message.HasField("key") or not message.HasField("slot"):
        return InvalidRequest(f"read {message.operation_id} names no expert or no slot")
    try:
        parts = parts_of(message.parts)
    except InvalidRequest as error:
        return error
    return Read(message.operation_id, key_of(message.key), parts, slot_of(message.slot))
