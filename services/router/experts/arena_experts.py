"""The expert provider over shared memory: asks the brain for decisions and sends its operations to the decoders."""

from __future__ import annotations

import math
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

import structlog

from zipmoe.errors import DeadlineExceeded, Unavailable, ZipMoeError
from zipmoe.model.linear.packed import Weights
from zipmoe.residency.brain import Brain
from zipmoe.residency.counters import GuessOutcome
from zipmoe.residency.guess_control import GuessControl
from zipmoe.residency.pools import Operations, Phase, Usable
from zipmoe.residency.state import Residency
from zipmoe.services.decoder.client import FetchSession, FetchSessionLost
from zipmoe.services.router.deadlines import NO_DEADLINES, Deadlines
from zipmoe.services.router.experts.arena_placement import ArenaPlacement
from zipmoe.services.router.experts.decoder_link import Attached, LinkEvent, LinkEvents, LinkRefused
from zipmoe.services.router.experts.partial_expert import PartialExpert
from zipmoe.services.router.experts.pass_log import PassLog
from zipmoe.services.router.experts.read_account import ReadAccount
from zipmoe.services.router.experts.views import ExpertViews
from zipmoe.types import ExpertKey, SlotRef

_LOG = structlog.get_logger(__name__)


class ArenaExperts:
    """Supplies the model with experts from the arenas of the attached decoders.

    Other threads only put events into `events` or read counters. Everything else happens on the model thread. A guess
    is a speculative prefetch, chosen by the gate of a later layer.

    Attributes:
        deadlines: deadlines of the requests in the running pass; set by the stepper.
        account: bytes read from disk, by reason.
        usage: the part of the account that is charged to requests, with hits, misses and stalls.
        events: queue of the events of all decoder links.
        brain: decides on fetches and evictions.

    Thread: the model thread, except `resident_counts`.
    """

    wants_announcements = True

    def __init__(
        self,
        brain: Brain,
        guesses: GuessControl,
        placement: ArenaPlacement,
        pass_log: PassLog,
        *,
        fetch_timeout_s: float,
        fill_order: Callable[[], Sequence[ExpertKey]],
    ) -> None:
        """Starts without a decoder.

        Args:
            brain: decides on fetches and evictions.
            guesses: sets the number of layers ahead for predicted prefetches.
            placement: placement that is bound to the arenas of the attached decoders.
            pass_log: log of steps, layer passes and messages.
            fetch_timeout_s: longest wait for one expert, in seconds.
            fill_order: returns the experts to fill free slots with while no request computes, the most used first;
                called whenever a decoder attaches.
        """
        self.account = ReadAccount()
        self.usage = self.account.usage
        self.deadlines: Deadlines = NO_DEADLINES
        self.events: LinkEvents = queue.SimpleQueue()
        self.brain = brain
        self._guesses = guesses
        self._placement = placement
        self._pass_log = pass_log
        self._fetch_timeout_s = fetch_timeout_s
        self._fill_order = fill_order
        self._attached: dict[str, Attached] = {}
        self._views: dict[int, ExpertViews] = {}  # by arena epoch
        self._sessions: dict[int, FetchSession] = {}  # by arena epoch
        self._phase = Phase.DECODE
        self._refusal: ZipMoeError | None = None

    @property
    def guess_depth(self) -> int:
        """Number of layers ahead for which experts are prefetched now; 0 for none."""
        return self._guesses.depth

    def step(self, phase: Phase, tokens: int) -> None:
        """Begins a forward pass of `tokens` rows, and adapts the prefetch depth to the outcomes of past prefetches."""
        self._phase = phase
        used = self.brain.counters.guesses
        self._guesses.step(used[GuessOutcome.USED] + used[GuessOutcome.LATE], used[GuessOutcome.WASTED])
        self.brain.step(phase, tokens)
        self._pass_log.step_begun(phase, tokens)

    def experts(self, layer: int, rows: Mapping[int, int]) -> Iterator[tuple[int, Weights]]:
        """Supplies the experts of a layer pass: resident experts first, then each missing expert when it arrives.

        Args:
            layer: ordinal of the MoE layer.
            rows: number of rows that are routed to each expert.

        Returns:
            An iterator of (expert id, its matrices as views of the arenas). The matrices are valid until the next item
            is requested. The fetches of missing experts have been sent before this call returns.

        Raises:
            CorruptData: an expert's chunks are damaged on disk.
            Unavailable: no decoder is attached, or a decoder was lost while one of its experts was computed before all
                matrices had arrived.
            DeadlineExceeded: nothing arrived within the fetch timeout, or before the first of `deadlines` passed.
        """
        self._process_events()
        if not self._attached:
            raise Unavailable("no decoder is connected")
        counters = self.brain.counters
        missed = counters.missed(self._phase)
        self._send(self.brain.need(layer, rows))
        misses = counters.missed(self._phase) - missed
        self.usage.misses += misses
        self.usage.hits += len(rows) - misses
        arrivals = self._arrivals(layer, rows)
        next(arrivals)  # a generator that has started runs its `finally` on close, and so abandons the needed experts
        return arrivals

    def prefetch(self, layer: int, guesses: Sequence[int]) -> None:
        """Prefetches the experts that a later layer will probably need, the likeliest first."""
        self._process_events()
        self._send(self.brain.prefetch(layer, guesses))

    def announce(self, layer: int, experts: Sequence[int]) -> None:
        """Prefetches the experts that the running layer is predicted to need, the likeliest first."""
        self._process_events()
        self._send(self.brain.announce(layer, experts))

    def fill(self, until_s: float) -> bool:
        """Fetches experts into free slots while no request computes; waits for one event or until `until_s`.

        Args:
            until_s: time on `time.monotonic`; `inf` for no end.

        Returns:
            Whether filling goes on, so that the caller should call again. If not, the call has not waited.
        """
        self._process_events()
        self._send(self.brain.fill())
        if not self.brain.filling:
            return False
        left_s = until_s - time.monotonic()
        with suppress(queue.Empty):
            self._process_event(self.events.get(timeout=None if math.isinf(left_s) else max(0.0, left_s)))
        return True

    def await_decoder(self, timeout_s: float) -> None:
        """Waits for an event of a decoder link, for at most `timeout_s` seconds.

        Raises:
            StoreMismatch: no decoder is attached, and a link has reported that its decoder can never be.
        """
        try:
            self._process_event(self.events.get(timeout=timeout_s))
        except queue.Empty:
            return
        self._process_events()
        if self._refusal is not None and not self._attached:
            raise self._refusal

    def close(self) -> None:
        """Forgets all decoders, closes the trace and saves the popularity."""
        for decoder_id in list(self._attached):
            self._forget(decoder_id)
        self._pass_log.close()

    def resident_counts(self) -> Counter[tuple[int, Residency]]:
        """Counts experts by layer and residency state. Thread: any."""
        return self.brain.resident_counts()

    # --- one pass through a layer -------------------------------------------------------------------------------------

    def _arrivals(self, layer: int, rows: Mapping[int, int]) -> Iterator[tuple[int, Weights]]:
        stalled_s, left = self.usage.stall_s, len(rows)
        try:
            yield -1, ()
            while left:
                self._process_events()
                usable = self.brain.next_usable()
                if usable is None:
                    self._wait(layer)
                    continue
                yield usable.key.expert, self._weights(usable)
                left -= 1
                self._send(self.brain.done(usable.key))
        finally:
            if left:
                self._send(self.brain.abandon())
            self._pass_log.layer_passed(layer, rows, self.usage.stall_s - stalled_s)

    def _weights(self, usable: Usable) -> Weights:
        if usable.form is Residency.FULL:
            slot = _present(usable.tensor_slot)
            matrices: Weights = self._views[slot.arena_epoch].full(usable.key.layer, slot.slot)
        else:
            e_slot, sm_slot = _present(usable.e_slot), _present(usable.sm_slot)
            matrices = self._views[e_slot.arena_epoch].packed(usable.key, e_slot.slot, sm_slot.slot)
        return matrices if usable.complete else PartialExpert(matrices, lambda: self._complete(usable.key))

    def _complete(self, key: ExpertKey) -> None:
        """Waits until all tensors of an expert have arrived."""
        self._process_events()
        while not self.brain.complete(key):
            self._wait(key.layer)

    def _wait(self, layer: int) -> None:
        begin_s = time.monotonic()
        left_s = self.deadlines.first_s - begin_s
        try:
            event = self.events.get(timeout=max(0.0, min(left_s, self._fetch_timeout_s)))
        except queue.Empty:
            within = (
                "before the deadline" if left_s < self._fetch_timeout_s else f"within {self._fetch_timeout_s:.0f} s"
            )
            raise DeadlineExceeded(f"no expert of MoE layer {layer} arrived {within}") from None
        finally:
            self.usage.stall_s += time.monotonic() - begin_s
        self._process_event(event)

    # --- decoders -----------------------------------------------------------------------------------------------------

    def _process_events(self) -> None:
        while not self.events.empty():
            self._process_event(self.events.get())

    def _process_event(self, link_event: LinkEvent) -> None:
        decoder_id, event = link_event.decoder_id, link_event.event
        if isinstance(event, Attached):
            self._join(decoder_id, event)
        elif isinstance(event, LinkRefused):
            _LOG.error("decoder_refused", decoder=decoder_id, reason=event.error.message)
            self._refusal = event.error
        elif isinstance(event, FetchSessionLost):
            self._send(self._forget(decoder_id))
        elif event.first_tensor_only:
            self.brain.first_tensor(event.operation_id)
        else:
            self.account.record_result(self.brain.urgency(event.operation_id), event)
            self._send(self.brain.completed(event.operation_id, event.error))

    def _join(self, decoder_id: str, attached: Attached) -> None:
        self._send(self._forget(decoder_id))
        self._attached[decoder_id] = attached
        for pool in attached.slots.pools:
            if pool.slot_count:
                self._views[pool.arena_epoch] = attached.views
                self._sessions[pool.arena_epoch] = attached.session
        self._placement.bind([each.views for each in self._attached.values()])
        self.brain.join(attached.slots)
        self.brain.fill_with(self._fill_order())
        self.account.joined()

    def _forget(self, decoder_id: str) -> Operations:
        gone = self._attached.pop(decoder_id, None)
        if gone is None:
            return Operations()
        for pool in gone.slots.pools:
            self._views.pop(pool.arena_epoch, None)
            self._sessions.pop(pool.arena_epoch, None)
        self._placement.bind([each.views for each in self._attached.values()])
        gone.views.close()
        return self.brain.lost(decoder_id)

    def _send(self, operations: Operations) -> None:
        if not operations:
            return
        if len(self._attached) == 1:
            self._sent(next(iter(self._attached.values())).session, operations)
            return
        for session, share in self._shares(operations):
            self._sent(session, share)

    def _sent(self, session: FetchSession, operations: Operations) -> None:
        operations.deadline_s = self.deadlines.last_s
        self._pass_log.message_sent()
        session.send(operations)

    def _shares(self, operations: Operations) -> list[tuple[FetchSession, Operations]]:
        """Divides operations over several decoders by their slots.

        Cancels go to all decoders, since a decoder ignores the id of an operation that it does not know.
        """
        shares: dict[int, tuple[FetchSession, Operations]] = {}

        def share(slot: SlotRef) -> Operations:
            session = self._sessions[slot.arena_epoch]
            return shares.setdefault(id(session), (session, Operations()))[1]

        for release in operations.releases:
            if release.slot.arena_epoch in self._sessions:  # otherwise the arena is gone
                share(release.slot).releases.append(release)
        for read in operations.reads:
            share(_present(read.e_slot or read.sm_slot)).reads.append(read)
        for recovery in operations.recoveries:
            share(recovery.e_slot).recoveries.append(recovery)
        if operations.cancels:
            for attached in self._attached.values():
                mine = shares.setdefault(id(attached.session), (attached.session, Operations()))[1]
                mine.cancels.extend(operations.cancels)
        return list(shares.values())


def _present(slot: SlotRef | None) -> SlotRef:
    assert slot is not None
    return slot
