from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import structlog.testing
from prometheus_client import CollectorRegistry

from tests.services.router.fake_decoder import EXPERTS, LAYERS, FakeDecoder, make_experts
from zipmoe.errors import CorruptData, DeadlineExceeded, StoreMismatch, Unavailable
from zipmoe.residency.fill import AT_ONCE, MOST_FAILURES
from zipmoe.residency.pools import Phase
from zipmoe.residency.state import Residency
from zipmoe.services.router.deadlines import Deadlines
from zipmoe.services.router.experts.arena_experts import ArenaExperts
from zipmoe.services.router.experts.brain_metrics import BrainMetrics
from zipmoe.services.router.experts.trace_file import TraceFile
from zipmoe.simulation.trace import RoutedPass, read_trace
from zipmoe.types import ExpertKey

Made = tuple[ArenaExperts, FakeDecoder, CollectorRegistry]


@pytest.fixture
def make() -> Callable[[int, int, int], Made]:
    def attach(e: int, sm: int, tensor: int = 0, **settings: object) -> Made:
        registry = CollectorRegistry()
        experts = make_experts(registry, **settings)  # type: ignore[arg-type]
        registry.register(BrainMetrics([EXPERTS] * LAYERS, experts))
        return experts, FakeDecoder("a", experts, (e, sm, tensor)), registry

    return attach


def ids(experts: ArenaExperts, layer: int, wanted: Sequence[int]) -> list[int]:
    return [arrival.expert for arrival in experts.experts(layer, dict.fromkeys(wanted, 1))]


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    found = registry.get_sample_value(name, labels)
    assert found is not None, name
    return found


def test_every_needed_expert_is_given_once(make: Callable[..., Made]) -> None:
    for packed_rows in (0, 99):
        experts, _, _ = make(3, 3, 2, packed_rows=packed_rows)
        assert sorted(ids(experts, 0, range(10))) == list(range(10))
        assert sorted(ids(experts, 1, [4, 2])) == [2, 4]


def test_the_matrices_are_those_of_the_slots_that_hold_the_expert(make: Callable[..., Made]) -> None:
    experts, _, _ = make(3, 3)
    for expert, matrices, _ in experts.experts(2, {5: 1, 7: 3}):
        assert matrices[0].tolist() == [2, expert]


def test_what_is_missing_is_asked_for_before_anybody_looks_at_the_first_expert(make: Callable[..., Made]) -> None:
    experts, decoder, _ = make(3, 3)
    arrivals = experts.experts(0, {1: 1, 2: 1})
    assert [read.key.expert for read in decoder.messages[0].reads] == [1, 2]
    arrivals.close()


def test_a_resident_expert_costs_no_message(make: Callable[..., Made]) -> None:
    experts, decoder, registry = make(4, 4)
    ids(experts, 0, [1, 2, 3])
    sent = len(decoder.messages)
    assert sorted(ids(experts, 0, [1, 2, 3])) == [1, 2, 3]
    assert len(decoder.messages) == sent == value(registry, "zipmoe_fetch_messages_total")
    assert value(registry, "zipmoe_expert_hits_total", phase="decode", residency="packed") == 3


def test_usage_counts_hits_misses_and_bytes(make: Callable[..., Made]) -> None:
    experts, _, registry = make(4, 4)
    experts.step(Phase.PREFILL, 7)
    ids(experts, 0, [1, 2])
    experts.step(Phase.DECODE, 1)
    ids(experts, 0, [2, 3])
    assert (experts.usage.hits, experts.usage.misses, experts.usage.bytes_read) == (1, 3, 300)
    assert value(registry, "zipmoe_expert_misses_total", phase="prefill", residency="absent") == 2
    assert value(registry, "zipmoe_expert_misses_total", phase="decode", residency="absent") == 1
    assert value(registry, "zipmoe_expert_read_bytes_total", reason="need") == 300
    assert value(registry, "zipmoe_expert_reads_total", parts="all") == 3


