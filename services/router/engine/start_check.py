"""Compares the passes that serve with stock's own passes on the weights of the store, before the first request."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import torch

from zipmoe.errors import DeadlineExceeded, ZipMoeError
from zipmoe.model.build.build import BuiltModel
from zipmoe.model.passes import sequence
from zipmoe.residency.pools import Phase
from zipmoe.services.router.deadlines import Deadlines
from zipmoe.services.router.engine.passes import StepExperts, StepModel
from zipmoe.serving.planner import TicketWork
from zipmoe.serving.ticket import Ticket

BeginPass: TypeAlias = Callable[[Phase, int], None]
"""Tells the provider of a pass: its phase and number of rows."""

LIMIT_S = 10.0
"""Most seconds of a check. The first reads of a large model from a slow disk can take longer."""

PROMPT_TOKENS = (5, 4)
SHARED_STEPS, STEPS = 2, 3
"""Steps that both requests share, and all steps. The last one is computed for each request by itself."""


class StartCheck(NamedTuple):
    """Result of a check.

    Attributes:
        difference: the first difference; empty if there is none.
        unfinished: the reason why not everything was compared; empty if everything was.
        late: whether that reason is that the time was over.
    """

    difference: str = ""
    unfinished: str = ""
    late: bool = False


def check_start(
    built: BuiltModel, model: StepModel, experts: StepExperts, *, drafted: bool, limit_s: float = LIMIT_S
) -> StartCheck:
    """Computes two short prompts, two steps that they share and one of each, and compares all logits with stock's.

    Args:
        built: the model.
        model: the passes that serve. No request is under way.
        experts: the model's provider.
        drafted: whether a pass takes drafted tokens. The steps are then first computed as one pass of all their tokens.
        limit_s: most seconds; then the check ends unfinished.

    Thread: the model thread.
    """
    deadline_s = time.monotonic() + limit_s
    begin = partial(experts.step, deadlines=Deadlines(deadline_s, deadline_s))
    tickets: list[Ticket] = []
    try:
        drawn = torch.randint(built.vocabulary_size, (sum(PROMPT_TOKENS),), generator=torch.Generator().manual_seed(0))
        prompts = [each.tolist() for each in torch.split(drawn, list(PROMPT_TOKENS))]
        wanted = [_alone(built, begin, prompt) for prompt in prompts]
        tickets = [
            Ticket(number, list(prompt), len(prompt) + STEPS, pages=[number]) for number, prompt in enumerate(prompts)
        ]
        found = _together(model, begin, tickets, wanted, drafted=drafted)
    except DeadlineExceeded:
        return StartCheck(unfinished=f"{limit_s:g} s were not enough", late=True)
    except ZipMoeError as error:
        return StartCheck(unfinished=error.message)
    finally:
        for ticket in tickets:
            model.forget(ticket)
    for number, (each, other) in enumerate(zip(wanted, found, strict=True)):
        for place, ours in enumerate(other):
            stock = each[place if place <= STEPS else place - STEPS]
            if not torch.equal(stock, ours):
                return StartCheck(difference=f"logits after {_name(place)} of request {number} are not those of stock")
    return StartCheck()


def _name(place: int) -> str:
    if place > STEPS:
        return f"step {place - STEPS}, computed with drafted tokens,"
    return f"step {place}" if place else "the prompt"


def _alone(built: BuiltModel, begin: BeginPass, prompt: list[int]) -> list[torch.Tensor]:
    """Returns the logits of a request alone: after the prompt and after each step."""
    request = sequence.Sequence(built)
    try:
        begin(Phase.PREFILL, len(prompt))
        logits = [request.prefill(prompt).logits]
        for _ in range(STEPS):
            begin(Phase.DECODE, 1)
            logits.append(request.step(int(logits[-1].argmax())))
        return logits
    finally:
        request.close()


def _together(
    model: StepModel,
    begin: BeginPass,
    tickets: Sequence[Ticket],
    wanted: Sequence[Sequence[torch.Tensor]],
    *,
    drafted: bool,
) -> list[list[torch.Tensor]]:
    """Returns the logits of requests that share passes, with the tokens that each chose alone.

    Returns:
        For each request, the logits after the prompt and after each step. If `drafted`, those of all steps follow, each
        after the row of a drafted token.
    """
    left = [TicketWork(ticket, 0, len(ticket.tokens), in_prompt=True) for ticket in tickets]
    while left:
        begin(Phase.PREFILL, sum(work.rows for work in left))
        done = model.advance_prompts(left, [None] * len(left))
        left = [work for work, finished in zip(left, done, strict=True) if not finished]
    found = [[model.finish_prompt(ticket).logits] for ticket in tickets]
    for ticket in tickets:
        ticket.computed = len(ticket.tokens)
    chosen = [[int(each.argmax()) for each in logits] for logits in wanted]
    verified: list[list[torch.Tensor]] = [[] for _ in tickets]
    for place in range(STEPS):
        works = []
        for ticket, tokens in zip(tickets, chosen, strict=True):
            ticket.append(tokens[place])
            works.append(TicketWork(ticket, ticket.computed, ticket.computed + 1, in_prompt=False))
        if drafted and not place:
            drafts = [tuple(tokens[1:STEPS]) for tokens in chosen]
            with_drafts = [work._replace(drafts=each) for work, each in zip(works, drafts, strict=True)]
            begin(Phase.DECODE, sum(work.rows for work in with_drafts))
            verified = model.rows(with_drafts)
        together = model.most_together if place < SHARED_STEPS else 1
        for first in range(0, len(works), together):
            shared = works[first : first + together]
            begin(Phase.DECODE, len(shared))
            for work, logits_of_row in zip(shared, model.rows(shared), strict=True):
                found[work.ticket.number] += logits_of_row
                work.ticket.computed = work.end
    return [steps + rows for steps, rows in zip(found, verified, strict=True)]
