"""Turns events of the model and of the decoders into operations for the decoders.

The router has one brain. The brain never waits, reads no clock and does no I/O, so a run can be replayed. Its events:

    step, need, next_usable, done, abandon    from the model's thread, as a step goes through its layers
    prefetch, announce                        from the model's thread, before a layer needs its experts
    fill                                      from the model's thread, between steps while nothing is to be computed
    join, lost, completed, first_tensor       from the decoders

The brain owns the facts: residency states, pins, pools and operations under way. The policy ranks experts for eviction,
the scheduler orders fetches, and `DecoderAffinity` chooses the decoder of each fetch.
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
from zipmoe.residency.scheduler import Scheduler
from zipmoe.residency.slot_pool import DecoderPools
from zipmoe.residency.state import Residency
from zipmoe.types import ExpertKey

NOTHING = Operations()
"""Result of the events that lead to no operation; never modified."""


@dataclass(frozen=True)
class BrainSettings:
    """Settings of a brain.

    Attributes:
        packed_rows: most rows for which an expert is computed directly from its chunks. For more rows the expert is
            recovered first, if the decoder has tensor slots. 0 if no kernel computes from chunks.
        transient_slots: most slots of a pool that are held at once by prefetched experts and by experts that the policy
            did not admit. The limit is at most half of the pool, but at least 1.
    """

    packed_rows: int = 1 << 30
    transient_slots: int = 8


class Brain:
    """Decides which experts are fetched, into which slots, and which experts are evicted.

    Thread: not thread safe; the model's thread owns the brain.

    Attributes:
        counters: totals since the start.
    """

    def __init__(self, policy: Policy, scheduler: Scheduler, settings: BrainSettings) -> None:
        """Makes a brain without a decoder.

        Args:
            policy: ranks experts for eviction; its grid defines the experts.
            scheduler: orders the fetches of a layer.
            settings: settings of the brain.
        """
        self.counters = Counters()
        self._settings = settings
        self._grid = policy.grid
        self._policy = policy
        self._holdings = [Holding(self._grid.key(index), index) for index in range(self._grid.size)]
        self._queue = FetchQueue(self._holdings, policy, scheduler, self.counters, self._settings.packed_rows)
        self._slot_assignment = self._queue.slot_assignment
        self._phase = Phase.DECODE
        self._needed: list[Holding] = []
        self._left = 0
        self._usable: deque[Holding] = deque()
        self._begun: deque[Holding] = deque()  # awaited experts with only the first tensor complete
        self._incomplete: Holding | None = None  # such an expert while it is being computed
        self._in_use = 0
        self._guesses = Guesses(self._queue, self.counters)
        self._fill = Fill(self._queue)
        self._promotions: set[int] = set()
        self._turn = 0
        self._failure: Exception | None = None

    # --- decoders -----------------------------------------------------------------------------------------------------

    def join(self, slots: DecoderSlots) -> None:
        """Takes in a decoder that has attached with empty slots.

        Raises:
            InvalidRequest: the decoder lacks a pool, slots or workers, or is attached already.
        """
        pools = DecoderPools(slots, self._grid, self._settings.transient_slots)
        if not (self._settings.packed_rows or pools.tensor.slot_count):
            raise InvalidRequest(f"decoder {slots.decoder_id} has no tensor slot, and no kernel computes from chunks")
        self._queue.join(slots, pools)
        self._fill.joined()

    def lost(self, decoder_id: str) -> Operations:
        """Forgets a lost decoder, its slots and all operations under way there.

        Experts that the running step still awaits are fetched by another decoder. An expert that `next_usable` has
        returned stays usable until `done`, because the mapping of the arena outlives the decoder. This does not hold
        for an expert that was returned incomplete: the step fails.
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
        """Notes that an operation has completed the expert's first tensor and goes on with the rest."""
        operation = self._queue.running.get(operation_id)
        if operation is None or self._guesses.is_cancelled(operation_id):
            return
        held = self._held(operation.key)
        form = Residency.FULL if held.recover_id else Residency.PACKED
        if held.missing:
            return  # the read is a fill of one part; the other part has no slot
        if held.awaited and (form is Residency.PACKED) == isinstance(operation, Read):
            self._begun.append(held)

    def completed(self, operation_id: int, error: Exception | None) -> Operations:
        """Notes the end of an operation, and starts the operations that have become possible.

        Every operation ends once. After an error, the slots that the operation wrote are free and their content is
        undefined. Operations of a lost decoder are ignored.
        """
        operation = self._queue.running.pop(operation_id, None)
        # Neither the cancel of a wrong prefetch nor a passed deadline is a failure of the expert. If the running step
        # awaits the expert, the expert is fetched again.
        called_off = self._guesses.was_cancelled(operation_id) or isinstance(error, DeadlineExceeded)
        if operation is None:
            return NOTHING
        releases: list[Release] = []
        held = self._held(operation.key)
        if isinstance(operation, Read):
            excused = called_off
            self._queue.read_ended(held, operation, error)
        else:
            # A recovery without chunks fails because their read has failed, and that failure was handled then.
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
            # Only after the last operation: a recovery may complete the first tensor while the read is still under way.
            if incomplete:
                self._incomplete = None
            if held in self._begun:
                self._begun.remove(held)
            self._queue.remove_load(held)
            if held.awaited and self._failure is None:
                self._serve_or_fetch(held)
        self._slot_assignment.update_evictable(held)
        self._slot_assignment.leave_home(held)
        promotable = isinstance(operation, Read) and error is None and self._may_promote(held)
        if not (self._queue.waiting or releases or promotable):
            return NOTHING
        operations = self._queue.begin()
        operations.releases += releases
        self._start(operations)
        if promotable and held.home is not None and self._slot_assignment.promotion_pays(held.home):
            self._promote(held, operations)
        return operations

    # --- the running step ---------------------------------------------------------------------------------------------

    def step(self, phase: Phase, tokens: int) -> None:
        """Begins a step.

        Args:
            phase: prefill or decode.
            tokens: tokens of the step.
        """
        self._phase = phase
        self._fill.rescan()
        self.counters.steps[phase] += 1
        self.counters.tokens[phase] += tokens

    def need(self, layer: int, rows: Mapping[int, int]) -> Operations:
        """Fetches the missing experts that the running step needs in a layer.

        `next_usable` returns each needed expert once. The caller reports each with `done`.

        Args:
            layer: the layer.
            rows: tokens that are routed to each needed expert, at least 1.
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
                    self._slot_assignment.update_evictable(held)
            self._enqueue([held for held in missing if not held.under_way])
            self._start(operations)
        if packed:
            # The promoted expert rotates from call to call.
            self._promote(packed[self._turn % len(packed)], operations)
            self._turn += 1
        return operations

    def next_usable(self) -> Usable | None:
        """Returns the next needed expert that can be computed now, resident experts first.

        Returns:
            The expert; None while all remaining needed experts wait for fetches.

        Raises:
            ZipMoeError: the error of the read or recovery of a needed expert. The caller then calls `abandon`.
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
        """Tells whether all tensors have arrived of an expert that `next_usable` returned.

        Raises:
            ZipMoeError: the error of the read or recovery of a needed expert. The caller then calls `abandon`.
        """
        if self._failure is not None:
            raise self._failure
        return self._incomplete is None or self._incomplete.key != key

    def done(self, key: ExpertKey) -> Operations:
        """Unpins an expert that the step has finished with, and starts waiting fetches that find slots now."""
        held = self._held(key)
        held.pin, held.rows = None, 0
        self._in_use -= 1
        self._left -= 1
        if not self._left:
            self._needed.clear()
        self._slot_assignment.update_evictable(held)
        self._slot_assignment.leave_home(held)
        return self._start(self._queue.begin()) if self._queue.waiting else NOTHING

    def abandon(self) -> Operations:
        """Forgets the needs and the pins of a step that has failed or was cancelled.

        Operations under way complete as usual.
        """
        for held in self._needed:
            held.rows, held.pin = 0, None
            if not held.under_way:
                self._queue.remove_load(held)
            self._slot_assignment.update_evictable(held)
            self._slot_assignment.leave_home(held)
        self._needed.clear()
        self._queue.waiting.clear()
        self._usable.clear()
        self._begun.clear()
        self._incomplete = None
        self._left = self._in_use = 0
        self._failure = None
        return Operations()

    def prefetch(self, layer: int, guesses: Iterable[int]) -> Operations:
        """Prefetches experts that a layer will probably need, unless the disk is busy.

        A prefetch takes transient slots only and evicts no expert that the running step needs.

        Args:
            layer: the layer.
            guesses: ids of the layer's experts, the likeliest first.
        """
        operations = self._queue.begin()
        first = layer * self._grid.expert_count
        experts = (self._holdings[first + expert] for expert in guesses)
        self._guesses.fetch(layer, experts, operations)
        return operations

    def announce(self, layer: int, experts: Iterable[int]) -> Operations:
        """Prefetches the experts that the running layer is predicted to need, shortly before the call of `need`.

        Unlike `prefetch`, this also fetches while the disk is busy, and the experts do not count as guesses.
        """
        operations = self._queue.begin()
        first = layer * self._grid.expert_count
        self._guesses.announce(layer, (self._holdings[first + expert] for expert in experts), operations)
        return operations

    def fill_with(self, keys: Sequence[ExpertKey]) -> None:
        """Sets the experts that `fill` fetches into free slots, in order of preference."""
        self._fill.order = [self._held(key) for key in keys]
        self._fill.rescan()

    def fill(self) -> Operations:
        """Starts idle-time reads into free chunk slots and recoveries into free tensor slots.

        Only a few such operations are under way at a time. While `filling`, the caller calls again after one has ended.
        """
        operations = self._queue.begin()
        self._fill.start_next(operations)
        return operations

    # --- state --------------------------------------------------------------------------------------------------------

    @property
    def filling(self) -> bool:
        """Whether an operation of `fill` is under way."""
        return self._fill.under_way

    def urgency(self, operation_id: int) -> Urgency | None:
        """Returns the urgency of an operation under way; None if no such operation is under way."""
        operation = self._queue.running.get(operation_id)
        return None if operation is None else operation.urgency

    def resident_counts(self) -> Counter[tuple[int, Residency]]:
        """Counts the experts of each layer in each state other than ABSENT, for the metrics.

        Thread: any. The counts may or may not include decisions that are made during the call.
        """
        states = Counter((held.key.layer, held.residency) for held in self._holdings)
        return Counter({place: count for place, count in states.items() if place[1] is not Residency.ABSENT})

    def free_counts(self) -> Counter[Pool]:
        """Counts the free slots of each pool over all decoders."""
        counts = Counter(dict.fromkeys(Pool, 0))
        for pools in self._queue.decoders.values():
            for pool in pools:
                counts[pool.kind] += len(pool.free)
        return counts

    def __repr__(self) -> str:
        return describe(self._queue, self._holdings, self._usable)

    # --- consequences of events ---------------------------------------------------------------------------------------

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
                home.tensor.make_ordinary(held.index)
            return
        for pool in (home.e, home.sm):
            pool.evictable[held.index] = False
            if not self._policy.selective and pool.spare:
                pool.make_ordinary(held.index)

    def _begin_early(self) -> Usable | None:
        """Returns an awaited expert with only the first tensor complete; None if there is none.

        This happens only while no complete expert is left to compute, and for one expert at a time.
        """
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
        """Tells whether a PACKED expert that the step uses may be recovered in the background.

        One such recovery runs at a time, or any number while there are free tensor slots.
        """
        home = held.home
        if (
            home is None
            or not home.tensor.slot_count
            or held.pin is not Residency.PACKED
            or held.under_way
            or held.unfit
        ):
            return False
        return not self._policy.selective and (not self._promotions or bool(home.tensor.free))

    def _promote(self, held: Holding, operations: Operations) -> None:
        if self._may_promote(held):
            operation_id = self._queue.promote(held, Reason.PROMOTION, operations)
            if operation_id:
                self._promotions.add(operation_id)
