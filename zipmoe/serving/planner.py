"""Plans the work of the next step, by pure decisions over tickets and pages between two steps."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from zipmoe.errors import ResourceExhausted
from zipmoe.serving.pages import PAGE_TOKENS, PageLedger, pages_of
from zipmoe.serving.ticket import ALONE, FEWEST_ROWS, PageReuse, Ticket


@dataclass(frozen=True)
class StepLimits:
    """Limits of the planner.

    Attributes:
        max_running: most requests that are computed together; paused requests do not count.
        max_waiting: most requests that wait for admission. A further request is refused.
        max_waiting_tokens: most prompt tokens of the waiting requests. A request that would exceed the limit is refused
            unless no request waits.
        answer_rows: most rows of one answer in a step: of a preempted answer that is computed again, or of the next row
            with the drafted tokens behind it.
        group_rows: most prompt tokens of a group of prompts that begin together. A longer prompt begins alone.
    """

    max_running: int
    max_waiting: int
    max_waiting_tokens: int
    answer_rows: int
    group_rows: int


class TicketWork(NamedTuple):
    """Rows of a request in a step: the tokens `begin .. end - 1` of the ticket, and drafted tokens behind them.

    Rows of the prompt are computed together. Other rows are computed in turn, each as if it were alone.
    """

    ticket: Ticket
    begin: int
    end: int
    in_prompt: bool
    drafts: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.end - self.begin + len(self.drafts)

    @property
    def token_ids(self) -> list[int]:
        """The token of each row."""
        return [*self.ticket.tokens[self.begin : self.end], *self.drafts]

    @property
    def completes(self) -> bool:
        """Whether the request's next token can be sampled after this work."""
        return self.end == len(self.ticket.tokens)


