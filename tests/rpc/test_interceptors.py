"""The interceptors leave every kind of RPC as it was, whichever way its handler is written."""

import asyncio

import grpc
import pytest

from tests.rpc.echo import ECHO, KINDS, SERVICE, add_echo, call, handled, raising
from zipmoe import errors
from zipmoe.rpc.testing import served

SENT = {"unary_unary": [b"abc"], "unary_stream": [b"abc"], "stream_unary": [b"a", b"bc"], "stream_stream": [b"a", b"b"]}
ANSWER = {
    "unary_unary": [b"abc"],
    "unary_stream": [b"a", b"b", b"c"],
    "stream_unary": [b"abc"],
    "stream_stream": [b"a", b"b"],
}


async def write_stream(requests, context):
    """The same as `echo_stream`, in gRPC's other style."""
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(request)


async def write_spelling(request, context):
    for letter in request:
        await context.write(bytes([letter]))


WRITTEN = {**ECHO, "unary_stream": write_spelling, "stream_stream": write_stream}


@pytest.mark.parametrize("behaviours", [ECHO, WRITTEN], ids=["generators", "context"])
@pytest.mark.parametrize("kind", KINDS)
async def test_answers_pass_unchanged_and_messages_are_counted(kind, behaviours):
    async with served(add_echo(**behaviours)) as test:
        for _ in range(2):
            assert await call(test.channel, kind, *SENT[kind]) == ANSWER[kind]
        labels = {"grpc_service": SERVICE, "grpc_method": kind}

        def sample(name, **more):
            return test.registry.get_sample_value(name, {**labels, **more})

        assert sample("grpc_server_started_total") == 2
        assert sample("grpc_server_handled_total", grpc_code="OK") == 2
        assert sample("grpc_server_handling_seconds_count") == 2
        assert sample("grpc_server_msg_received_total") == 2 * len(SENT[kind])
        assert sample("grpc_server_msg_sent_total") == 2 * len(ANSWER[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.CorruptData("x"), "DATA_LOSS"),
        (errors.StaleSlot("x"), "ABORTED"),
        (RuntimeError("x"), "INTERNAL"),
    ],
)
async def test_a_failure_is_counted_under_the_status_that_the_client_sees(kind, error, code, logged):
    async with served(add_echo(**raising(error))) as test:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(test.channel, kind, b"x")
        assert caught.value.code().name == code
        assert await handled(test.registry, kind) == {code: 1}


class TestADeliberateStatus:
    async def test_set_by_the_handler_stands(self):
        async def refuse(_request, context):
            context.set_code(grpc.StatusCode.OUT_OF_RANGE)
            context.set_details("too far")
            return b""

        async with served(add_echo(unary_unary=refuse)) as test:
            with pytest.raises(grpc.aio.AioRpcError, match="too far"):
                await call(test.channel, "unary_unary", b"x")
            assert await handled(test.registry, "unary_unary") == {"OUT_OF_RANGE": 1}

    async def test_by_abort_stands(self, logged):
        async def refuse(_request, context):
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "too far")

        async with served(add_echo(unary_unary=refuse)) as test:
            with pytest.raises(grpc.aio.AioRpcError, match="too far"):
                await call(test.channel, "unary_unary", b"x")
            assert await handled(test.registry, "unary_unary") == {"OUT_OF_RANGE": 1}
        assert logged == []


class _Waiting:
    """A handler that never ends by itself, and tells how it ended."""

    def __init__(self):
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.reason = None

    async def wait(self):
        self.began.set()
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            self.reason = type(error)
            raise
        finally:
            self.ended.set()

    async def unary(self, _request, _context):
        await self.wait()

    async def stream(self, _request, _context):
        yield b"first"
        await self.wait()

    @property
    def behaviours(self):
        return {
            "unary_unary": self.unary,
            "stream_unary": self.unary,
            "unary_stream": self.stream,
            "stream_stream": self.stream,
        }


class TestCancellation:
    @pytest.mark.parametrize("kind", KINDS)
    async def test_reaches_the_handler_and_is_no_error(self, kind, logged, caplog):
        waiting = _Waiting()
        async with served(add_echo(**waiting.behaviours)) as test:
            method = getattr(test.channel, kind)(f"/{SERVICE}/{kind}")
            running = method(iter([b"x"]) if kind.startswith("stream") else b"x")
            await waiting.began.wait()
            running.cancel()
            await waiting.ended.wait()
            assert waiting.reason is asyncio.CancelledError
        assert await handled(test.registry, kind) == {"CANCELLED": 1}
        assert logged == []
        assert not caplog.records

    async def test_by_a_deadline_is_counted_as_one(self):
        waiting = _Waiting()
        async with served(add_echo(**waiting.behaviours)) as test:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(test.channel, "unary_unary", b"x", timeout=0.05)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await waiting.ended.wait()
        assert await handled(test.registry, "unary_unary") == {"CANCELLED": 1}

    async def test_while_a_response_is_being_written_closes_the_generator_at_once(self):
        """Without help a generator's `finally` would wait for the garbage collector."""
        closed, flooding = asyncio.Event(), asyncio.Event()

        async def flood(_request, _context):
            try:
                while True:
                    yield bytes(1 << 20)
                    flooding.set()
            finally:
                closed.set()

        async with served(add_echo(unary_stream=flood)) as test:
            begun = test.channel.unary_stream(f"/{SERVICE}/unary_stream")(b"x")
            await begun.read()
            await flooding.wait()
            begun.cancel()
            await closed.wait()

    async def test_a_client_that_only_stops_sending_ends_the_request_stream_normally(self):
        requests_seen = []
        ended = asyncio.Event()

        async def collect(requests, _context):
            async for request in requests:
                requests_seen.append(request)
                yield request
            ended.set()

        async with served(add_echo(stream_stream=collect)) as test:
            begun = test.channel.stream_stream(f"/{SERVICE}/stream_stream")()
            await begun.write(b"only")
            assert await begun.read() == b"only"
            await begun.done_writing()
            await ended.wait()
        assert requests_seen == [b"only"]


async def test_a_handler_that_ignores_its_requests_leaves_no_warning():
    async def ignore(_requests, _context):
        yield b"done"

    async with served(add_echo(stream_stream=ignore)) as test:
        assert await call(test.channel, "stream_stream", b"a", b"b") == [b"done"]


async def test_a_method_that_does_not_exist_makes_no_label():
    async with served(add_echo(stream_unary=ECHO["stream_unary"])) as test:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(test.channel, "unary_unary", b"x")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert await call(test.channel, "stream_unary", b"x") == [b"x"]
        assert await handled(test.registry, "stream_unary") == {"OK": 1}
        methods = {sample.labels.get("grpc_method") for each in test.registry.collect() for sample in each.samples}
        assert methods == {"stream_unary"}


async def test_a_request_that_is_too_large_is_refused_by_its_size():
    async with served(add_echo(**ECHO)) as test:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(test.channel, "unary_unary", bytes((16 << 20) + 1))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call(test.channel, "unary_unary", bytes(16 << 20)) == [bytes(16 << 20)]
