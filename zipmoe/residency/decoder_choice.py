"""Chooses the decoder that fetches an expert: the holder of the expert's parts, else the least loaded decoder.

    join(decoder)              a decoder has attached, empty
    assign(key, work_s)        chooses the decoder of a fetch, which stays the expert's home while it holds a part
    remove_load(owner_id, ..)  work of an `assign` is over, with any outcome
    dropped(key)               the decoder holds no part of the expert any more
    lost(owner_id)             the decoder is lost with everything that it held; it is empty when it joins again

An arena belongs to one decoder. If another decoder fetched the rest of an expert, it would read the resident parts
again and keep a second copy. There is no clock here: the load of a decoder is the assigned work that has not ended,
divided by the decoder's workers.

Source: ZipMoE (arXiv 2601.21198), cache-affinity scheduling; several decoders are beyond the paper.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from zipmoe.errors import InvalidRequest, Unavailable
from zipmoe.types import ExpertKey


@dataclass(slots=True)
class DecoderLoad:
    """Load of an attached decoder: the experts that it holds, and the work that it was assigned.

    Attributes:
        owner_id: name of the decoder.
        worker_count: recovery workers, at least 1.
        expert_slots: experts that the decoder's arenas have room for. The share of these in use breaks ties of load.
        held: experts that the decoder holds or was told to fetch.
        queued_count: fetches that have been assigned and have not ended.
        queued_s: work of these fetches, in seconds of one worker.
    """

    owner_id: str
    worker_count: int
    expert_slots: int
    held: set[ExpertKey] = field(default_factory=set)
    queued_count: int = 0
    queued_s: float = 0.0

    def finish_s(self, work_s: float) -> float:
        """Estimates the seconds until the queued work and `work_s` more seconds of one worker are done."""
        return (self.queued_s + work_s) / self.worker_count


class DecoderAffinity:
    """Spreads the fetches of experts over the attached decoders.

    Thread: not thread safe; the brain's thread owns it.
    """

    def __init__(self) -> None:
        self._decoders: dict[str, DecoderLoad] = {}
        self._homes: dict[ExpertKey, DecoderLoad] = {}

    def join(self, owner_id: str, *, worker_count: int, expert_slots: int) -> None:
        """Adds a decoder with empty arenas.

        Raises:
            InvalidRequest: the decoder is attached already, or has no worker or no slot.
        """
        if owner_id in self._decoders:
            raise InvalidRequest(f"decoder {owner_id} is attached already")
        if worker_count < 1 or expert_slots < 1:
            raise InvalidRequest(f"decoder {owner_id} has {worker_count} workers and {expert_slots} slots for experts")
        self._decoders[owner_id] = DecoderLoad(owner_id, worker_count, expert_slots)

    def lost(self, owner_id: str) -> None:
        """Forgets a decoder that was lost, with its experts; has no effect if the decoder is not attached."""
        gone = self._decoders.pop(owner_id, None)
        if gone is not None:
            for key in gone.held:
                del self._homes[key]

    def assign(self, key: ExpertKey, work_s: float, among: Container[str] | None = None) -> str:
        """Chooses the decoder that fetches an expert, and adds the work to that decoder's load.

        Args:
            key: the expert.
            work_s: work of the fetch, in seconds of one worker.
            among: attached decoders that an expert without a home may go to; None for all.

        Returns:
            The expert's home. For an expert without one, the decoder that is expected to finish the work first; it
            becomes the home. Ties, as between idle decoders, go to the decoder with the smaller share of its slots in
            use, then to the decoder that joined first.

        Raises:
            Unavailable: no decoder is attached.
        """
        home = self._homes.get(key)
        if home is None:
            if not self._decoders:
                raise Unavailable("no decoder is attached")
            home = min(
                (each for each in self._decoders.values() if among is None or each.owner_id in among),
                key=lambda decoder: (decoder.finish_s(work_s), len(decoder.held) / decoder.expert_slots),
            )
            home.held.add(key)
            self._homes[key] = home
        home.queued_count += 1
        home.queued_s += work_s
        return home.owner_id

    def remove_load(self, owner_id: str, work_s: float) -> None:
        """Takes assigned work off the load of a decoder; has no effect if the decoder was lost."""
        decoder = self._decoders.get(owner_id)
        if decoder is not None and decoder.queued_count:
            decoder.queued_count -= 1
            # Float sums would leave a rounding remainder on an idle decoder, and that would decide ties.
            decoder.queued_s = decoder.queued_s - work_s if decoder.queued_count else 0.0

    def dropped(self, key: ExpertKey) -> None:
        """Forgets the home of an expert that no decoder holds any more; any decoder may fetch the expert next."""
        home = self._homes.pop(key, None)
        if home is not None:
            home.held.remove(key)

    def __repr__(self) -> str:
        def text(decoder: DecoderLoad) -> str:
            held = " ".join(f"{key.layer}.{key.expert}" for key in sorted(decoder.held))
            return f"{decoder.owner_id}[{held}] queued={decoder.queued_s:g}s"

        return "; ".join(map(text, self._decoders.values())) or "no decoder"
