"""Free slots are filled while nothing is computed: with whom they are for, at nobody's expense, until none is left."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.residency.pooled_executor import PooledExecutor, decoder_slots, make_brain, residencies, run_layer
from zipmoe.errors import CorruptData
from zipmoe.planning.popularity import Popularity
from zipmoe.residency.brain import Brain
from zipmoe.residency.counters import Reason
from zipmoe.residency.fill import AT_ONCE, MOST_FAILURES
from zipmoe.residency.policies.registry import policy_names
from zipmoe.residency.pools import Grid, Phase, Pool, Read, Urgency
from zipmoe.residency.state import Residency
from zipmoe.types import ExpertKey

GRID = Grid(2, 5)
KEYS = [GRID.key(index) for index in range(GRID.size)]
#: What an expert in a state needs a slot for, and would have got one if there were any.
LACKS = {
    Residency.ABSENT: {Pool.E, Pool.SM},
    Residency.E_ONLY: {Pool.SM},
    Residency.SM_ONLY: {Pool.E},
    Residency.PACKED: {Pool.TENSOR},
    Residency.FULL: set(),
}
#: Who has lost nothing from one state to another.
KEEPS = {
    Residency.ABSENT: set(Residency),
    Residency.E_ONLY: {Residency.E_ONLY, Residency.PACKED, Residency.FULL},
    Residency.SM_ONLY: {Residency.SM_ONLY, Residency.PACKED, Residency.FULL},
    Residency.PACKED: {Residency.PACKED, Residency.FULL},
    Residency.FULL: {Residency.FULL},
}


def fill_up(
    brain: Brain, executor: PooledExecutor, draw: Callable[[st.SearchStrategy[int]], int] | None = None
) -> list[ExpertKey]:
    """Fills until nothing more comes of it; returns what was read, in order."""
    read: list[ExpertKey] = []
    while True:
        operations = brain.fill()
        assert all(each.urgency is Urgency.FILL for each in (*operations.reads, *operations.recoveries))
        read += [each.key for each in operations.reads]
        executor.send(operations)
        running = list(executor.running.values())
        reads = sum(isinstance(each, Read) for each in running)
        assert max(reads, len(running) - reads) <= AT_ONCE
        assert brain.filling == bool(running)
        if not running:
            return read
        ready = executor.ready()
        ended = ready[0] if draw is None else draw(st.sampled_from(ready))
        executor.send(brain.completed(ended, executor.end(ended)))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nobody_loses_anything_and_no_slot_stays_free_that_somebody_lacks(data: st.DataObject) -> None:
    counts = st.integers(1, 11)
    pools = (data.draw(counts, "e"), data.draw(counts, "sm"), data.draw(st.integers(0, 6), "tensor"))
    names = data.draw(st.sampled_from(["a", "ab"]), "decoders")
    policy = data.draw(st.sampled_from(policy_names()))
    brain, executor = make_brain(*pools, grid=GRID, policy=policy, decoders=names), PooledExecutor()
    order = data.draw(st.permutations(KEYS))
    brain.fill_with(order)
    for _ in range(data.draw(st.integers(0, 2), "idle periods")):
        for layer in data.draw(st.lists(st.integers(0, 1), max_size=3), "passes"):
            experts = data.draw(st.sets(st.integers(0, 4), min_size=1, max_size=3))
            run_layer(brain, executor, layer, dict.fromkeys(experts, 1))
        while executor.running:
            ended = executor.ready()[0]
            executor.send(brain.completed(ended, executor.end(ended)))
        before = residencies(brain, GRID)
        read = fill_up(brain, executor, data.draw)
        assert len(set(read)) == len(read), "nothing is read twice"
        after = residencies(brain, GRID)
        for key in KEYS:
            assert after[key] in KEEPS[before[key]], repr(brain)
        assert brain.counters.evictions[Pool.TENSOR, Reason.FILL] == 0
        free = {pool for pool, count in brain.free_counts().items() if count}
        if len(names) == 1:  # of several, another one may hold the rest of it
            for key in KEYS:
                assert not LACKS[after[key]] & free, repr(brain)
        elif Residency.ABSENT in after.values():
            assert not {Pool.E, Pool.SM} & free, repr(brain)


def test_the_first_in_order_come_first_and_get_the_tensors() -> None:
    brain, executor = make_brain(4, 5, 3, grid=GRID), PooledExecutor()
    order = KEYS[::-1]
    brain.fill_with(order)
    assert fill_up(brain, executor) == order[:8]
    found = residencies(brain, GRID)
    states = [found[key] for key in order]
    assert states == [Residency.FULL] * 3 + [Residency.PACKED] * 4 + [Residency.SM_ONLY] + [Residency.ABSENT] * 2


def test_without_room_nothing_is_done() -> None:
    brain, executor = make_brain(2, 2, grid=GRID), PooledExecutor()
    brain.fill_with(KEYS)
    assert fill_up(brain, executor) == KEYS[:2]
    run_layer(brain, executor, 1, {4: 1})
    assert not brain.fill()
    assert not brain.filling


def test_without_an_order_nothing_is_done() -> None:
    assert not make_brain(2, 2).fill()


def test_after_some_failures_nothing_is_tried_until_a_decoder_attaches() -> None:
    brain, executor = make_brain(9, 9, grid=GRID), PooledExecutor()
    brain.fill_with(KEYS)
    failed = 0
    executor.send(brain.fill())
    while brain.filling:
        ended = executor.ready()[0]
        brain.completed(ended, executor.end(ended, CorruptData("bad checksum")))
        executor.send(brain.fill())
        failed += 1
    assert MOST_FAILURES <= failed < MOST_FAILURES + AT_ONCE
    brain.step(Phase.DECODE, 1)
    assert not brain.fill()
    brain.join(decoder_slots("b", 9, 9))
    assert len(brain.fill().reads) == AT_ONCE


def test_popular_experts_come_first_and_layers_are_served_alike() -> None:
    popularity = Popularity([3, 2])
    assert popularity.ranked() == [ExpertKey(*pair) for pair in ((1, 0), (1, 1), (0, 0), (0, 1), (0, 2))]
    even = Popularity([2, 2])
    assert even.ranked() == [ExpertKey(*pair) for pair in ((0, 0), (1, 0), (0, 1), (1, 1))]
    for _ in range(3):
        even.used(1, [1])
    assert even.ranked()[0] == ExpertKey(1, 1)
