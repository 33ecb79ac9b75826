"""Invariant 6 in the code that runs: a decoder's session over its store's leases, under every order of events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.services.decoder.played_services import EXPERTS
from tests.services.decoder.slot_model import CHUNKS, Use
from tests.services.decoder.slot_world import SLOT_COUNTS, SlotWorld
from zipmoe.errors import CorruptData
from zipmoe.residency.pools import Pool, Read, Recover, Release, Urgency
from zipmoe.types import ExpertKey, Part, SlotRef

T = TypeVar("T")

EITHER, SELDOM, OFTEN = (False, True), (False, False, False, True), (True, True, True, False)


class SlotsUnderReadersAndWriters(RuleBasedStateMachine):
    """Plays the router, the disk, the workers and the streams; hypothesis decides who is next and what comes of it."""

    @initialize()
    def begin(self) -> None:
        self.world = SlotWorld()
        self.sound = False
        self.last_operation = 0
        self.latest: dict[tuple[Pool, int], int] = {}
        self.tried: list[tuple[Pool, SlotRef]] = []

    @rule(data=st.data())
    def happens(self, data: st.DataObject) -> None:
        self.sound, self.draw = False, data.draw
        what = self.pick(self.possible())
        note(what.__name__)
        what()
        note(self.world)

    @invariant()
    def no_slot_is_reused_under_a_reader_or_a_writer(self) -> None:
        self.world.check()
        self.sound = True

    def teardown(self) -> None:
        if self.sound:
            self.world.wind_up()

    def possible(self) -> list[Callable[[], None]]:
        """What may happen next; what stands there more often happens more often."""
        world, services = self.world, self.world.services
        e_spare, sm_spare, tensor_spare = (bool(self.spare(pool)) for pool in Pool)
        counts: dict[Callable[[], None], int] = {
            self.reads_an_expert: 6 * (e_spare and sm_spare),
            self.recovers_an_expert: 8 * (tensor_spare and bool(self.pairs())),
            self.releases_a_slot: bool(self.live()) + any(use.whole for use in self.live()),
            self.asks_for_what_may_be_wrong: 2,
            self.something_arrives: 6 * bool(world.arrivals()),
            self.disk_goes_on: 12 * bool(services.disk.open),
            self.workers_go_on: 12 * bool(services.workers.open),
            self.a_session_ends: 1 * (not world.over),
            self.the_next_session_opens: 8 * (world.over and services.session.idle),
        }
        return [what for what, count in counts.items() for _ in range(count)]

    # The router

    def reads_an_expert(self) -> None:
        """By one read or two, and perhaps recovers it in the same batch."""
        key, late, split, recovers = self.pick([*product(EXPERTS, SELDOM, EITHER, EITHER)])
        e_ref, sm_ref = (self.ref(pool, self.pick(self.spare(pool))) for pool in CHUNKS)
        halves = [(e_ref, None), (None, sm_ref)] if split else [(e_ref, sm_ref)]
        self.world.send(reads=[self.read(key, *half) for half in halves], late=late)
        if recovers and self.spare(Pool.TENSOR):
            self.recover(key, e_ref, sm_ref, self.ref(Pool.TENSOR, self.spare(Pool.TENSOR)[0]), late=late)

    def recovers_an_expert(self) -> None:
        (e_use, sm_use), late = self.pick([*product(self.pairs(), SELDOM)])
        tensor = self.ref(Pool.TENSOR, self.pick(self.spare(Pool.TENSOR)))
        self.recover(e_use.key, e_use.ref, sm_use.ref, tensor, late=late)

    def releases_a_slot(self) -> None:
        """And perhaps reads into it in the same batch, now and then under the same reference."""
        live, whole = self.live(), [use for use in self.live() if use.whole]
        use = self.pick([*whole, *whole, *whole, *live])
        reads: list[Read] = []
        if use.pool is not Pool.TENSOR and (key := self.pick([None, *EXPERTS])):
            reads = [self.read_into(self.pick([use.ref, self.ref(use.pool, use.ref.slot)]), key)]
        self.world.send(releases=[Release(use.pool, use.ref)], reads=reads)

    def asks_for_what_may_be_wrong(self) -> None:
        what = self.pick(["read", "recover", "recover", "release", "cancel", "foreign", "beyond", "unknown", "taken"])
        if what == "release" and self.tried:
            self.world.send(releases=[Release(*self.pick(self.tried[-8:]))])
        elif what == "cancel":
            self.world.send(cancels=[self.pick([*self.world.model.reads, 0])])
        elif what == "recover":
            self.asks_for_a_recovery_that_may_be_wrong()
        else:
            self.asks_for_a_read_that_may_be_wrong(what)

    def asks_for_a_read_that_may_be_wrong(self, what: str) -> None:
        pool, slot, growth = self.pick([*product(CHUNKS, range(2), (1, 1, 0, -1, 2))])
        ref = self.ref(pool, slot, growth)
        ref = ref._replace(arena_epoch=1) if what == "foreign" else ref
        ref = ref._replace(slot=SLOT_COUNTS[pool]) if what == "beyond" else ref
        read = self.read_into(ref, ExpertKey(9, 9) if what == "unknown" else self.pick(EXPERTS))
        taken = what == "taken" and bool(self.world.model.reads)
        self.world.send(reads=[read._replace(operation_id=min(self.world.model.reads)) if taken else read])

    def asks_for_a_recovery_that_may_be_wrong(self) -> None:
        """From slots that were released, that hold different experts, or that are used under another reference."""
        if pairs := [*product(*map(self.world.model.of_pool, CHUNKS))]:
            e_use, sm_use = self.pick([pair for pair in pairs if pair[0].released or pair[1].released] or pairs)
            e_growth, sm_growth, growth = self.pick([(0, 0, 1), (0, 0, 1), (0, 0, 0), (-1, 0, 1), (0, 1, 1)])
            tensor = self.ref(Pool.TENSOR, self.pick(self.spare(Pool.TENSOR) or range(2)), growth)
            self.recover(e_use.key, _grown(e_use.ref, e_growth), _grown(sm_use.ref, sm_growth), tensor)

    def recover(self, key: ExpertKey, e_ref: SlotRef, sm_ref: SlotRef, tensor: SlotRef, *, late: bool = False) -> None:
        self.world.recover(Recover(self.next_id(), key, e_ref, sm_ref, tensor, Urgency.NEEDED), late=late)

    def read(self, key: ExpertKey, e_ref: SlotRef | None, sm_ref: SlotRef | None) -> Read:
        parts = (Part.E if e_ref else Part.NONE) | (Part.SM if sm_ref else Part.NONE)
        return Read(self.next_id(), key, parts, e_ref, sm_ref, Urgency.NEEDED)

    def read_into(self, ref: SlotRef, key: ExpertKey) -> Read:
        return self.read(key, ref, None) if ref.owner_id == Pool.E.value else self.read(key, None, ref)

    def ref(self, pool: Pool, slot: int, growth: int = 1) -> SlotRef:
        """A reference to a slot, its generation so much larger than the largest that the router has tried."""
        memory, table = self.world.services.memory[pool], self.world.services.tables[pool]
        latest = self.latest.setdefault((pool, slot), table.first_generation - 1)
        ref = SlotRef(memory.owner_id, memory.epoch, slot, max(0, latest + growth))
        self.latest[pool, slot] = max(latest, ref.generation)
        self.tried.append((pool, ref))
        return ref

    def next_id(self) -> int:
        self.last_operation += 1
        return self.last_operation

    def spare(self, pool: Pool) -> list[int]:
        """The slots that the router does not rely on."""
        used = {use.ref.slot for use in self.world.model.of_pool(pool)}
        if pool is Pool.TENSOR:
            used |= self.world.model.leases[pool].leased()  # a released slot may still be written
        return [slot for slot in range(SLOT_COUNTS[pool]) if slot not in used]

    def live(self) -> list[Use]:
        return [use for use in self.world.model.uses if not use.released]

    def pairs(self) -> list[tuple[Use, Use]]:
        """The slots that make an expert, or will."""
        pairs = product(*([use for use in self.live() if use.pool is pool] for pool in CHUNKS))
        return [(e_use, sm_use) for e_use, sm_use in pairs if e_use.key == sm_use.key]

    # The others

    def something_arrives(self) -> None:
        receive, all_the_rest = self.pick([*product(self.world.arrivals(), EITHER)])
        receive()
        if all_the_rest:
            self.world.everything_arrives()

    def disk_goes_on(self) -> None:
        disk, job = self.world.services.disk, self.pick(self.world.services.disk.open)
        what, ok, heard = self.pick([*product(["first", "end", "issue", "land"], OFTEN, EITHER)])
        error = None if ok else CorruptData("broken")
        if what == "end":
            disk.end(job, error)
        elif what == "land" and disk.flying:
            disk.land(self.pick(disk.flying), error)
        elif not job.taken:
            first = what == "first" and not job.begun
            disk.issue(job)
            if first and job in disk.open:
                disk.land(disk.flying[-1], None)
        if heard:
            self.world.everything_arrives()

    def workers_go_on(self) -> None:
        workers, job = self.world.services.workers, self.pick(self.world.services.workers.open)
        what, ok, heard = self.pick([*product(["take", "settle", "end"], OFTEN, EITHER)])
        if what == "end":
            self.world.workers_finish(job)
        elif what == "settle" and workers.running:
            workers.settle(self.pick(workers.running), None if ok else CorruptData("not a chunk"))
        elif not job.taken:
            self.world.worker_takes(job)
        if heard:
            self.world.everything_arrives()

    def a_session_ends(self) -> None:
        """By the router; or the store has ended its own, of which the decoder learns later."""
        what = self.pick(["", "", "end", "lose", "", "", "", ""])
        if what == "end":
            self.world.end_session()
        elif what == "lose":
            self.world.close_store()

    def the_next_session_opens(self) -> None:
        self.world.open_session()
        self.latest.clear()

    # The dice

    def pick(self, candidates: Sequence[T]) -> T:
        return candidates[self.draw(st.integers(0, len(candidates) - 1)) if len(candidates) > 1 else 0]


def _grown(ref: SlotRef, growth: int) -> SlotRef:
    return ref._replace(generation=max(0, ref.generation + growth))


# It takes about ten seconds, and a minute or two to make a failure small.
TestNoSlotIsReusedUnderAReaderOrAWriter: Any = pytest.mark.slow(SlotsUnderReadersAndWriters.TestCase)
TestNoSlotIsReusedUnderAReaderOrAWriter.settings = settings(
    max_examples=300,
    stateful_step_count=60,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),  # to explain a failure would take minutes
    report_multiple_bugs=False,
)
