"""Parameters of a generation request. A field that is None takes the value of the model's generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: `role` is `system`, `user` or `assistant`, as the chat template knows them."""

    role: str
    content: str


Prompt = str | Sequence[int] | Sequence[Message]
"""Text, ready token ids, or a conversation with the oldest message first."""


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
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Stopping:
    """Conditions that end the generation.

    Attributes:
        max_new_tokens: the most tokens to generate; None goes on to the end of the context, 0 only scores the prompt.
        stop_strings: generation ends before the first of these appears; the string itself is not part of the text.
        stop_token_ids: ids that end generation beside the model's own.
        ignore_eos: goes on past the model's own end-of-sequence ids.
    """

    max_new_tokens: int | None = None
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


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
    """

    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: bool = False
