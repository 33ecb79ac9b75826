"""Compiled grammars over the vocabulary of a model, and the progress of an answer through a grammar."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Mapping
from copy import copy
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

from zipmoe.errors import InvalidRequest
from zipmoe.model.text.grammar_source import GrammarSource
from zipmoe.model.text.grammar_trial import compile_grammar, reason_of_grammar
from zipmoe.model.text.token_ids_only import AnyTokenizer, TokenIdsOnly
from zipmoe.system_error import first_line

FREE_SECONDS: Final = 1.0
SECONDS_PER_TOKEN: Final = 0.02
"""Processor time that the masks of an answer may take, beside this much for each token. Only hostile grammars do."""


class GrammarVocabulary:
    """The tokens of a model as grammars see them: the bytes of each. Thread: any.

    Cost: about 1 s and 110 MB for 150,000 tokens.
    """

    def __init__(self, tokenizer: AnyTokenizer, size: int, eos_ids: Collection[int]) -> None:
        """Reads the tokens.

        Args:
            tokenizer: the tokenizer of the store.
            size: number of logits; ids that the tokenizer does not know are never allowed.
            eos_ids: tokens that end an answer, allowed where a grammar may end.

        Raises:
            InvalidRequest: there is no tokenizer, it has no bytes for each token, or no token ends an answer.
        """
        if isinstance(tokenizer, TokenIdsOnly):
            tokenizer.require_text()
        backend: Any = getattr(tokenizer.backend, "backend_tokenizer", None)
        step = "send the request without a constraint"
        if backend is None:
            raise InvalidRequest(
                "the model's tokenizer is none of the package tokenizers, so that answers cannot be constrained",
                next_step=step,
            )
        if not eos_ids:
            raise InvalidRequest(
                "the model has no end-of-sequence token, so that answers cannot be constrained", next_step=step
            )
        plain = copy(backend)
        plain.no_padding()
        plain.no_truncation()
        known = plain.get_vocab_size(with_added_tokens=True)
        try:
            self.tokenizer = LLTokenizer(plain.to_str(), n_vocab=max(size, known), eos_token=sorted(eos_ids))
        except ValueError as error:
            raise InvalidRequest(
                f"answers cannot be constrained with the model's tokenizer: {first_line(error)}", next_step=step
            ) from error
        self.special_tokens: Mapping[str, int] = {
            token.content: token_id
            for token_id, token in plain.get_added_tokens_decoder().items()
            if self.tokenizer.is_special_token(token_id)
        }
        """Ids of the added tokens that are no text to a grammar, by name: special ones, and others named `<...>`."""


class Grammar:
    """A compiled grammar. Answers share it; each has a `GrammarProgress` of its own. Thread: any."""

    def __init__(self, source: GrammarSource, vocabulary: GrammarVocabulary) -> None:
        """Compiles a grammar, without limits on time and memory; a trial in a process of its own has to come before.

        Raises:
            InvalidRequest: the grammar is invalid or too large.
        """
        self.eos_ids = frozenset(vocabulary.tokenizer.eos_tokens)
        try:
            self._matcher = compile_grammar(vocabulary.tokenizer, source.text)
        except ValueError as error:
            raise refusal(source, str(error)) from error
        self.kind = source.kind
        self.mask_words = (vocabulary.tokenizer.vocab_size + 31) // 32
        self.failed = False
        """Whether an answer met a limit of the compiled grammar, which grows with its answers."""

    def matcher(self) -> LLMatcher:
        """Returns a matcher at the beginning of an answer."""
        return self._matcher.deep_copy()


def refusal(source: GrammarSource, reason: str) -> InvalidRequest:
    """Returns the error of a grammar that cannot be used."""
    return InvalidRequest(f"{source.kind} cannot be used: {reason}", next_step="correct or simplify the constraint")


class GrammarProgress:
    """The place of one answer in its grammar, and the tokens that may follow.

    Thread: one at a time. Masks are computed on the calling thread.
    """

    def __init__(self, grammar: Grammar) -> None:
        """Begins an answer."""
        self._grammar = grammar
        self._matcher = grammar.matcher()
        self._words: npt.NDArray[np.uint32] = np.zeros(grammar.mask_words, np.uint32)
        self._certain: deque[int] = deque()
        """Tokens that will come, whatever the model computes. The matcher stands behind them."""
        self._masked = False
        self._tokens = 0
        self._seconds = 0.0

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Returns whether each token may come next, shape (n,).

        Raises:
            InvalidRequest: the grammar is too complex at this place, or its masks have taken too long.
        """
        if self._certain:
            one = np.zeros(self._words.size * 32, np.bool_)
            one[self._certain[0]] = True
            return one
        self._mask()
        return np.unpackbits(self._words.view(np.uint8), bitorder="little").view(np.bool_)

    def certain(self, most: int) -> tuple[int, ...]:
        """Returns the next tokens as long as each is the only one that is allowed, without an end of the answer.

        Args:
            most: the most tokens to look ahead.

        Raises:
            InvalidRequest: as for `allowed`.
        """
        while len(self._certain) < most and (token := self._only()) is not None and token not in self._grammar.eos_ids:
            self._consume(token)
            self._certain.append(token)
        return tuple(self._certain)[:most]

    def next_certain(self) -> int | None:
        """Returns the next token if it is the only one that is allowed.

        Raises:
            InvalidRequest: as for `allowed`.
        """
        return self._certain[0] if self._certain else self._only()

    def advance(self, token_id: int) -> None:
        """Goes on behind a token of the answer.

        Raises:
            InvalidRequest: the token is not allowed, or the grammar is too complex at this place.
        """
        self._tokens += 1
        if not self._certain:
            self._consume(token_id)
        elif self._certain.popleft() != token_id:
            raise InvalidRequest(f"token {token_id} is not the one that the answer's {self._grammar.kind} allows")

    def _only(self) -> int | None:
        self._mask()
        places = np.flatnonzero(self._words)
        if len(places) != 1 or (word := int(self._words[places[0]])).bit_count() != 1:
            return None
        return int(places[0]) * 32 + word.bit_length() - 1

    def _mask(self) -> None:
        if self._masked:
            return
        begin_s = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        self._seconds += time.thread_time() - begin_s
        self._check()
        self._masked = True

    def _consume(self, token_id: int) -> None:
        begin_s = time.thread_time()
        self._matcher.consume_token(token_id)
        self._seconds += time.thread_time() - begin_s
        self._masked = False
        self._check()

    def _check(self) -> None:
        place = f"the answer's {self._grammar.kind}, after {self._tokens} tokens,"
        step = "simplify the constraint"
        if self._matcher.is_error():
            self._grammar.failed = True
            raise InvalidRequest(f"{place} fails: {reason_of_grammar(self._matcher.get_error())}", next_step=step)
        if self._seconds > FREE_SECONDS + SECONDS_PER_TOKEN * self._tokens:
            raise InvalidRequest(f"{place} has taken {self._seconds:.1f} s of processor time", next_step=step)
