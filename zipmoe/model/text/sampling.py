"""Chooses the next token from a row of logits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from zipmoe.errors import InternalError, InvalidRequest

if TYPE_CHECKING:
    from transformers import GenerationConfig

MAX_TOP_LOGPROBS = 20
SMALLEST_TEMPERATURE = 1e-5
"""Logits divided by a smaller temperature may overflow fp32; at this temperature the argmax has all the probability."""


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of the choice of tokens. The defaults are greedy, and each filter's default keeps every token.

    Attributes:
        temperature: finite, >= 0; below 1e-5 the choice is greedy, and the filters change nothing.
        top_p: in (0, 1].
        top_k: >= 0; 0 keeps all tokens.
        min_p: in [0, 1], a share of the likeliest token's probability.
        repetition_penalty: finite, > 0; also acts on greedy choices, as in stock.
        seed: in [0, 2**64), or None for a random seed.

    Raises:
        InvalidRequest: a field is out of range or not a number; the message names the field and the value.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, self.temperature >= 0, "finite and at least 0")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "in (0, 1]")
        _require("top_k", self.top_k, self.top_k >= 0 and int(self.top_k) == self.top_k, "a whole number, at least 0")
        _require("min_p", self.min_p, 0 <= self.min_p <= 1, "in [0, 1]")
        _require("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "finite and above 0")
        if self.seed is not None:
            _require("seed", self.seed, 0 <= self.seed < 2**64, "in [0, 2**64)")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always chosen."""
        return self.temperature < SMALLEST_TEMPERATURE

    @classmethod
    def resolved(cls, defaults: GenerationConfig, given: Mapping[str, Any]) -> SamplingParams:
        """Combines the fields that a request sets with the defaults of the model's generation_config.json.

        Args:
            defaults: the model's defaults; without `do_sample` the temperature counts as 0, because stock is greedy.
            given: field name -> value, for the fields that the request sets.
        """
        values = {field.name: getattr(defaults, field.name, None) for field in fields(cls) if field.name != "seed"}
        if not defaults.do_sample:
            values["temperature"] = 0.0
        elif values["temperature"] is None:
            values["temperature"] = 1.0
        return cls(**{name: value for name, value in {**values, **given}.items() if value is not None})


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

    The filters are transformers' own, in stock's order, and the draw is stock's. With the same seed the tokens are
    those of `generate(do_sample=True)` under `torch.manual_seed(seed)`. Thread: one at a time.
    """

    def __init__(
        self,
        params: SamplingParams,
        context_ids: Iterable[int] = (),
        *,
        top_logprobs: int | None = None,
    ) -> None:
        """Prepares the filters and seeds the generator.

        Args:
            params: parameters of the choice.
            context_ids: tokens that the repetition penalty counts as seen: the decoder's input before the first choice.
            top_logprobs: number of likeliest tokens to report, at most 20; 0 reports the chosen token's
                log-probability alone, None reports nothing.

        Raises:
            InvalidRequest: top_logprobs is out of range.
        """
        if top_logprobs is not None:
            _require("top_logprobs", top_logprobs, 0 <= top_logprobs <= MAX_TOP_LOGPROBS, f"in [0, {MAX_TOP_LOGPROBS}]")
        self._params = params
        self._top_logprobs = top_logprobs
        self._seen = set(context_ids) if params.repetition_penalty != 1 else None
        self._filters = _filters(params)
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def choose(self, logits: torch.Tensor) -> Choice:
        """Chooses the next token.

        Args:
            logits: floating point, shape (vocabulary,), any device. Not changed.

        Raises:
            InternalError: the logits are no distribution to draw from (NaN or infinities).
        """
        row = logits.detach().to("cpu", torch.float32).unsqueeze(0)
        scores = self._filters(self._seen_ids(), row)
        if self._params.greedy:
            token_id = int(torch.argmax(scores, dim=-1))
        else:
            weights = torch.softmax(scores, dim=-1)
            if not bool(torch.isfinite(weights).all()):
                raise InternalError(f"the model's logits hold no distribution: {int(row.isnan().sum())} are NaN")
            token_id = int(torch.multinomial(weights, num_samples=1, generator=self._generator))
        return self._report(row[0], token_id)

    def force(self, logits: torch.Tensor, token_id: int) -> Choice:
        """Takes a given token instead of a choice, with the same report. Draws nothing from the generator.

        Raises:
            InvalidRequest: the token is not in the vocabulary.
        """
        _require("forced token id", token_id, 0 <= token_id < logits.shape[-1], f"in [0, {logits.shape[-1]})")
        return self._report(logits.detach().to("cpu", torch.float32), token_id)

    def _seen_ids(self) -> Any:  # transformers' stubs want the legacy LongTensor class
        return torch.tensor([sorted(self._seen or ())], dtype=torch.long)

    def _report(self, row: torch.Tensor, token_id: int) -> Choice:
        if self._seen is not None:
            self._seen.add(token_id)
        if self._top_logprobs is None:
            return Choice(token_id)
        logprobs = torch.log_softmax(row, dim=-1)
        best = torch.topk(logprobs, min(self._top_logprobs, row.shape[-1]))
        top = tuple(map(SampledLogprob, best.indices.tolist(), best.values.tolist()))
        return Choice(token_id, float(logprobs[token_id]), top)


def _filters(params: SamplingParams) -> LogitsProcessorList:
    """Builds stock's logits processors in stock's order; greedy choices get the repetition penalty alone."""
    filters = LogitsProcessorList()
    if params.repetition_penalty != 1:
        filters.append(RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty)))
    if params.greedy:
        return filters
    if params.temperature != 1:
        filters.append(TemperatureLogitsWarper(float(params.temperature)))
    if params.top_k:
        filters.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        filters.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        filters.append(MinPLogitsWarper(params.min_p))
    return filters


def _require(name: str, value: float, in_range: bool, requirement: str) -> None:
    if not math.isfinite(value) or not in_range:
        raise InvalidRequest(f"{name} is {value}, but has to be {requirement}")
