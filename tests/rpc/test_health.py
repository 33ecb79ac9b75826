"""Health tells the truth per service and overall, to those who ask and to those who watch."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from zipmoe.errors import InvalidRequest, NotFound
from zipmoe.rpc.status import to_error
from zipmoe.rpc.testing import served

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
async def two():
    """A server with two services, both serving."""
    async with served(lambda _: None, ["a.A", "b.B"]) as test:
        yield test


async def check(test, name=""):
    stub = health_pb2_grpc.HealthStub(test.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status


async def test_the_whole_serves_only_if_every_part_does(two):
    assert [await check(two, name) for name in ("a.A", "b.B", "")] == [SERVING] * 3
    two.host.set_serving("b.B", False)
    assert [await check(two, name) for name in ("a.A", "b.B", "")] == [SERVING, NOT_SERVING, NOT_SERVING]
    two.host.set_serving("b.B", True)
    assert await check(two) == SERVING


async def test_everything_begins_as_not_serving():
    async with served(lambda _: None) as test:
        assert await check(test) == NOT_SERVING


async def test_an_unknown_service_is_not_found(two):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(two, "c.C")
    assert type(to_error(caught.value)) is NotFound
    with pytest.raises(InvalidRequest, match=r"unknown service 'c\.C', want one of a\.A, b\.B"):
        two.host.set_serving("c.C", True)


async def test_a_watcher_hears_every_lasting_change_once(two):
    watch = health_pb2_grpc.HealthStub(two.channel).Watch(health_pb2.HealthCheckRequest(service="a.A"))
    assert (await watch.read()).status == SERVING
    two.host.set_serving("a.A", True)  # no change
    two.host.set_serving("b.B", False)  # another service
    two.host.set_serving("a.A", False)
    assert (await watch.read()).status == NOT_SERVING
    two.host.set_serving("a.A", True)
    assert (await watch.read()).status == SERVING
    watch.cancel()


async def test_a_watcher_of_an_unknown_service_is_told_so_and_kept(two):
    watch = health_pb2_grpc.HealthStub(two.channel).Watch(health_pb2.HealthCheckRequest(service="c.C"))
    assert (await watch.read()).status == UNKNOWN
    watch.cancel()


async def test_stopping_tells_the_watchers_and_lets_them_go(two):
    stub = health_pb2_grpc.HealthStub(two.channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", "a.A", "")]
    for watch in watches:
        assert (await watch.read()).status == SERVING
    # The grace period is 0: only watchers that end by themselves end without an error.
    two.host._grace_s = 30.0
    await asyncio.wait_for(two.host.stop(), 10.0)
    for watch in watches:
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
    two.host.set_serving("a.A", True)
    assert two.host._health._status("a.A") == NOT_SERVING
