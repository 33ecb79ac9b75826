"""Channels and waiting: a client finds a server that is late, unready or restarted, or says what is wrong with it."""

import asyncio
import tempfile
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from tests.rpc.echo import ECHO, SERVICE, add_echo, call_sync
from zipmoe.errors import InvalidRequest, Unavailable
from zipmoe.rpc.client import aio_channel, channel, target_of, wait_until_serving
from zipmoe.rpc.server import ServiceHost
from zipmoe.rpc.testing import served


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory(prefix="zipmoe-") as directory:
        yield Path(directory) / "a.sock"


def test_a_path_is_a_unix_target_and_everything_else_stays(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert target_of(Path("/run/a.sock")) == "unix:/run/a.sock"
    assert target_of(Path("a.sock")) == f"unix:{tmp_path}/a.sock"
    assert target_of("127.0.0.1:1") == "127.0.0.1:1"
    assert target_of("unix:a.sock") == "unix:a.sock"


@pytest.mark.parametrize("opening", [channel, aio_channel])
async def test_a_token_is_never_sent_in_plain_text(opening):
    with pytest.raises(InvalidRequest, match="plain text"):
        opening("127.0.0.1:1", token="secret")


async def test_a_web_proxy_is_not_asked(monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://192.0.2.1:3128")
    async with ServiceHost("test", CollectorRegistry(), [], grace_s=0.0) as host:
        add_echo(**ECHO)(host.server)
        port = host.listen("127.0.0.1:0")
        await host.start()

        def use():
            with channel(f"127.0.0.1:{port}") as opened:
                return call_sync(opened, "unary_unary", b"x")

        assert await asyncio.to_thread(use) == [b"x"]


class TestWaiting:
    async def test_ends_when_the_service_says_that_it_serves(self):
        async with served(add_echo(**ECHO), [SERVICE]) as test:
            test.host.set_serving(SERVICE, False)
            for name in (SERVICE, ""):
                waiting = asyncio.create_task(asyncio.to_thread(wait_until_serving, test.path, name, 30.0))
                started = {"grpc_service": "grpc.health.v1.Health", "grpc_method": "Watch"}
                while not test.registry.get_sample_value("grpc_server_msg_sent_total", started):  # noqa: ASYNC110
                    await asyncio.sleep(0)
                assert not waiting.done()
                test.host.set_serving(SERVICE, True)
                await waiting

    async def test_covers_a_server_that_does_not_exist_yet_and_one_that_restarts(self, path):
        waiting = asyncio.create_task(asyncio.to_thread(wait_until_serving, path, SERVICE, 60.0))
        async with ServiceHost("first", CollectorRegistry(), [SERVICE], grace_s=0.0) as host:
            host.listen(path)
            await host.start()
        assert not waiting.done()
        async with ServiceHost("second", CollectorRegistry(), [SERVICE], grace_s=0.0) as host:
            host.listen(path)
            await host.start()
            host.set_serving(SERVICE, True)
            await waiting

    async def test_too_long_says_what_was_seen_last(self, path):
        with pytest.raises(
            Unavailable, match=r"the server at unix:.*a\.sock does not serve after 0\.05 s: nobody answers"
        ):
            await asyncio.to_thread(wait_until_serving, path, "", 0.05)
        async with served(add_echo(**ECHO), [SERVICE]) as test:
            with pytest.raises(Unavailable, match=r"no\.Such at .*: it says service unknown"):
                await asyncio.to_thread(wait_until_serving, test.path, "no.Such", 0.5)

    async def test_for_a_server_without_health_is_refused_at_once(self, path):
        bare = grpc.aio.server()
        bare.add_insecure_port(f"unix:{path}")
        await bare.start()
        with pytest.raises(InvalidRequest):
            await asyncio.to_thread(wait_until_serving, path, "", 60.0)
        await bare.stop(None)
