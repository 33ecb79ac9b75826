"""The texts of token ids, as log-probabilities show them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from zipmoe.client import AsyncGenerationClient

_MAX_KEPT: Final = 200_000


class TokenTexts:
    """Asks the router for the text of each token once. From one event loop only."""

    def __init__(self, client: AsyncGenerationClient) -> None:
        self._client = client
        self._texts: dict[int, str] = {}
        self._digest = ""

    def use_store(self, digest: str) -> None:
        """Forgets everything if the router has come back with another model."""
        if digest != self._digest:
            self._digest = digest
            self._texts.clear()

    async def of(self, token_ids: Iterable[int]) -> dict[int, str]:
        """The texts of some tokens, by id.

        Raises:
            ZipMoeError: the router does not tell.
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
