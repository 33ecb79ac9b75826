"""One request as the planner sees it: its tokens, how each is to be computed, and how far that has come."""

from __future__ import annotations

from dataclasses import dataclass, field

from zipmoe.serving.pages import PAGE_TOKENS, PageContent, pages_of

FEWEST_ROWS = 4
"""What is left of a prompt after its beginning has been taken over has no fewer rows: with fewer, fp32 linears of MKL
give a row other bits."""

ALONE, TOGETHER = 1, 0


@dataclass(eq=False)
class Ticket:
    """A request's place in the plan.

    Attributes:
        number: of arrival; a smaller one is older.
        tokens: prompt and answer so far.
        most_tokens: the most that prompt and answer may come to.
        reusable: whether its beginning may be taken from pages that others have computed.
        alone: a byte for each token: `ALONE` where it is computed as the only row of its request, as every token of an
            answer is, `TOGETHER` where with others of the prompt.
        computed: leading tokens whose keys and values are in the pages.
        pages: the page table.
        paused: whether it is left out of steps, because nobody reads what it says.
        admitted: whether it has ever been; from then on `alone` does not change but at its end.
        adopted_tokens: leading tokens that were taken over instead of computed, when it was last admitted.
        group: which prompts it is computed with: those that were begun in the same step; None while it is not begun.
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
        """Adds a token of the answer, which the next step computes."""
        self.tokens.append(token)
        self.alone.append(ALONE)

    @property
    def left(self) -> int:
        """Tokens that are still to be computed before the next one can be chosen."""
        return len(self.tokens) - self.computed

    @property
    def in_prompt(self) -> bool:
        """Whether the next token is computed with others of the prompt."""
        return bool(self.left) and self.alone[self.computed] == TOGETHER

    def run(self) -> int:
        """How many of the next tokens are computed alike."""
        other = ALONE if self.in_prompt else TOGETHER
        end = self.alone.find(bytes([other]), self.computed)
        return (len(self.tokens) if end < 0 else end) - self.computed

    def missing_pages(self, tokens: int) -> int:
        """The pages it lacks to hold so many tokens more than are computed."""
        return max(0, pages_of(self.computed + tokens) - len(self.pages))

    def full_page(self, place: int) -> PageContent:
        """What one of its pages holds, all of whose tokens are computed."""
        begin, end = place * PAGE_TOKENS, (place + 1) * PAGE_TOKENS
        return PageContent(tuple(self.tokens[begin:end]), bytes(self.alone[begin:end]))
