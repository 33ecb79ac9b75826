"""The engine: one thread that owns the model and runs requests on it, one forward step at a time, in turn."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from services.router.decoders import Decoders
from services.router.experts import ArenaExperts
from services.router.metrics import RouterMetrics
from services.router.request import Failed, Request, RunningRequest
from zipmoe.errors import InternalError, ResourceExhausted, Unavailable, ZipMoeError
from zipmoe.model.build import BuiltModel
from zipmoe.model.text import Tokenizer

_LOG = structlog.get_logger(__name__)


@dataclass(frozen=True)
class EngineLimits:
    """How much the engine takes on.

    Attributes:
        max_running: requests that are generated in turn.
        max_waiting: requests that wait for their turn; one more is refused.
        kv_tokens: tokens of KV cache over all running requests; admission reserves prompt plus answer.
    """

    max_running: int
    max_waiting: int
    kv_tokens: int


class Engine:
    """Runs requests on the model thread, first come, first admitted.

    A step that fails ends its request; the others go on. When the decoder is lost, all running requests fail as
    UNAVAILABLE and the thread attaches again before it goes on.

    Attributes:
        failed: called on the model thread when it has to give up; `fatal` is why.
    """

    def __init__(
        self,
        model: BuiltModel,
        tokenizer: Tokenizer,
        link: Decoders,
        limits: EngineLimits,
        metrics: RouterMetrics,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._link = link
        self._limits = limits
        self._metrics = metrics
        self._changed = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._running: deque[RunningRequest] = deque()
        self._draining = False
        self.failed: Callable[[], None] = lambda: None
        self.fatal: ZipMoeError | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    # --- any thread ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the model thread."""
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            ResourceExhausted: as many requests as allowed are waiting.
            Unavailable: the decoder is not connected, or the engine is draining.
        """
        with self._changed:
            if self._draining:
                raise Unavailable("the router is shutting down")
            if not self._link.connected:
                raise Unavailable("the decoder is not connected")
            if len(self._waiting) >= self._limits.max_waiting:
                raise ResourceExhausted(
                    f"{len(self._waiting)} requests are waiting, the most that --max-waiting allows"
                )
            self._waiting.append(request)
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify()

    def cancel(self, request: Request) -> None:
        """Ends a request before its next step; nothing more is emitted for it. Harmless when it has ended."""
        request.cancelled.set()
        self.wake()

    def wake(self) -> None:
        """Makes the model thread look at its world again: a request was cancelled, the decoder was lost."""
        with self._changed:
            self._changed.notify()

    def stop(self, timeout_s: float) -> bool:
        """Lets running and waiting requests end, then stops the thread.

        Returns:
            Whether the thread ended within `timeout_s` seconds.
        """
        with self._changed:
            self._draining = True
            self._changed.notify()
        self._link.interrupt()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # --- the model thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._work()
        except ZipMoeError as error:  # of the attachment: no retry can mend it
            self.fatal = error
        except Exception:
            _LOG.exception("engine_failed")
            self.fatal = InternalError("the model thread has ended")
        finally:
            self._link.close()
        if self.fatal is not None:
            with self._changed:
                self._draining = True
            self._fail_all(self.fatal)
            self.failed()

    def _work(self) -> None:
        while self._wait_for_work():
            if not self._link.connected:
                self._fail_all(Unavailable("the connection to the decoder was lost", next_step="retry"))
                self._link.attach_once()
                continue
            self._admit()
            if self._running:
                self._advance(self._running.popleft())
                self._metrics.running.set(len(self._running))

    def _wait_for_work(self) -> bool:
        """Blocks until there is something to do; False when draining is complete."""
        with self._changed:
            while self._link.connected and not self._waiting and not self._running:
                if self._draining:
                    return False
                self._changed.wait()
            return not (self._draining and not self._waiting and not self._running)

    def _admit(self) -> None:
        reserved = sum(running.spec.reserved_tokens for running in self._running)
        with self._changed:
            while self._waiting and len(self._running) < self._limits.max_running:
                request = self._waiting[0]
                if request.cancelled.is_set():
                    self._waiting.popleft()
                    self._metrics.requests.labels("cancelled").inc()
                    continue
                reserved += request.spec.reserved_tokens
                if self._running and reserved > self._limits.kv_tokens:
                    break
                self._running.append(
                    RunningRequest(self._waiting.popleft(), self._model, self._tokenizer, self._experts)
                )
            self._metrics.waiting.set(len(self._waiting))
        self._metrics.running.set(len(self._running))

    @property
    def _experts(self) -> ArenaExperts:
        return self._link.experts

    def _advance(self, running: RunningRequest) -> None:
        """One step of one request; unless it has ended, it goes to the end of the line."""
        if running.request.cancelled.is_set():
            self._metrics.requests.labels("cancelled").inc()
            return
        previous_token_s = running.last_token_s
        started = time.perf_counter()
        try:
            finished = running.advance()
        except ZipMoeError as error:
            self._fail(running.request, error)
            return
        except Exception:
            _LOG.exception("step_failed", request_id=running.spec.request_id)
            self._fail(running.request, InternalError("the model failed on this request"))
            return
        finally:
            self._metrics.model_seconds.inc(time.perf_counter() - started)
        self._count_token(running, previous_token_s)
        if finished is None:
            self._running.append(running)
            return
        self._metrics.requests.labels(finished.reason.value).inc()
        self._metrics.request_duration.observe(finished.duration_s)

    def _count_token(self, running: RunningRequest, previous_token_s: float) -> None:
        if not running.last_token_s:
            self._metrics.prompt_tokens.inc(len(running.spec.prompt_ids))
            return
        self._metrics.generated_tokens.inc()
        if previous_token_s:
            self._metrics.inter_token.observe(running.last_token_s - previous_token_s)
        else:
            self._metrics.prompt_tokens.inc(len(running.spec.prompt_ids))
            self._metrics.time_to_first_token.observe(running.last_token_s - running.request.arrived_s)

    def _fail(self, request: Request, error: ZipMoeError) -> None:
        self._metrics.requests.labels(type(error).__name__).inc()
        request.emit(Failed(error))

    def _fail_all(self, error: ZipMoeError) -> None:
        with self._changed:
            lost = [running.request for running in self._running] + list(self._waiting)
            self._running.clear()
            self._waiting.clear()
        for request in lost:
            self._fail(request, error)
