"""A request as the planner sees it: tokens, the way in which each is computed, and progress."""

from __future__ import annotations

from dataclasses import dataclass, field

from zipmoe.serving.pages import PAGE_TOKENS, PageContent, pages_of

FEWEST_ROWS = 4
"""Fewest rows of a prompt that are left after pages were adopted. With fewer rows, MKL's fp32 linears give a row
different bits."""

ALONE, TOGETHER = 1, 0


@dataclass(eq=False)
class Ticket:
    """State of a request in the plan.

    Attributes:
        number: number of arrival; smaller numbers are older.
        tokens: tokens of the prompt and of the answer so far.
        most_tokens: most tokens of prompt and answer together.
        reusable: whether pages of other requests may be adopted for the beginning, and full pages published.
        alone: one byte for each token. `ALONE`: the token is computed as the only row of its request, as every token of
            an answer is. `TOGETHER`: the token is computed with other tokens of the prompt.
        computed: number of leading tokens that have their keys and values in the pages.
        pages: the page table.
        paused: whether steps leave the request out, because the client does not read its events.
        admitted: whether the request was ever admitted. From then on `alone` only grows at its end.
        adopted_tokens: number of leading tokens that were adopted instead of computed at the last admission.
        group: number of the group of prompts that began in the same step; None while no prompt is in progress.
    """

    number: int
    tokens: list[int]
    most_tokens: int
    reusable: bool = True
    alone: bytearray = field(default_factory=bytearray)
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    paused: bool = False
    admitted: bool = False
    adopted_tokens: int = 0
    group: int | None = None

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

    def full_page(self, place: int) -> PageContent:
        """Returns the content of a full page at an index of the page table."""
        begin, end = place * PAGE_TOKENS, (place + 1) * PAGE_TOKENS
        return PageContent(tuple(self.tokens[begin:end]), bytes(self.alone[begin:end]))
