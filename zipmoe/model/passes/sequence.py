"""Computes a request alone, by stock's own calls: prefill, then one decode step a token."""

from __future__ import annotations

import copy
from collections import abc
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache

from zipmoe.errors import InternalError, InvalidRequest
from zipmoe.model.build.build import BuiltModel
from zipmoe.model.passes.head import next_token_logprobs
from zipmoe.model.passes.prompt_pass import PromptResult
from zipmoe.model.stock.body import hidden_states_of
from zipmoe.model.stock.caches import new_cache


class Sequence:
    """Computes one request: the prompt in one pass, then one token a step, as stock `generate` does.

    Logits equal stock's bit for bit, on the CPU. An encoder-decoder encodes the prompt once and starts the answer from
    its decoder start token. After an error in `prefill` or `step` the sequence is over; the model serves others.

    Thread: one at a time per model.
    """

    def __init__(self, built: BuiltModel) -> None:
        self._built = built
        self._device = built.placement.device
        self._call: dict[str, Any] | None = None
        self._length = 0

    @property
    def length(self) -> int:
        """Tokens in the decoder's cache: prompt and answer; in an encoder-decoder, start token and answer."""
        return self._length

    @property
    def room(self) -> int:
        """Tokens that still fit into the context."""
        return self._built.context_tokens - self._length

    def prefill(self, token_ids: abc.Sequence[int], *, prompt_logprobs: int | None = None) -> PromptResult:
        """Computes the prompt.

        Args:
            token_ids: the prompt, at least one token, each in [0, vocabulary).
            prompt_logprobs: likeliest tokens to report beside each token's log-probability; None scores nothing. Not
                with an encoder-decoder, which predicts no prompt.

        Raises:
            InvalidRequest: the prompt is empty or too long, a token is not in the vocabulary, or scores are asked for
                that do not exist.
            ZipMoeError: error of the provider.
        """
        if self._call is not None or self._length:
            raise InternalError("a sequence is prefilled once")
        self._check_prompt(token_ids)
        if prompt_logprobs is not None and self._built.encoder_decoder:
            raise InvalidRequest("prompt_logprobs do not exist for an encoder-decoder: it does not predict the prompt")
        ids = torch.tensor([list(token_ids)], dtype=torch.long, device=self._device)
        with _inference():
            if self._built.encoder_decoder:
                return PromptResult(self._start_decoder(ids), None)
            with hidden_states_of(self._built.model) as bodies:
                call = {"past_key_values": new_cache(self._built.model), "logits_to_keep": 1}
                logits = self._forward(call, ids)
            if prompt_logprobs is None:
                return PromptResult(logits, None)
            return PromptResult(logits, next_token_logprobs(self._built.model, bodies[0], ids, prompt_logprobs))

    def step(self, token_id: int) -> torch.Tensor:
        """Appends one token and computes the logits of the next.

        Returns:
            bf16, shape (vocabulary,).

        Raises:
            InvalidRequest: the token is not in the vocabulary, or the context is full.
            InternalError: the sequence has not been prefilled, or has failed.
            ZipMoeError: error of the provider.
        """
        if self._call is None:
            raise InternalError("the sequence has not been prefilled, or has failed")
        if self.room < 1:
            raise InvalidRequest(f"the context of {self._built.context_tokens} tokens is full")
        self._check_token(token_id)
        with _inference():
            return self._forward(self._call, torch.tensor([[token_id]], dtype=torch.long, device=self._device))

    def fork(self) -> Sequence:
        """Returns a sequence that goes on from the same tokens with a copy of the cache.

        Raises:
            InternalError: the sequence has not been prefilled, or has failed.

        Cost: a copy of the cache.
        """
        if self._call is None:
            raise InternalError("the sequence has not been prefilled, or has failed")
        other = Sequence(self._built)
        with _inference():
            other._call = {**self._call, "past_key_values": copy.deepcopy(self._call["past_key_values"])}
        other._length = self._length
        return other

    @property
    def cache(self) -> EncoderDecoderCache:
        """The keys and values of an encoder-decoder, between steps.

        Raises:
            InternalError: the sequence has not been prefilled, or has failed.
        """
        if self._call is None:
            raise InternalError("the sequence has not been prefilled, or has failed")
        cache = self._call["past_key_values"]
        assert isinstance(cache, EncoderDecoderCache)
        return cache

    def stepped(self) -> None:
        """Counts a token that the caller has appended to `cache`."""
        self._length += 1

    def close(self) -> None:
        """Frees the keys and values."""
        self._call = None

    def _start_decoder(self, prompt_ids: torch.Tensor) -> torch.Tensor:
        model = self._built.model
        encoded = model.get_encoder()(input_ids=prompt_ids, return_dict=True)
        config = self._built.config.get_text_config(decoder=True)
        cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
        call = {"encoder_outputs": encoded, "past_key_values": cache}
        return self._forward(call, torch.tensor([[self._start_token()]], dtype=torch.long, device=self._device))

    def _forward(self, call: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
        self._call = None  # a cache that a failed pass has half updated is never used again
        new_length = self._length + ids.shape[1]
        if self._built.encoder_decoder:
            inputs = {"decoder_input_ids": ids}
        else:
            positions = torch.arange(self._length, new_length, device=self._device)[None]
            inputs = {"input_ids": ids, "position_ids": positions}
        self._length = new_length
        output = self._built.model(**inputs, **call, use_cache=True, return_dict=True)
        logits = output.logits[0, -1]
        assert isinstance(logits, torch.Tensor)
        self._call = {**call, "past_key_values": output.past_key_values}
        return logits

    def _start_token(self) -> int:
        candidates = (
            self._built.generation_config.decoder_start_token_id,
            getattr(self._built.config, "decoder_start_token_id", None),
            self._built.generation_config.bos_token_id,
        )
        start = next((token for token in candidates if token is not None), None)
        if start is None:
            raise InternalError("the model has neither a decoder start token nor a beginning-of-sequence token")
        return int(start)

    def _check_prompt(self, token_ids: abc.Sequence[int]) -> None:
        if not token_ids:
            raise InvalidRequest("the prompt is empty")
        if len(token_ids) > self._built.context_tokens:
            raise InvalidRequest(
                f"the prompt has {len(token_ids)} tokens, the context holds {self._built.context_tokens}"
            )
        for token_id in (min(token_ids), max(token_ids)):
            self._check_token(token_id)

    def _check_token(self, token_id: int) -> None:
        if not 0 <= token_id < self._built.vocabulary_size:
            raise InvalidRequest(f"token id {token_id} is not in the vocabulary of {self._built.vocabulary_size}")


def _inference() -> AbstractContextManager[object]:
    """Returns torch's inference mode, or nothing inside of it: a coroutine must not change the mode of its thread."""
    return nullcontext() if torch.is_inference_mode_enabled() else torch.inference_mode()
