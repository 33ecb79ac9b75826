"""Validates client requests and converts each into a `GenerationSpec` for the engine."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from transformers import GenerationConfig

from zipmoe.errors import ContextLengthExceeded, InvalidRequest
from zipmoe.model.conversation.answer_formats import shown_ids
from zipmoe.model.conversation.chat_request import RenderedChat
from zipmoe.model.conversation.conversation_renderer import ConversationRenderer
from zipmoe.model.text import grammar_source
from zipmoe.model.text.grammar import GrammarVocabulary
from zipmoe.model.text.grammar_source import GrammarSource
from zipmoe.model.text.sampling import MAX_TOP_LOGPROBS, SamplingParams
from zipmoe.model.text.token_ids_only import AnyTokenizer
from zipmoe.services.router.engine.conversation_intake import chat_request, demanded_calls
from zipmoe.services.router.engine.request import GenerationSpec
from zipmoe.v1 import generation_pb2 as pb

_SAMPLING_FIELDS: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "presence_penalty",
    "frequency_penalty",
)
_MAX_CHOICES: Final = 128
_MAX_PROMPT_ALTERNATIVES: Final = 1 << 18
"""Most alternatives to all prompt tokens together; some 4 MB of the answer."""


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

    def __init__(
        self,
        tokenizer: AnyTokenizer,
        limits: TokenLimits,
        defaults: GenerationConfig,
        conversations: ConversationRenderer,
    ) -> None:
        self.tokenizer = tokenizer
        self.conversations = conversations
        self.limits = limits
        eos = defaults.eos_token_id
        self._eos_ids = frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos)
        stops = defaults.stop_strings
        self._stop_strings = () if stops is None else (stops,) if isinstance(stops, str) else tuple(stops)

    def token_ids(self, prompt: pb.Prompt, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of a prompt in any of its forms.

        Args:
            prompt: the prompt.
            add_special_tokens: whether a text gets the tokenizer's special tokens; other forms ignore it.

        Raises:
            InvalidRequest: no form is given, the prompt is empty or too long, an id is not in the vocabulary, or text
                is given to a model without a tokenizer.
        """
        return list(self._rendered(prompt, add_special_tokens=add_special_tokens).token_ids)

    def _rendered(self, prompt: pb.Prompt, *, add_special_tokens: bool = True) -> RenderedChat:
        """Returns a prompt in any of its forms as token ids, and what there is to say of it; raises as `token_ids`."""
        form = prompt.WhichOneof("form")
        rendered = None
        if form is None:
            raise InvalidRequest("the request has no prompt: give text, token ids or a conversation")
        if form == "text":
            if not prompt.text:
                raise InvalidRequest("the prompt is empty")
            ids = self.tokenizer.encode_text(prompt.text, add_special_tokens=add_special_tokens)
        elif form == "token_ids":
            ids = list(prompt.token_ids.ids)
        else:
            rendered = self.conversations.render(chat_request(prompt.conversation))
            ids = list(rendered.token_ids)
        if not ids:
            raise InvalidRequest("the prompt is empty: it has no tokens")
        self._check_ids("prompt", ids)
        if len(ids) > self.limits.prompt:
            part = "" if self.limits.prompt == self.limits.context else f", {self.limits.prompt} of them for a prompt"
            raise ContextLengthExceeded(f"{self._context()}{part}, but the prompt has {len(ids)} tokens")
        return rendered or RenderedChat(tuple(ids))

    def token_texts(self, token_ids: Sequence[int]) -> list[tuple[str, bytes]]:
        """Returns the text of each token on its own, and its bytes.

        Raises:
            InvalidRequest: an id is not in the vocabulary, or the model has no tokenizer.
        """
        self.tokenizer.require_text()
        self._check_ids("token", token_ids)
        return [(self.tokenizer.token_text(token_id), self.tokenizer.token_bytes(token_id)) for token_id in token_ids]

    def sequence_text(self, token_ids: Sequence[int]) -> str:
        """Returns the text of tokens as one sequence, special tokens by their names; raises as `token_texts`."""
        self.tokenizer.require_text()
        self._check_ids("token", token_ids)
        return self.tokenizer.decode(token_ids, skip_special_tokens=False)

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
        rendered = self._rendered(request.prompt)
        prompt_ids = rendered.token_ids
        stopping, output = request.stopping, request.output
        _check_most("top_logprobs", output.top_logprobs, MAX_TOP_LOGPROBS)
        choices = request.sampling.choices or 1
        best_of = request.sampling.best_of or choices
        _check_most("choices", choices, _MAX_CHOICES)
        _check_most("best_of", best_of, _MAX_CHOICES)
        if best_of < choices:
            raise InvalidRequest(f"best_of is {best_of}, but has to be at least choices, {choices}")
        prompt_logprobs = self._prompt_logprobs(len(prompt_ids), output)
        separates = output.separate_parts
        if separates and request.prompt.WhichOneof("form") != "conversation":
            raise InvalidRequest(
                "separate_parts needs a conversation: other prompts say nothing of the answer's format"
            )
        if stopping.stop_strings:
            self.tokenizer.require_text()
        if not all(stopping.stop_strings):
            raise InvalidRequest("a stop string is empty")
        self._check_ids("stop token", stopping.stop_token_ids)
        self._check_ids("forced token", request.forced_token_ids)
        self._check_ids("logit_bias token", list(request.sampling.logit_bias))
        stop_ids = frozenset(stopping.stop_token_ids) | (frozenset() if stopping.ignore_eos else self._eos_ids)
        fields = [name for name in _SAMPLING_FIELDS if request.sampling.HasField(name)]
        given: dict[str, Any] = {name: _as_written(getattr(request.sampling, name)) for name in fields}
        given["logit_bias"] = {token: _as_written(bias) for token, bias in sorted(request.sampling.logit_bias.items())}
        return GenerationSpec(
            request_id=request.request_id or uuid.uuid4().hex,
            prompt_ids=prompt_ids,
            sampling=SamplingParams(**given),
            max_new_tokens=self._max_new_tokens(len(prompt_ids), stopping),
            stop_strings=(*stopping.stop_strings, *self._stop_strings),
            stop_token_ids=stop_ids,
            top_logprobs=output.top_logprobs if output.logprobs or output.top_logprobs or best_of > choices else None,
            prompt_logprobs=prompt_logprobs,
            forced_token_ids=tuple(request.forced_token_ids),
            min_new_tokens=stopping.min_new_tokens,
            skip_special_tokens=not output.HasField("skip_special_tokens") or output.skip_special_tokens,
            choices=choices,
            best_of=best_of,
            reports_logprobs=output.logprobs or bool(output.top_logprobs),
            prompt_text=self._prompt_text(request, prompt_ids) if output.prompt_tokens else None,
            shown_ids=shown_ids(rendered.reading.markers, self.tokenizer.special_tokens) if separates else frozenset(),
            reading=rendered.reading if separates else None,
            chat_changes=rendered.changes,
            demanded_calls=demanded_calls(request, rendered.reading),
        )

    def _prompt_logprobs(self, prompt_tokens: int, output: pb.OutputOptions) -> int | None:
        top = output.prompt_top_logprobs
        _check_most("prompt_top_logprobs", top, MAX_TOP_LOGPROBS)
        if not (output.prompt_logprobs or top):
            return None
        if self.limits.encoder_decoder:
            raise InvalidRequest("an encoder-decoder model gives its prompt no log-probabilities")
        if prompt_tokens * top > _MAX_PROMPT_ALTERNATIVES:
            raise InvalidRequest(
                f"{top} alternatives to each of {prompt_tokens} prompt tokens are more than {_MAX_PROMPT_ALTERNATIVES}",
                next_step=f"set prompt_top_logprobs to at most {_MAX_PROMPT_ALTERNATIVES // prompt_tokens}",
            )
        return top

    def _prompt_text(self, request: pb.GenerateRequest, prompt_ids: Sequence[int]) -> str:
        if request.prompt.WhichOneof("form") == "text":
            return request.prompt.text
        return self.tokenizer.decode(prompt_ids, skip_special_tokens=False)

    def _max_new_tokens(self, prompt_tokens: int, stopping: pb.StoppingCriteria) -> int:
        """Returns the most tokens of the answer: what the client asks for, but no more than fit the context."""
        room = self.limits.context - (0 if self.limits.encoder_decoder else prompt_tokens)
        wanted = stopping.max_new_tokens if stopping.HasField("max_new_tokens") else None
        if wanted is not None and wanted < stopping.min_new_tokens:
            raise InvalidRequest(
                f"min_new_tokens is {stopping.min_new_tokens}, but has to be at most max_new_tokens, {wanted}"
            )
        if wanted != 0 and room < 1:
            raise ContextLengthExceeded(f"{self._context()}, and the prompt of {prompt_tokens} leaves no room")
        return room if wanted is None else min(wanted, room)

    def _context(self) -> str:
        return f"this model's maximum context length is {self.limits.context} tokens"

    def _check_ids(self, kind: str, ids: Sequence[int]) -> None:
        for token_id in ids:
            if token_id >= self.limits.vocabulary:
                raise InvalidRequest(
                    f"{kind} id {token_id} is not in the vocabulary of {self.limits.vocabulary} tokens"
                )


def _check_most(name: str, value: int, most: int) -> None:
    if value > most:
        raise InvalidRequest(f"{name} is {value}, but has to be at most {most}")


def _as_written(value: float) -> float:
    """Returns the shortest decimal number that a `float` of the protocol may stand for: 0.8, not 0.800000012.

    Stock computes with the client's 0.8, and `1 - top_p` shows the difference.
    """
    return float(str(np.float32(value))) if isinstance(value, float) else value
