"""The one brain: events in, operations out. It never waits, reads no clock and does no I/O; a run can be replayed.

    step, need, next_usable, done, abandon    from the model's thread, as a step goes through its layers
    prefetch                                  guesses of what a layer will need
    fill                                      between two steps, while nothing is to be computed
    join, lost, completed, first_tensor       from the decoders

It owns what is true: states, pins, pools, what is under way. What is worth keeping is the policy's to say, in which
order things are fetched the scheduler's, and at which of several decoders the affinity's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from zipmoe.errors import DeadlineExceeded, InvalidRequest, Unavailable
from zipmoe.residency.counters import Counters, Reason
from zipmoe.residency.describe import describe
from zipmoe.residency.fetch_queue import FetchQueue
from zipmoe.residency.fill import Fill
from zipmoe.residency.guesses import Guesses
from zipmoe.residency.holding import Holding
from zipmoe.residency.policies.base import Policy
from zipmoe.residency.pools import DecoderSlots, Operations, Phase, Pool, Read, Release, Urgency, Usable
from zipmoe.residency.scheduler import FifoScheduler, Scheduler
from zipmoe.residency.slot_pool import DecoderPools
from zipmoe.residency.state import Residency
from zipmoe.types import ExpertKey

NOTHING = Operations()
"""What most events lead to; never changed."""


@dataclass(frozen=True)
class BrainSettings:
    """How a brain works.

    Attributes:
        packed_rows: up to how many rows an expert is computed straight from its chunks; for more its tensor is
            recovered first, where there are tensor slots. 0 where there is no such kernel.
        transient_slots: how many slots of a pool may at once be lent to experts that the policy did not admit there,
            and to guesses; never more than half of the pool.
    """

    packed_rows: int = 1 << 30
    transient_slots: int = 8


class Brain:
    """Decides which slot holds what, and what is fetched.

    Thread: not thread safe; one thread, the model's, owns it.

    Attributes:
        counters: totals since the start.
    """

    def __init__(
        self, policy: Policy, scheduler: Scheduler | None = None, settings: BrainSettings | None = None
    ) -> None:
        """Starts without a decoder."""
        self.counters = Counters()
        self._settings = settings or BrainSettings()
        self._grid = policy.grid
        self._policy = policy
        self._holdings = [Holding(self._grid.key(index), index) for index in range(self._grid.size)]
        self._queue = FetchQueue(
            self._holdings, policy, scheduler or FifoScheduler(), self.counters, self._settings.packed_rows
        )
        self._placement = self._queue.placement
        self._phase = Phase.DECODE
        self._needed: list[Holding] = []
        self._left = 0
        self._usable: deque[Holding] = deque()
        self._begun: deque[Holding] = deque()  # of which only the first tensor is there
        self._incomplete: Holding | None = None  # one of these that is being computed already
        self._in_use = 0
        self._guesses = Guesses(self._queue, self.counters)
        self._fill = Fill(self._queue)
        self._promotions: set[int] = set()
        self._turn = 0
        self._failure: Exception | None = None

    # --- decoders -----------------------------------------------------------------------------------------------------

    def join(self, slots: DecoderSlots) -> None:
        """A decoder has attached, empty.

        Raises:
            InvalidRequest: its pools are not what they have to be, or it is attached already.
        """
        pools = DecoderPools(slots, self._grid, self._settings.transient_slots)
        if not (self._settings.packed_rows or pools.tensor.slot_count):
            raise InvalidRequest(f"decoder {slots.decoder_id} has no tensor slot, and no kernel computes from chunks")
        self._queue.join(slots, pools)
        self._fill.joined()

    def lost(self, decoder_id: str) -> Operations:
        """A decoder has gone, and with it all that it held and did; what is needed of it is fetched elsewhere.

        What `next_usable` has returned can be used until it is done: the mapping outlives the decoder.
        """
        operations = self._queue.begin()
        homeless = self._queue.lost(decoder_id)
        self._guesses.lost()
        self._fill.lost()
        in_use = {held.index for held in self._needed if held.pin is not None} - {held.index for held in self._usable}
        for held in homeless:
            if held.index not in in_use:
                held.pin = None
        self._usable = deque(held for held in self._usable if held.pin is not None)
        self._begun = deque(held for held in self._begun if held.home is not None)
        if self._incomplete in homeless:
            self._incomplete, self._failure = None, Unavailable(f"decoder {decoder_id} was lost")
        self._promotions &= self._queue.running.keys()
        self._enqueue([held for held in homeless if held.awaited])
        return self._start(operations)

    def first_tensor(self, operation_id: int) -> None:
        """Of the expert that an operation fetches, the first tensor is complete; the rest is under way."""
        operation = self._queue.running.get(operation_id)
        if operation is None or self._guesses.is_cancelled(operation_id):
            return
        held = self._held(operation.key)
        form = Residency.FULL if held.recover_id else Residency.PACKED
        if held.missing:
            return  # it was filled with one part only: of the other not even a slot is there
        if held.awaited and (form is Residency.PACKED) == isinstance(operation, Read):
            self._begun.append(held)

    def completed(self, operation_id: int, error: Exception | None) -> Operations:
        """An operation has ended, each once; with an error, the slots that it wrote are free and undefined.

        What a lost decoder was doing is ignored.
        """
        operation = self._queue.running.pop(operation_id, None)
        # Somebody else's lost interest is no reason why the running step should not have the expert: it asks again.
        called_off = self._guesses.was_cancelled(operation_id) or isinstance(error, DeadlineExceeded)
        if operation is None:
            return NOTHING
        releases: list[Release] = []
        held = self._held(operation.key)
        if isinstance(operation, Read):
            excused = called_off
            self._queue.read_ended(held, operation, error)
        else:
            # Without chunks there was nothing to recover: their read has failed, and that has been told.
            excused = called_off or not held.packed
            self._queue.recovery_ended(held, error, releases)
            if operation_id in self._promotions:
                self._promotions.remove(operation_id)
                self.counters.promotions += error is None
        self._fill.ended(operation_id, held, error)
        incomplete = held is self._incomplete
        if error is not None and (incomplete or (held.awaited and not excused)):
            self._failure = self._failure or error
        if not held.under_way:
            # A recovery may get as far as the first tensor while the read that it follows still goes on.
            if incomplete:
                self._incomplete = None
            if held in self._begun:
                self._begun.remove(held)
            self._queue.ended(held)
            if held.awaited and self._failure is None:
                self._serve_or_fetch(held)
        self._placement.offer(held)
        self._placement.leave_home(held)
        promotable = isinstance(operation, Read) and error is None and self._may_promote(held)
        if not (self._queue.waiting or releases or promotable):
            return NOTHING
        operations = self._queue.begin()
        operations.releases += releases
        self._start(operations)
        if promotable and held.home is not None and self._placement.relieved(held.home):
            self._promote(held, operations)
        return operations

    # --- the running step ---------------------------------------------------------------------------------------------

    def step(self, phase: Phase, tokens: int) -> None:
        """A step begins, of so many tokens."""
        self._phase = phase
        self._fill.begin_anew()
        self.counters.steps[phase] += 1
        self.counters.tokens[phase] += tokens

    def need(self, layer: int, rows: Mapping[int, int]) -> Operations:
        """The running step needs experts of a layer; each becomes usable once, and is then to be `done`.

        Args:
            layer: the layer.
            rows: for each expert, how many tokens are routed to it, at least 1.
        """
        operations = self._queue.begin()
        self._policy.used(layer, rows, self._phase)
        first = layer * self._grid.expert_count
        full, packed, missing = 0, [], []
        for expert, tokens in rows.items():
            held = self._holdings[first + expert]
            assert not held.rows, f"{held.key} is needed again before it is done"
            held.rows = tokens
            self._needed.append(held)
            if held.has_tensor:
                full += 1
                self._serve(held, Residency.FULL)
            elif held.packed:
                packed.append(held)
                if self._queue.form(held) is Residency.PACKED:
                    self._serve(held, Residency.PACKED)
                else:
                    missing.append(held)
            else:
                self.counters.misses[self._phase, held.residency] += 1
                missing.append(held)
        self._left += len(rows)
        self.counters.hits[self._phase, Residency.FULL] += full
        self.counters.hits[self._phase, Residency.PACKED] += len(packed)
        self._guesses.settle(layer, operations, keep=not self._policy.selective)
        if missing:
            for held in missing:
                if not held.empty:
                    self._placement.offer(held)
            self._enqueue([held for held in missing if not held.under_way])
            self._start(operations)
        if packed:
            # Each time another one of them has its turn.
            self._promote(packed[self._turn % len(packed)], operations)
            self._turn += 1
        return operations

    def next_usable(self) -> Usable | None:
        """The next needed expert that can be computed now, resident ones first; None while all others are under way.

        Raises:
            ZipMoeError: a needed expert could not be fetched; the error of its read or recovery. Call `abandon` next.
        """
        if self._failure is not None:
            raise self._failure
        if not self._usable:
            return self._begin_early()
        held = self._usable.popleft()
        self._in_use += 1
        if held.pin is Residency.FULL:
            return Usable(held.key, Residency.FULL, held.tensor_slot, None, None)
        return Usable(held.key, Residency.PACKED, None, held.e_slot, held.sm_slot)

    def complete(self, key: ExpertKey) -> bool:
        """Whether all tensors are there of an expert that `next_usable` returned.

        Raises:
            ZipMoeError: something that the step needs could not be fetched. Call `abandon` next.
        """
        if self._failure is not None:
            raise self._failure
        return self._incomplete is None or self._incomplete.key != key

    def done(self, key: ExpertKey) -> Operations:
        """The step has finished with an expert that `next_usable` returned."""
        held = self._held(key)
        held.pin, held.rows = None, 0
        self._in_use -= 1
        self._left -= 1
        if not self._left:
            self._needed.clear()
        self._placement.offer(held)
        self._placement.leave_home(held)
        return self._start(self._queue.begin()) if self._queue.waiting else NOTHING

    def abandon(self) -> Operations:
        """The step has failed or was cancelled: forgets its needs, and that anything was in use.

        Operations under way complete as usual.
        """
        for held in self._needed:
            held.rows, held.pin = 0, None
            if not held.under_way:
                self._queue.ended(held)
            self._placement.offer(held)
            self._placement.leave_home(held)
        self._needed.clear()
        self._queue.waiting.clear()
        self._usable.clear()
        self._begun.clear()
        self._incomplete = None
        self._left = self._in_use = 0
        self._failure = None
        return Operations()

    def prefetch(self, layer: int, guesses: Iterable[int]) -> Operations:
        """A layer will probably need these experts, the likeliest first; reads those of which something is missing.

        Nothing that the running step needs is evicted, and no more than the transient slots are taken.
        """
        operations = self._queue.begin()
        first = layer * self._grid.expert_count
        experts = (self._holdings[first + expert] for expert in guesses)
        self._guesses.fetch(layer, experts, operations)
        return operations

    def announce(self, layer: int, experts: Iterable[int]) -> Operations:
        """The running step is about to need these experts of a layer; as `prefetch`, but they count as no guesses."""
        operations = self._queue.begin()
        first = layer * self._grid.expert_count
        self._guesses.announce(layer, (self._holdings[first + expert] for expert in experts), operations)
        return operations

    def fill_with(self, keys: Sequence[ExpertKey]) -> None:
        """From now on slots that are left free are filled with these experts, the first ones first."""
        self._fill.order = [self._held(key) for key in keys]
        self._fill.begin_anew()

    def fill(self) -> Operations:
        """Nothing is to be computed: reads the next experts into free slots, and recovers into free tensor slots.

        Only a few operations are under way at a time: to be called again when one of them has ended, while `filling`.
        """
        operations = self._queue.begin()
        self._fill.go_on(operations)
        return operations

    # --- state --------------------------------------------------------------------------------------------------------

    def residency(self, key: ExpertKey) -> Residency:
        """The stable state of an expert."""
        return self._held(key).residency

    @property
    def filling(self) -> bool:
        """Whether something of `fill` is under way."""
        return self._fill.under_way

    def urgency(self, operation_id: int) -> Urgency | None:
        """Who waits for an operation that is under way; None if it is not."""
        operation = self._queue.running.get(operation_id)
        return None if operation is None else operation.urgency

    def resident_counts(self) -> Counter[tuple[int, Residency]]:
        """Experts by layer and state, those that are not absent; for the metrics.

        Thread: any. What is decided meanwhile may or may not be in it.
        """
        states = Counter((held.key.layer, held.residency) for held in self._holdings)
        return Counter({place: count for place, count in states.items() if place[1] is not Residency.ABSENT})

    def free_counts(self) -> Counter[Pool]:
        """Free slots by pool, over all decoders."""
        counts = Counter(dict.fromkeys(Pool, 0))
        for pools in self._queue.decoders.values():
            for pool in pools:
                counts[pool.kind] += len(pool.free)
        return counts

    def __repr__(self) -> str:
        return describe(self._queue, self._holdings, self._usable)

    # --- what follows from events -------------------------------------------------------------------------------------

    def _held(self, key: ExpertKey) -> Holding:
        return self._holdings[key.layer * self._grid.expert_count + key.expert]

    def _serve(self, held: Holding, form: Residency) -> None:
        held.pin = form
        self._usable.append(held)
        home = held.home
        assert home is not None
        if form is Residency.FULL:
            home.tensor.evictable[held.index] = False
            if not self._policy.selective and home.tensor.spare:
                home.tensor.keep(held.index)
            return
        for pool in (home.e, home.sm):
            pool.evictable[held.index] = False
            if not self._policy.selective and pool.spare:
                pool.keep(held.index)

    def _begin_early(self) -> Usable | None:
        """Serves an expert of which the first tensor is there, now that nothing complete is left; one at a time."""
        if not self._begun or self._incomplete is not None:
            return None
        held = self._begun.popleft()
        held.pin = Residency.FULL if held.recover_id else Residency.PACKED
        self._incomplete = held
        self._in_use += 1
        if held.pin is Residency.FULL:
            return Usable(held.key, Residency.FULL, held.tensor_slot, None, None, complete=False)
        return Usable(held.key, Residency.PACKED, None, held.e_slot, held.sm_slot, complete=False)

    def _serve_or_fetch(self, held: Holding) -> None:
        form = self._queue.form(held)
        if held.has_tensor or (form is Residency.PACKED and held.packed):
            self._serve(held, form)
        else:
            self._enqueue([held])

    def _enqueue(self, experts: list[Holding]) -> None:
        try:
            self._queue.enqueue(experts)
        except Unavailable as error:
            self._failure = self._failure or error

    def _start(self, operations: Operations) -> Operations:
        return self._queue.start(operations, idle=not self._usable and not self._in_use)

    def _may_promote(self, held: Holding) -> bool:
        """Whether an expert that is PACKED can be recovered in the background: one at a time, but into free slots."""
        home = held.home
        if home is None or not home.tensor.slot_count or held.pin is not Residency.PACKED or held.under_way:
            return False
        return not self._policy.selective and (not self._promotions or bool(home.tensor.free))

    def _promote(self, held: Holding, operations: Operations) -> None:
        if self._may_promote(held):
            operation_id = self._queue.promote(held, Reason.PROMOTION, operations)
            if operation_id:
                self._promotions.add(operation_id)
