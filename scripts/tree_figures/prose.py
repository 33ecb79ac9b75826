"""How plainly docstrings and comments are written: words that point instead of naming."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scripts.tree_figures.module import Module, docstrings, tokens

WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
WHAT = {"what"}
WHO = {"who", "whoever", "whom", "whose"}
PRONOUN = re.compile(
    r"\b(it|its|they|them|their|this|these|those|that one|one|others|another one|who|whom|whose|whoever|what|whatever"
    r"|which one)\b",
    re.IGNORECASE,
)
PRONOUNS_IN_A_SENTENCE = 2


@dataclass(frozen=True)
class Words:
    """How many words of prose a place has, and how many of them are `what`, or `who` in any form."""

    place: str
    words: int
    what: int
    who: int

    @property
    def what_in_a_thousand(self) -> float:
        """How many of a thousand words are `what`."""
        return 1000 * self.what / max(self.words, 1)

    @property
    def who_in_a_thousand(self) -> float:
        """How many of a thousand words are `who` in any form."""
        return 1000 * self.who / max(self.words, 1)


def count_words(module: Module) -> Words:
    """Counts the words in the docstrings and comments of a file; `what's` and `what-if` count as `what`."""
    texts = [docstring.text for docstring in docstrings(module)]
    texts += [token.string for token in tokens(module) if token.type == tokenize.COMMENT]
    words = [set(re.split("['-]", word.lower())) for text in texts for word in WORD.findall(text)]
    return Words(str(module.path), len(words), count_any(words, WHAT), count_any(words, WHO))


def count_any(words: Iterable[set[str]], wanted: set[str]) -> int:
    """Counts the words of which any part is wanted."""
    return sum(not parts.isdisjoint(wanted) for parts in words)


def add_words(place: str, counts: Sequence[Words]) -> Words:
    """Adds the counts of all files of a place."""
    return Words(place, sum(c.words for c in counts), sum(c.what for c in counts), sum(c.who for c in counts))


def most_counted(counts: Iterable[Words]) -> list[Words]:
    """Sorts the files by how many `what` and `who` they have together, without those that have none."""
    counted = (count for count in counts if count.what + count.who)
    return sorted(counted, key=lambda count: (-count.what - count.who, count.place))


def first_sentence(text: str) -> str:
    """Cuts the first sentence out of the first paragraph of a docstring."""
    paragraph = " ".join(re.split(r"\n\s*\n", text.strip())[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`\"'(])", paragraph)[0]


def vague_sentences(modules: Iterable[Module]) -> list[str]:
    """Lists the first sentences of docstrings that have more than two pronouns, each with its place."""
    return [
        f"{module.path}:{docstring.first_line}: {sentence}"
        for module in modules
        for docstring in docstrings(module)
        for sentence in [first_sentence(docstring.text)]
        if len(PRONOUN.findall(sentence)) > PRONOUNS_IN_A_SENTENCE
    ]
