"""A request as the planner sees it: tokens, the way in which each is computed, and progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from zipmoe.serving.pages import PAGE_TOKENS, PageContent, pages_of

FEWEST_ROWS = 4
"""Fewest rows of a prompt that are left after pages were adopted. With fewer rows, MKL's fp32 linears give a row
different bits."""

ALONE, TOGETHER = 1, 0


class PageReuse(Enum):
    """Which pages give a prompt the bits that it has if it is computed at once."""

    NOTHING = "nothing"
    """No page of another prompt: the bits of a token depend on the rows that are computed with it."""

    PROMPTS = "prompts"
    """Pages that prompts computed."""

    ALL = "all"
    """Also pages that answers computed row by row."""


@dataclass(eq=False)
class Ticket:
    """State of a request in the plan.

    Attributes:
        number: number of arrival; smaller numbers are older.
        tokens: tokens of the prompt and of the answer so far.
        most_tokens: most tokens of prompt and answer together.
        reuse: which pages of other requests have the bits of this one.
        adopts_any: whether pages are adopted and published whatever their bits.
        alone: one byte for each token. `ALONE`: the token is computed as the only row of its request, as every token of
            an answer is. `TOGETHER`: the token is computed with other tokens of the prompt.
        computed: number of leading tokens that have their keys and values in the pages.
        pages: the page table.
        paused: whether steps leave the request out, because the client does not read its events.
        admitted: whether the request was ever admitted. From then on `alone` only grows at its end.
        adopted_tokens: number of leading tokens that were adopted instead of computed at the last admission.
        reused_tokens: the same at the first admission: tokens that other requests had computed.
        approximate_tokens: those among them whose bits may not be those of the prompt.
        certain: tokens that follow `tokens` in any case, by the grammar of the answer.
        drafts: tokens that may follow `tokens`, which the next step verifies as further rows as far as there is room.
        group: number of the group of prompts that began in the same step; None while no prompt is in progress.
        choices: number of requests that the ticket stands for; 1 once its prompt is computed and others have forked.
    """

    number: int
    tokens: list[int]
    most_tokens: int
    reuse: PageReuse = PageReuse.PROMPTS
    adopts_any: bool = False
    alone: bytearray = field(default_factory=bytearray)
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    paused: bool = False
    admitted: bool = False
    adopted_tokens: int = 0
    reused_tokens: int = 0
    approximate_tokens: int = 0
    certain: tuple[int, ...] = ()
    drafts: tuple[int, ...] = ()
    group: int | None = None
    choices: int = 1

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)
        self.alone = bytearray(self.prompt_tokens)

    def append(self, token: int) -> None:
        """Appends a token of the answer, to be computed by the next step."""
        self.tokens.append(token)
        self.alone.append(ALONE)

    @property
    def left(self) -> int:
        """Number of tokens that are to be computed before the next token can be sampled."""
        return len(self.tokens) - self.computed

    @property
    def in_prompt(self) -> bool:
        """Whether the next token to compute is computed with other tokens of the prompt."""
        return bool(self.left) and self.alone[self.computed] == TOGETHER

    def run_length(self) -> int:
        """Returns the number of next tokens that have the same `alone` byte."""
        other = ALONE if self.in_prompt else TOGETHER
        end = self.alone.find(bytes([other]), self.computed)
        return (len(self.tokens) if end < 0 else end) - self.computed

    def missing_pages(self, tokens: int) -> int:
        """Returns the number of pages that are missing for `tokens` more computed tokens."""
        return max(0, pages_of(self.computed + tokens) - len(self.pages))

    @property
    def reusable(self) -> bool:
        """Whether pages of other requests may be adopted for the beginning, and full pages published."""
        return self.adopts_any or self.reuse is not PageReuse.NOTHING

    def page_content(self, place: int) -> PageContent:
        """Returns the content of a full page at an index of the page table."""
        begin, end = place * PAGE_TOKENS, (place + 1) * PAGE_TOKENS
        return PageContent(tuple(self.tokens[begin:end]), self.alone_bytes()[begin:end])

    def alone_bytes(self) -> bytes:
        """Returns `PageContent.alone` of all tokens: 0 where the way does not show."""
        return bytes(len(self.alone)) if self.reuse is PageReuse.ALL else bytes(self.alone)
