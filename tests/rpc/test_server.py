"""The life of a service: ready, draining on the first signal, gone at once on the second."""

import asyncio
import os
import queue
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from tests.rpc.echo import ECHO, SERVICE, add_echo, call
from zipmoe.errors import AlreadyRunning
from zipmoe.rpc.server import ServiceHost
from zipmoe.rpc.testing import served

# Serves one stream that ends when `draining` is set and the client has said so, or never.
PROGRAM = """
import asyncio, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from tests.rpc.echo import add_echo
from zipmoe.process import logging
from zipmoe.rpc.server import ServiceHost

async def main():
    logging.configure("victim")
    async with ServiceHost("victim", CollectorRegistry(), ["test.Echo"], grace_s=60.0) as host:
        async def stream(requests, context):
            yield b"running"
            await host.draining.wait()
            yield b"draining"
            async for request in requests:
                return
        add_echo(stream_stream=stream)(host.server)
        host.exit_stack.callback(lambda: print("cleaned", flush=True))
        host.listen(Path(sys.argv[1]))
        await host.start()
        host.set_serving("test.Echo", True)
        print("ready", flush=True)
        await host.run_until_signal()
    print("ended", flush=True)

asyncio.run(main())
"""


class _Victim:
    """A service in a process of its own, with one stream running."""

    def __init__(self, directory):
        self.path = Path(directory) / "a.sock"
        self.requests = queue.SimpleQueue()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout.readline() == "ready\n"
        self.channel = grpc.insecure_channel(f"unix:{self.path}")
        self.health = health_pb2_grpc.HealthStub(self.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert next(self.health).status == health_pb2.HealthCheckResponse.SERVING
        self.stream = self.channel.stream_stream(f"/{SERVICE}/stream_stream")(iter(self.requests.get, None))
        assert next(self.stream) == b"running"

    def close(self):
        self.requests.put(None)
        self.channel.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def victim():
    with tempfile.TemporaryDirectory(prefix="zipmoe-") as directory:
        made = _Victim(directory)
        yield made
        made.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_running_rpcs_finish_and_refuses_new_ones(victim, number):
    victim.process.send_signal(number)
    assert [each.status for each in victim.health] == [health_pb2.HealthCheckResponse.NOT_SERVING]
    assert next(victim.stream) == b"draining"
    late = grpc.insecure_channel(f"unix:{victim.path}")
    with pytest.raises(grpc.RpcError) as caught:
        late.unary_unary(f"/{SERVICE}/unary_unary")(b"x", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    late.close()
    victim.requests.put(b"finish")
    assert list(victim.stream) == []
    output, log = victim.process.communicate(timeout=30)
    assert (output, victim.process.returncode) == ("cleaned\nended\n", 0)
    assert f"signal={number.name}" in log
    assert os.listdir(victim.path.parent) == []


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_the_process_at_once_and_cleans_up(victim, second):
    victim.process.send_signal(signal.SIGTERM)
    assert next(victim.stream) == b"draining"
    victim.process.send_signal(second)
    output, log = victim.process.communicate(timeout=30)
    assert (output, victim.process.returncode) == ("cleaned\n", 128 + second)
    assert "event=exiting_at_once" in log
    assert os.listdir(victim.path.parent) == []


async def test_setting_draining_stops_like_a_signal():
    async with ServiceHost("test", CollectorRegistry(), [SERVICE], grace_s=0.0) as host:
        await host.start()
        host.draining.set()
        await asyncio.wait_for(host.run_until_signal(), 10)
        await host.stop()


async def test_signal_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    async with ServiceHost("test", CollectorRegistry(), [], grace_s=0.0) as host:
        await host.start()
        running = asyncio.create_task(host.run_until_signal())
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running, 10)
    assert signal.getsignal(signal.SIGTERM) == before


async def test_a_host_that_could_not_listen_is_closed_without_a_trace():
    with tempfile.TemporaryDirectory(prefix="zipmoe-") as directory:
        path = Path(directory) / "a.sock"
        async with ServiceHost("first", CollectorRegistry(), [], grace_s=0.0) as first:
            first.listen(path)
            with pytest.raises(AlreadyRunning):
                async with ServiceHost("second", CollectorRegistry(), [], grace_s=0.0) as second:
                    second.listen(path)
            assert path.exists()
        assert os.listdir(directory) == []


async def test_reflection_names_every_service():
    async with served(add_echo(**ECHO), [SERVICE]) as test:
        stub = reflection_pb2_grpc.ServerReflectionStub(test.channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        (answer,) = [each async for each in stub.ServerReflectionInfo(asked)]
    names = {each.name for each in answer.list_services_response.service}
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_a_running_rpc_that_outlives_the_grace_period_is_cancelled():
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def never(_request, _context):
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with served(add_echo(unary_unary=never)) as test:
        running = asyncio.create_task(call(test.channel, "unary_unary", b"x"))
        await began.wait()
        await test.host.stop()
        await cancelled.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