def test_resident_experts_are_counted_by_layer_and_state(make: Callable[..., Made]) -> None:
    experts, _, registry = make(2, 4)
    ids(experts, 0, [1, 2])
    ids(experts, 5, [1])  # takes an E slot of layer 0
    assert sum(experts.resident_counts().values()) == 3
    assert value(registry, "zipmoe_experts_resident", layer="5", state="packed") == 1
    assert value(registry, "zipmoe_experts_resident", layer="0", state="sm_only") == 1
    assert value(registry, "zipmoe_experts_resident", layer="0", state="absent") == EXPERTS - 2
    assert value(registry, "zipmoe_expert_evictions_total", pool="e", reason="need") == 1
    assert value(registry, "zipmoe_free_slots", pool="sm") == 1


def test_a_damaged_expert_fails_the_pass_and_leaves_the_others_usable(make: Callable[..., Made]) -> None:
    experts, decoder, _ = make(2, 2)
    decoder.broken = {ExpertKey(0, 5)}
    with pytest.raises(CorruptData):
        ids(experts, 0, [4, 5, 6])
    assert sorted(ids(experts, 0, [4, 6])) == [4, 6]
    decoder.broken = set()
    assert ids(experts, 0, [5]) == [5]


def test_a_pass_that_is_given_up_half_way_frees_what_it_pinned(make: Callable[..., Made]) -> None:
    experts, _, _ = make(2, 2)
    for _ in range(5):
        arrivals = experts.experts(0, {1: 1, 2: 1, 3: 1})
        next(arrivals)
        arrivals.close()
    assert sorted(ids(experts, 0, [7, 8, 9])) == [7, 8, 9]


def test_a_pass_that_is_given_up_before_its_first_expert_needs_nothing_any_more(make: Callable[..., Made]) -> None:
    experts, _, _ = make(2, 2)
    for _ in range(3):
        experts.experts(0, {1: 1, 2: 1}).close()
    assert sorted(ids(experts, 0, [1, 2])) == [1, 2]


def test_without_a_decoder_a_pass_fails_and_goes_on_when_one_comes_back(make: Callable[..., Made]) -> None:
    experts, decoder, _ = make(2, 2)
    decoder.stuck = True
    arrivals = experts.experts(0, {1: 1})
    decoder.lose(Unavailable("gone"))
    with pytest.raises(Unavailable, match="no decoder is attached"):
        next(arrivals)
    with pytest.raises(Unavailable, match="no decoder is connected"):
        ids(experts, 0, [1])
    assert decoder.closed and experts.resident_counts() == {}
    FakeDecoder("a", experts, (2, 2, 0), epoch=2)
    assert ids(experts, 0, [1]) == [1]


def test_with_a_second_decoder_a_pass_survives_the_loss_of_the_first(make: Callable[..., Made]) -> None:
    experts, first, _ = make(4, 4)
    second = FakeDecoder("b", experts, (4, 4, 0), epoch=2)
    first.stuck = second.stuck = True
    arrivals = experts.experts(0, dict.fromkeys(range(4), 1))
    asked = [[read.key.expert for read in decoder.messages[0].reads] for decoder in (first, second)]
    assert sorted(asked[0] + asked[1]) == [0, 1, 2, 3] and all(asked), "both have work"
    second.stuck = False
    second.work()
    first.lose(Unavailable("gone"))
    assert sorted(each.expert for each in arrivals) == [0, 1, 2, 3]


def test_releases_go_to_the_decoder_whose_slots_they_are(make: Callable[..., Made]) -> None:
    experts, first, _ = make(2, 2)
    second = FakeDecoder("b", experts, (2, 2, 0), epoch=2)
    for layer in range(LAYERS):  # the executors refuse what is not theirs
        assert sorted(ids(experts, layer, [1, 2, 3, 4])) == [1, 2, 3, 4]
    assert first.messages and second.messages


def test_an_expert_is_given_while_its_last_tensor_is_under_way(make: Callable[..., Made]) -> None:
    experts, decoder, _ = make(2, 2)
    decoder.stuck = True
    arrivals = experts.experts(0, {3: 1})
    decoder.begin(1)
    expert, matrices, await_rest = next(arrivals)
    assert expert == 3 and await_rest is not None
    assert matrices[0].tolist() == [0, 3]
    with pytest.raises(DeadlineExceeded):
        await_rest()
    decoder.end(1)
    await_rest()
    assert matrices[1].tolist() == [0]
    assert list(arrivals) == []


