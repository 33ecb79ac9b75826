"""Leases: what each operation may do in each state, and invariant 6 under every order of events."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from zipmoe.arena.lease import MAX_GENERATION, SlotTable
from zipmoe.errors import InvalidRequest, NotFound, SlotLeased, StaleSlot
from zipmoe.types import SlotRef


def ref(slot: int = 0, generation: int = 1, owner: str = "store", epoch: int = 9) -> SlotRef:
    return SlotRef(owner, epoch, slot, generation)


@pytest.fixture
def table():
    return SlotTable("store", 9, 4)


def hold(table, *refs, holder="router"):
    for each in refs:
        table.begin_write(each, holder)
        table.finish_write(each, ok=True)


def test_a_slot_goes_from_free_through_writing_to_held_and_back(table):
    states = [repr(table)]
    table.begin_write(ref(1), "router")
    states.append(repr(table))
    table.finish_write(ref(1), ok=True)
    states.append(repr(table))
    table.release(ref(1), "router")
    states.append(repr(table))
    assert states == [
        "SlotTable(store, next generation 1: 0-3 free@0)",
        "SlotTable(store, next generation 2: 0 free@0 | 1 writing@1 by router | 2-3 free@0)",
        "SlotTable(store, next generation 2: 0 free@0 | 1 held@1 by router | 2-3 free@0)",
        "SlotTable(store, next generation 2: 0 free@0 | 1 free@1 | 2-3 free@0)",
    ]


def test_a_failed_write_frees_the_slot_but_uses_up_the_generation(table):
    table.begin_write(ref(), "router")
    table.finish_write(ref(), ok=False)
    assert table.counts() == {"free": 4, "writing": 0, "held": 0}
    with pytest.raises(StaleSlot, match="reached generation 1"):
        table.begin_write(ref(), "router")


class TestWritingIsRefused:
    @pytest.mark.parametrize("holder", ["router", "other"])
    def test_into_a_slot_that_is_being_written(self, table, holder):
        table.begin_write(ref(), "router")
        with pytest.raises(SlotLeased, match="writing@1 by router"):
            table.begin_write(ref(generation=2), holder)

    @pytest.mark.parametrize("holder", ["router", "other"])
    def test_into_a_held_slot_even_by_its_holder(self, table, holder):
        hold(table, ref())
        with pytest.raises(SlotLeased, match="held@1 by router"):
            table.begin_write(ref(generation=2), holder)

    @pytest.mark.parametrize("stale", [ref(owner="decoder"), ref(epoch=8), ref(generation=0)])
    def test_with_a_stale_reference(self, table, stale):
        with pytest.raises(StaleSlot):
            table.begin_write(stale, "router")

    @pytest.mark.parametrize("slot", [4, -1])
    def test_into_a_slot_that_does_not_exist(self, table, slot):
        with pytest.raises(NotFound, match="4 slots"):
            table.begin_write(ref(slot), "router")

    def test_with_a_generation_that_would_leave_none_for_others(self, table):
        with pytest.raises(InvalidRequest):
            table.begin_write(ref(generation=MAX_GENERATION + 1), "router")


class TestReleasing:
    def test_while_it_is_written_frees_the_slot_when_the_write_is_done(self, table):
        table.begin_write(ref(), "router")
        table.release(ref(), "router")
        assert table.counts()["writing"] == 1
        table.finish_write(ref(), ok=True)
        assert table.counts()["free"] == 4

    def test_twice_is_stale(self, table):
        hold(table, ref())
        table.release(ref(), "router")
        with pytest.raises(StaleSlot):
            table.release(ref(), "router")

    def test_what_another_session_holds_is_refused(self, table):
        hold(table, ref())
        with pytest.raises(SlotLeased, match="by router, not other"):
            table.release(ref(), "other")

    def test_an_older_use_of_the_slot_is_stale(self, table):
        hold(table, ref())
        table.release(ref(), "router")
        hold(table, ref(generation=2))
        with pytest.raises(StaleSlot):
            table.release(ref(generation=1), "router")


class TestTheEndOfASession:
    def test_frees_what_it_held_and_nothing_else(self, table):
        hold(table, ref(0), ref(1))
        hold(table, ref(2), holder="other")
        table.drop_holder("router")
        assert repr(table) == "SlotTable(store, next generation 2: 0-1 free@1 | 2 held@1 by other | 3 free@0)"

    def test_leaves_a_slot_to_the_thread_that_writes_it(self, table):
        table.begin_write(ref(0), "router")
        hold(table, ref(1))
        table.drop_holder("router")
        assert table.counts() == {"free": 3, "writing": 1, "held": 0}
        table.finish_write(ref(0), ok=True)
        assert table.counts()["free"] == 4

    def test_is_not_undone_by_a_new_session_of_the_same_name(self, table):
        table.begin_write(ref(0), "router")
        table.drop_holder("router")
        hold(table, ref(1, 2))
        table.finish_write(ref(0), ok=True)
        assert table.counts() == {"free": 3, "writing": 0, "held": 1}


def test_first_generation_is_larger_than_all_that_were_used(table):
    assert table.first_generation == 1
    hold(table, ref(3, 17))
    hold(table, ref(0, 5))
    with pytest.raises(SlotLeased):
        table.begin_write(ref(0, 100), "router")
    assert table.first_generation == 18


class EveryOrderOfEvents(RuleBasedStateMachine):
    """The table beside a model that only knows which slot is being written, and which session holds it."""

    SLOTS = 3
    slots = st.integers(0, SLOTS - 1)
    holders = st.sampled_from(["router", "other"])

    @initialize()
    def begin(self):
        self.table = SlotTable("store", 9, self.SLOTS)
        self.current = [0] * self.SLOTS
        self.writer = [False] * self.SLOTS
        self.owner: list[str | None] = [None] * self.SLOTS

    def attempt(self, operation, *arguments):
        """Returns whether the table agreed; a refusal must not change it."""
        before = repr(self.table)
        try:
            operation(*arguments)
        except (StaleSlot, SlotLeased):
            assert repr(self.table) == before
            return False
        return True

    @rule(slot=slots, step=st.integers(-1, 2), holder=holders)
    def write(self, slot, step, holder):
        generation = max(0, self.current[slot] + step)
        before = repr(self.table)
        foretold = self.attempt(self.table.check_write, ref(slot, generation))
        assert repr(self.table) == before
        agreed = self.attempt(self.table.begin_write, ref(slot, generation), holder)
        assert agreed == foretold
        in_use = self.writer[slot] or self.owner[slot] is not None
        assert agreed == (not in_use and generation > self.current[slot])
        if agreed:
            self.current[slot], self.writer[slot], self.owner[slot] = generation, True, holder

    @rule(slot=slots, age=st.integers(0, 1), ok=st.booleans())
    def finish(self, slot, age, ok):
        agreed = self.attempt(self.table.finish_write, ref(slot, self.current[slot] - age), ok)
        assert agreed == (self.writer[slot] and age == 0)
        if agreed:
            self.writer[slot] = False
            self.owner[slot] = self.owner[slot] if ok else None

    @rule(slot=slots, age=st.integers(0, 1), holder=holders)
    def release(self, slot, age, holder):
        agreed = self.attempt(self.table.release, ref(slot, self.current[slot] - age), holder)
        assert agreed == (age == 0 and self.owner[slot] == holder)
        if agreed:
            self.owner[slot] = None

    @rule(holder=holders)
    def end_session(self, holder):
        self.table.drop_holder(holder)
        self.owner = [None if owner == holder else owner for owner in self.owner]

    @invariant()
    def counts_agree(self):
        writing = sum(self.writer)
        kept = zip(self.owner, self.writer, strict=True)
        held = sum(owner is not None and not writer for owner, writer in kept)
        assert self.table.counts() == {"free": self.SLOTS - writing - held, "writing": writing, "held": held}
        assert self.table.first_generation == max(self.current) + 1
        assert "\n" not in repr(self.table)


TestNoSlotIsReusedUnderAWriterOrAHolder = EveryOrderOfEvents.TestCase
TestNoSlotIsReusedUnderAWriterOrAHolder.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
