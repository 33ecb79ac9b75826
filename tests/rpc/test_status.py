"""Every error reaches the other side as the class it was, and nothing else ever leaks."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.rpc.echo import KINDS, SERVICE, add_echo, call, call_sync, raising
from zipmoe import errors
from zipmoe.errors import BudgetInfeasible, ResourceExhausted, ZipMoeError
from zipmoe.rpc.client import channel as sync_channel
from zipmoe.rpc.status import STATUS_OF, error_of, operation_status, status_code, to_error
from zipmoe.rpc.testing import served


def all_error_classes(base=ZipMoeError):
    return {base}.union(
        *(all_error_classes(each) for each in base.__subclasses__() if each.__module__ == errors.__name__)
    )


CLASSES = sorted(all_error_classes(), key=lambda each: each.__name__)


def test_every_error_class_has_a_status():
    assert set(STATUS_OF) == all_error_classes()
    assert grpc.StatusCode.OK not in STATUS_OF.values()


def test_a_subclass_that_is_not_in_the_table_counts_as_its_base():
    class Special(errors.NotFound):
        pass

    assert status_code(Special("x")) is grpc.StatusCode.NOT_FOUND


async def received(error, kind="unary_unary"):
    async with served(add_echo(**raising(error))) as test:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(test.channel, kind, b"x")
    return caught.value


class TestOverTheWire:
    @pytest.mark.parametrize("error_class", CLASSES, ids=lambda each: each.__name__)
    async def test_each_class_arrives_as_itself(self, error_class):
        failure = await received(error_class("slot 7 of 4", next_step="count to 4"))
        error = to_error(failure)
        assert type(error) is error_class
        assert (error.message, error.diagnostics()) == ("slot 7 of 4", "count to 4")
        assert failure.code() is STATUS_OF[error_class]

    @pytest.mark.parametrize("kind", KINDS)
    async def test_each_kind_of_rpc_carries_them_after_the_responses_so_far(self, kind):
        async with served(add_echo(**raising(errors.CorruptData("chunk 3 is damaged")))) as test:
            responses = []
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(test.channel, kind, b"x", into=responses)
            assert responses == ([b"first"] if kind.endswith("stream") else [])
            assert type(to_error(caught.value)) is errors.CorruptData

    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_synchronous_client_gets_the_same(self, kind):
        async with served(add_echo(**raising(ResourceExhausted("queue of 8 is full", retry_after_s=0.25)))) as test:

            def use():
                with sync_channel(test.path) as opened, pytest.raises(grpc.RpcError) as caught:
                    call_sync(opened, kind, b"x")
                return to_error(caught.value)

            error = await asyncio.to_thread(use)
        assert (type(error), error.message, error.retry_after_s) == (ResourceExhausted, "queue of 8 is full", 0.25)

    async def test_the_attributes_travel(self):
        error = to_error(await received(ResourceExhausted("full", retry_after_s=2.5)))
        assert error.retry_after_s == 2.5
        error = to_error(await received(BudgetInfeasible("too small", smallest_bytes=1 << 40)))
        assert error.smallest_bytes == 1 << 40

    async def test_any_grpc_client_understands_the_details(self):
        failure = await received(ResourceExhausted("full", retry_after_s=1.5, next_step="wait"))
        assert failure.details() == "full"
        assert failure.trailing_metadata()["zipmoe-error"] == "ResourceExhausted"
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        first, second = rpc_status.from_call(failure).details
        assert first.Unpack(info)
        assert second.Unpack(retry)
        assert (info.reason, info.domain, dict(info.metadata)) == ("ResourceExhausted", "zipmoe", {"next_step": "wait"})
        assert retry.retry_delay.ToTimedelta().total_seconds() == 1.5

    @pytest.mark.parametrize("letter", ["x", "\u4e16", "\n", "\ud800"])
    async def test_a_huge_message_is_cut_not_lost(self, letter):
        error = to_error(await received(errors.NotFound(letter * 100_000, next_step=letter * 100_000)))
        assert type(error) is errors.NotFound
        assert error.message.endswith(" ...")
        assert 1000 < len(error.message.encode()) <= 1200

    async def test_a_file_name_that_is_not_utf_8_does_not_hide_the_error(self):
        name = b"caf\xe9".decode(errors="surrogateescape")
        assert to_error(await received(errors.NotFound(f"no {name}", next_step=name))).message == "no caf?"
        assert error_of(operation_status(errors.NotFound(f"no {name}"))).message == "no caf?"

    async def test_non_ascii_text_survives(self):
        message = "no token 'Grüße, 世界' \u2014 100 % \x07"
        assert to_error(await received(errors.NotFound(message))).message == message


class TestForeignExceptions:
    @pytest.mark.parametrize("kind", KINDS)
    async def test_become_internal_with_a_fixed_text_and_one_logged_traceback(self, kind, caplog, logged):
        failure = await received(KeyError("/secret/path"), kind)
        assert failure.code() is grpc.StatusCode.INTERNAL
        assert failure.details() == "internal error; its details are in the log of the process"
        assert "secret" not in failure.debug_error_string()
        assert type(to_error(failure)) is errors.InternalError
        (event,) = logged
        assert (event["event"], event["method"]) == ("rpc_failed", f"/{SERVICE}/{kind}")
        assert event["exc_info"]
        assert not caplog.records  # gRPC has nothing of its own to say

    async def test_errors_of_ours_are_not_logged(self, logged):
        await received(errors.NotFound("x"))
        assert logged == []


class _BareFailure(grpc.RpcError):
    """What a stub raises when no server of ours has answered."""

    def __init__(self, code, details="", metadata=()):
        self._code, self._details, self._metadata = code, details, metadata

    def code(self):
        return self._code

    def details(self):
        return self._details

    def trailing_metadata(self):
        return self._metadata


class TestBareStatuses:
    @pytest.mark.parametrize("code", [each for each in grpc.StatusCode if each is not grpc.StatusCode.OK])
    def test_each_becomes_one_of_our_errors_with_its_text(self, code):
        error = to_error(_BareFailure(code, "what gRPC says", None))
        assert isinstance(error, ZipMoeError)
        assert type(error) is not ZipMoeError
        assert error.message == "what gRPC says"

    @pytest.mark.parametrize(
        ("code", "error_class"),
        [
            (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
            (grpc.StatusCode.CANCELLED, errors.Unavailable),
            (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
            (grpc.StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
            (grpc.StatusCode.UNIMPLEMENTED, errors.InvalidRequest),
            (grpc.StatusCode.UNKNOWN, errors.InternalError),
        ],
    )
    def test_the_common_ones_say_what_a_caller_can_do(self, code, error_class):
        assert type(to_error(_BareFailure(code))) is error_class

    def test_an_empty_text_becomes_the_codes_name(self):
        assert to_error(_BareFailure(grpc.StatusCode.DATA_LOSS)).message == "data loss"

    def test_a_message_that_is_too_large_is_the_callers_fault(self):
        failure = _BareFailure(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 4)")
        assert type(to_error(failure)) is errors.InvalidRequest

    @pytest.mark.parametrize("name", ["NoSuchClass", "", "Exception", b"NotFound"])
    def test_an_unknown_class_name_falls_back_to_the_code(self, name):
        failure = _BareFailure(grpc.StatusCode.DATA_LOSS, "damaged", (("zipmoe-error", name),))
        assert type(to_error(failure)) is errors.CorruptData

    @pytest.mark.parametrize("blob", [b"", b"\xff\xff", b"\x08\x05\x12\x03abc"])
    def test_damaged_details_do_not_hide_the_error(self, blob):
        metadata = (("zipmoe-error", "ResourceExhausted"), ("grpc-status-details-bin", blob))
        error = to_error(_BareFailure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", metadata))
        assert (type(error), error.message) == (ResourceExhausted, "full")

    async def test_a_server_that_is_not_there_is_unavailable(self, tmp_path):
        def use():
            with sync_channel("127.0.0.1:1") as opened, pytest.raises(grpc.RpcError) as caught:
                call_sync(opened, "unary_unary", b"x")
            return to_error(caught.value)

        assert type(await asyncio.to_thread(use)) is errors.Unavailable

    async def test_a_method_that_does_not_exist_is_an_invalid_request(self):
        async with served(add_echo()) as test:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(test.channel, "unary_unary", b"x")
        error = to_error(caught.value)
        assert type(error) is errors.InvalidRequest
        assert "same version" in error.diagnostics()


class TestOperationStatus:
    @pytest.mark.parametrize("error_class", CLASSES, ids=lambda each: each.__name__)
    def test_each_class_comes_back_as_itself(self, error_class):
        status = operation_status(error_class("slot 7 of 4"))
        assert status.code == STATUS_OF[error_class].value[0]
        error = error_of(type(status).FromString(status.SerializeToString()))
        assert (type(error), error.message) == (error_class, "slot 7 of 4")

    def test_success_is_all_zeroes_and_comes_back_as_none(self):
        status = operation_status(None)
        assert status.SerializeToString() == b""
        assert error_of(status) is None

    @pytest.mark.parametrize(("code", "error_class"), [(15, errors.CorruptData), (999, errors.InternalError)])
    def test_an_unknown_class_name_falls_back_to_the_code(self, code, error_class):
        status = operation_status(errors.NotFound("x"))
        status.code, status.error = code, "FromTheFuture"
        assert type(error_of(status)) is error_class
