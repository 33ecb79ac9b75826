"""Chooses the next token from a row of logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from zipmoe.errors import InternalError, InvalidRequest
from zipmoe.model.text.grammar_mask import GrammarMask
from zipmoe.model.text.penalties import GeneratedTokenPenalty, LogitBias

if TYPE_CHECKING:
    from zipmoe.model.stock.generation_settings import ChoiceRules
    from zipmoe.model.text.grammar import GrammarProgress

MAX_TOP_LOGPROBS = 20
_SEEDS = 2**64
SMALLEST_TEMPERATURE = 1e-5
"""Logits divided by a smaller temperature may overflow fp32; at this temperature the argmax has all the probability."""

_KEEPING = (
    GrammarMask,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
"""Processors that leave the only token of a mask with a finite score."""


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters that a request sets. A field that is None has the value that stock would use.

    Attributes:
        temperature: finite, >= 0; below 1e-5 the choice is greedy, and the filters change nothing. A temperature that
            is set and not greedy turns sampling on.
        top_p: in (0, 1].
        top_k: >= 0; 0 keeps all tokens.
        min_p: in [0, 1], a share of the likeliest token's probability.
        repetition_penalty: finite, > 0; also acts on greedy choices, as in stock.
        seed: in [0, 2**64), or None for a random seed.
        presence_penalty: in [-2, 2]; see `GeneratedTokenPenalty`.
        frequency_penalty: in [-2, 2]; likewise.
        logit_bias: numbers in [-100, 100] by token id; see `LogitBias`.

    Raises:
        InvalidRequest: a field is out of range or not a number; the message names the field and the value.
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

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, lambda value: value >= 0, "finite and at least 0")
        _check("top_p", self.top_p, lambda value: 0 < value <= 1, "in (0, 1]")
        _check("top_k", self.top_k, lambda value: value >= 0 and int(value) == value, "a whole number, at least 0")
        _check("min_p", self.min_p, lambda value: 0 <= value <= 1, "in [0, 1]")
        _check("repetition_penalty", self.repetition_penalty, lambda value: value > 0, "finite and above 0")
        _check("seed", self.seed, lambda value: 0 <= value < _SEEDS, "in [0, 2**64)")
        _check("presence_penalty", self.presence_penalty, lambda value: -2 <= value <= 2, "in [-2, 2]")
        _check("frequency_penalty", self.frequency_penalty, lambda value: -2 <= value <= 2, "in [-2, 2]")
        for token_id, bias in self.logit_bias.items():
            _check(f"logit_bias of token {token_id}", bias, lambda value: -100 <= value <= 100, "in [-100, 100]")

    def generation_fields(self) -> dict[str, float | int | bool]:
        """Returns the set parameters as fields of a GenerationConfig."""
        given: dict[str, float | int | bool | None] = {
            "top_p": None if self.top_p is None else float(self.top_p),
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": None if self.repetition_penalty is None else float(self.repetition_penalty),
        }
        if self.temperature is not None:
            given["do_sample"] = self.temperature >= SMALLEST_TEMPERATURE
            given["temperature"] = float(self.temperature) if given["do_sample"] else 1.0
        return {name: value for name, value in given.items() if value is not None}

    def processors(self, context_tokens: int) -> LogitsProcessorList:
        """Returns the processors that stock's `generate()` would be given as `logits_processor`, in their order.

        Args:
            context_tokens: tokens of the decoder's input before the first choice.
        """
        own: list[LogitsProcessor] = []
        if self.logit_bias:
            own.append(LogitBias(self.logit_bias))
        if self.presence_penalty or self.frequency_penalty:
            presence, frequency = self.presence_penalty or 0.0, self.frequency_penalty or 0.0
            own.append(GeneratedTokenPenalty(context_tokens, presence, frequency))
        return LogitsProcessorList(own)

    def of_choice(self, number: int) -> SamplingParams:
        """Returns the parameters of one of several answers: the seed plus the answer's number."""
        return self if self.seed is None else replace(self, seed=(self.seed + number) % _SEEDS)


class SampledLogprob(NamedTuple):
    """A token and its natural log-probability."""

    token_id: int
    logprob: float


