"""Stands in for the tokenizer of a store that has none, or none that can be loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from zipmoe.errors import InvalidRequest, NotFound, UnsupportedModel, ZipMoeError
from zipmoe.model.text.tokenizer import Tokenizer


class TokenIdsOnly:
    """The interface of `Tokenizer` without text: requests in text are refused, answers have token ids and empty text.

    Attributes:
        reason: the error of the tokenizer that could not be loaded.
    """

    has_chat_template: Final = False
    eos_id: Final = None
    special_ids: Final[frozenset[int]] = frozenset()
    special_tokens: Final[Mapping[str, int]] = {}

    def __init__(self, reason: ZipMoeError) -> None:
        self.reason = reason

    def require_text(self) -> NoReturn:
        """Refuses a request that needs a tokenizer, with InvalidRequest."""
        raise InvalidRequest(
            f"the model is served without a tokenizer, for token ids only: {self.reason.message}",
            next_step=f"send the prompt as token ids, without stop strings; for text {self.reason.next_step}",
        )

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Raises InvalidRequest."""
        self.require_text()

    def token_text(self, token_id: int) -> str:
        """Raises InvalidRequest."""
        self.require_text()

    def token_bytes(self, token_id: int) -> bytes:
        """Raises InvalidRequest."""
        self.require_text()

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Returns the empty text, so that an answer has no text."""
        return ""


AnyTokenizer = Tokenizer | TokenIdsOnly


def load_tokenizer(store: Path) -> AnyTokenizer:
    """Loads the tokenizer of a store, or its stand-in if there is none that can be loaded."""
    try:
        return Tokenizer(store)
    except (NotFound, UnsupportedModel) as reason:
        return TokenIdsOnly(reason)
