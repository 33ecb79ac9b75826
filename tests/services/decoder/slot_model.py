"""What a router may expect of a decoder and of its store: which slots are in use, and what is to be reported."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.services.decoder.played_services import EXPERTS, Memory
from tests.services.decoder.slot_leases import Leases
from zipmoe.residency.pools import Completed, Pool, Read, Recover, Release
from zipmoe.types import ExpertKey, SlotRef

CHUNKS = (Pool.E, Pool.SM)


@dataclass(eq=False)
class Use:
    """A use of a slot, from the router's operation until the router has released the slot and nothing pins it.

    Attributes:
        operation_id: the read or recovery that writes the slot.
        pins: the recoveries that read the slot, each from the router's operation to its report.
        begun: whether the router has heard that the first tensor, or everything, is in the slot.
        whole: whether the router has heard that everything is.
        released: whether the router has released the slot.
    """

    pool: Pool
    ref: SlotRef
    key: ExpertKey
    operation_id: int
    pins: set[int] = field(default_factory=set)
    begun: bool = False
    whole: bool = False
    released: bool = False


class SlotModel:
    """The operations of a session and the slots that they use, and the leases of all sessions.

    Attributes:
        leases: leases of each arena.
        uses: the uses that have not ended.
        reads: the slots of each read that has not been reported.
        recoveries: the slots of each recovery that has not been reported: E, SM, tensor.
        to_release: the chunk slots of which the decoder has to tell the store now.
    """

    def __init__(self, memory: dict[Pool, Memory]) -> None:
        self._memory = memory
        self.leases = {pool: Leases(of_pool.slot_count) for pool, of_pool in memory.items()}
        self.open_session("")

    def open_session(self, holder: str) -> None:
        self._holder = holder
        self.uses: list[Use] = []
        self.reads: dict[int, list[Use]] = {}
        self.recoveries: dict[int, list[Use]] = {}
        self.to_release: list[Release] = []
        self._begun: set[int] = set()  # operations whose first tensor was reported

    def find(self, pool: Pool, ref: SlotRef) -> Use | None:
        return next((use for use in self.uses if use.pool is pool and use.ref == ref), None)

    def of_pool(self, pool: Pool) -> list[Use]:
        return [use for use in self.uses if use.pool is pool]

    # What the decoder receives; each method returns whether the decoder has to accept it

    def release(self, release: Release) -> bool:
        use = self.find(*release)
        if use is None or use.released:
            return False
        use.released = True
        if use.pool is Pool.TENSOR:
            assert self.leases[Pool.TENSOR].release(use.ref)
        self._end_released(use)
        return True

    def read(self, read: Read) -> bool:
        if read.operation_id in self.reads or not all(self._is_unused(*slot) for slot in slots_of(read)):
            return False
        uses = [Use(pool, ref, read.key, read.operation_id) for pool, ref in slots_of(read)]
        self.reads[read.operation_id] = uses
        self.uses += uses
        return True

    def recover(self, fetch: Recover) -> bool:
        uses = [self.find(Pool.E, fetch.e_slot), self.find(Pool.SM, fetch.sm_slot)]
        sources = [use for use in uses if use is not None and use.key == fetch.key and not use.released]
        known = fetch.key in EXPERTS and len(sources) == len(CHUNKS)
        if not known or not self.leases[Pool.TENSOR].may_write(fetch.tensor_slot):
            return False
        self.leases[Pool.TENSOR].begin_write(fetch.tensor_slot, self._holder)
        tensor = Use(Pool.TENSOR, fetch.tensor_slot, fetch.key, fetch.operation_id)
        self.recoveries[fetch.operation_id] = [*sources, tensor]
        self.uses.append(tensor)
        for use in sources:
            use.pins.add(fetch.operation_id)
        return True

    # What the store receives; likewise

    def release_at_store(self, release: Release) -> bool:
        return self.leases[release.pool].release(release.slot)

    def read_at_store(self, read: Read) -> bool:
        if read.key not in EXPERTS or not all(self.leases[pool].may_write(ref) for pool, ref in slots_of(read)):
            return False
        for pool, ref in slots_of(read):
            self.leases[pool].begin_write(ref, self._holder)
        return True

    # What is reported

    def reported(self, result: Completed) -> None:
        """The decoder reports to the router."""
        operation_id, ok = result.operation_id, result.error is None
        assert operation_id in self.reads or operation_id in self.recoveries, "reported twice, or never asked for"
        if result.first_tensor_only:
            assert ok and operation_id not in self._begun
            self._begun.add(operation_id)
            for use in self.reads.get(operation_id) or self.recoveries[operation_id][len(CHUNKS) :]:
                use.begun = True
            return
        if operation_id in self.reads:
            written = self.reads.pop(operation_id)
        else:
            *sources, tensor = self.recoveries.pop(operation_id)
            assert not ok or all(use.whole for use in sources), "a tensor without chunks"
            self.leases[Pool.TENSOR].finish_write(tensor.ref, ok=ok)
            for use in sources:
                use.pins.remove(operation_id)
                self._end_released(use)
            written = [tensor]
        for use in written:
            use.begun = use.whole = ok
            if not ok and use in self.uses:
                self.uses.remove(use)

    def end_session(self, still_written: set[int]) -> None:
        """The decoder's session ends, while workers are at some of its recoveries."""
        for operation_id, (*_, tensor) in self.recoveries.items():
            if operation_id not in still_written:
                self.leases[Pool.TENSOR].finish_write(tensor.ref, ok=False)
        self.leases[Pool.TENSOR].drop_holder(self._holder)
        self.open_session(self._holder)

    def end_session_at_store(self) -> None:
        for pool in CHUNKS:
            self.leases[pool].drop_holder(self._holder)

    def _is_unused(self, pool: Pool, ref: SlotRef) -> bool:
        exists = ref.slot < self._memory[pool].slot_count and ref.arena_epoch == self._memory[pool].epoch
        return exists and all(use.ref.slot != ref.slot for use in self.of_pool(pool))

    def _end_released(self, use: Use) -> None:
        if use.released and not use.pins and use in self.uses:
            self.uses.remove(use)
            if use.pool is not Pool.TENSOR:
                self.to_release.append(Release(use.pool, use.ref))


def slots_of(read: Read) -> list[tuple[Pool, SlotRef]]:
    return [(pool, ref) for pool, ref in zip(CHUNKS, (read.e_slot, read.sm_slot), strict=True) if ref is not None]
