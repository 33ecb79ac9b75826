"""The texts of token ids, for answers with log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from zipmoe.client import AsyncGenerationClient

_MAX_KEPT: Final = 200_000


class TokenTexts:
    """Caches token texts, so that the router is asked for each once. Thread: one event loop."""

    def __init__(self, client: AsyncGenerationClient) -> None:
        self._client = client
        self._texts: dict[int, str] = {}
        self._digest = ""

    def use_store(self, digest: str) -> None:
        """Clears the cache if the router serves another store than before."""
        if digest != self._digest:
            self._digest = digest
            self._texts.clear()

    async def of(self, token_ids: Iterable[int]) -> dict[int, str]:
        """Returns the texts of some tokens, by id.

        Raises:
            ZipMoeError: the router's error.
        """
        wanted = set(token_ids)
        found = {token_id: self._texts[token_id] for token_id in wanted & self._texts.keys()}
        missing = sorted(wanted - found.keys())
        if missing:
            told = dict(zip(missing, await self._client.detokenize(missing), strict=True))
            if len(self._texts) + len(told) > _MAX_KEPT:
                self._texts.clear()
            self._texts.update(told)
            found.update(told)
        return found
