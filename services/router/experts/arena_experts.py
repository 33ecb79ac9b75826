"""The expert provider over shared memory: asks the brain for decisions and sends its operations to the decoders."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from zipmoe.errors import Unavailable
from zipmoe.residency.brain import Brain
from zipmoe.residency.counters import GuessOutcome
from zipmoe.residency.guess_control import GuessControl
from zipmoe.residency.pools import Phase
from zipmoe.residency.state import Residency
from zipmoe.services.router.deadlines import NO_DEADLINES, Deadlines
from zipmoe.services.router.experts.decoder_sessions import DecoderSessions
from zipmoe.services.router.experts.layer_arrivals import LayerArrivals
from zipmoe.services.router.experts.pass_log import PassLog
from zipmoe.services.router.experts.read_account import ExpertUsage, ReadAccount


class ArenaExperts:
    """Supplies the model with experts from the arenas of the attached decoders.

    Other threads only put events into the queue of `decoders` or read counters. Everything else happens on the model
    thread. A guess is a speculative prefetch, chosen by the gate of a later layer.

    Attributes:
        brain: decides on fetches and evictions.
        decoders: sessions with the attached decoders.

    Thread: the model thread, except `resident_counts`.
    """

    wants_announcements = True

    def __init__(self, brain: Brain, guesses: GuessControl, decoders: DecoderSessions, pass_log: PassLog) -> None:
        """Makes the provider.

        Args:
            brain: decides on fetches and evictions.
            guesses: sets the number of layers ahead for predicted prefetches.
            decoders: sessions with the decoders, which tell this brain of results.
            pass_log: log of steps and layer passes.
        """
        self.brain = brain
        self.decoders = decoders
        self._guesses = guesses
        self._pass_log = pass_log
        self._phase = Phase.DECODE

    @property
    def account(self) -> ReadAccount:
        """Bytes read from disk, by reason."""
        return self.decoders.account

    @property
    def usage(self) -> ExpertUsage:
        """The part of the account that is charged to requests, with hits, misses and stalls."""
        return self.decoders.account.usage

    @property
    def guess_depth(self) -> int:
        """Number of layers ahead for which experts are prefetched now; 0 for none."""
        return self._guesses.depth

    def step(self, phase: Phase, tokens: int, deadlines: Deadlines = NO_DEADLINES) -> None:
        """Begins a forward pass, and adapts the prefetch depth to the outcomes of past prefetches.

        Args:
            phase: kind of the pass.
            tokens: its rows.
            deadlines: those of its requests. Layers wait for experts until the first one. Work that the pass has asked
                for begins before the last one or never.
        """
        self._phase = phase
        self.decoders.bound_by(deadlines)
        used = self.brain.counters.guesses
        self._guesses.step(used[GuessOutcome.USED] + used[GuessOutcome.LATE], used[GuessOutcome.WASTED])
        self.brain.step(phase, tokens)
        self._pass_log.step_begun(phase, tokens)

    def experts(self, layer: int, rows: Mapping[int, int]) -> LayerArrivals:
        """Asks for the experts of a layer of the running pass.

        Args:
            layer: ordinal of the MoE layer.
            rows: number of rows that are routed to each expert.

        Returns:
            The arrivals. The fetches of missing experts have been sent.

        Raises:
            Unavailable: no decoder is attached.
        """
        self.decoders.process_events()
        if not self.decoders.any_attached:
            raise Unavailable("no decoder is connected")
        counters = self.brain.counters
        missed = counters.missed(self._phase)
        self.decoders.send(self.brain.need(layer, rows))
        misses = counters.missed(self._phase) - missed
        self.usage.misses += misses
        self.usage.hits += len(rows) - misses
        return LayerArrivals(layer, rows, self.brain, self.decoders, self._pass_log)

    def prefetch(self, layer: int, guesses: Sequence[int]) -> None:
        """Prefetches the experts that a later layer will probably need, the likeliest first."""
        self.decoders.process_events()
        self.decoders.send(self.brain.prefetch(layer, guesses))

    def announce(self, layer: int, experts: Sequence[int]) -> None:
        """Prefetches the experts that the running layer is predicted to need, the likeliest first."""
        self.decoders.process_events()
        self.decoders.send(self.brain.announce(layer, experts))

    def fill(self, until_s: float) -> bool:
        """Fetches experts into free slots while no request computes; waits for one event or until `until_s`.

        Args:
            until_s: time on `time.monotonic`; `inf` for no end.

        Returns:
            Whether filling goes on, so that the caller should call again. If not, the call has not waited.
        """
        self.decoders.bound_by(NO_DEADLINES)
        self.decoders.process_events()
        self.decoders.send(self.brain.fill())
        if not self.brain.filling:
            return False
        left_s = until_s - time.monotonic()
        self.decoders.await_event(None if math.isinf(left_s) else max(0.0, left_s))
        return True

    def await_decoder(self, timeout_s: float) -> None:
        """Waits for an event of a decoder link, for at most `timeout_s` seconds.

        Raises:
            StoreMismatch: no decoder is attached, and a link has reported that its decoder can never be.
        """
        if not self.decoders.await_event(timeout_s):
            return
        self.decoders.process_events()
        if self.decoders.refusal is not None and not self.decoders.any_attached:
            raise self.decoders.refusal

    def close(self) -> None:
        """Forgets all decoders, closes the trace and saves the popularity."""
        self.decoders.close()
        self._pass_log.close()

    def resident_counts(self) -> Counter[tuple[int, Residency]]:
        """Counts experts by layer and residency state. Thread: any."""
        return self.brain.resident_counts()
