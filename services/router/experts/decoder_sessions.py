"""The sessions with the attached decoders: sends the brain's operations, and tells the brain of results."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence

import structlog

from zipmoe.errors import DeadlineExceeded, ZipMoeError
from zipmoe.model.linear.matrices import Weights
from zipmoe.residency.brain import Brain
from zipmoe.residency.pools import Operations, SessionLost, Usable
from zipmoe.residency.state import Residency
from zipmoe.services.decoder.client import FetchSession
from zipmoe.services.router.deadlines import NO_DEADLINES, Deadlines
from zipmoe.services.router.experts.arena_placement import ArenaPlacement
from zipmoe.services.router.experts.decoder_link import Attached, LinkEvent, LinkEvents, LinkRefused
from zipmoe.services.router.experts.pass_log import PassLog
from zipmoe.services.router.experts.read_account import ReadAccount
from zipmoe.services.router.experts.views import ExpertViews
from zipmoe.types import ExpertKey, SlotRef

_LOG = structlog.get_logger(__name__)


class DecoderSessions:
    """Attaches and forgets decoders as their links report it; carries operations and results to and from the brain.

    Attributes:
        events: queue of the events of all decoder links; any thread puts events into it.
        account: bytes read from disk, by reason.
        refusal: the reason why a decoder can never be attached; None if no link has reported that.

    Thread: the model thread.
    """

    def __init__(
        self,
        brain: Brain,
        placement: ArenaPlacement,
        pass_log: PassLog,
        *,
        fetch_timeout_s: float,
        fill_order: Callable[[], Sequence[ExpertKey]],
    ) -> None:
        """Starts without a decoder.

        Args:
            brain: receives the results; its answers are sent at once.
            placement: placement that is bound to the arenas of the attached decoders.
            pass_log: log that counts messages.
            fetch_timeout_s: longest wait for one event, in seconds.
            fill_order: returns the experts to fill free slots with while no request computes, the most used first;
                called whenever a decoder attaches.
        """
        self.events: LinkEvents = queue.SimpleQueue()
        self.account = ReadAccount()
        self.refusal: ZipMoeError | None = None
        self._brain = brain
        self._placement = placement
        self._pass_log = pass_log
        self._fetch_timeout_s = fetch_timeout_s
        self._fill_order = fill_order
        self._deadlines = NO_DEADLINES
        self._attached: dict[str, Attached] = {}
        self._views: dict[int, ExpertViews] = {}  # by arena epoch
        self._sessions: dict[int, FetchSession] = {}  # by arena epoch

    @property
    def any_attached(self) -> bool:
        """Whether a decoder is attached."""
        return bool(self._attached)

    def bound_by(self, deadlines: Deadlines) -> None:
        """Bounds the waits and messages that follow by the deadlines of a pass's requests."""
        self._deadlines = deadlines

    def weights(self, usable: Usable) -> Weights:
        """Returns the matrices of a usable expert, as views of the slots that hold them."""
        if usable.form is Residency.FULL:
            slot = _present(usable.tensor_slot)
            return self._views[slot.arena_epoch].full(usable.key.layer, slot.slot)
        e_slot, sm_slot = _present(usable.e_slot), _present(usable.sm_slot)
        return self._views[e_slot.arena_epoch].packed(usable.key, e_slot.slot, sm_slot.slot)

    def close(self) -> None:
        """Forgets all decoders."""
        for decoder_id in list(self._attached):
            self._forget(decoder_id)

    # --- events -------------------------------------------------------------------------------------------------------

    def process_events(self) -> None:
        """Processes all events that are there."""
        while not self.events.empty():
            self._process(self.events.get())

    def await_event(self, timeout_s: float | None) -> bool:
        """Waits for an event and processes it; returns False if none came in `timeout_s` seconds, None for no limit."""
        try:
            event = self.events.get(timeout=timeout_s)
        except queue.Empty:
            return False
        self._process(event)
        return True

    def await_result(self, layer: int) -> None:
        """Waits for an event while a pass needs experts of a layer, and processes it; counts the wait as a stall.

        Raises:
            DeadlineExceeded: nothing arrived within the fetch timeout, or before the first deadline of the pass.
        """
        begin_s = time.monotonic()
        left_s = self._deadlines.first_s - begin_s
        try:
            event = self.events.get(timeout=max(0.0, min(left_s, self._fetch_timeout_s)))
        except queue.Empty:
            within = (
                "before the deadline" if left_s < self._fetch_timeout_s else f"within {self._fetch_timeout_s:.0f} s"
            )
            raise DeadlineExceeded(f"no expert of MoE layer {layer} arrived {within}") from None
        finally:
            self.account.usage.stall_s += time.monotonic() - begin_s
        self._process(event)

    def _process(self, link_event: LinkEvent) -> None:
        decoder_id, event = link_event.decoder_id, link_event.event
        if isinstance(event, Attached):
            self._join(decoder_id, event)
        elif isinstance(event, LinkRefused):
            _LOG.error("decoder_refused", decoder=decoder_id, reason=event.error.message)
            self.refusal = event.error
        elif isinstance(event, SessionLost):
            self.send(self._forget(decoder_id))
        elif event.first_tensor_only:
            self._brain.first_tensor(event.operation_id)
        else:
            self.account.record_result(self._brain.urgency(event.operation_id), event)
            self.send(self._brain.completed(event.operation_id, event.error))

    def _join(self, decoder_id: str, attached: Attached) -> None:
        self.send(self._forget(decoder_id))
        self._attached[decoder_id] = attached
        for pool in attached.slots.pools:
            if pool.slot_count:
                self._views[pool.arena_epoch] = attached.views
                self._sessions[pool.arena_epoch] = attached.session
        self._placement.bind([each.views for each in self._attached.values()])
        self._brain.join(attached.slots)
        self._brain.fill_with(self._fill_order())
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
        return self._brain.lost(decoder_id)

    # --- operations ---------------------------------------------------------------------------------------------------

    def send(self, operations: Operations) -> None:
        """Sends operations to the decoders that own their slots, one message to each."""
        if not operations:
            return
        if len(self._attached) == 1:
            self._send_to(next(iter(self._attached.values())).session, operations)
            return
        for session, share in self._shares(operations):
            self._send_to(session, share)

    def _send_to(self, session: FetchSession, operations: Operations) -> None:
        operations.deadline_s = self._deadlines.last_s
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
