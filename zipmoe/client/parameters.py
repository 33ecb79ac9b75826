"""Parameters of a generation request. A field that is None takes the value of the model's generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zipmoe.client.dialogue import ChatPrompt, Message

Prompt = str | Sequence[int] | Sequence[Message] | ChatPrompt
"""Text, ready token ids, or a conversation: messages alone with the oldest first, or with tools."""


@dataclass(frozen=True)
class Sampling:
    """Parameters for choosing the next token.

    Attributes:
        temperature: 0 is greedy; finite and not negative.
        top_p: nucleus sampling, in (0, 1].
        top_k: keeps the k most likely tokens; 0 keeps all.
        min_p: drops tokens less likely than this share of the likeliest one, in [0, 1].
        repetition_penalty: a value above 1 makes tokens that were seen before less likely; finite and positive.
        seed: makes sampling repeatable; without it every request draws anew.
        presence_penalty: subtracted from the logits of tokens that were generated before, in [-2, 2].
        frequency_penalty: the same for each time that a token was generated.
        logit_bias: numbers in [-100, 100] that are added to logits, by token id.
        choices: number of answers, at most 128; answer i is the one with the seed plus i.
        best_of: generates so many answers and returns the likeliest `choices` of them; None means `choices`.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    choices: int = 1
    best_of: int | None = None


@dataclass(frozen=True)
class Stopping:
    """Conditions that end the generation.

    Attributes:
        max_new_tokens: the most tokens to generate; None, or more than fit, goes on to the end of the context, 0 only
            scores the prompt.
        stop_strings: generation ends before the first of these appears; the string itself is not part of the text.
        stop_token_ids: ids that end generation beside the model's own.
        ignore_eos: goes on past the model's own end-of-sequence ids.
        min_new_tokens: number of tokens before which no token that ends generation is chosen.
    """

    max_new_tokens: int | None = None
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_new_tokens: int = 0


@dataclass(frozen=True)
class Constraint:
    """The form that the answer has to have. Exactly one field is given.

    Attributes:
        json_object: any JSON object.
        json_schema: a value that this schema describes; the schema as JSON text or as its parsed form.
        regex: a text that this regular expression matches as a whole, in the syntax of Rust's crate `regex`.
        choice: one of these texts.
    """

    json_object: bool = False
    json_schema: str | Mapping[str, Any] | bool | None = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Output:
    """Values to report beside the tokens.

    Attributes:
        logprobs: whether to report the log-probability of each generated token.
        top_logprobs: number of likeliest alternatives to report beside each token, at most 20; implies `logprobs`.
        prompt_logprobs: whether `Started` has the log-probability of each prompt token but the first.
        prompt_top_logprobs: number of likeliest tokens at the place of each prompt token, at most 20; implies
            `prompt_logprobs`.
        prompt_tokens: whether `Started` has the prompt's token ids and text.
        skip_special_tokens: whether the text leaves special tokens out.
        progress: whether `PromptProgress` events come before `Started`.
        separate_parts: whether reasoning and tool calls are separated from the text of the answer to a conversation.
    """

    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    prompt_top_logprobs: int = 0
    prompt_tokens: bool = False
    skip_special_tokens: bool = True
    progress: bool = False
    separate_parts: bool = False