class Choice(NamedTuple):
    """A chosen token. Log-probabilities are those of the model's unmodified distribution, in fp32."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[SampledLogprob, ...] = ()


class Sampler:
    """Chooses the tokens of a request, reproducibly for a given seed and independently of other requests.

    The processors are transformers' own and get the tokens in order, and the draw is stock's. With the same seed the
    tokens are those of `generate()` under `torch.manual_seed(seed)`. Thread: one at a time.
    """

    def __init__(
        self,
        rules: ChoiceRules,
        context_ids: Sequence[int] = (),
        *,
        seed: int | None = None,
        top_logprobs: int | None = None,
        progress: GrammarProgress | None = None,
    ) -> None:
        """Seeds the generator.

        Args:
            rules: stock's rules for the request.
            context_ids: tokens of the decoder's input before the first choice.
            seed: seed of the draws; None for a random seed.
            top_logprobs: number of likeliest tokens to report, at most 20; 0 reports the chosen token's
                log-probability alone, None reports nothing.
            progress: place of the answer in its grammar, whose mask is among the rules; advanced by each choice.

        Raises:
            InvalidRequest: top_logprobs is out of range.
        """
        most = MAX_TOP_LOGPROBS
        _check("top_logprobs", top_logprobs, lambda value: 0 <= value <= most, f"in [0, {most}]")
        self._rules = rules
        self._top_logprobs = top_logprobs
        self._progress = progress
        self._keeps_the_only = all(type(each) in _KEEPING for each in rules.processors)
        self._ids: Any = torch.tensor([list(context_ids)], dtype=torch.long)  # stubs want the legacy LongTensor
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def choose(self, logits: torch.Tensor) -> Choice:
        """Chooses the next token.

        Args:
            logits: floating point, shape (vocabulary,), any device. Not changed.

        Raises:
            InternalError: the logits are no distribution to draw from (NaN or infinities).
            InvalidRequest: the answer's grammar cannot go on, or the other rules leave none of its tokens.
        """
        row = logits.detach().to("cpu", torch.float32).unsqueeze(0)
        weights = self._only_weight(row[0])
        if weights is None:
            scores = self._rules.processors(self._ids, cast(Any, row.clone())) if self._rules.processors else row
            if self._progress is not None and float(scores.max()) == -math.inf:
                raise InvalidRequest("the other parameters forbid all tokens that the answer's constraint allows")
            weights = torch.softmax(scores, dim=-1) if self._rules.sample else scores
        if not self._rules.sample:
            token_id = int(torch.argmax(weights, dim=-1))
        elif bool(torch.isfinite(weights).all()):
            token_id = int(torch.multinomial(weights, num_samples=1, generator=self._generator))
        else:
            raise InternalError(f"the model's logits hold no distribution: {int(row.isnan().sum())} are NaN")
        if self._progress is not None:
            self._progress.advance(token_id)
        return self._report(row[0], token_id)

    def _only_weight(self, row: torch.Tensor) -> torch.Tensor | None:
        """Returns the distribution of a token that is the only one allowed, without the processors; else None.

        The token is drawn from it as stock draws, since the draw moves the generator on.
        """
        token_id = self._progress.next_certain() if self._progress is not None and self._keeps_the_only else None
        if token_id is None or token_id >= len(row) or not bool(torch.isfinite(row[token_id])):
            return None
        weights = torch.zeros(1, len(row))
        weights[0, token_id] = 1.0
        return weights

    def force(self, logits: torch.Tensor, token_id: int) -> Choice:
        """Takes a given token instead of a choice, with the same report. Draws nothing from the generator.

        Raises:
            InvalidRequest: the token is not in the vocabulary.
        """
        _check("forced token id", token_id, lambda value: 0 <= value < logits.shape[-1], f"in [0, {logits.shape[-1]})")
        return self._report(logits.detach().to("cpu", torch.float32), token_id)

    def _report(self, row: torch.Tensor, token_id: int) -> Choice:
        if self._rules.processors:
            self._ids = torch.cat((self._ids, torch.tensor([[token_id]])), dim=1)
        if self._top_logprobs is None:
            return Choice(token_id)
        logprobs = torch.log_softmax(row, dim=-1)
        best = torch.topk(logprobs, min(self._top_logprobs, row.shape[-1]))
        top = tuple(map(SampledLogprob, best.indices.tolist(), best.values.tolist()))
        return Choice(token_id, float(logprobs[token_id]), top)


def _check(name: str, value: float | None, in_range: Callable[[float], bool], requirement: str) -> None:
    if value is not None and not (math.isfinite(value) and in_range(value)):
        raise InvalidRequest(f"{name} is {value}, but has to be {requirement}")
