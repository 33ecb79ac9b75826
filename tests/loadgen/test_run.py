"""Open and closed loops, against a server that only counts; and the servers themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.cli.fake_router import FakeRouter, running_router
from tests.services.gateway.running import front
from zipmoe.client import AsyncGenerationClient, Sampling
from zipmoe.errors import (
    CorruptData,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    ZipMoeError,
)
from zipmoe.loadgen.http_server import HttpServer, ServedModel, served_model
from zipmoe.loadgen.http_stream import HttpAddress
from zipmoe.loadgen.jobs import Job
from zipmoe.loadgen.run import closed_loop, open_loop
from zipmoe.loadgen.sample import RequestSample
from zipmoe.loadgen.server import AnswerUsage, RouterServer, Server

JOBS = [Job(index, (1, 2), index) for index in range(6)]


class Counting(Server):
    """Gives as many tokens as asked for, and notes how many are asked at a time."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.running = self.most = 0
        self.order: list[int] = []
        self._fails_at = fails_at

    async def ask(self, job: Job) -> AsyncIterator[AnswerUsage | None]:
        self.order.append(job.index)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(job.answer_tokens):
                await asyncio.sleep(0)
                yield None
                if job.index == self._fails_at:
                    raise CorruptData("broken")
            yield AnswerUsage(len(job.prompt), 2, 1, 100)
        finally:
            self.running -= 1


async def test_a_closed_loop_has_so_many_clients_and_asks_everything_once() -> None:
    server, seen = Counting(), list[RequestSample]()
    samples = await closed_loop(server, JOBS, 2, seen.append)
    assert (server.most, sorted(server.order)) == (2, [0, 1, 2, 3, 4, 5])
    assert [sample.index for sample in samples] == [0, 1, 2, 3, 4, 5]
    assert [len(sample.token_times_s) for sample in samples] == [0, 1, 2, 3, 4, 5]
    assert sorted(seen, key=lambda sample: sample.index) == samples
    assert samples[1].prompt_tokens == 2 and samples[1].expert_read_bytes == 100


async def test_an_open_loop_waits_for_nobody() -> None:
    server = Counting()
    samples = await open_loop(server, [Job(index, (1,), 9) for index in range(6)], [0.0] * 6, lambda sample: None)
    assert server.most == 6
    assert [sample.due_s for sample in samples] == [0.0] * 6
    assert all(list(sample.token_times_s) == sorted(sample.token_times_s) for sample in samples)


async def test_an_open_loop_sends_no_request_before_it_is_due() -> None:
    samples = await open_loop(Counting(), JOBS[:3], [0.0, 0.01, 0.02], lambda sample: None)
    assert [sample.due_s for sample in samples] == [0.0, 0.01, 0.02]
    assert all(sample.end_s >= sample.due_s for sample in samples)


async def test_a_request_that_fails_keeps_its_tokens_and_stops_nobody() -> None:
    samples = await closed_loop(Counting(fails_at=3), JOBS, 1, lambda sample: None)
    assert [sample.error for sample in samples] == [None] * 3 + ["CorruptData"] + [None] * 2
    assert len(samples[3].token_times_s) == 1


async def asked(server: Server) -> list[AnswerUsage | None]:
    return [item async for item in server.ask(Job(0, (1, 2), 5))]


async def test_a_router_is_asked_for_answers_of_exactly_that_length() -> None:
    router = FakeRouter()
    with running_router(router) as target:
        async with AsyncGenerationClient(target) as client:
            assert await asked(RouterServer(client, Sampling(temperature=0.0), None)) == [
                None,
                None,
                AnswerUsage(3, 10, 4, 2048),
            ]
    (request,) = router.requests
    assert (request.stopping.max_new_tokens, request.stopping.ignore_eos) == (5, True)
    assert list(request.prompt.token_ids.ids) == [1, 2]


async def test_the_gateway_is_asked_the_same() -> None:
    async with front(FakeRouter(words=("Hello", "", " world"))) as gateway:
        address = HttpAddress.parse(f"{gateway.url}/v1")
        assert await served_model(address) == ServedModel("fake", 256, 64)
        told = await asked(HttpServer(address, "fake", 0.0, 30.0))
    assert told == [None, None, None, AnswerUsage(3)], (
        "a token that completes no character counts, text that was held back does not"
    )
    (request,) = gateway.router.requests
    assert (request.stopping.max_new_tokens, request.stopping.ignore_eos) == (5, True)
    assert list(request.prompt.token_ids.ids) == [1, 2]
    assert request.sampling.temperature == 0.0 and request.sampling.HasField("temperature")


@pytest.mark.parametrize(
    ("router", "expected"),
    [
        (FakeRouter(refusal=ResourceExhausted("full")), ResourceExhausted),
        (FakeRouter(refusal=InvalidRequest("no")), InvalidRequest),
        (FakeRouter(refusal=Unavailable("away")), Unavailable),
        (FakeRouter(refusal=CorruptData("bad")), InternalError),
        (FakeRouter(error=CorruptData("bad")), InternalError),
        (FakeRouter(ends_early=True), InternalError),
    ],
)
async def test_errors_over_http_are_those_of_their_status(router: FakeRouter, expected: type[ZipMoeError]) -> None:
    async with front(router) as gateway:
        with pytest.raises(expected):
            await asked(HttpServer(HttpAddress.parse(gateway.url), "fake", 0.0, 30.0))


async def test_a_key_is_shown() -> None:
    async with front(api_key="s3cret") as gateway:
        with pytest.raises(Unauthenticated):
            await served_model(HttpAddress.parse(gateway.url))
        assert (await served_model(HttpAddress.parse(gateway.url, "s3cret"))).name == "fake"


async def test_who_does_not_answer_in_time_or_at_all_is_given_up() -> None:
    async with front(FakeRouter(hangs=True)) as gateway:
        with pytest.raises(DeadlineExceeded):
            await asked(HttpServer(HttpAddress.parse(gateway.url), "fake", 0.0, 0.2))
    with pytest.raises(Unavailable, match="does not answer"):
        await served_model(HttpAddress.parse("http://127.0.0.1:1"))


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{", b"HTTP/1.1 200 OK\r\n\r\n[]"]
)
async def test_who_does_not_speak_this_language_is_an_error(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises((Unavailable, InvalidRequest)):
            await served_model(HttpAddress.parse(f"http://127.0.0.1:{port}"))


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://x", "http://", "http://x:99999"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        HttpAddress.parse(url)


def test_a_url_may_end_in_v1_and_have_a_path() -> None:
    found = HttpAddress.parse("http://[::1]:8080/proxy/v1/")
    assert (found.host, found.port, found.path, str(found)) == ("::1", 8080, "/proxy", "http://[::1]:8080/proxy")
