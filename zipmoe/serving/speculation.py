"""Decides which drafted tokens a step verifies, from measured times of passes and measured acceptance."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from zipmoe.serving.drafts import Draft, MatchDrafter
from zipmoe.serving.ticket import Ticket

AUTO, OFF = -1, 0
"""Values of `Speculation.most_drafts` besides a fixed number."""

MOST_DRAFTS = 15
"""Largest fixed number of drafted tokens: with the next row they are the 16 rows that kernels compute together."""

SAMPLES = 5
FRESH_PASSES = 512
"""Passes after which times of passes with some number of rows are forgotten, so that this number is tried again."""

UNTRIED_ROW = 0.05
"""Share of a pass that one more row is taken to cost before any was tried."""

FIRST_RATES = (0.3, 0.4, 0.5, 0.7, 0.8, 0.9)
"""Acceptance before anything was verified, by the bit length of the match."""

ADAPTION = 0.1
"""Weight of the latest token in an acceptance rate."""


class PassTimes:
    """Times of recent passes, by number of rows."""

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}
        self._noted: dict[int, int] = {}
        self._passes = 0

    def note(self, rows: int, seconds: float) -> None:
        """Notes the time of a pass."""
        self._passes += 1
        if self._passes - self._noted.get(rows, self._passes) > FRESH_PASSES:
            del self._times[rows]
        self._times.setdefault(rows, deque(maxlen=SAMPLES)).append(seconds)
        self._noted[rows] = self._passes

    def expected(self, rows: int) -> float:
        """Returns the expected seconds of a pass; 1 before any pass was noted.

        Between two tried numbers of rows the time is interpolated. Outside of them it goes on with the slope of the
        nearest two, but falls by `UNTRIED_ROW` of the pass a row at least. With a single one, each row costs that
        share.
        """
        tried = [each for each, when in sorted(self._noted.items()) if self._passes - when <= FRESH_PASSES]
        if not tried:
            return 1.0
        times = {each: median(self._times[each]) for each in tried}
        if rows in times:
            return times[rows]
        first = tried[0]
        if len(tried) == 1 and rows > first:
            return times[first] * (1 + UNTRIED_ROW * (rows - first))
        slope = 0.0
        low = max((each for each in tried[:-1] if each < rows), default=first)
        if len(tried) > 1:
            high = tried[tried.index(low) + 1]
            slope = max(0.0, times[high] - times[low]) / (high - low)
        if rows > first:
            return times[low] + slope * (rows - low)
        fewer = first - rows
        return max(1e-9, min(times[first] - slope * fewer, times[first] / (1 + UNTRIED_ROW * fewer)))


class AcceptanceRates:
    """Share of drafted tokens that were the request's own choice, by the length of the match before the token."""

    def __init__(self, rates: Sequence[float] = FIRST_RATES) -> None:
        self.rates = list(rates)

    def note(self, match_tokens: int, accepted: bool) -> None:
        """Notes whether a drafted token was accepted."""
        place = self._place(match_tokens)
        self.rates[place] += ADAPTION * (accepted - self.rates[place])

    def chances(self, draft: Draft) -> Iterator[float]:
        """Yields, for each token of a draft, the probability that it and all before it are accepted."""
        chance = 1.0
        for place in range(len(draft.tokens)):
            chance *= 1.0 if draft.certain else self.rates[self._place(draft.match_tokens + place)]
            yield chance

    def _place(self, match_tokens: int) -> int:
        return min(match_tokens.bit_length(), len(self.rates)) - 1


@dataclass
class _Drafted:
    """The drafter of a request, its acceptance and its latest draft."""

    rates: AcceptanceRates
    drafter: MatchDrafter = field(default_factory=MatchDrafter)
    draft: Draft = field(default_factory=Draft)


_Gain = tuple[float, int, int]
"""A drafted token: probability of its acceptance, negated place in the draft, number of the request."""


