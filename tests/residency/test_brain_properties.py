"""Whatever comes in whatever order: no slot is used twice or reused under anybody, and every need is met or fails."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.residency.pooled_executor import PooledExecutor, decoder_slots, make_brain, residencies, residency_of
from zipmoe.errors import CorruptData, DeadlineExceeded, InvalidRequest, Unavailable, ZipMoeError
from zipmoe.residency.brain import Brain
from zipmoe.residency.policies.registry import policy_names
from zipmoe.residency.pools import Grid, Phase, Pool, Usable
from zipmoe.types import ExpertKey

GRID = Grid(2, 5)


class BrainMachine:
    """A brain, its decoders, and what hypothesis lets happen to them."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        counts = st.integers(1, 4)
        self.counts = (self.draw(counts, "e"), self.draw(counts, "sm"), self.draw(st.integers(0, 4), "tensor"))
        self.attached = self.draw(st.sampled_from([["a"], ["a", "b"]]))
        self.brain = make_brain(
            *self.counts,
            policy=self.draw(st.sampled_from(policy_names())),
            grid=GRID,
            packed_rows=self.draw(st.sampled_from([0, 2, 99] if self.counts[2] else [2, 99])),
            transient_slots=self.draw(st.integers(1, 3)),
            decoders=self.attached,
        )
        self.brain.fill_with([GRID.key(index) for index in range(GRID.size)] if self.draw(st.booleans()) else [])
        self.executor = PooledExecutor()
        self.lost: list[str] = []
        self.epoch = 1
        self.in_use: list[Usable] = []
        self.begun: set[int] = set()

    def maybe(self, one_in: int) -> bool:
        return self.draw(st.integers(1, one_in)) == one_in

    def step(self) -> None:
        """One layer pass with whatever happens meanwhile."""
        self.brain.step(self.draw(st.sampled_from(Phase)), 1)
        if self.maybe(3):
            self.prefetch()
        if self.maybe(2):
            self.fill()
        layer = self.draw(st.integers(0, GRID.layer_count - 1))
        experts = self.draw(st.lists(st.integers(0, GRID.expert_count - 1), min_size=1, max_size=5, unique=True))
        self.executor.send(self.brain.need(layer, {expert: self.draw(st.integers(1, 4)) for expert in experts}))
        computed: list[int] = []
        patience, failed = 400, False
        while len(computed) < len(experts):
            patience -= 1
            assert patience, f"no progress: {self.brain!r}"
            try:
                usable = self.brain.next_usable()
            except ZipMoeError:
                failed = True
                break
            if usable is not None:
                assert usable.key.layer == layer and usable.key.expert not in computed
                computed.append(usable.key.expert)
                self.executor.begin_use(usable)
                self.in_use.append(usable)
            self.something_happens(idle=usable is None)
            if self.in_use and (usable is None or self.maybe(2)):
                try:
                    self.end_use()
                except ZipMoeError:
                    failed = True
                    break
        else:
            assert sorted(computed) == sorted(experts)
        while self.in_use:
            try:
                self.end_use()
            except ZipMoeError:
                failed = True
        if failed or self.maybe(4):
            self.executor.send(self.brain.abandon())
        self.check()

    def something_happens(self, *, idle: bool) -> None:
        ready = self.executor.ready()
        unbegun = [number for number in self.executor.beginnable() if number not in self.begun]
        if unbegun and self.maybe(3):
            self.begun.add(operation_id := self.draw(st.sampled_from(unbegun)))
            self.brain.first_tensor(operation_id)
        elif ready and (idle or self.maybe(2)):
            operation_id = self.draw(st.sampled_from(ready))
            cancelled = operation_id in self.executor.cancelled
            fails = self.maybe(12) or (cancelled and self.maybe(2))
            late = operation_id not in self.begun and self.maybe(12)
            failure = DeadlineExceeded("too late") if late else CorruptData("bad checksum") if fails else None
            error = self.executor.end(operation_id, failure)
            self.executor.send(self.brain.completed(operation_id, error))
        if self.maybe(10):
            self.prefetch()
        if self.maybe(10):
            self.fill()
        if self.maybe(25) and self.attached:
            name = self.attached.pop()
            self.lost.append(name)
            self.executor.lose(name)
            self.executor.send(self.brain.lost(name))
        if self.lost and self.maybe(3):
            self.epoch += 1
            self.attached.append(self.lost.pop())
            self.brain.join(decoder_slots(self.attached[-1], *self.counts, epoch=self.epoch))

    def prefetch(self) -> None:
        guesses = self.draw(st.lists(st.integers(0, GRID.expert_count - 1), max_size=4, unique=True))
        self.executor.send(self.brain.prefetch(self.draw(st.integers(0, GRID.layer_count - 1)), guesses))

    def fill(self) -> None:
        before = residencies(self.brain, GRID)
        self.executor.send(self.brain.fill())
        assert residencies(self.brain, GRID) == before

    def end_use(self) -> None:
        usable = self.in_use.pop(0)
        patience = 400
        try:
            while not (usable.complete or self.brain.complete(usable.key)):
                patience -= 1
                assert patience, f"no progress: {self.brain!r}"
                self.something_happens(idle=True)
            self.executor.check_whole(usable)
        finally:
            self.executor.end_use(usable)
        self.executor.send(self.brain.done(usable.key))

    def check(self) -> None:
        """What the brain takes to be resident is what is there; pools hold no more than their slots."""
        state = repr(self.brain)
        assert "\n" not in state
        held: dict[ExpertKey, set[Pool]] = {}
        per_pool: dict[tuple[str, Pool], int] = {}
        for (pool, ref), key in self.executor.held.items():
            per_pool[ref.owner_id, pool] = per_pool.get((ref.owner_id, pool), 0) + 1
            if key is not None:
                held.setdefault(key, set()).add(pool)
        for (_, pool), count in per_pool.items():
            assert count <= self.counts[list(Pool).index(pool)], state
        for key, residency in residencies(self.brain, GRID).items():
            assert residency is residency_of(held.get(key, set())), state
        free = self.brain.free_counts()
        for pool, slots in zip(Pool, self.counts, strict=True):
            used = sum(count for (_, each), count in per_pool.items() if each is pool)
            assert free[pool] == slots * len(self.attached) - used, state


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_need_is_met_once_or_fails_and_no_slot_is_reused_under_anybody(data: st.DataObject) -> None:
    run = BrainMachine(data)
    for _ in range(data.draw(st.integers(1, 20), "passes")):
        run.step()


def test_a_need_without_a_decoder_fails_and_is_met_once_one_is_there() -> None:
    brain = make_brain(1, 1, decoders=())
    brain.need(0, {1: 1})
    assert fails(brain)
    brain.abandon()
    brain.join(decoder_slots("a", 1, 1))
    assert len(brain.need(0, {1: 1}).reads) == 1


def test_a_decoder_that_experts_cannot_be_computed_from_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="a has no tensor slot, and no kernel computes from chunks"):
        make_brain(2, 2, 0, packed_rows=0)
    with pytest.raises(InvalidRequest, match="a has no slot for E-chunks"):
        make_brain(0, 2, 1)
    with pytest.raises(InvalidRequest, match="each of the three pools once"):
        make_brain(1, 1).join(decoder_slots("b", 1, 1)._replace(pools=decoder_slots("b", 1, 1).pools[:2]))


def fails(brain: Brain) -> bool:
    try:
        brain.next_usable()
    except Unavailable:
        return True
    return False