def test_an_expert_that_is_there_needs_no_wait(make: Callable[..., Made]) -> None:
    experts, _, _ = make(2, 2)
    assert [arrival.await_rest for arrival in experts.experts(0, {3: 1, 4: 1})] == [None, None]


def test_waiting_twice_for_the_rest_of_an_expert_waits_once(make: Callable[..., Made]) -> None:
    experts, decoder, _ = make(2, 2)
    decoder.stuck = True
    arrivals = experts.experts(0, {3: 1})
    decoder.begin(1)
    await_rest = next(arrivals).await_rest
    assert await_rest is not None
    decoder.end(1)
    await_rest()
    decoder.lose(Unavailable("gone"))
    await_rest()  # the matrices are there, and the loss is told by the next arrival
    arrivals.close()


def test_guesses_are_fetched_and_found(make: Callable[..., Made]) -> None:
    experts, _, registry = make(8, 8, prefetch="1")
    assert experts.guess_depth == 1
    experts.step(Phase.DECODE, 1)
    experts.prefetch(1, [4, 5])
    ids(experts, 1, [4, 6])
    assert value(registry, "zipmoe_prefetches_total", outcome="used") == 1
    assert value(registry, "zipmoe_prefetches_total", outcome="wasted") == 1
    assert value(registry, "zipmoe_expert_hits_total", phase="decode", residency="packed") == 1


def test_free_slots_are_filled_and_what_is_there_costs_no_miss(make: Callable[..., Made]) -> None:
    experts, decoder, registry = make(LAYERS * EXPERTS, LAYERS * EXPERTS, fills=True)
    while experts.fill(math.inf):
        pass
    asked = [read.key for message in decoder.messages for read in message.reads]
    assert asked == [ExpertKey(layer, expert) for expert in range(EXPERTS) for layer in range(LAYERS)]
    sent = len(decoder.messages)
    experts.step(Phase.PREFILL, 1)
    assert sorted(ids(experts, 0, range(EXPERTS))) == list(range(EXPERTS))
    assert (experts.usage.misses, experts.usage.bytes_read) == (0, 0)
    assert value(registry, "zipmoe_expert_read_bytes_total", reason="fill") == 100 * len(asked)
    assert value(registry, "zipmoe_free_slots", pool="e") == 0
    assert not experts.fill(math.inf)
    assert len(decoder.messages) == sent


def test_an_expert_that_is_needed_while_it_fills_a_slot_is_read_once_and_charged_to_nobody(
    make: Callable[..., Made],
) -> None:
    experts, decoder, registry = make(8, 8, fills=True)
    decoder.stuck = True
    assert experts.fill(time.monotonic())
    assert [read.key.layer for read in decoder.messages[0].reads] == [0, 1]
    arrivals = experts.experts(1, {0: 1})
    assert len(decoder.messages) == 1
    decoder.end(2)
    assert [each.expert for each in arrivals] == [0]
    assert (experts.usage.misses, experts.usage.bytes_read) == (1, 0)
    assert value(registry, "zipmoe_expert_read_bytes_total", reason="fill") == 100


def test_fills_that_fail_are_told_once_and_end_by_themselves(make: Callable[..., Made]) -> None:
    experts, decoder, _ = make(8, 8, fills=True)
    decoder.broken = {ExpertKey(layer, 0) for layer in range(LAYERS)}
    with structlog.testing.capture_logs() as logs:
        while experts.fill(math.inf):
            pass
    assert [log["event"] for log in logs] == ["fill_failed"]
    assert sum(len(message.reads) for message in decoder.messages) <= MOST_FAILURES + AT_ONCE
    assert ids(experts, 1, [5]) == [5]
    with pytest.raises(CorruptData):
        ids(experts, 0, [0])


def test_without_an_order_slots_stay_free(make: Callable[..., Made]) -> None:
    experts, decoder, _ = make(8, 8)
    assert not experts.fill(math.inf)
    assert decoder.messages == []