class Speculation:
    """Proposes drafted tokens for the tickets of a step.

    A drafted token is verified as one more row of its request in the same pass. It is accepted if it is the token that
    the request's sampler draws from the row before, so that no token ever changes (Leviathan et al., arXiv 2211.17192,
    verify several tokens in one pass too, but keep only the distribution).

    In `AUTO` the drafts are verified that make the expected tokens a second largest. The acceptance of drafts that are
    not verified is observed as well, by comparing their first token with the request's choice.

    Thread: one at a time.
    """

    def __init__(self, most_drafts: int, most_rows: int) -> None:
        """Makes a speculation without requests.

        Args:
            most_drafts: most drafted tokens of a request in a step; `AUTO` or `OFF`.
            most_rows: most rows of answers in a step to which drafts may add; also most rows of one request.
        """
        self._most_drafts = most_drafts if most_rows > 1 else OFF
        self._most_rows = most_rows
        self._times = PassTimes()
        self._rates = AcceptanceRates()
        self._requests: dict[Ticket, _Drafted] = {}

    @property
    def on(self) -> bool:
        """Whether there may be drafts."""
        return self._most_drafts != OFF

    def propose(self, tickets: Iterable[Ticket]) -> None:
        """Sets the `drafts` of the tickets that the next step may compute.

        Tickets that are not at the next row of an answer get none.
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
        room = self._most_rows - rows
        drafted = [(ticket, self._draft(ticket, room)) for ticket in answers]
        gains = [
            (gain, -place, number)
            for number, (_, each) in enumerate(drafted)
            for place, gain in enumerate(each.rates.chances(each.draft))
        ]
        taken = sorted(gains, reverse=True)[: max(room, 0)]
        if self._most_drafts == AUTO:
            taken = self._best(taken, rows, len(answers))
        for number, (ticket, each) in enumerate(drafted):
            ticket.drafts = each.draft.tokens[: sum(1 for gain in taken if gain[-1] == number)]

    def _draft(self, ticket: Ticket, room: int) -> _Drafted:
        drafted = self._requests.get(ticket)
        if drafted is None:
            drafted = self._requests[ticket] = _Drafted(AcceptanceRates(self._rates.rates))
        most = self._most_rows - 1 if self._most_drafts == AUTO else self._most_drafts
        most = min(most, room, ticket.most_tokens - len(ticket.tokens) - 1)
        if ticket.certain:
            drafted.draft = Draft(ticket.certain[: max(most, 0)], certain=True)
        else:
            drafted.draft = drafted.drafter.draft(ticket.tokens, most)
        return drafted

    def _best(self, gains: list[_Gain], rows: int, answers: int) -> list[_Gain]:
        """Returns the first of the gains, largest first, that make the tokens a second largest."""
        best, count = answers / self._times.expected(rows), 0
        tokens = float(answers)
        for number, gain in enumerate(gains, 1):
            tokens += gain[0]
            rate = tokens / self._times.expected(rows + number)
            if rate > best:
                best, count = rate, number
        return gains[:count]

    def passed(self, rows: int, seconds: float) -> None:
        """Notes the time of a pass of answers."""
        self._times.note(rows, seconds)

    def judge(self, ticket: Ticket, verified: int, chosen: Sequence[int]) -> None:
        """Notes which drafted tokens a request accepted.

        Args:
            ticket: the request.
            verified: number of drafted tokens that were verified.
            chosen: the tokens that the request chose after the pass, at least one. All but the last were drafted.
        """
        drafted = self._requests.get(ticket)
        if drafted is None or drafted.draft.certain:
            return
        for place, token in enumerate(drafted.draft.tokens[: max(verified, 1)][: len(chosen)]):
            for rates in (drafted.rates, self._rates):
                rates.note(drafted.draft.match_tokens + place, token == chosen[place])

    def forget(self, ticket: Ticket) -> None:
        """Drops the state of a request. A repeated call has no effect."""
        self._requests.pop(ticket, None)
