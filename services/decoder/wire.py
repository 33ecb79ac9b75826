"""Fetches of the internal protocol to and from the domain's; messages are checked here, once."""

from __future__ import annotations

from collections.abc import Sequence

from services.decoder.operations import FetchResult
from services.expert_store.client import key_of, parts_of, slot_of
from zipmoe.errors import InvalidRequest, ZipMoeError
from zipmoe.internal.v1 import decoder_pb2 as pb
from zipmoe.residency.base import Operations, Read, Recover
from zipmoe.rpc.status import operation_status


def operations_of(request: pb.FetchExpertsRequest) -> tuple[Operations, list[FetchResult]]:
    """A batch that arrived.

    Returns:
        The well-formed operations, and the refusals of the others.
    """
    operations = Operations(
        [slot_of(ref) for ref in request.chunk_releases], [slot_of(ref) for ref in request.tensor_releases]
    )
    refused: list[FetchResult] = []
    for message in request.reads:
        read = _read_of(message)
        if isinstance(read, Read):
            operations.reads.append(read)
        else:
            refused.append(FetchResult(message.operation_id, read))
    for order in request.recoveries:
        recover = _recover_of(order)
        if isinstance(recover, Recover):
            operations.recoveries.append(recover)
        else:
            refused.append(FetchResult(order.operation_id, recover))
    return operations, refused


def completed_message(results: Sequence[FetchResult]) -> pb.FetchExpertsResponse:
    """Results as they travel."""
    return pb.FetchExpertsResponse(
        completed=pb.FetchesCompleted(
            completions=[
                pb.FetchCompleted(
                    operation_id=result.operation_id,
                    status=operation_status(result.error),
                    bytes_read=result.bytes_read,
                    work_s=result.work_s,
                )
                for result in results
            ]
        )
    )


def _read_of(message: pb.ReadFetch) -> Read | ZipMoeError:
    if not message.HasField("key") or not message.HasField("chunk_slot"):
        return InvalidRequest(f"read {message.operation_id} names no expert or no slot")
    try:
        parts = parts_of(message.parts)
    except InvalidRequest as error:
        return error
    return Read(message.operation_id, key_of(message.key), parts, slot_of(message.chunk_slot))


def _recover_of(message: pb.RecoverFetch) -> Recover | ZipMoeError:
    if not (message.HasField("key") and message.HasField("chunk_slot") and message.HasField("tensor_slot")):
        return InvalidRequest(f"recovery {message.operation_id} names no expert or not both slots")
    return Recover(message.operation_id, key_of(message.key), slot_of(message.chunk_slot), slot_of(message.tensor_slot))
