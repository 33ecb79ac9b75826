"""Decides which drafted tokens a step verifies, from measured times of passes and measured acceptance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from zipmoe.serving.drafts import Draft, Drafter, MatchDrafts
from zipmoe.serving.expectations import UNTRIED_ROW, AcceptanceRates, PassTimes
from zipmoe.serving.ticket import Ticket

AUTO, OFF = -1, 0
"""Values of `Speculation.most_drafts` besides a fixed number."""

GRAMMAR = "grammar"
"""Source of drafts that the grammar of an answer leaves no choice about."""


@dataclass
class _Drafted:
    """Acceptance of a request and its latest drafts, by their source; and the source of those that are verified."""

    rates: dict[str, AcceptanceRates]
    drafts: dict[str, Draft] = field(default_factory=dict)
    source: str = MatchDrafts.source

    @property
    def draft(self) -> Draft:
        """The draft that is verified."""
        return self.drafts.get(self.source, Draft())

    def chances(self) -> list[float]:
        """Returns, for each token of that draft, the probability that it and all before it are accepted."""
        if self.draft.certain:
            return [1.0] * len(self.draft.tokens)
        return list(self.rates[self.source].chances(self.draft))

    def choose(self) -> None:
        """Chooses the draft with the most tokens that are likely to be accepted."""
        expected = {source: sum(self.rates[source].chances(draft)) for source, draft in self.drafts.items()}
        self.source = max(expected, key=expected.__getitem__)


@dataclass(frozen=True)
class _Gain:
    """A drafted token: probability of its acceptance, place in its draft, and the drafts of its request."""

    chance: float
    place: int
    drafted: _Drafted


@dataclass(frozen=True)
class _Choice:
    """Drafted tokens that a step would verify, and the expected tokens a second."""

    gains: Sequence[_Gain]
    rate: float


class Speculation:
    """Proposes drafted tokens for the tickets of a step.

    A drafted token is verified as one more row of its request in the same pass. It is accepted if it is the token that
    the request's sampler draws from the row before, so that no token ever changes (Leviathan et al., arXiv 2211.17192,
    verify several tokens in one pass too, but keep only the distribution).

    In `AUTO` the drafts are verified that make the expected tokens a second largest, and a drafter that takes time is
    asked only while that pays. The acceptance of drafts that are not verified is observed as well, by comparing them
    with the request's choice.

    Thread: one at a time.
    """

    def __init__(self, most_drafts: int, most_rows: int, model_drafter: Drafter | None = None) -> None:
        """Makes a speculation without requests.

        Args:
            most_drafts: most drafted tokens of a request in a step; `AUTO` or `OFF`.
            most_rows: most rows of answers in a step to which drafts may add; also most rows of one request.
            model_drafter: drafts by layers of the model, which takes time; None if the model has none.
        """
        self._most_drafts = most_drafts if most_rows > 1 else OFF
        self._most_rows = most_rows
        self._matches = MatchDrafts()
        self._model_drafter = model_drafter
        self._drafters: list[Drafter] = [self._matches, *([] if model_drafter is None else [model_drafter])]
        self._times = PassTimes()
        self._draft_times = PassTimes()
        """Times of the model's drafter, by drafts of a request."""
        self._rates = {each.source: AcceptanceRates(each.first_rates) for each in self._drafters}
        self._requests: dict[Ticket, _Drafted] = {}

    @property
    def on(self) -> bool:
        """Whether there may be drafts."""
        return self._most_drafts != OFF

    def source_of(self, ticket: Ticket) -> str:
        """Returns the source of the drafts that were proposed for a request."""
        drafted = self._requests.get(ticket)
        return MatchDrafts.source if drafted is None else drafted.source

    def propose(self, tickets: Iterable[Ticket]) -> None:
        """Sets the `drafts` of the tickets that the next step may compute.

        Tickets that are not at the next row of an answer get none.

        Cost: the model's drafter may compute layers.
        """
        if not self.on:
            return
        answers: list[Ticket] = []
        rows = 0
        for ticket in tickets:
            ticket.drafts = ()
            if ticket.paused or ticket.in_prompt or not ticket.left:
                continue
            rows += ticket.left
            if ticket.left == 1:
                answers.append(ticket)
        if not answers:
            return
        room = max(0, self._most_rows - rows)
        most = [self._most_tokens(ticket, room) for ticket in answers]
        drafted = [self._of(ticket) for ticket in answers]
        for each, draft in zip(drafted, self._matches.draft(answers, most).drafts, strict=True):
            each.drafts, each.source = {MatchDrafts.source: draft}, MatchDrafts.source
        if self._model_drafter is not None and max(most) > 0:
            self._ask(self._model_drafter, answers, most, rows)
        for ticket, limit, each in zip(answers, most, drafted, strict=True):
            if ticket.certain:
                each.source = GRAMMAR
                each.drafts = {GRAMMAR: Draft(ticket.certain[: max(limit, 0)], certain=True)}
            else:
                each.choose()
        gains = self._best(drafted, rows).gains
        for ticket, each in zip(answers, drafted, strict=True):
            ticket.drafts = each.draft.tokens[: sum(1 for gain in gains if gain.drafted is each)]

    def _most_tokens(self, ticket: Ticket, room: int) -> int:
        most = self._most_rows - 1 if self._most_drafts == AUTO else self._most_drafts
        return min(most, room, ticket.most_tokens - len(ticket.tokens) - 1)

    def _of(self, ticket: Ticket) -> _Drafted:
        if ticket not in self._requests:
            rates = {source: AcceptanceRates(each.rates) for source, each in self._rates.items()}
            self._requests[ticket] = _Drafted(rates)
        return self._requests[ticket]

    def _best(self, drafted: Sequence[_Drafted], rows: int) -> _Choice:
        """Returns the drafted tokens to verify, those with the largest probability first.

        In `AUTO` these are the ones that make the tokens a second largest.
        """
        gains = [_Gain(chance, place, each) for each in drafted for place, chance in enumerate(each.chances())]
        order = sorted(range(len(gains)), key=lambda number: (-gains[number].chance, gains[number].place, number))
        gains = [gains[number] for number in order[: max(0, self._most_rows - rows)]]
        if self._most_drafts != AUTO:
            return _Choice(gains, 0.0)
        tokens = float(len(drafted))
        best, count = tokens / self._times.expected(rows), 0
        for number, gain in enumerate(gains, 1):
            tokens += gain.chance
            rate = tokens / self._times.expected(rows + number)
            if rate > best:
                best, count = rate, number
        return _Choice(gains[:count], best)

    def _ask(self, drafter: Drafter, answers: Sequence[Ticket], most: Sequence[int], rows: int) -> None:
        """Asks the model's drafter for drafts, as many as pay."""
        followed = [(ticket, limit) for ticket, limit in zip(answers, most, strict=True) if drafter.follows(ticket)]
        depth = min(max((limit for _, limit in followed), default=0), drafter.most_drafts)
        if self._most_drafts == AUTO:
            if not self._draft_times.known:
                self._rates[drafter.source] = AcceptanceRates(drafter.first_rates)
            depth = self._depth(drafter, answers, [ticket for ticket, _ in followed], depth, rows)
        if not depth:
            self._draft_times.skip()
            return
        limits = [min(limit, depth) for _, limit in followed]
        found = drafter.draft([ticket for ticket, _ in followed], limits)
        if found.seconds is not None:
            self._draft_times.note(depth, found.seconds)
        for (ticket, _), draft in zip(followed, found.drafts, strict=True):
            self._requests[ticket].drafts[drafter.source] = draft

    def _depth(
        self, drafter: Drafter, answers: Sequence[Ticket], followed: Sequence[Ticket], most: int, rows: int
    ) -> int:
        """Returns the number of drafts of a request that makes tokens cheapest, the time to draft included.

        Returns 0 if the drafts that are there already make them cheaper.
        """
        best, depth = self._best([self._requests[ticket] for ticket in answers], rows).rate, 0
        chances = [list(self._requests[each].rates[drafter.source].chances(Draft((0,) * most))) for each in followed]
        tokens = float(len(answers))
        for number in range(1, most + 1):
            tokens += sum(each[number - 1] for each in chances)
            further = min(number * len(followed), self._most_rows - rows)
            rate = tokens / (self._times.expected(rows + further) + self._draft_seconds(number, rows))
            if rate > best and number * len(followed) <= self._most_rows - rows:
                best, depth = rate, number
        return depth

    def _draft_seconds(self, count: int, rows: int) -> float:
        if self._draft_times.known:
            return self._draft_times.expected(count)
        return UNTRIED_ROW * count * self._times.expected(rows)

    def passed(self, rows: int, seconds: float) -> None:
        """Notes the time of a pass of answers."""
        self._times.note(rows, seconds)

    def judge(self, ticket: Ticket, chosen: Sequence[int]) -> None:
        """Notes which drafted tokens, verified or not, are those that a request chose.

        Args:
            ticket: the request.
            chosen: the tokens that the request chose after the pass, at least one. All but the last were verified.
        """
        drafted = self._requests.get(ticket)
        if drafted is None or drafted.draft.certain:
            return
        for source, draft in drafted.drafts.items():
            if draft.certain:
                continue
            for place, (token, choice) in enumerate(zip(draft.tokens, chosen, strict=False)):
                for rates in (drafted.rates[source], self._rates[source]):
                    rates.note(draft.grade(place), token == choice)
                if token != choice:
                    break
        drafted.drafts = {}

    def forget(self, ticket: Ticket) -> None:
        """Drops the state of a request. A repeated call has no effect."""
        self._requests.pop(ticket, None)
        for each in self._drafters:
            each.forget(ticket)
