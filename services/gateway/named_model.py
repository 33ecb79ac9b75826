"""The model that the router serves, under the name that clients call it by."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from zipmoe.client import AsyncGenerationClient, Model
from zipmoe.services.gateway.answers.token_texts import TokenTexts
from zipmoe.services.gateway.http_problem import HttpProblem


class NamedModel:
    """The router's model as clients name it. Thread: one event loop."""

    def __init__(self, client: AsyncGenerationClient, texts: TokenTexts, name: str | None) -> None:
        """Asks nothing yet.

        Args:
            client: client of the router.
            texts: texts of token ids, which are forgotten when the router serves another store.
            name: the model's name for clients; None takes the store's name.
        """
        self._client = client
        self._texts = texts
        self._name = name
        self._started_s = int(time.time())

    async def named(self, wanted: str | None) -> Model:
        """Returns the model if it has the name that a client wants; None is any name.

        Raises:
            HttpProblem: the model has another name.
            ZipMoeError: the router's error.
        """
        # Asked for every request, well under a millisecond: a restarted router may serve another model.
        model = await self._client.model()
        self._texts.use_store(model.store_digest)
        if wanted is not None and wanted != self.name_of(model):
            served = self.name_of(model)
            raise HttpProblem(
                404, f"no model {wanted!r} here, this gateway serves {served!r}", param="model", code="model_not_found"
            )
        return model

    def name_of(self, model: Model) -> str:
        """Returns the model's name for clients."""
        return self._name or model.name

    def card(self, model: Model) -> dict[str, Any]:
        """Describes the model as an entry of `/v1/models`."""
        return {
            "id": self.name_of(model),
            "object": "model",
            "created": self._started_s,
            # fields of Anthropic's API
            "type": "model",
            "display_name": self.name_of(model),
            "created_at": datetime.fromtimestamp(self._started_s, UTC).isoformat().replace("+00:00", "Z"),
            "owned_by": "zipmoe",
            "max_model_len": model.context_tokens,  # the field of vLLM
            "context_length": model.context_tokens,  # the field of OpenRouter
            "max_prompt_tokens": model.prompt_limit_tokens,
            # fields of llama.cpp's server, for load generators
            "meta": {"n_vocab": model.vocabulary_size, "n_ctx": model.context_tokens},
        }
