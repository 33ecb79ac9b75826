"""The texts of token ids, for answers with log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from zipmoe.client import AsyncGenerationClient, TokenText

_MAX_KEPT: Final = 200_000
_REPLACEMENT: Final = "\ufffd"


def name_of(token: TokenText) -> str:
    r"""Returns the text of a token; of a part of a character its bytes, as OpenAI writes them: `bytes:\xe2\x80`."""
    if _REPLACEMENT not in token.text or not token.nbytes:
        return token.text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.nbytes)


class TokenTexts:
    """Caches token texts, so that the router is asked for each once. Thread: one event loop."""

    def __init__(self, client: AsyncGenerationClient) -> None:
        self._client = client
        self._texts: dict[int, TokenText] = {}
        self._digest = ""

    def use_store(self, digest: str) -> None:
        """Clears the cache if the router serves another store than before."""
        if digest != self._digest:
            self._digest = digest
            self._texts.clear()

    async def of(self, token_ids: Iterable[int]) -> dict[int, TokenText]:
        """Returns the texts of some tokens, by id.

        Raises:
            ZipMoeError: the router's error.
        """
        wanted = set(token_ids)
        found = {token_id: self._texts[token_id] for token_id in wanted & self._texts.keys()}
        missing = sorted(wanted - found.keys())
        if missing:
            told = dict(zip(missing, await self._client.token_texts(missing), strict=True))
            if len(self._texts) + len(told) > _MAX_KEPT:
                self._texts.clear()
            self._texts.update(told)
            found.update(told)
        return found
