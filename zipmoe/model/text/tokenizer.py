"""Converts text to token ids and back: the store's tokenizer, streamed text, stop strings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from zipmoe.errors import InvalidRequest, NotFound, UnsupportedModel
from zipmoe.model.text.vocabulary_files import VOCABULARY_PATTERNS, missing_package, vocabulary_files
from zipmoe.system_error import first_line

if TYPE_CHECKING:
    from zipmoe.model.text.token_ids_only import TokenIdsOnly

REPLACEMENT = "\ufffd"
MAX_PENDING_TOKENS = 8
"""This many held-back tokens are shown anyway. A character has at most 4 tokens of one byte."""

_PACK_ANEW = "and pack the checkpoint into a new directory"
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")  # of SentencePiece with byte fallback


def _byte_level_alphabet() -> dict[str, int]:
    """Returns the byte that each character of a byte-level vocabulary stands for.

    Source: GPT-2's vocabulary. Printable characters of Latin-1 stand for themselves, the other bytes in ascending order
    for the characters from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()


class Tokenizer:
    """The tokenizer of a store. Loads nothing from the network and runs no code of the checkpoint."""

    def __init__(self, store: Path) -> None:
        """Loads the tokenizer files of a store or checkpoint directory.

        Raises:
            NotFound: the directory has no file with a vocabulary.
            UnsupportedModel: transformers cannot load the tokenizer files, needs a package that is not installed, or
                makes a tokenizer without a vocabulary from them.
        """
        files = vocabulary_files(store)
        if not files:
            raise NotFound(
                f"{store} has no tokenizer: none of {', '.join(VOCABULARY_PATTERNS)}",
                next_step=f"put the tokenizer files beside the checkpoint, {_PACK_ANEW}",
            )
        again = f"compare the tokenizer files with those on the model's hub page, {_PACK_ANEW}"
        try:
            tokenizer = AutoTokenizer.from_pretrained(store, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # tokenizers raises bare Exception: translated here, once
            if package := missing_package(files):
                raise _needs(package, store) from error
            raise UnsupportedModel(
                f"the tokenizer in {store} cannot be loaded: {first_line(error)}", next_step=again
            ) from error
        # Where transformers overlooks the vocabulary, it makes a tokenizer that knows its special tokens alone.
        if not tokenizer("a", add_special_tokens=False)["input_ids"]:
            names = ", ".join(path.name for path in files)
            raise UnsupportedModel(
                f"the tokenizer in {store} cannot be loaded: transformers finds no vocabulary in {names}",
                next_step=f"save the tokenizer as tokenizer.json beside the checkpoint, {_PACK_ANEW}",
            )
        self.backend: PreTrainedTokenizerBase = tokenizer

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer can render conversations."""
        return self.backend.chat_template is not None

    @property
    def eos_id(self) -> int | None:
        """Id of the tokenizer's end-of-sequence token; None if it has none."""
        eos = self.backend.eos_token_id
        return None if eos is None else int(eos)

    def require_text(self) -> None:
        """Does nothing; the stand-in of a missing tokenizer refuses here."""

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Converts a text to token ids, with the tokenizer's own special tokens or without."""
        return _ids(self.backend(text, add_special_tokens=add_special_tokens))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Converts token ids to text, without special tokens or with their names."""
        text = self.backend.decode(
            list(token_ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def token_text(self, token_id: int) -> str:
        """Converts a single token to text: a special token to its name, an incomplete character to U+FFFD."""
        text = self.backend.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes of a single token's text, also those of an incomplete character.

        Returns:
            Nothing if the token is incomplete and the tokenizer has neither byte tokens nor the byte-level alphabet.
        """
        text = self.token_text(token_id)
        if REPLACEMENT not in text:
            return text.encode()
        name: Any = self.backend.convert_ids_to_tokens(token_id)
        if found := _BYTE_TOKEN.fullmatch(str(name)):
            return bytes([int(found[1], 16)])
        if isinstance(name, bytes):
            return name
        if all(character in _BYTE_OF for character in str(name)):
            return bytes(_BYTE_OF[character] for character in str(name))
        return b""

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens, which `decode` leaves out."""
        added = (token_id for token_id, token in self.backend.added_tokens_decoder.items() if token.special)
        return frozenset(added) | frozenset(self.backend.all_special_ids)

    @cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """Ids of the special tokens by name."""
        return {self.token_text(token_id): token_id for token_id in self.special_ids}


class StreamingDetokenizer:
    """Converts the token ids of an answer to pieces of text. The concatenated pieces are the answer's text.

    A piece is held back while its last character is incomplete. Tokens are decoded together with the tokens of the
    previous piece, because decoders treat the first token of a text differently (SentencePiece drops the leading
    space).

    Cost: two decodings of at most a dozen tokens per token, at any length of the answer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | TokenIdsOnly,
        shown_ids: frozenset[int] = frozenset(),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        """Begins an empty text.

        Args:
            tokenizer: decodes tokens.
            shown_ids: special tokens that the text has by their names in any case.
            skip_special_tokens: whether the text leaves the other special tokens out.
        """
        self._tokenizer = tokenizer
        self._skips = skip_special_tokens
        self._left_out = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._shown_ids = shown_ids
        self._window: list[int] = []
        self._shown_tokens = 0
        """Number of the window's first tokens that make up the previous piece. The other tokens are not shown yet."""

    def feed(self, token_id: int) -> str:
        """Takes the next token and returns the text that the token completes: often a word, sometimes nothing."""
        if token_id in self._shown_ids:
            return self._show(final=True) + self._tokenizer.token_text(token_id)
        if token_id in self._left_out:
            return ""
        self._window.append(token_id)
        return self._show(final=len(self._window) - self._shown_tokens >= MAX_PENDING_TOKENS)

    def finish(self) -> str:
        """Returns the text that was held back; incomplete characters become U+FFFD."""
        return self._show(final=True)

    def _show(self, *, final: bool) -> str:
        if len(self._window) == self._shown_tokens:
            return ""  # the window stays as the context of the next token
        shown = self._decode(self._window[: self._shown_tokens])
        text = self._decode(self._window)
        if not final and (len(text) <= len(shown) or text.endswith(REPLACEMENT)):
            return ""
        self._window = self._window[self._shown_tokens :]
        self._shown_tokens = len(self._window)
        return text[len(shown) :]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return (
            self._tokenizer.decode(token_ids)
            if self._skips
            else self._tokenizer.decode(token_ids, skip_special_tokens=False)
        )


class StopStrings:
    """Passes streamed text through until a stop string appears, and holds back possible beginnings of a stop string.

    The stop string that is complete first ends the text. The outcome does not depend on the cuts between pieces.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        """Raises InvalidRequest if a string is empty."""
        if not all(strings):
            raise InvalidRequest("a stop string is empty")
        self._strings = tuple(strings)
        self._held = ""
        self.met: str | None = None
        """The stop string that ended the text; None before."""

    def feed(self, text: str) -> str:
        """Takes a piece of text and returns the text that can be shown; returns nothing once `met` is set."""
        if self.met is not None:
            return ""
        self._held += text
        found = [(start + len(stop), start, stop) for stop in self._strings if (start := self._held.find(stop)) >= 0]
        if found:
            _, start, self.met = min(found)
            shown, self._held = self._held[:start], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._strings), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """Returns the text that was held back and did not become a stop string."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest proper prefix of `stop` at the end of `text`."""
    longest = min(len(stop) - 1, len(text))
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)


def _needs(package: str, store: Path) -> UnsupportedModel:
    return UnsupportedModel(
        f"the tokenizer in {store} needs the package {package}, which is not installed",
        next_step=f"install it with `pip install {package}` for the router, and start the router again",
    )


def _ids(encoding: Mapping[str, Any]) -> list[int]:
    return [int(token_id) for token_id in encoding["input_ids"]]
