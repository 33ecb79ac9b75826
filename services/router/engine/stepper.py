"""Runs the planner's steps on the model, on the engine's thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from threading import RLock
from typing import Any

import structlog
import torch

from zipmoe.errors import DeadlineExceeded, InternalError, ZipMoeError
from zipmoe.model.passes.prompt_pass import PromptResult
from zipmoe.residency.pools import Phase
from zipmoe.services.router.deadlines import Deadlines
from zipmoe.services.router.engine.generation import Generation, shares
from zipmoe.services.router.engine.passes import StepExperts, StepModel
from zipmoe.services.router.engine.queue_progress import QueueProgress
from zipmoe.services.router.engine.request import Event, Request, RequestFailed, RequestFinished
from zipmoe.services.router.metrics import RouterMetrics
from zipmoe.serving.planner import StepPlanner, TicketWork
from zipmoe.serving.speculation import OFF, Speculation
from zipmoe.serving.ticket import PageReuse, Ticket

_LOG = structlog.get_logger(__name__)


class Stepper:
    """Waiting and running requests, and the steps that advance them.

    Thread: `submit` from any, the rest from the model thread. `lock` guards the planner, which both use.
    """

    def __init__(
        self,
        model: StepModel,
        planner: StepPlanner,
        experts: StepExperts,
        metrics: RouterMetrics,
        make: Callable[[Request, Ticket], Generation],
        speculation: Speculation,
    ) -> None:
        """Runs a planner's steps on a model.

        Args:
            model: computes the passes of a step.
            planner: decides the work of each step.
            experts: the provider of the experts; told of each pass and its deadlines, reports their usage.
            metrics: receives counts and times of requests, passes and tokens.
            make: makes the `Generation` of a submitted request.
            speculation: proposes the drafted tokens of each step.
        """
        self.lock = RLock()
        self._model = model
        self._planner = planner
        self._experts = experts
        self._metrics = metrics
        self._make = make
        self._speculation = speculation
        self._generations: dict[Ticket, Generation] = {}
        self._progress = QueueProgress(planner)
        self._arrived = 0

    # --- any thread ---------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            ResourceExhausted: the queue is full.
        """
        with self.lock:
            ticket = self._ticket(request, self._arrived)
            self._planner.submit(ticket)
            self._arrived += ticket.choices
            self._generations[ticket] = self._make(request, ticket)
            self._progress.submitted(self._generations[ticket])
            self._show_queue()

    def _ticket(self, request: Request, number: int) -> Ticket:
        spec = request.spec
        scored = spec.prompt_logprobs is not None  # all tokens of a scored prompt are computed
        reuse = PageReuse.NOTHING if scored else self._model.page_reuse
        adopts_any = self._model.adopts_any and not scored
        choices = 1 + len(request.followers)
        return Ticket(number, list(spec.prompt_ids), spec.most_tokens, reuse, adopts_any, choices=choices)

    @property
    def model(self) -> StepModel:
        """The passes of the steps."""
        return self._model

    @property
    def empty(self) -> bool:
        """Whether there are no requests."""
        return not self._generations

    @property
    def drafts(self) -> bool:
        """Whether steps verify drafted tokens."""
        return self._speculation.on

    def replace_model(self, model: StepModel) -> None:
        """Computes all requests by another model, with as many pages and one row of a request in a pass.

        To be called before the first step.
        """
        self._model = model
        self._planner.limits = replace(self._planner.limits, answer_rows=1)
        self._speculation = Speculation(OFF, 1)

    # --- the model thread ---------------------------------------------------------------------------------------------

    def end_and_pause_requests(self) -> float | None:
        """Ends cancelled and late requests, and pauses requests with too many unread events.

        Returns:
            None if there is work for a step. Otherwise the earliest deadline of all requests on `time.monotonic`,
            infinite without one.
        """
        with self.lock:
            for ticket, generation in list(self._generations.items()):
                request = generation.request
                if request.cancelled.is_set():
                    self._metrics.requests.labels("cancelled").inc()
                    self._drop(ticket)
                elif not self._ended_late(ticket):
                    ticket.paused = request.unread()
            self._tell()
            if not self._planner.idle:
                return None
            return min((each.request.deadline_s for each in self._generations.values()), default=float("inf"))

    def step(self) -> None:
        """Plans and computes one step: first rows of answers, then a part of some prompts."""
        self._prepare()
        self._propose_drafts()
        with self.lock:
            step = self._planner.plan()
            for ticket in step.preempted:
                self._model.forget(ticket)
                self._metrics.preemptions.inc()
            for ticket in step.admitted:
                self._metrics.prefix_tokens.inc(ticket.adopted_tokens)
            self._tell()
        answers = [work for work in step.work if not work.in_prompt]
        most = self._model.most_together
        for first in range(0, len(answers), most):
            self._compute_rows(answers[first : first + most])
        if prompts := [work for work in step.work if work.in_prompt]:
            self._compute_prompts(prompts)
        with self.lock:
            self._tell()

    def _prepare(self) -> None:
        """Lets the model prepare frequent passes on free pages; without enough of them, a later step tries again."""
        wanted = self._model.pages_to_prepare
        ledger = self._planner.ledger
        if not wanted or ledger.counts().free < wanted:
            return
        pages = ledger.allocate(self, [], wanted, wanted)
        assert pages is not None
        try:
            self._model.prepare(pages)
        finally:
            ledger.release(self, pages)

    def _propose_drafts(self) -> None:
        """Sets the drafts of the running requests. Without the lock, since the model's drafter may compute layers.

        Those layers wait for experts until the deadlines of the last pass. A failure leaves requests without drafts.
        """
        if not self._speculation.on:
            return
        with self.lock:
            works = [TicketWork(ticket, 0, 1, False) for ticket in self._planner.running if not ticket.paused]
        if works:
            with self._errors(), self._metered(works):
                self._speculation.propose([work.ticket for work in works])

    def fail_all(self, error: ZipMoeError) -> None:
        """Ends all requests with an error."""
        with self.lock:
            for ticket in list(self._generations):
                self._fail(ticket, error)

    def _compute_rows(self, works: Sequence[TicketWork]) -> None:
        """Computes a pass of answer rows and hands the logits to the requests.

        A failed pass is computed again without the requests that `_passes_to_retry` ends, so that no other request
        fails.
        """
        rows, begin_s = sum(work.rows for work in works), time.perf_counter()
        self._metrics.batch_rows.observe(rows)
        with self._errors() as failed, self._metered(works):
            self._experts.step(Phase.DECODE, rows, self._deadlines(works))
            logits = self._model.rows(works)
            self._speculation.passed(rows, time.perf_counter() - begin_s)
        if failed:
            for again in self._passes_to_retry(works, failed[0]):
                self._compute_rows(again)
            return
        with self.lock:
            self._planner.complete(works)
        for work, after_rows in zip(works, logits, strict=True):
            if after_rows:
                self._choose(work, after_rows)

    def _choose(self, work: TicketWork, after_rows: Sequence[torch.Tensor]) -> None:
        """Lets a request choose its next token, and one more after each drafted token that is the token it chose.

        The row of such a token is then an ordinary row of the answer. Rows behind the first other token are left, and
        their keys and values are overwritten by the next step.
        """
        ticket, generation = work.ticket, self._generations[work.ticket]
        generation.drafted_tokens += len(work.drafts)
        source = self._speculation.source_of(ticket)
        self._metrics.drafted_tokens.labels(source).inc(len(work.drafts))
        for place, (logits, drafted) in enumerate(zip_longest(after_rows, work.drafts), work.end):
            if place > work.end:
                generation.accepted_tokens += 1
                self._metrics.accepted_tokens.labels(source).inc()
                with self.lock:
                    self._planner.complete([TicketWork(ticket, place - 1, place, in_prompt=False)])
            if not self._apply_result(ticket, generation.take, logits):
                return
            if ticket.tokens[place] != drafted:
                break
        self._speculation.judge(ticket, ticket.tokens[work.end :])

    def _passes_to_retry(self, works: Sequence[TicketWork], error: ZipMoeError) -> list[list[TicketWork]]:
        """Ends the late requests of a failed pass, or its only request.

        Returns:
            The passes to compute again. If some requests were late, the pass probably failed for lack of time, and the
            other requests stay together. Otherwise each request gets a pass of its own.
        """
        in_time = [work for work in works if not self._ended_late(work.ticket)]
        if len(in_time) < len(works):
            return [in_time] if in_time else []
        if len(works) == 1:
            self._fail(works[0].ticket, error)
            return []
        return [[work] for work in works]

    def _compute_prompts(self, works: Sequence[TicketWork]) -> None:
        """Computes a part of some prompts; handles a failure as `_compute_rows` does."""
        self._metrics.prefill_parts.inc()
        results: dict[Ticket, PromptResult] = {}
        with self._errors() as failed, self._metered(works):
            self._experts.step(Phase.PREFILL, sum(work.rows for work in works), self._deadlines(works))
            scored = [self._generations[work.ticket].spec.prompt_logprobs for work in works]
            ended = [work for work, done in zip(works, self._model.advance_prompts(works, scored), strict=True) if done]
            for work in ended:
                if work.completes:
                    results[work.ticket] = self._model.finish_prompt(work.ticket)
        if failed:
            for work in works:
                self._model.forget(work.ticket)  # each prompt of a failed pass begins anew
            for again in self._passes_to_retry(works, failed[0]):
                self._compute_prompts(again)
            return
        with self.lock:
            self._planner.complete(ended)
        for work in ended:
            self._metrics.prompt_tokens.inc(work.rows)
            if work.ticket in results:
                for ticket in (work.ticket, *self._fork(work.ticket)):
                    self._apply_result(ticket, self._generations[ticket].begin, results[work.ticket])

    def _fork(self, ticket: Ticket) -> list[Ticket]:
        """Lets the followers of a request go on from its computed prompt; those without room wait.

        Returns:
            The followers that go on.
        """
        request, forked = self._generations[ticket].request, []
        for number, follower in enumerate(request.followers, ticket.number + 1):
            sibling = self._ticket(follower, number)
            with self.lock:
                self._generations[sibling] = self._make(follower, sibling)
                runs = self._planner.fork(ticket, sibling, shares_pages=self._model.shares_pages)
            if runs:
                with self._errors() as failed:
                    self._model.fork(ticket, sibling)
                if failed:
                    self._fail(sibling, failed[0])
                else:
                    forked.append(sibling)
        ticket.choices = 1
        return forked

    def _apply_result(self, ticket: Ticket, act: Callable[[Any], list[Event]], result: object) -> bool:
        """Applies a result to a request, updates the metrics, and then emits the events.

        Returns:
            Whether the request goes on.
        """
        generation = self._generations[ticket]
        before, tokens = generation.last_token_s, generation.generated_tokens
        events: list[Event] = []
        with self._errors() as failed:
            events = act(result)
        if failed:
            self._fail(ticket, failed[0])
            return False
        if generation.generated_tokens > tokens:
            self._metrics.generated_tokens.inc()
            if before:
                self._metrics.inter_token.observe(generation.last_token_s - before)
            else:
                self._metrics.time_to_first_token.observe(generation.last_token_s - generation.request.arrived_s)
        if isinstance(last := events[-1], RequestFinished):
            self._metrics.requests.labels(last.reason.value).inc()
            self._metrics.request_duration.observe(last.duration_s)
            self._drop(ticket)
        for event in events:
            generation.request.emit(event)
        return not isinstance(last, RequestFinished)

    @contextmanager
    def _errors(self) -> Iterator[list[ZipMoeError]]:
        """Collects an exception of the block in the yielded list, as the error that clients receive."""
        caught: list[ZipMoeError] = []
        try:
            yield caught
        except ZipMoeError as error:
            caught.append(error)
        except Exception:
            _LOG.exception("step_failed")
            caught.append(InternalError("the model failed on this request"))

    def _deadlines(self, works: Sequence[TicketWork]) -> Deadlines:
        """Returns the deadlines of the requests in a pass."""
        return Deadlines.of(self._generations[work.ticket].request.deadline_s for work in works)

    @contextmanager
    def _metered(self, works: Sequence[TicketWork]) -> Iterator[None]:
        before, started = replace(self._experts.usage), time.perf_counter()
        try:
            yield
        finally:
            self._metrics.model_seconds.inc(time.perf_counter() - started)
            spent = self._experts.usage.since(before)
            for work, share in zip(works, shares(spent, [work.rows for work in works]), strict=True):
                self._generations[work.ticket].charge(share)

    def _ended_late(self, ticket: Ticket) -> bool:
        """Ends a request after its deadline; returns whether the deadline has passed."""
        generation = self._generations[ticket]
        if time.monotonic() < generation.request.deadline_s:
            return False
        made = f"{generation.generated_tokens} of at most {generation.spec.max_new_tokens} tokens"
        self._fail(ticket, DeadlineExceeded(f"the request's deadline has passed, after {made}"))
        return True

    def _fail(self, ticket: Ticket, error: ZipMoeError) -> None:
        generation = self._generations[ticket]
        self._metrics.requests.labels(type(error).__name__).inc()
        self._drop(ticket)
        generation.request.emit(RequestFailed(error))

    def _drop(self, ticket: Ticket) -> None:
        with self.lock:
            del self._generations[ticket]
            self._planner.drop(ticket)
            self._speculation.forget(ticket)
            self._show_queue()
        self._model.forget(ticket)

    def _tell(self) -> None:
        """Tells requests and metrics how far the requests are; with the lock."""
        self._progress.tell(self._generations.values(), self._model)
        self._show_queue()

    def _show_queue(self) -> None:
        self._metrics.running.set(len(self._planner.running))
        self._metrics.waiting.set(len(self._planner.waiting))
        self._metrics.waiting_prompt_tokens.set(self._planner.waiting_tokens)
        counts = self._planner.ledger.counts()
        for state in ("used", "cached", "free"):
            self._metrics.kv_pages.labels(state).set(getattr(counts, state))
