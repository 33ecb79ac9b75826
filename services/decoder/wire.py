"""Converts messages of the internal protocol to and from domain types; checks every message that arrives."""

from __future__ import annotations

from collections.abc import Sequence

from zipmoe.errors import InvalidRequest
from zipmoe.internal.v1 import decoder_pb2 as pb
from zipmoe.residency.pools import Operations, Pool, Recover
from zipmoe.rpc.status import error_of, operation_status
from zipmoe.services.decoder.operations import FetchResult
from zipmoe.services.expert_store.client import (
    deadline_of,
    key_message,
    key_of,
    read_message,
    read_of,
    release_messages,
    releases_of,
    remaining_s,
    slot_message,
    slot_of,
    urgency_of,
)


def operations_message(operations: Operations) -> pb.FetchExpertsRequest:
    """Converts a batch to a message."""
    return pb.FetchExpertsRequest(
        cancels=operations.cancels,
        e_releases=release_messages(Pool.E, operations),
        sm_releases=release_messages(Pool.SM, operations),
        tensor_releases=release_messages(Pool.TENSOR, operations),
        reads=[read_message(pb.ReadFetch, read) for read in operations.reads],
        recoveries=[
            pb.RecoverFetch(
                operation_id=recovery.operation_id,
                key=key_message(recovery.key),
                e_slot=slot_message(recovery.e_slot),
                sm_slot=slot_message(recovery.sm_slot),
                tensor_slot=slot_message(recovery.tensor_slot),
                urgency=int(recovery.urgency),
            )
            for recovery in operations.recoveries
        ],
        remaining_s=remaining_s(operations),
    )


def operations_of(request: pb.FetchExpertsRequest) -> tuple[Operations, list[FetchResult]]:
    """Converts a message to a batch.

    Returns:
        The well-formed operations, and the refusals of the malformed ones.
    """
    operations = Operations(
        cancels=list(request.cancels),
        releases=[
            *releases_of(Pool.E, request.e_releases),
            *releases_of(Pool.SM, request.sm_releases),
            *releases_of(Pool.TENSOR, request.tensor_releases),
        ],
        deadline_s=deadline_of(request),
    )
    refused: list[FetchResult] = []
    for message in request.reads:
        try:
            operations.reads.append(read_of(message))
        except InvalidRequest as refusal:
            refused.append(FetchResult(message.operation_id, refusal))
    for order in request.recoveries:
        try:
            operations.recoveries.append(_recover_of(order))
        except InvalidRequest as refusal:
            refused.append(FetchResult(order.operation_id, refusal))
    return operations, refused


def completed_message(results: Sequence[FetchResult]) -> pb.FetchExpertsResponse:
    """Converts results to a message."""
    return pb.FetchExpertsResponse(
        completed=pb.FetchesCompleted(
            completions=[
                pb.FetchCompleted(
                    operation_id=result.operation_id,
                    status=operation_status(result.error),
                    bytes_read=result.bytes_read,
                    work_s=result.work_s,
                    first_tensor_only=result.first_tensor_only,
                )
                for result in results
            ]
        )
    )


def results_of(response: pb.FetchExpertsResponse) -> list[FetchResult]:
    """Converts a message to results."""
    return [
        FetchResult(
            completed.operation_id,
            error_of(completed.status),
            completed.bytes_read,
            completed.work_s,
            completed.first_tensor_only,
        )
        for completed in response.completed.completions
    ]


def _recover_of(message: pb.RecoverFetch) -> Recover:
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
        urgency_of(message.urgency),
    )