@dataclass
class Step:
    """Plan of a step: its work, and the requests that were admitted and preempted for it.

    `work` is empty if no request can be computed.
    """

    work: list[TicketWork] = field(default_factory=list)
    admitted: list[Ticket] = field(default_factory=list)
    preempted: list[Ticket] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Number of rows of the step."""
        return sum(work.rows for work in self.work)


class StepPlanner:
    """Admits requests in order of arrival, and plans the next row of every answer and a group of prompts for each step.

    A prompt may take several steps. Until it is reported as complete, it is planned again whenever its turn comes.
    Prompts that begin in the same step stay together as a group, so that the experts that are read for one prompt serve
    all prompts of the group. Groups take turns. When pages run out, the planner preempts the youngest paused request,
    else the youngest request. A preempted request releases all its pages and waits to be computed again. The oldest
    request that is not paused always goes on, so every request ends.

    Thread: one at a time; between `plan` and `complete` only `submit` is called.
    """

    def __init__(self, ledger: PageLedger, limits: StepLimits) -> None:
        """Makes a planner without requests over the pages of a ledger."""
        self.ledger = ledger
        self.limits = limits
        self.waiting: list[Ticket] = []
        """Requests that wait for admission, oldest first; these include preempted requests."""
        self.running: list[Ticket] = []
        """Admitted requests, oldest first."""
        self._turns: list[Ticket] = []
        """Running requests in the order in which their prompts take turns."""
        self._groups = 0

    @property
    def waiting_tokens(self) -> int:
        """Number of prompt tokens of the waiting requests."""
        return sum(ticket.prompt_tokens for ticket in self.waiting)

    def submit(self, ticket: Ticket) -> None:
        """Adds a request to the waiting requests.

        Raises:
            ResourceExhausted: the queue is full, by requests or by prompt tokens.
        """
        requests, most = sum(each.choices for each in self.waiting), self.limits.max_waiting
        if requests >= most or (requests and requests + ticket.choices > most):
            raise ResourceExhausted(
                f"{requests} requests are waiting, with {ticket.choices} more they would exceed the {most} that "
                "--max-waiting allows"
            )
        tokens = self.waiting_tokens
        if self.waiting and tokens + ticket.prompt_tokens > self.limits.max_waiting_tokens:
            raise ResourceExhausted(
                f"requests with {tokens} prompt tokens are waiting, with {ticket.prompt_tokens} more they would exceed "
                f"the {self.limits.max_waiting_tokens} that --max-waiting-tokens allows"
            )
        self._queue(ticket)

    def fork(self, ticket: Ticket, sibling: Ticket, *, shares_pages: bool) -> bool:
        """Lets a new request with the same prompt go on from the computed prompt of a running request.

        Args:
            ticket: the running request; its prompt is computed, and no token of its answer.
            sibling: the new request.
            shares_pages: whether both may read the same pages. The page that is not full is never shared.

        Returns:
            Whether the sibling runs. Without room it waits like any other request, and its prompt is computed anew.
        """
        going = sum(not each.paused for each in self.running)
        shared = ticket.computed // PAGE_TOKENS if shares_pages else 0
        count, whole = pages_of(ticket.computed) - shared, pages_of(sibling.most_tokens) - shared
        pages = None
        if going < self.limits.max_running and count + int(whole > count) <= self.ledger.available:
            pages = self.ledger.allocate(sibling, ticket.pages[:shared], count, whole)
        if pages is None:
            self._queue(sibling)
            return False
        sibling.pages = self.ledger.share(ticket.pages[:shared]) + pages
        sibling.alone[:] = ticket.alone
        sibling.admitted = True
        sibling.computed = sibling.adopted_tokens = sibling.reused_tokens = ticket.computed
        sibling.approximate_tokens = ticket.approximate_tokens
        insort(self.running, sibling, key=lambda each: each.number)
        return True

    def drop(self, ticket: Ticket) -> None:
        """Removes a request, finished or not, and releases its pages. A repeated call has no effect."""
        if ticket in self.waiting:
            self.waiting.remove(ticket)
        if ticket in self.running:
            self.running.remove(ticket)
            self._give_up_pages(ticket)

    @property
    def idle(self) -> bool:
        """Whether `plan` would find nothing to do."""
        return all(ticket.paused for ticket in (*self.waiting, *self.running))

    def plan(self) -> Step:
        """Plans the next step and allocates the pages for its rows."""
        step = Step()
        self._admit(step)
        for ticket in [each for each in self.running if not each.paused and not each.in_prompt and each.left]:
            rows = min(ticket.run_length(), self.limits.answer_rows)
            drafts = self._drafts_with_room(ticket)
            if ticket in self.running and self._make_room(ticket, rows + len(drafts), step):
                step.work.append(TicketWork(ticket, ticket.computed, ticket.computed + rows, False, drafts))
        self._add_prompts(step)
        return step

    def complete(self, works: Iterable[TicketWork]) -> None:
        """Notes that work has been computed, and publishes the pages that are full now for other requests."""
        for work in works:
            ticket = work.ticket
            ticket.computed = work.end
            ticket.group = None
            if ticket.reusable:
                for place in range(work.begin // PAGE_TOKENS, work.end // PAGE_TOKENS):
                    self.ledger.publish(ticket.pages, place, ticket.page_content(place))

    def _queue(self, ticket: Ticket) -> None:
        insort(self.waiting, ticket, key=lambda each: each.number)

    def _admit(self, step: Step) -> None:
        """Admits waiting requests, oldest first, while there are pages for all their tokens.

        A request that may still grow needs one more page, unless it is the only one. The only request is always
        admitted. A paused request is skipped while it waits, and preempted while it runs if an admission needs pages.
        """
        going = [ticket for ticket in self.running if not ticket.paused]
        owed = sum(ticket.missing_pages(ticket.left) for ticket in going)
        for ticket in [each for each in self.waiting if not each.paused]:
            if len(going) >= self.limits.max_running:
                break
            self._adopt(ticket)
            needed = owed + ticket.missing_pages(ticket.left)
            wanted = needed + int(bool(going) and ticket.most_tokens > len(ticket.tokens))
            while wanted > self.ledger.available and len(self.running) > len(going):
                self._preempt(step)
            if wanted > self.ledger.available and going:
                self._give_up_pages(ticket)
                break
            owed = needed
            ticket.admitted = True
            self.waiting.remove(ticket)
            insort(self.running, ticket, key=lambda each: each.number)
            going.append(ticket)
            self._turns.append(ticket)
            step.admitted.append(ticket)

    def _adopt(self, ticket: Ticket) -> None:
        """Adopts published pages with the beginning of a request's tokens.

        A new request adopts pages with the bits that its prompt would give, or any pages if the ticket says so. A
        preempted request adopts pages with tokens that were computed as its own were.
        """
        if not ticket.reusable:
            return
        accept_any = ticket.adopts_any and not ticket.admitted
        if not ticket.admitted:
            ticket.alone[:] = bytes(ticket.prompt_tokens)
        ticket.pages, marks = self.ledger.adopt(
            ticket.tokens, len(ticket.tokens) - 1, None if accept_any else ticket.alone_bytes()
        )
        if accept_any:
            ticket.alone[: len(marks)] = marks
        ticket.computed = len(marks)
        while ticket.pages and ticket.in_prompt and ticket.run_length() < FEWEST_ROWS:
            self.ledger.release(ticket, [ticket.pages.pop()])
            ticket.computed -= PAGE_TOKENS
            if not ticket.admitted:
                ticket.alone[ticket.computed :] = bytes(ticket.prompt_tokens - ticket.computed)
        ticket.adopted_tokens = ticket.computed
        if not ticket.admitted:
            ticket.reused_tokens = ticket.computed
            whole = ticket.reuse is PageReuse.NOTHING
            ticket.approximate_tokens = ticket.computed if whole else ticket.alone[: ticket.computed].count(ALONE)

    def _add_prompts(self, step: Step) -> None:
        """Adds the group of prompts that has its turn, and moves the group to the end of the turns."""
        self._turns = [ticket for ticket in self._turns if ticket in self.running]
        prompts = [ticket for ticket in self._turns if ticket.in_prompt and not ticket.paused]
        chosen: list[Ticket] = []
        for ticket in prompts:
            rows = ticket.run_length()
            if chosen and not self._belongs(ticket, chosen):
                continue
            if ticket in self.running and self._make_room(ticket, rows, step):
                step.work.append(TicketWork(ticket, ticket.computed, ticket.computed + rows, in_prompt=True))
                chosen.append(ticket)
        chosen = [ticket for ticket in chosen if ticket in self.running]
        if any(ticket.group is None for ticket in chosen):
            self._groups += 1
            for ticket in chosen:
                ticket.group = self._groups
        self._turns = [ticket for ticket in self._turns if ticket not in chosen] + chosen

    def _belongs(self, ticket: Ticket, chosen: Sequence[Ticket]) -> bool:
        """Tells whether a prompt belongs to the chosen group: same group, or all new and within `group_rows`."""
        if ticket.group != chosen[0].group:
            return False
        rows = ticket.run_length() + sum(each.run_length() for each in chosen)
        return ticket.group is not None or rows <= self.limits.group_rows

    def _make_room(self, ticket: Ticket, rows: int, step: Step) -> bool:
        """Allocates the pages for more rows of a request, and preempts other requests if needed.

        Returns:
            Whether the pages were allocated; False if the request itself was preempted.
        """
        count = ticket.missing_pages(rows)
        while ticket in self.running:
            expected = max(count, pages_of(ticket.most_tokens) - len(ticket.pages))
            pages = self.ledger.allocate(ticket, ticket.pages, count, expected) if count else []
            if pages is not None:
                ticket.pages.extend(pages)
                return True
            self._preempt(step)
        return False

    def _drafts_with_room(self, ticket: Ticket) -> tuple[int, ...]:
        """Returns the drafted tokens of a request for which there are rows and pages without a preemption."""
        if ticket.left != 1:
            return ()
        pages = len(ticket.pages) + self.ledger.available
        room = min(
            self.limits.answer_rows, pages * PAGE_TOKENS - ticket.computed, ticket.most_tokens - len(ticket.tokens)
        )
        return ticket.drafts[: max(0, room - 1)]

    def _preempt(self, step: Step) -> None:
        victim = max(self.running, key=lambda each: (each.paused, each.number))
        step.work = [work for work in step.work if work.ticket is not victim]
        self.running.remove(victim)
        self._give_up_pages(victim)
        self._queue(victim)
        step.preempted.append(victim)

    def _give_up_pages(self, ticket: Ticket) -> None:
        self.ledger.release(ticket, ticket.pages)
        ticket.pages = []
        ticket.drafts = ()
        ticket.computed = 0
        ticket.group = None
