"""What the next step computes: pure decisions over tickets and pages, called between steps."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from zipmoe.errors import ResourceExhausted
from zipmoe.serving.pages import PAGE_TOKENS, PageLedger, pages_of
from zipmoe.serving.ticket import FEWEST_ROWS, Ticket


@dataclass(frozen=True)
class StepLimits:
    """How much the planner takes on.

    Attributes:
        max_running: requests that are computed together; paused ones do not count.
        max_waiting: requests that wait to be admitted; one more is refused.
        max_waiting_tokens: tokens of their prompts; a request that would exceed it is refused unless none waits.
        replay_rows: rows of an answer that was given up that are computed again in one step.
        group_rows: prompt tokens of the requests whose prompts are begun together; a longer prompt is begun alone.
    """

    max_running: int
    max_waiting: int
    max_waiting_tokens: int
    replay_rows: int = 1
    group_rows: int = 0


class TicketWork(NamedTuple):
    """Rows of one request in a step: the tokens `begin .. end - 1` of its ticket.

    All are computed together if they are of the prompt, else each as if it were alone, in turn.
    """

    ticket: Ticket
    begin: int
    end: int
    in_prompt: bool

    @property
    def rows(self) -> int:
        """How many they are."""
        return self.end - self.begin

    @property
    def completes(self) -> bool:
        """Whether the request's next token can be chosen afterwards."""
        return self.end == len(self.ticket.tokens)


@dataclass
class Step:
    """What to compute next; nothing if there is no work."""

    work: list[TicketWork] = field(default_factory=list)
    admitted: list[Ticket] = field(default_factory=list)
    preempted: list[Ticket] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows of the step."""
        return sum(work.rows for work in self.work)


class StepPlanner:
    """Admits requests first come, first served; gives each step the next row of every answer and a group of prompts.

    Prompts may take several steps: until they are reported as complete, they are given again when their turn comes.
    Those that are begun in the same step stay together, so that what one reads serves all; groups take turns. When
    pages run out, the youngest request gives all of its own back, paused ones first, and waits to be computed again;
    the oldest that is not paused always goes on, so every request ends.

    Thread: one at a time; between `plan` and `complete` nothing but `submit` is called.
    """

    def __init__(self, ledger: PageLedger, limits: StepLimits) -> None:
        """Plans over the pages of a ledger."""
        self.ledger = ledger
        self.limits = limits
        self.waiting: list[Ticket] = []
        """By age; those that were preempted among them."""
        self.running: list[Ticket] = []
        """By age."""
        self._turns: list[Ticket] = []
        """Running requests, in the order in which their prompts are computed."""
        self._groups = 0

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of the requests that wait."""
        return sum(ticket.prompt_tokens for ticket in self.waiting)

    def submit(self, ticket: Ticket) -> None:
        """Queues a request.

        Raises:
            ResourceExhausted: the queue is full, by count or by tokens.
        """
        if len(self.waiting) >= self.limits.max_waiting:
            raise ResourceExhausted(f"{len(self.waiting)} requests are waiting, the most that --max-waiting allows")
        tokens = self.waiting_tokens
        if self.waiting and tokens + ticket.prompt_tokens > self.limits.max_waiting_tokens:
            raise ResourceExhausted(
                f"requests with {tokens} prompt tokens are waiting, with {ticket.prompt_tokens} more they would exceed "
                f"the {self.limits.max_waiting_tokens} that --max-waiting-tokens allows"
            )
        self._queue(ticket)

    def drop(self, ticket: Ticket) -> None:
        """Takes a request out, whether it has ended or is given up, and frees its pages. Harmless when repeated."""
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
        """Decides the next step and takes the pages it needs."""
        step = Step()
        self._admit(step)
        for ticket in [each for each in self.running if not each.paused and not each.in_prompt and each.left]:
            rows = min(ticket.run(), self.limits.replay_rows)
            if ticket in self.running and self._make_room(ticket, rows, step):
                step.work.append(TicketWork(ticket, ticket.computed, ticket.computed + rows, in_prompt=False))
        self._add_prompts(step)
        return step

    def complete(self, works: Iterable[TicketWork]) -> None:
        """Notes what has been computed; full pages may now be adopted by others."""
        for work in works:
            ticket = work.ticket
            ticket.computed = work.end
            ticket.group = None
            if ticket.reusable:
                for place in range(work.begin // PAGE_TOKENS, work.end // PAGE_TOKENS):
                    self.ledger.publish(ticket.pages, place, ticket.full_page(place))

    def _queue(self, ticket: Ticket) -> None:
        insort(self.waiting, ticket, key=lambda each: each.number)

    def _admit(self, step: Step) -> None:
        """Lets requests in by age, each once there are pages for all it has and, if it is not the only one, one more.

        Paused requests neither wait in others' way nor keep pages from them.
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
        """Takes pages over: a new request what others have computed, a preempted one what is left of its own."""
        if not ticket.reusable:
            return
        if not ticket.admitted:
            ticket.alone[:] = bytes(ticket.prompt_tokens)
        ticket.pages, marks = self.ledger.adopt(
            ticket.tokens, len(ticket.tokens) - 1, bytes(ticket.alone) if ticket.admitted else None
        )
        ticket.alone[: len(marks)] = marks
        ticket.computed = len(marks)
        while ticket.pages and ticket.in_prompt and ticket.run() < FEWEST_ROWS:
            self.ledger.release(ticket, [ticket.pages.pop()])
            ticket.computed -= PAGE_TOKENS
            if not ticket.admitted:
                ticket.alone[ticket.computed :] = bytes(ticket.prompt_tokens - ticket.computed)
        ticket.adopted_tokens = ticket.computed

    def _add_prompts(self, step: Step) -> None:
        """Adds the prompts whose turn it is; they go to the end of the line."""
        self._turns = [ticket for ticket in self._turns if ticket in self.running]
        prompts = [ticket for ticket in self._turns if ticket.in_prompt and not ticket.paused]
        chosen: list[Ticket] = []
        for ticket in prompts:
            rows = ticket.run()
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
        """Whether a prompt is computed with others: it was begun with them, or all are new and few."""
        if ticket.group != chosen[0].group:
            return False
        rows = ticket.run() + sum(each.run() for each in chosen)
        return ticket.group is not None or rows <= self.limits.group_rows

    def _make_room(self, ticket: Ticket, rows: int, step: Step) -> bool:
        """Gets the pages for some more rows; False if the request itself had to give way."""
        count = ticket.missing_pages(rows)
        while ticket in self.running:
            expected = max(count, pages_of(ticket.most_tokens) - len(ticket.pages))
            pages = self.ledger.allocate(ticket, ticket.pages, count, expected) if count else []
            if pages is not None:
                ticket.pages.extend(pages)
                return True
            self._preempt(step)
        return False

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
        ticket.computed = 0
        ticket.group = None
