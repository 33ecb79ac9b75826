"""Table of ZipMoE's errors and gRPC's status codes, and the conversions in both directions.

On the wire an error is a status code and a message, the class name in the trailing metadata `zipmoe-error`, and
google.rpc details. ErrorInfo is always present, RetryInfo where waiting helps. The client raises the same class again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn, cast

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from zipmoe import errors
from zipmoe.errors import ZipMoeError
from zipmoe.internal.v1 import types_pb2

STATUS_OF: dict[type[ZipMoeError], grpc.StatusCode] = {
    ZipMoeError: grpc.StatusCode.INTERNAL,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ContextLengthExceeded: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StaleSlot: grpc.StatusCode.ABORTED,
    errors.SlotLeased: grpc.StatusCode.ABORTED,
    errors.UnsupportedStore: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnsupportedModel: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StoreMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    errors.BudgetInfeasible: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AlreadyRunning: grpc.StatusCode.ALREADY_EXISTS,
    errors.CorruptData: grpc.StatusCode.DATA_LOSS,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}

# For a status without a class name: failures of gRPC itself, proxies, servers other than ZipMoE's.
_CLASS_OF: dict[grpc.StatusCode, type[ZipMoeError]] = {
    grpc.StatusCode.CANCELLED: errors.Unavailable,
    grpc.StatusCode.UNKNOWN: errors.InternalError,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyRunning,
    grpc.StatusCode.PERMISSION_DENIED: errors.Unauthenticated,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.FAILED_PRECONDITION: errors.InvalidRequest,
    grpc.StatusCode.ABORTED: errors.Unavailable,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: errors.InvalidRequest,
    grpc.StatusCode.INTERNAL: errors.InternalError,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DATA_LOSS: errors.CorruptData,
}

ERROR_KEY = "zipmoe-error"
INTERNAL_MESSAGE = "internal error; its details are in the log of the process"

_DOMAIN = "zipmoe"
_CLASSES = {error_class.__name__: error_class for error_class in STATUS_OF}
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# All trailing metadata together must stay under 8 KiB and contains the message twice, once percent-encoded.
_MAX_MESSAGE_BYTES = 1200
_MAX_NEXT_STEP_BYTES = 400


def status_code(error: ZipMoeError) -> grpc.StatusCode:
    """Returns the status code of an error; a class outside the table counts as its nearest base inside."""
    return next(STATUS_OF[base] for base in type(error).__mro__ if base in STATUS_OF)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: ZipMoeError) -> NoReturn:
    """Ends an RPC with an error.

    Raises:
        grpc.aio.AbortError: always; the handler must let it pass.
    """
    status = rpc_status.to_status(_status_message(error))
    metadata = ((ERROR_KEY, type(error).__name__), *status.trailing_metadata)
    await context.abort(status.code, status.details, metadata)
    raise AssertionError("context.abort returned")


def to_error(failure: grpc.RpcError) -> ZipMoeError:
    """Converts a failed RPC into an error of the class that the server raised, or of the nearest class.

    Args:
        failure: the exception of a synchronous or an asyncio stub.
    """
    code: grpc.StatusCode = failure.code()
    message = failure.details() or code.name.lower().replace("_", " ")
    name = next((value for key, value in _metadata(failure) if key == ERROR_KEY), None)
    error_class = _CLASSES.get(str(name))
    if error_class is None:
        return _foreign_error(code, message)
    info, retry_after_s = _details(failure)
    next_step = info.get("next_step") or None
    if issubclass(error_class, errors.ResourceExhausted) and retry_after_s is not None:
        return error_class(message, retry_after_s=retry_after_s, next_step=next_step)
    if issubclass(error_class, errors.BudgetInfeasible):
        smallest = info.get("smallest_bytes", "0")
        return error_class(message, smallest_bytes=int(smallest) if smallest.isdigit() else 0, next_step=next_step)
    return error_class(message, next_step=next_step)


def operation_status(error: ZipMoeError | None) -> types_pb2.OperationStatus:
    """Returns the outcome of an operation of the internal protocol; an `error` of None is success."""
    if error is None:
        return types_pb2.OperationStatus()
    code = status_code(error).value[0]
    message = _cut(error.message, _MAX_MESSAGE_BYTES)
    return types_pb2.OperationStatus(code=code, error=type(error).__name__, message=message)


def error_of(status: types_pb2.OperationStatus) -> ZipMoeError | None:
    """Returns the error of an `OperationStatus`, or None for success; the inverse of `operation_status`."""
    if status.code == 0:
        return None
    error_class = _CLASSES.get(status.error)
    if error_class is None:
        return _foreign_error(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message)
    return error_class(status.message)


def _status_message(error: ZipMoeError) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason=type(error).__name__, domain=_DOMAIN)
    info.metadata["next_step"] = _cut(error.diagnostics(), _MAX_NEXT_STEP_BYTES)
    if isinstance(error, errors.BudgetInfeasible):
        info.metadata["smallest_bytes"] = str(error.smallest_bytes)
    details = [_packed(info)]
    if isinstance(error, errors.ResourceExhausted):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(_packed(retry))
    code = status_code(error).value[0]
    return status_pb2.Status(code=code, message=_cut(error.message, _MAX_MESSAGE_BYTES), details=details)


def _packed(detail: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _metadata(failure: grpc.RpcError) -> Iterable[tuple[str, str | bytes]]:
    return cast("Iterable[tuple[str, str | bytes]]", failure.trailing_metadata() or ())


def _details(failure: grpc.RpcError) -> tuple[dict[str, str], float | None]:
    """Returns the metadata of ErrorInfo and the seconds of RetryInfo, if the answer carries them."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_after_s = None
    try:
        status = rpc_status.from_call(cast("grpc.Call", failure))
        for detail in status.details if status is not None else ():
            if not detail.Unpack(info) and detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    except (ValueError, DecodeError):  # damaged, or contradicting code or message: class and text are still used
        return {}, None
    return dict(info.metadata), retry_after_s


def _foreign_error(code: grpc.StatusCode, message: str) -> ZipMoeError:
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        return errors.InvalidRequest(message, next_step="send less in one message")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.InvalidRequest(message, next_step="check the address, and that both ends have the same version")
    return _CLASS_OF.get(code, errors.InternalError)(message)


def _cut(text: str, max_bytes: int) -> str:
    """Shortens a text to `max_bytes` of UTF-8, and replaces surrogates, which come from file names."""
    encoded = text.encode(errors="replace")
    return encoded.decode() if len(encoded) <= max_bytes else encoded[: max_bytes - 4].decode(errors="ignore") + " ..."
