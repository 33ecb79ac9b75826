"""The engine: one thread that owns the model and runs the steps of all requests."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from zipmoe.errors import InternalError, Unavailable, ZipMoeError
from zipmoe.services.router.engine.request import Request
from zipmoe.services.router.engine.stepper import Stepper

_LOG = structlog.get_logger(__name__)


def _nothing() -> None:
    pass


class ExpertLink(Protocol):
    """The engine's connection to the decoders, which may be lost and attached again."""

    @property
    def connected(self) -> bool:
        """Whether experts can be fetched, as far as is known."""
        ...

    def attach_once(self) -> None:
        """Waits for a short time until experts can be fetched.

        Raises:
            ZipMoeError: a decoder can never be attached, however long the engine waits.
        """
        ...

    def fill(self, until_s: float) -> bool:
        """Fills free expert slots while no request computes; waits for the next event or until `until_s`.

        Returns:
            Whether filling goes on. If not, the call has not waited.
        """
        ...

    def interrupt(self) -> None:
        """Ends a wait in `attach_once` or `fill`. Thread: any."""
        ...

    def close(self) -> None:
        """Closes the connection for good."""
        ...


class Engine:
    """Runs steps as long as there are requests.

    When the last decoder is lost, all requests fail as UNAVAILABLE. The model thread then attaches a decoder before it
    runs the next step.

    Attributes:
        fatal: the error for which the engine has given up; None before.
    """

    def __init__(
        self,
        stepper: Stepper,
        link: ExpertLink,
        check: Callable[[], None] = _nothing,
        *,
        checked: Callable[[], None] = _nothing,
        failed: Callable[[], None] = _nothing,
    ) -> None:
        """Prepares an engine; `start` starts its thread.

        Args:
            stepper: runs the steps.
            link: connection to the decoders.
            check: called once on the model thread, before the first step and with a decoder attached.
            checked: called on the model thread when the check has ended.
            failed: called on the model thread when the engine gives up.
        """
        self._stepper = stepper
        self._link = link
        self._check = check
        self._checked = checked
        self._failed = failed
        self._ready = False
        self._changed = threading.Condition(stepper.lock)
        self._draining = False
        self._news = False
        self._filling = False
        self.fatal: ZipMoeError | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    # --- any thread ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the model thread."""
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            ResourceExhausted: as many requests or prompt tokens as allowed are waiting.
            Unavailable: no decoder is connected, or the engine is draining.
        """
        with self._changed:
            if self._draining:
                raise Unavailable("the router is shutting down")
            if not self._link.connected:
                raise Unavailable("the decoder is not connected")
            self._stepper.submit(request)
            self._tell()

    def cancel(self, request: Request) -> None:
        """Ends a request before its next step, without a further event. Harmless after the request has ended."""
        request.cancelled.set()
        self.wake()

    def wake(self) -> None:
        """Makes the model thread check requests and decoders again.

        Called when a request is cancelled, when a client has read enough for a paused request to go on, and when a
        decoder attaches or is lost.
        """
        with self._changed:
            self._tell()

    def stop(self, timeout_s: float) -> bool:
        """Lets running and waiting requests end, then stops the thread.

        Returns:
            Whether the thread ended within `timeout_s` seconds.
        """
        with self._changed:
            self._draining = True
            self._tell()
        self._link.interrupt()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _tell(self) -> None:
        self._news = True
        self._changed.notify()
        if self._filling:
            self._link.interrupt()

    # --- the model thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._work()
        except ZipMoeError as error:  # from `attach_once`: a retry cannot succeed
            self.fatal = error
        except Exception:
            _LOG.exception("engine_failed")
            self.fatal = InternalError("the model thread has ended")
        finally:
            self._link.close()
        if self.fatal is not None:
            with self._changed:
                self._draining = True
            self._stepper.fail_all(self.fatal)
            self._failed()

    @property
    def ready(self) -> bool:
        """Whether the check has ended. Requests that come before wait."""
        return self._ready

    def _work(self) -> None:
        while not (self._draining and self._stepper.empty):
            if not self._link.connected:
                self._stepper.fail_all(Unavailable("the connection to the decoder was lost", next_step="retry"))
                if not self._draining:
                    self._link.attach_once()
                continue
            if not self._ready:
                self._check()
                self._ready = True
                self._checked()
            next_late_s = self._stepper.end_and_pause_requests()
            if next_late_s is None:
                self._stepper.step()
            else:
                self._wait(next_late_s)

    def _wait(self, until_s: float) -> None:
        """Blocks until there is news or until `until_s`; each call fills a few free expert slots meanwhile."""
        with self._changed:
            self._filling = not (self._news or self._draining)  # from here on `_tell` interrupts the fill
        fills = self._filling and self._link.fill(until_s)
        with self._changed:
            self._filling = False
            if not (fills or self._news or (self._draining and self._stepper.empty)):
                left_s = until_s - time.monotonic()
                self._changed.wait(None if math.isinf(left_s) else max(left_s, 0))
            self._news = False
