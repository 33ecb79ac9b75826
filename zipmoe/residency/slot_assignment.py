"""Who gives a slot to whom: free slots first, then spare ones, then the policy's victims.

    wanted for          takes, in this order
    a needed expert     a free slot; a spare one; the victim's, if the policy admits it there
                        else, transient: a spare slot; the victim's, while there are fewer transient ones than `window`
    a guess             always transient
    a promotion         a free slot; a spare one; the victim's, if the policy says that it pays
    a fill              a free slot; that of chunks whose tensor is there as well

Transient experts are spare as soon as nobody uses them. So a prefill, or a wrong guess, costs the working set no more
than `window` slots, whatever passes through them.
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
    """Assigns slots, and takes them away."""

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
        """Starts the handling of an event: whom the policy would lose may have changed."""
        self._event += 1
        self._ranked = None

    def place(self, held: Holding, pools: Sequence[SlotPool], why: Reason, crowd: int, operations: Operations) -> bool:
        """Gives an expert a slot in each of some pools, or none at all.

        Args:
            held: the expert.
            pools: pools in which it has no slot, of its home.
            why: what the slots are wanted for.
            crowd: how many more experts are likely to be placed while the same event is handled.
            operations: where releases go.

        Returns:
            Whether all slots were to be had.
        """
        index = held.index
        choices = []
        for pool in pools:
            choice = self._choose(pool, index, why, crowd)
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
        """Takes an expert's valid slot away."""
        self._counters.evictions[pool.kind, why] += 1
        operations.releases.append(Release(pool.kind, self.drop(held, pool)))
        self.leave_home(held)

    def leave_home(self, held: Holding) -> None:
        """Lets an expert of which nothing is left, and for which nobody waits, be fetched anywhere next time."""
        if held.home is not None and held.empty and not held.rows:
            self._affinity.dropped(held.key)
            held.home = None

    def relieved(self, home: DecoderPools) -> bool:
        """Whether a promotion lets somebody keep its chunks who is worth more than whom it costs the tensor.

        An expert that was just read would otherwise take a chunk slot for good, and where most memory is in tensor
        slots those few chunk slots would be read into again and again.
        """
        if home.tensor.free:
            return True
        if home.e.free or home.e.next_spare() is not None:
            return False
        kept, lost = self._victim(home.e, 1), self._victim(home.tensor, 1)
        return kept is not None and lost is not None and self._policy.promotes(kept, lost)

    def has_room(self, pool: SlotPool) -> bool:
        """Whether a slot of a pool can be filled at nobody's expense."""
        return bool(pool.free) or self._duplicate(pool) is not None

    def make_room(self, pool: SlotPool, waiting: Sequence[Holding], operations: Operations) -> None:
        """Frees a slot by all means: whoever may go goes, else one who waits there gives up what it has from before."""
        spare = pool.next_spare()
        victim = self._victim(pool, 1) if spare is None else spare
        if victim is None:
            victim = next(held.index for held in waiting if held.has(pool.kind))
        self.evict(self._holdings[victim], pool, Reason.NEED, operations)

    def drop(self, held: Holding, pool: SlotPool) -> SlotRef:
        """Makes an expert's valid slot free."""
        ref = held.drop(pool.kind)
        pool.vacate(held.index, ref)
        if pool.kind is Pool.TENSOR and held.home is not None:
            # The chunks are no longer beside a tensor: all there is of the expert.
            for chunks in (held.home.e, held.home.sm):
                if held.index not in chunks.transient:
                    chunks.keep(held.index)
        return ref

    def vacate(self, held: Holding, pool: SlotPool) -> None:
        """Takes back a slot whose content never became valid."""
        ref = held.slot(pool.kind)
        assert ref is not None and not held.has(pool.kind)
        held.assign(pool.kind, None)
        pool.vacate(held.index, ref)

    def offer(self, held: Holding) -> None:
        """Brings up to date which of an expert's slots may be reused."""
        home = held.home
        if home is None:
            return
        index = held.index
        # Nobody waits for chunks whose tensor is there.
        waited = held.pin is Residency.PACKED or (held.rows > 0 and not held.has_tensor)
        chunks = not waited and not held.under_way
        home.e.evictable[index] = chunks and held.has_e
        home.sm.evictable[index] = chunks and held.has_sm
        if home.tensor.slot_count:
            home.tensor.evictable[index] = held.has_tensor and held.pin is not Residency.FULL

    def _choose(self, pool: SlotPool, index: int, why: Reason, crowd: int) -> tuple[int, bool] | None:
        """Decides on a slot: (whose, or `_FREE`; whether it is a transient one); None if there is none."""
        if why is Reason.FILL and not pool.free:
            duplicate = self._duplicate(pool)
            return None if duplicate is None else (duplicate, False)
        transient = why is Reason.PREFETCH
        slot: int | None = _FREE
        if not pool.free:
            slot = pool.next_spare() if pool.spare else None
            selective = self._policy.selective and why is Reason.NEED
            if slot is None or selective:
                victim = self._victim(pool, crowd)
                if selective:
                    transient = victim is None or not self._policy.admits(pool.kind, index, victim)
                elif why is Reason.PROMOTION and victim is not None and not self._policy.promotes(index, victim):
                    return None
                slot = victim if slot is None else slot
        if slot is None or (transient and slot not in pool.transient and len(pool.transient) >= pool.window):
            return None
        return slot, transient

    def _duplicate(self, pool: SlotPool) -> int | None:
        """An expert whose chunks in this pool are there beside its tensor, so that they can go and it stays FULL."""
        if pool.kind is Pool.TENSOR:
            return None
        return next((each for each in pool.spare if pool.evictable[each] and self._holdings[each].has_tensor), None)

    def _victim(self, pool: SlotPool, crowd: int) -> int | None:
        """Whom the policy would lose next, spare ones aside."""
        victims, spare = pool.victims, pool.spare
        if pool.ranked_for != self._event:
            pool.ranked_for, victims = self._event, []
        while victims and (not pool.evictable[victims[-1]] or victims[-1] in spare):
            victims.pop()
        if not victims:
            found = self._rank(pool, crowd + len(spare))
            pool.victims = victims = [index for index in reversed(found) if index not in spare]
        return victims[-1] if victims else None

    def _rank(self, pool: SlotPool, count: int) -> list[int]:
        """The policy's victims; asked once for E-chunks and SM-chunks, where the same experts hold both."""
        if pool.kind is Pool.TENSOR or not self._policy.ranks_chunks_alike:
            return self._policy.victims(pool.kind, pool.evictable, count)
        held = pool.evictable.tobytes()
        if self._ranked is None or self._ranked[0] != held or self._ranked[1] < count:
            self._ranked = (held, count, self._policy.victims(pool.kind, pool.evictable, count))
        return self._ranked[2]
