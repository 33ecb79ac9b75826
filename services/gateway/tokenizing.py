"""Counts and shows tokens: `/tokenize`, `/detokenize`, and the counts of prompts in two dialects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zipmoe.client import AsyncGenerationClient
from zipmoe.services.gateway.answers.token_texts import TokenTexts
from zipmoe.services.gateway.named_model import NamedModel
from zipmoe.services.gateway.request_body.generation_body import GenerationBody
from zipmoe.services.gateway.request_body.message_body import parse_message
from zipmoe.services.gateway.request_body.response_body import parse_response
from zipmoe.services.gateway.request_body.tokenize_body import parse_detokenize, parse_tokenize


class Tokenizing:
    """Answers from the router's tokenizer. Each method takes a body and returns the answer's JSON.

    Methods raise HttpProblem for a body that is not valid, and the router's errors.
    """

    def __init__(self, client: AsyncGenerationClient, texts: TokenTexts, model: NamedModel) -> None:
        self._client = client
        self._texts = texts
        self._model = model

    async def tokenize(self, body: bytes) -> dict[str, Any]:
        """Turns a prompt into token ids, exactly as a generation would."""
        asked = parse_tokenize(body)
        model = await self._model.named(asked.model)
        ids = await self._client.tokenize(asked.prompt, add_special_tokens=asked.add_special_tokens)
        answer: dict[str, Any] = {"count": len(ids), "max_model_len": model.context_tokens, "tokens": ids}
        if asked.with_strings or asked.with_pieces:
            texts = await self._texts.of(ids)
            if asked.with_strings:
                answer["token_strs"] = [texts[token_id].text for token_id in ids]
            if asked.with_pieces:
                answer["tokens"] = [{"id": token_id, "piece": texts[token_id].text} for token_id in ids]
        return answer

    async def detokenize(self, body: bytes) -> dict[str, Any]:
        """Turns token ids into text, special tokens by their names."""
        asked = parse_detokenize(body)
        await self._model.named(asked.model)
        text = await self._client.sequence_text(asked.token_ids) if asked.token_ids else ""
        return {"content": text, "prompt": text}  # the fields of llama.cpp's server and of vLLM

    async def count_message(self, body: bytes) -> dict[str, Any]:
        """Counts the tokens of a prompt of `/v1/messages`."""
        return {"input_tokens": await self._count(body, parse_message)}

    async def count_response(self, body: bytes) -> dict[str, Any]:
        """Counts the tokens of a prompt of `/v1/responses`."""
        return {"object": "response.input_tokens", "input_tokens": await self._count(body, parse_response)}

    async def _count(self, body: bytes, parse: Callable[[bytes], GenerationBody]) -> int:
        asked = parse(body)
        await self._model.named(asked.model)
        return len(await self._client.tokenize(asked.prompts[0]))
