from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.residency.executor import CHUNK_OWNER, TENSOR_OWNER, SimulatedExecutor, arena_slots, run_layer
from zipmoe.errors import CorruptData
from zipmoe.residency.lru import LruPolicy
from zipmoe.residency.state import Residency
from zipmoe.types import ExpertKey


def policy(chunks: int, tensors: int) -> LruPolicy:
    return LruPolicy(arena_slots(CHUNK_OWNER, chunks), arena_slots(TENSOR_OWNER, tensors))


def test_a_resident_expert_costs_no_message() -> None:
    lru, executor = policy(4, 4), SimulatedExecutor()
    run_layer(lru, executor, 0, [1, 2, 3])
    messages = executor.messages
    assert run_layer(lru, executor, 0, [3, 1, 2]) == [3, 1, 2]
    assert executor.messages == messages
    assert lru.counters.full_hits == 3


def test_all_misses_of_a_layer_go_out_as_one_message() -> None:
    lru, executor = policy(8, 8), SimulatedExecutor()
    operations = lru.need(0, [5, 6, 7])
    assert [read.key.expert for read in operations.reads] == [5, 6, 7]
    assert [recovery.key.expert for recovery in operations.recoveries] == [5, 6, 7]
    executor.send(operations)
    assert executor.messages == 1


def test_resident_experts_are_usable_before_the_missing_ones_arrive() -> None:
    lru, executor = policy(4, 4), SimulatedExecutor()
    run_layer(lru, executor, 0, [9])
    executor.send(lru.need(0, [1, 9, 2]))
    usable = lru.next_usable()
    assert usable is not None and usable.key == ExpertKey(0, 9)
    assert lru.next_usable() is None


def test_an_expert_that_lost_its_tensor_is_recovered_without_a_read() -> None:
    lru, executor = policy(4, 1), SimulatedExecutor()
    run_layer(lru, executor, 0, [1])
    run_layer(lru, executor, 0, [2])
    assert lru.residency(ExpertKey(0, 1)) is Residency.PACKED
    reads = executor.reads
    run_layer(lru, executor, 0, [1])
    assert executor.reads == reads
    assert lru.counters.packed_hits == 1


def test_the_least_recently_used_expert_goes_first() -> None:
    lru, executor = policy(2, 2), SimulatedExecutor()
    for expert in (1, 2, 1, 3):
        run_layer(lru, executor, 0, [expert])
    assert lru.residency(ExpertKey(0, 1)) is Residency.FULL
    assert lru.residency(ExpertKey(0, 2)) is Residency.ABSENT
    assert repr(lru) == "full[0.1 0.3] packed[0.1 0.3] waiting[] running=0"


def test_a_layer_that_needs_more_experts_than_there_are_slots_still_completes() -> None:
    lru, executor = policy(1, 1), SimulatedExecutor()
    assert sorted(run_layer(lru, executor, 0, list(range(20)))) == list(range(20))


def test_a_failed_read_fails_the_step_that_needs_it_and_is_read_afresh_by_the_next() -> None:
    lru, executor = policy(2, 2), SimulatedExecutor()
    executor.send(lru.need(0, [1]))
    error = CorruptData("bad checksum")
    for operation_id in list(executor.running):
        executor.send(lru.completed(operation_id, executor.end(operation_id, error)))
    with pytest.raises(CorruptData):
        lru.next_usable()
    executor.send(lru.abandon())
    assert lru.residency(ExpertKey(0, 1)) is Residency.ABSENT
    assert run_layer(lru, executor, 0, [1]) == [1]


def test_chunks_that_cannot_be_recovered_are_not_kept() -> None:
    lru, executor = policy(2, 2), SimulatedExecutor()
    executor.send(lru.need(0, [1]))
    read, recovery = sorted(executor.running)
    executor.send(lru.completed(read, executor.end(read)))
    executor.send(lru.completed(recovery, executor.end(recovery, CorruptData("bad block"))))
    executor.send(lru.abandon())
    assert lru.residency(ExpertKey(0, 1)) is Residency.ABSENT
    assert run_layer(lru, executor, 0, [1]) == [1]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), chunks=st.integers(1, 5), tensors=st.integers(1, 5))
def test_no_slot_is_reused_under_a_reader_or_a_writer_and_every_need_is_met(
    data: st.DataObject, chunks: int, tensors: int
) -> None:
    lru, executor = policy(chunks, tensors), SimulatedExecutor()
    for _ in range(data.draw(st.integers(1, 12))):
        layer = data.draw(st.integers(0, 1))
        experts = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=6, unique=True))
        executor.send(lru.need(layer, experts))
        computed: list[int] = []
        while len(computed) < len(experts):
            try:
                usable = lru.next_usable()
            except CorruptData:
                break
            if usable is not None:
                executor.begin_use(usable)
                computed.append(usable.key.expert)
            if usable is None or (executor.ready() and data.draw(st.booleans())):
                operation_id = data.draw(st.sampled_from(executor.ready()))
                fails = data.draw(st.sampled_from([False] * 9 + [True]))
                error = executor.end(operation_id, CorruptData("bad checksum") if fails else None)
                if error is not None and not isinstance(error, CorruptData):
                    error = CorruptData("read failed")
                executor.send(lru.completed(operation_id, error))
            if usable is not None:
                executor.end_use(usable)
                executor.send(lru.done(usable.key))
        else:
            assert sorted(computed) == sorted(experts)
            if data.draw(st.booleans()):
                continue
        executor.send(lru.abandon())
