"""Assigns slots to experts that are to be fetched. Free slots come first, then spare slots, then slots of victims.

    purpose      slots in order of preference
    need         free, spare, the policy's victim
    prefetch     free, spare, the policy's victim
    promotion    free, spare, the policy's victim if the policy says that the recovery pays
    fill         free, chunks beside a resident tensor

A prefetched expert is transient. A needed expert is transient if the pool has no free slot and a selective policy does
not admit the expert in place of its victim. At most `window` experts of a pool are transient: at the limit, a transient
expert gets only the slot of another transient expert.

A transient expert is spare as soon as it is evictable. So a prefill or a wrong prefetch costs the working set at most
`window` slots of a pool, however many experts pass through these slots.
"""

from __future__ import annotations

from collections.abc import Sequence

from zipmoe.residency.counters import Counters, Reason
from zipmoe.residency.decoder_choice import DecoderAffinity
from zipmoe.residency.holding import Holding
from zipmoe.residency.policies.base import Policy
from zipmoe.residency.pools import Operations, Pool, Release
from zipmoe.residency.slot_pool import DecoderPools, SlotPool
from zipmoe.residency.state import Residency
from zipmoe.types import SlotRef

_FREE = -1


class SlotAssignment:
    """Assigns slots to experts, evicts victims, and keeps track of the evictable slots."""

    def __init__(
        self, holdings: Sequence[Holding], policy: Policy, affinity: DecoderAffinity, counters: Counters
    ) -> None:
        self._holdings = holdings
        self._policy = policy
        self._affinity = affinity
        self._counters = counters
        self._event = 0
        self._ranked: tuple[bytes, int, list[int]] | None = None

    def begin(self) -> None:
        """Starts the handling of an event, which may have changed the policy's ranking."""
        self._event += 1
        self._ranked = None

    def place(
        self, held: Holding, pools: Sequence[SlotPool], why: Reason, victim_count: int, operations: Operations
    ) -> bool:
        """Assigns an expert a slot in each given pool, or no slot at all.

        Args:
            held: the expert.
            pools: pools of the expert's home in which the expert has no slot.
            why: purpose of the slots.
            victim_count: victims that the policy names at once: the number of experts, this one included, that are
                likely to be placed during the same event.
            operations: receives the releases of evicted slots.

        Returns:
            Whether the slots were assigned.
        """
        index = held.index
        choices = []
        for pool in pools:
            choice = self._choose(pool, index, why, victim_count)
            if choice is None:
                return False
            choices.append((pool, *choice))
        for pool, victim, transient in choices:
            if victim != _FREE:
                self.evict(self._holdings[victim], pool, why, operations)
            held.assign(pool.kind, pool.assign())
            self._policy.placed(pool.kind, index)
            if transient:
                pool.transient.add(index)
                pool.spare[index] = None
        return True

    def evict(self, held: Holding, pool: SlotPool, why: Reason, operations: Operations) -> None:
        """Evicts the content of an expert's valid slot, and releases the slot."""
        self._counters.evictions[pool.kind, why] += 1
        operations.releases.append(Release(pool.kind, self.drop(held, pool)))
        self.leave_home(held)

    def leave_home(self, held: Holding) -> None:
        """Forgets the home of an expert without slots that the step does not need, so any decoder may fetch it next."""
        if held.home is not None and held.empty and not held.rows:
            self._affinity.dropped(held.key)
            held.home = None

    def promotion_pays(self, home: DecoderPools) -> bool:
        """Tells whether it pays to promote an expert that was just read, so that the expert's chunk slots become spare.

        The promotion always pays with a free tensor slot, and never with a free or spare E slot. Otherwise two victims
        are compared. Without the promotion the expert keeps its chunk slots, and the next read evicts the chunks of the
        E pool's victim. With the promotion the tensor pool's victim loses its tensor instead. The promotion pays if the
        policy prefers the first victim to the second. This matters where most memory is in tensor slots: all experts
        are read into the few chunk slots, and without promotions these slots would be read into again and again.
        """
        if home.tensor.free:
            return True
        if home.e.free or home.e.next_spare() is not None:
            return False
        kept, lost = self._victim(home.e, 1), self._victim(home.tensor, 1)
        return kept is not None and lost is not None and self._policy.promotes(kept, lost)

    def has_room(self, pool: SlotPool) -> bool:
        """Tells whether a fill finds a slot: a free one, or chunks beside a resident tensor."""
        return self._fill_slot(pool) is not None

    def make_room(self, pool: SlotPool, waiting: Sequence[Holding], operations: Operations) -> None:
        """Frees a slot unconditionally.

        The spare expert is evicted, else the policy's victim, else a waiting expert that has valid content in the pool.
        """
        spare = pool.next_spare()
        victim = self._victim(pool, 1) if spare is None else spare
        if victim is None:
            victim = next(held.index for held in waiting if held.has(pool.kind))
        self.evict(self._holdings[victim], pool, Reason.NEED, operations)

    def drop(self, held: Holding, pool: SlotPool) -> SlotRef:
        """Frees an expert's valid slot and returns its reference."""
        ref = held.drop(pool.kind)
        pool.vacate(held.index, ref)
        if pool.kind is Pool.TENSOR and held.home is not None:
            # The chunks are no longer beside a tensor, so they are not spare any more unless the expert is transient.
            for chunks in (held.home.e, held.home.sm):
                if held.index not in chunks.transient:
                    chunks.make_ordinary(held.index)
        return ref

    def vacate(self, held: Holding, pool: SlotPool) -> None:
        """Frees an expert's slot that never became valid."""
        ref = held.slot(pool.kind)
        assert ref is not None and not held.has(pool.kind)
        held.assign(pool.kind, None)
        pool.vacate(held.index, ref)

    def update_evictable(self, held: Holding) -> None:
        """Updates which slots of an expert are evictable."""
        home = held.home
        if home is None:
            return
        index = held.index
        # A needed expert that has a tensor does not need its chunks.
        waited = held.pin is Residency.PACKED or (held.rows > 0 and not held.has_tensor)
        chunks = not waited and not held.under_way
        home.e.evictable[index] = chunks and held.has_e
        home.sm.evictable[index] = chunks and held.has_sm
        if home.tensor.slot_count:
            home.tensor.evictable[index] = held.has_tensor and held.pin is not Residency.FULL

    def _choose(self, pool: SlotPool, index: int, why: Reason, victim_count: int) -> tuple[int, bool] | None:
        """Chooses a slot of a pool for an expert.

        Returns:
            (index of the expert that loses its slot, or `_FREE`; whether the new holder is transient); None if the
            expert gets no slot.
        """
        if why is Reason.FILL:
            vacated = self._fill_slot(pool)
            return None if vacated is None else (vacated, False)
        transient = why is Reason.PREFETCH
        slot: int | None = _FREE
        if not pool.free:
            slot = pool.next_spare() if pool.spare else None
            selective = self._policy.selective and why is Reason.NEED
            if slot is None or selective:
                victim = self._victim(pool, victim_count)
                if selective:
                    transient = victim is None or not self._policy.admits(pool.kind, index, victim)
                elif why is Reason.PROMOTION and victim is not None and not self._policy.promotes(index, victim):
                    return None
                slot = victim if slot is None else slot
        if slot is None or (transient and slot not in pool.transient and len(pool.transient) >= pool.window):
            return None
        return slot, transient

    def _fill_slot(self, pool: SlotPool) -> int | None:
        """Chooses a slot of a pool for a fill.

        Returns:
            `_FREE`; else an expert with evictable chunks in this pool beside a tensor, which stays FULL without the
            chunks; None if there is neither.
        """
        if pool.free:
            return _FREE
        if pool.kind is Pool.TENSOR:
            return None
        return next((each for each in pool.spare if pool.evictable[each] and self._holdings[each].has_tensor), None)

    def _victim(self, pool: SlotPool, victim_count: int) -> int | None:
        """Returns the policy's first victim that is not spare; None if no other slot is evictable."""
        victims, spare = pool.victims, pool.spare
        if pool.ranked_for != self._event:
            pool.ranked_for, victims = self._event, []
        while victims and (not pool.evictable[victims[-1]] or victims[-1] in spare):
            victims.pop()
        if not victims:
            found = self._rank(pool, victim_count + len(spare))
            pool.victims = victims = [index for index in reversed(found) if index not in spare]
        return victims[-1] if victims else None

    def _rank(self, pool: SlotPool, count: int) -> list[int]:
        """Returns the policy's victims.

        If E pool and SM pool have the same evictable experts, the policy ranks them once for both pools.
        """
        if pool.kind is Pool.TENSOR or not self._policy.ranks_chunks_alike:
            return self._policy.victims(pool.kind, pool.evictable, count)
        held = pool.evictable.tobytes()
        if self._ranked is None or self._ranked[0] != held or self._ranked[1] < count:
            self._ranked = (held, count, self._policy.victims(pool.kind, pool.evictable, count))
        return self._ranked[2]
