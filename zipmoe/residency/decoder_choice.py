"""Which of several decoders an expert goes to: the one that holds it or its parts, else the least loaded.

    join(decoder)        a decoder has attached, empty
    assign(key, work_s)  where the expert is to be fetched; it stays there as long as the decoder holds any of it
    ended(owner_id, ..)  work that `assign` announced is over, whatever its outcome
    dropped(key)         the decoder holds nothing of the expert any more
    lost(owner_id)       the decoder has gone, and with it all that it held; when it joins again, it is empty

An arena is one decoder's, so fetching the rest of an expert elsewhere would read again what is there already, and keep
two copies. Time is not known here: a decoder's load is the announced work that has not ended, divided by its workers.

Source: ZipMoE (arXiv 2601.21198), cache-affinity scheduling; several decoders are beyond the paper.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from zipmoe.errors import InvalidRequest, Unavailable
from zipmoe.types import ExpertKey


@dataclass(slots=True)
class Decoder:
    """One decoder that is attached.

    Attributes:
        owner_id: its name.
        worker_count: its recover workers, at least 1.
        expert_slots: how many experts its arenas have room for; what it holds relative to that breaks ties of load.
        held: experts that it holds, or was told to fetch.
        queued_count: fetches that have been announced and have not ended.
        queued_s: their work, in seconds of one worker.
    """

    owner_id: str
    worker_count: int
    expert_slots: int
    held: set[ExpertKey] = field(default_factory=set)
    queued_count: int = 0
    queued_s: float = 0.0

    def finish_s(self, work_s: float) -> float:
        """How long from now it is expected to have done what is queued and `work_s` seconds of one worker more."""
        return (self.queued_s + work_s) / self.worker_count


class DecoderAffinity:
    """Spreads experts over decoders.

    Thread: not thread safe; the brain's thread owns it.
    """

    def __init__(self) -> None:
        self._decoders: dict[str, Decoder] = {}
        self._homes: dict[ExpertKey, Decoder] = {}

    @property
    def decoders(self) -> tuple[str, ...]:
        """The attached decoders, in the order in which they joined."""
        return tuple(self._decoders)

    def join(self, owner_id: str, *, worker_count: int, expert_slots: int) -> None:
        """Takes a decoder in; it holds nothing.

        Raises:
            InvalidRequest: it is attached already, or has no worker or no slot.
        """
        if owner_id in self._decoders:
            raise InvalidRequest(f"decoder {owner_id} is attached already")
        if worker_count < 1 or expert_slots < 1:
            raise InvalidRequest(f"decoder {owner_id} has {worker_count} workers and {expert_slots} slots for experts")
        self._decoders[owner_id] = Decoder(owner_id, worker_count, expert_slots)

    def lost(self, owner_id: str) -> list[ExpertKey]:
        """Forgets a decoder that has gone.

        Returns:
            The experts that were there, in ascending order: they are absent now.
        """
        gone = self._decoders.pop(owner_id, None)
        if gone is None:
            return []
        for key in gone.held:
            del self._homes[key]
        return sorted(gone.held)

    def home(self, key: ExpertKey) -> str | None:
        """The decoder that holds an expert or its parts; None if none does."""
        home = self._homes.get(key)
        return None if home is None else home.owner_id

    def assign(self, key: ExpertKey, work_s: float, among: Container[str] | None = None) -> str:
        """Decides where an expert is fetched, and counts the work as that decoder's.

        Args:
            key: the expert.
            work_s: what is left to do there, in seconds of one worker.
            among: attached decoders that an expert without a home may go to; None for all.

        Returns:
            The decoder: the expert's home, else the one that is expected to have done the work first, which becomes its
            home. Where that is a tie, as it is while all are idle, the one whose arenas are emptier takes it, then the
            one that joined first.

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

    def ended(self, owner_id: str, work_s: float) -> None:
        """Takes work that was announced off a decoder; harmless if it has gone."""
        decoder = self._decoders.get(owner_id)
        if decoder is not None and decoder.queued_count:
            decoder.queued_count -= 1
            # Sums of floats would leave a trace of load where there is none, and decide ties of idle decoders.
            decoder.queued_s = decoder.queued_s - work_s if decoder.queued_count else 0.0

    def dropped(self, key: ExpertKey) -> None:
        """Forgets where an expert was: nothing of it is held any more. It may go elsewhere next time."""
        home = self._homes.pop(key, None)
        if home is not None:
            home.held.remove(key)

    def __repr__(self) -> str:
        def text(decoder: Decoder) -> str:
            held = " ".join(f"{key.layer}.{key.expert}" for key in sorted(decoder.held))
            return f"{decoder.owner_id}[{held}] queued={decoder.queued_s:g}s"

        return "; ".join(map(text, self._decoders.values())) or "no decoder"
