"""Validates client requests and converts each into a `GenerationSpec` for the engine."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import GenerationConfig

from zipmoe.errors import InvalidRequest
from zipmoe.model.text import grammar_source
from zipmoe.model.text.grammar import GrammarVocabulary
from zipmoe.model.text.grammar_source import GrammarSource
from zipmoe.model.text.sampling import MAX_TOP_LOGPROBS, SamplingParams
from zipmoe.model.text.token_ids_only import AnyTokenizer
from zipmoe.services.router.engine.request import GenerationSpec
from zipmoe.v1 import generation_pb2 as pb

_SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")


@dataclass(frozen=True)
class TokenLimits:
    """Limits of prompts and answers, in tokens.

    Attributes:
        prompt: the longest prompt.
        context: the longest prompt plus answer; of an encoder-decoder, the longest answer.
        vocabulary: token ids are below this number.
        encoder_decoder: whether the prompt is a sequence of its own.
    """

    prompt: int
    context: int
    vocabulary: int
    encoder_decoder: bool


class Intake:
    """Checks requests against the model's limits, independently of engine and streams.

    Thread: any. Tokenizing a long prompt takes milliseconds, so call from another thread than the event loop's.
    """

    def __init__(self, tokenizer: AnyTokenizer, limits: TokenLimits, defaults: GenerationConfig) -> None:
        self.tokenizer = tokenizer
        self.limits = limits
        eos = defaults.eos_token_id
        self._eos_ids = frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos)
        stops = defaults.stop_strings
        self._stop_strings = () if stops is None else (stops,) if isinstance(stops, str) else tuple(stops)

    def token_ids(self, prompt: pb.Prompt) -> list[int]:
        """Returns the token ids of a prompt in any of its forms.

        Raises:
            InvalidRequest: no form is given, the prompt is empty or too long, an id is not in the vocabulary, or text
                is given to a model without a tokenizer.
        """
        form = prompt.WhichOneof("form")
        if form is None:
            raise InvalidRequest("the request has no prompt: give text, token ids or a conversation")
        if form == "text":
            if not prompt.text:
                raise InvalidRequest("the prompt is empty")
            ids = self.tokenizer.encode_text(prompt.text)
        elif form == "token_ids":
            ids = list(prompt.token_ids.ids)
        else:
            messages = [{"role": message.role, "content": message.content} for message in prompt.conversation.messages]
            ids = self.tokenizer.encode_conversation(messages)
        if not ids:
            raise InvalidRequest("the prompt is empty: it has no tokens")
        self._check_ids("prompt", ids)
        if len(ids) > self.limits.prompt:
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens, the longest that this router takes is {self.limits.prompt}",
                next_step="shorten the prompt, or start the router with a larger --max-prompt-tokens and --kv-tokens",
            )
        return ids

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Returns the text of each token on its own.

        Raises:
            InvalidRequest: an id is not in the vocabulary, or the model has no tokenizer.
        """
        self.tokenizer.require_text()
        self._check_ids("token", token_ids)
        return [self.tokenizer.token_text(token_id) for token_id in token_ids]

    def grammar_vocabulary(self) -> GrammarVocabulary:
        """Reads the tokens as grammars see them.

        Raises:
            InvalidRequest: the model cannot give constrained answers.
        """
        return GrammarVocabulary(self.tokenizer, self.limits.vocabulary, self._eos_ids)

    def grammar_source(self, request: pb.GenerateRequest) -> GrammarSource | None:
        """Returns the grammar that the answer has to follow, to be compiled; None for any answer.

        Raises:
            InvalidRequest: the constraint names no form, is too long, or excludes another field.
        """
        if not request.HasField("constraint"):
            return None
        self.tokenizer.require_text()
        if request.forced_token_ids or request.stopping.ignore_eos:
            other = "forced_token_ids" if request.forced_token_ids else "ignore_eos"
            raise InvalidRequest(f"{other} and a constraint exclude each other")
        constraint = request.constraint
        form = constraint.WhichOneof("form")
        if form == "json_schema":
            return grammar_source.json_schema(constraint.json_schema)
        if form == "regex":
            return grammar_source.regex(constraint.regex)
        if form == "choice":
            return grammar_source.choice(constraint.choice.texts)
        if form is None or not constraint.json_object:
            raise InvalidRequest("the constraint names no form: give json_object, json_schema, regex or choice")
        return grammar_source.json_object()

    def spec(self, request: pb.GenerateRequest) -> GenerationSpec:
        """Validates a request and returns its specification.

        Raises:
            InvalidRequest: a field is out of range; the message names it.
        """
        prompt_ids = self.token_ids(request.prompt)
        stopping, output = request.stopping, request.output
        if output.top_logprobs > MAX_TOP_LOGPROBS:
            raise InvalidRequest(f"top_logprobs is {output.top_logprobs}, but has to be at most {MAX_TOP_LOGPROBS}")
        if stopping.stop_strings:
            self.tokenizer.require_text()
        if not all(stopping.stop_strings):
            raise InvalidRequest("a stop string is empty")
        if self.limits.encoder_decoder and output.prompt_logprobs:
            raise InvalidRequest("an encoder-decoder model gives its prompt no log-probabilities")
        self._check_ids("stop token", stopping.stop_token_ids)
        self._check_ids("forced token", request.forced_token_ids)
        stop_ids = frozenset(stopping.stop_token_ids) | (frozenset() if stopping.ignore_eos else self._eos_ids)
        fields = [name for name in _SAMPLING_FIELDS if request.sampling.HasField(name)]
        given: dict[str, Any] = {name: _as_written(getattr(request.sampling, name)) for name in fields}
        return GenerationSpec(
            request_id=request.request_id or uuid.uuid4().hex,
            prompt_ids=tuple(prompt_ids),
            sampling=SamplingParams(**given),
            max_new_tokens=self._max_new_tokens(len(prompt_ids), stopping),
            stop_strings=(*stopping.stop_strings, *self._stop_strings),
            stop_token_ids=stop_ids,
            top_logprobs=output.top_logprobs if output.logprobs or output.top_logprobs else None,
            prompt_logprobs=output.prompt_logprobs,
            forced_token_ids=tuple(request.forced_token_ids),
        )

    def _max_new_tokens(self, prompt_tokens: int, stopping: pb.StoppingCriteria) -> int:
        room = self.limits.context - (0 if self.limits.encoder_decoder else prompt_tokens)
        wanted = stopping.max_new_tokens if stopping.HasField("max_new_tokens") else max(room, 1)
        if wanted > room:
            raise InvalidRequest(
                f"a prompt of {prompt_tokens} tokens and an answer of {wanted} do not fit the context of "
                f"{self.limits.context} tokens",
                next_step=f"ask for at most {max(room, 0)} new tokens, or shorten the prompt",
            )
        return wanted

    def _check_ids(self, kind: str, ids: Sequence[int]) -> None:
        for token_id in ids:
            if token_id >= self.limits.vocabulary:
                raise InvalidRequest(
                    f"{kind} id {token_id} is not in the vocabulary of {self.limits.vocabulary} tokens"
                )


def _as_written(value: float) -> float:
    """Returns the shortest decimal number that a `float` of the protocol may stand for: 0.8, not 0.800000012.

    Stock computes with the client's 0.8, and `1 - top_p` shows the difference.
    """
    return float(str(np.float32(value))) if isinstance(value, float) else value
