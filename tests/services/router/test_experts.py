from __future__ import annotations

import queue
from collections.abc import Callable, Sequence

import pytest
import torch
from prometheus_client import CollectorRegistry

from services.decoder.client import FetchEvent, FetchResult, FetchSessionLost
from services.router.experts import ArenaExperts
from services.router.metrics import RouterMetrics
from tests.residency.executor import CHUNK_OWNER, TENSOR_OWNER, SimulatedExecutor, arena_slots
from zipmoe.errors import CorruptData, DeadlineExceeded, Unavailable
from zipmoe.residency.base import Operations, Read, Recover
from zipmoe.residency.lru import LruPolicy
from zipmoe.residency.state import Residency
from zipmoe.types import ExpertKey, SlotRef


class FakeSession:
    """A decoder that ends every operation as soon as it is asked for, unless told otherwise."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[FetchEvent] = queue.SimpleQueue()
        self.executor = SimulatedExecutor()
        self.broken: set[ExpertKey] = set()
        self.stuck = False
        self.closed = False

    def send(
        self,
        chunk_releases: Sequence[SlotRef] = (),
        tensor_releases: Sequence[SlotRef] = (),
        reads: Sequence[Read] = (),
        recoveries: Sequence[Recover] = (),
    ) -> None:
        self.executor.send(Operations(list(chunk_releases), list(tensor_releases), list(reads), list(recoveries)))
        while not self.stuck and (ready := self.executor.ready()):
            operation = self.executor.running[ready[0]]
            broken = isinstance(operation, Read) and operation.key in self.broken
            error = self.executor.end(ready[0], CorruptData("bad checksum") if broken else None)
            if error is not None and not isinstance(error, CorruptData):
                error = CorruptData("the read failed")
            self.events.put(FetchResult(ready[0], error, 100 if isinstance(operation, Read) else 0, 0.0))

    def close(self) -> None:
        self.closed = True


class FakeTensors:
    """Gives each expert a tensor that names it."""

    def expert(self, layer: int, slot: int) -> tuple[torch.Tensor, ...]:
        return (torch.tensor([layer, slot]),)

    def close(self) -> None:
        pass


Attached = tuple[ArenaExperts, FakeSession, CollectorRegistry]


@pytest.fixture
def attach() -> Callable[[int, int], Attached]:
    def make(chunks: int, tensors: int) -> Attached:
        registry = CollectorRegistry()
        experts = ArenaExperts(RouterMetrics(registry), fetch_timeout_s=0.05)
        session = FakeSession()
        policy = LruPolicy(arena_slots(CHUNK_OWNER, chunks), arena_slots(TENSOR_OWNER, tensors))
        experts.attach(session, session.events, policy, FakeTensors())  # type: ignore[arg-type]
        return experts, session, registry

    return make


def ids(experts: ArenaExperts, layer: int, wanted: list[int]) -> list[int]:
    return [expert for expert, _ in experts.experts(layer, wanted)]


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    found = registry.get_sample_value(name, labels)
    assert found is not None
    return found


def test_every_needed_expert_is_given_once(attach: Callable[[int, int], Attached]) -> None:
    experts, _, _ = attach(3, 2)
    assert sorted(ids(experts, 0, list(range(10)))) == list(range(10))
    assert sorted(ids(experts, 1, [4, 2])) == [2, 4]


def test_a_resident_expert_costs_no_message(attach: Callable[[int, int], Attached]) -> None:
    experts, session, registry = attach(4, 4)
    ids(experts, 0, [1, 2, 3])
    sent = session.executor.messages
    assert sorted(ids(experts, 0, [1, 2, 3])) == [1, 2, 3]
    assert session.executor.messages == sent == value(registry, "zipmoe_fetch_messages_total")
    assert value(registry, "zipmoe_expert_hits_total", residency="full") == 3


def test_usage_counts_hits_misses_and_bytes(attach: Callable[[int, int], Attached]) -> None:
    experts, _, registry = attach(4, 4)
    ids(experts, 0, [1, 2])
    ids(experts, 0, [2, 3])
    assert (experts.usage.hits, experts.usage.misses, experts.usage.bytes_read) == (1, 3, 300)
    assert value(registry, "zipmoe_expert_misses_total") == 3
    assert value(registry, "zipmoe_expert_read_bytes_total") == 300


def test_resident_experts_are_counted_by_layer_and_state(attach: Callable[[int, int], Attached]) -> None:
    experts, _, _ = attach(4, 3)
    ids(experts, 0, [1, 2])
    ids(experts, 5, [1, 3])  # takes the tensor slot of expert 1 of layer 0, whose chunks stay
    counts = {(0, Residency.FULL): 1, (0, Residency.PACKED): 1, (5, Residency.FULL): 2}
    assert experts.resident_counts() == counts
    experts.detach()
    assert experts.resident_counts() == {}


def test_a_damaged_expert_fails_the_pass_and_leaves_the_others_usable(attach: Callable[[int, int], Attached]) -> None:
    experts, session, _ = attach(2, 2)
    session.broken = {ExpertKey(0, 5)}
    with pytest.raises(CorruptData):
        ids(experts, 0, [4, 5, 6])
    assert sorted(ids(experts, 0, [4, 6])) == [4, 6]
    session.broken = set()
    assert ids(experts, 0, [5]) == [5]


def test_a_pass_that_is_given_up_half_way_frees_what_it_pinned(attach: Callable[[int, int], Attached]) -> None:
    experts, _, _ = attach(2, 2)
    for _ in range(5):
        arrivals = experts.experts(0, [1, 2, 3])
        next(arrivals)
        arrivals.close()  # type: ignore[attr-defined]
    assert sorted(ids(experts, 0, [7, 8, 9])) == [7, 8, 9]


def test_a_lost_session_fails_the_pass_and_every_later_one_until_it_is_attached_again(
    attach: Callable[[int, int], Attached],
) -> None:
    experts, session, _ = attach(2, 2)
    session.stuck = True
    session.events.put(FetchSessionLost(Unavailable("the decoder is gone")))
    with pytest.raises(Unavailable, match="the decoder is gone"):
        ids(experts, 0, [1])
    with pytest.raises(Unavailable):
        ids(experts, 0, [1])
    assert not experts.attached
    experts.detach()
    assert session.closed


def test_an_expert_that_never_arrives_ends_the_wait_with_the_deadline(attach: Callable[[int, int], Attached]) -> None:
    experts, session, _ = attach(2, 2)
    session.stuck = True
    with pytest.raises(DeadlineExceeded, match="MoE layer 3"):
        ids(experts, 3, [1])