def test_an_expert_that_never_arrives_ends_the_wait_with_the_deadline(make: Callable[..., Made]) -> None:
    experts, decoder, _ = make(2, 2)
    decoder.stuck = True
    with pytest.raises(DeadlineExceeded, match="MoE layer 3"):
        ids(experts, 3, [1])


def test_a_decoder_of_another_store_is_told_where_decoders_are_awaited(make: Callable[..., Made]) -> None:
    from zipmoe.services.router.experts.decoder_link import LinkEvent, LinkRefused

    experts = make_experts(CollectorRegistry())
    experts.decoders.events.put(LinkEvent("a", LinkRefused(StoreMismatch("another store"))))
    with pytest.raises(StoreMismatch):
        experts.await_decoder(1.0)


def test_every_pass_is_recorded_in_the_trace(make: Callable[..., Made], tmp_path: Path) -> None:
    trace = TraceFile(tmp_path / "trace.jsonl")
    experts, _, _ = make(4, 4, trace=trace)
    experts.step(Phase.PREFILL, 3)
    ids(experts, 0, [1, 2])
    ids(experts, 1, [5])
    experts.step(Phase.DECODE, 1)
    ids(experts, 0, [2])
    experts.close()
    recorded = list(read_trace((tmp_path / "trace.jsonl").read_text().splitlines()))
    assert recorded == [
        RoutedPass(0, 0, Phase.PREFILL, (1, 2), 3),
        RoutedPass(0, 1, Phase.PREFILL, (5,), 3),
        RoutedPass(1, 0, Phase.DECODE, (2,), 1),
    ]


def test_the_layer_that_waited_is_known(make: Callable[..., Made]) -> None:
    experts, decoder, registry = make(4, 4)
    decoder.stuck = True
    with pytest.raises(DeadlineExceeded):
        ids(experts, 2, [1])
    assert value(registry, "zipmoe_layer_stalled_seconds_total", layer="2") > 0
    assert value(registry, "zipmoe_layer_stalled_seconds_total", layer="1") == 0
    decoder.stuck = False
    decoder.work()
    assert ids(experts, 2, [1]) == [1]
    assert experts.resident_counts() == {(2, Residency.PACKED): 1}


def test_what_is_announced_is_read_before_it_is_needed_and_counts_as_no_guess(make: Callable[..., Made]) -> None:
    experts, decoder, registry = make(8, 8)
    experts.step(Phase.DECODE, 1)
    experts.announce(1, [4, 5])
    assert [read.key.expert for message in decoder.messages for read in message.reads] == [4, 5]
    assert sorted(ids(experts, 1, [4, 5])) == [4, 5]
    assert len(decoder.messages) == 1, "what has arrived meanwhile costs no message"
    assert value(registry, "zipmoe_prefetches_total", outcome="used") == 0
    decoder.stuck = True
    experts.announce(2, [1])
    arrivals = experts.experts(2, {3: 1})
    assert len(decoder.messages[-1].cancels) == 1, "the gate has chosen otherwise"
    arrivals.close()


def test_a_pass_waits_no_longer_than_its_first_deadline_and_asks_for_work_until_its_last(
    make: Callable[..., Made],
) -> None:
    experts, decoder, _ = make(2, 2)
    decoder.stuck = True
    experts.step(Phase.DECODE, 1, Deadlines.of([5.0, 9.0]))
    with pytest.raises(DeadlineExceeded, match="MoE layer 3 arrived before the deadline"):
        ids(experts, 3, [1])
    assert [message.deadline_s for message in decoder.messages] == [9.0]


def test_an_expert_whose_read_was_late_is_asked_for_again_by_the_next_pass(make: Callable[..., Made]) -> None:
    experts, decoder, _ = make(2, 2)
    decoder.stuck = True
    experts.step(Phase.DECODE, 1, Deadlines(0.0, 0.0))
    with pytest.raises(DeadlineExceeded):
        ids(experts, 0, [1])
    experts.step(Phase.DECODE, 1)
    arrivals = experts.experts(0, {1: 1})
    decoder.fail(1, DeadlineExceeded("late"))
    decoder.stuck = False
    assert [each.expert for each in arrivals] == [1]
    assert [read.operation_id for message in decoder.messages for read in message.reads] == [1, 2]
