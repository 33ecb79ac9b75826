"""The experts of one pass through a layer, in the order in which they can be computed."""

from __future__ import annotations

from collections.abc import Mapping

from zipmoe.model.experts.provider import Arrival
from zipmoe.residency.brain import Brain
from zipmoe.services.router.experts.decoder_sessions import DecoderSessions
from zipmoe.services.router.experts.pass_log import PassLog
from zipmoe.types import ExpertKey


class LayerArrivals:
    """Gives resident experts first, then each missing expert when it arrives; see `Arrivals`.

    The brain pins the expert that was given last. If the arrivals are closed before all experts were taken, the brain
    needs none of them any more.

    Thread: the model thread.
    """

    def __init__(
        self, layer: int, rows: Mapping[int, int], brain: Brain, decoders: DecoderSessions, pass_log: PassLog
    ) -> None:
        """Begins a pass whose missing experts have been asked for.

        Args:
            layer: ordinal of the MoE layer.
            rows: number of rows that are routed to each expert.
            brain: tells which needed expert can be computed.
            decoders: receive what the brain wants next; their events are awaited.
            pass_log: log that is told of the end of the pass.
        """
        self._layer = layer
        self._rows = rows
        self._brain = brain
        self._decoders = decoders
        self._pass_log = pass_log
        self._left = len(rows)
        self._given: ExpertKey | None = None  # pinned; in use by the caller
        self._incomplete = False  # of the given expert, only the first matrix has arrived
        self._open = True
        self._stalled_s = decoders.account.usage.stall_s

    def __iter__(self) -> LayerArrivals:
        return self

    def __next__(self) -> Arrival:
        """Waits for the next expert; the one before is in use no longer.

        Raises:
            CorruptData: an expert's chunks are damaged on disk.
            Unavailable: the last decoder was lost.
            DeadlineExceeded: nothing arrived within the fetch timeout, or before the first deadline of the pass.
        """
        if not self._open:
            raise StopIteration
        try:
            self._end_use()
            if self._left:
                return self._next()
        except BaseException:
            self.close()
            raise
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Ends the pass through the layer. Idempotent."""
        if not self._open:
            return
        self._open = False
        try:
            if self._left:
                self._decoders.send(self._brain.abandon())
        finally:
            stall_s = self._decoders.account.usage.stall_s - self._stalled_s
            self._pass_log.layer_passed(self._layer, self._rows, stall_s)

    def _next(self) -> Arrival:
        while True:
            self._decoders.process_events()
            usable = self._brain.next_usable()
            if usable is not None:
                break
            self._decoders.await_result(self._layer)
        matrices = self._decoders.weights(usable)
        self._given, self._incomplete = usable.key, not usable.complete
        return Arrival(usable.key.expert, matrices, self._await_rest if self._incomplete else None)

    def _end_use(self) -> None:
        """Tells the brain that the given expert has been computed."""
        key, self._given = self._given, None
        if key is not None:
            self._left -= 1
            self._decoders.send(self._brain.done(key))

    def _await_rest(self) -> None:
        """Waits until all matrices of the given expert have arrived.

        Raises:
            ZipMoeError: as `__next__`, and Unavailable where the decoder of this very expert was lost.
        """
        if not self._incomplete:
            return
        assert self._given is not None
        self._decoders.process_events()
        while not self._brain.complete(self._given):
            self._decoders.await_result(self._layer)
        self._incomplete = False
