"""Parses bodies of OpenAI's requests. A field is supported, ignored, or refused because it would change the answer.

Absent fields take the values of the model's generation_config.json. `top_k`, `min_p`, `repetition_penalty`,
`stop_token_ids`, `ignore_eos`, `guided_regex` and `guided_choice` are extensions, named as other servers name them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from zipmoe.client import Constraint, Output, Sampling, Stopping
from zipmoe.services.gateway.answer_form import ResponseFormat, constraint_of
from zipmoe.services.gateway.http_problem import HttpProblem

_COMPLETION_TOKENS = 16
"""OpenAI's own default of `max_tokens` for plain completions."""

_MAX_STOPS = 16
_MAX_TOP_LOGPROBS = 20
_SEEDS = 2**64


def _neutral(*accepted: object) -> AfterValidator:
    """Makes the validator of an unsupported parameter, which accepts only values that do not change the answer."""

    def check(value: object) -> object:
        # Types are compared as well: 1 == True in Python, but not in JSON.
        if value is not None and not any(value == each and type(value) is type(each) for each in accepted):
            raise ValueError("not supported" + (f" but as {_shown(accepted[0])}" if accepted else ""))
        return value

    return AfterValidator(check)


def _shown(value: object) -> str:
    return {False: "false", True: "true"}[value] if isinstance(value, bool) else repr(value).replace("'", '"')


Ignored = Any
"""A parameter of OpenAI's own platform. Any value is accepted, since none changes the answer."""


class StreamOptions(BaseModel):
    """Options of a stream: content beside the text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, _neutral(False)] = None


class Parameters(BaseModel):
    """The fields that both kinds of requests have in common."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_tokens: Annotated[int | None, Field(ge=0)] = None
    stop: str | Annotated[list[str], Field(max_length=_MAX_STOPS)] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None

    n: Annotated[int | None, _neutral(1)] = None
    frequency_penalty: Annotated[float | None, _neutral(0.0, 0)] = None
    presence_penalty: Annotated[float | None, _neutral(0.0, 0)] = None
    logit_bias: Annotated[dict[str, Any] | None, _neutral({})] = None

    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    prompt_cache_options: Ignored = None

    @property
    def sampling(self) -> Sampling:
        """Parameters for choosing tokens. OpenAI's seeds may be negative and are taken modulo 2**64."""
        seed = None if self.seed is None else self.seed % _SEEDS
        return Sampling(self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty, seed)

    @property
    def max_new_tokens(self) -> int | None:
        """The most tokens of the answer; None for no limit but the context."""
        return self.max_tokens

    @property
    def stopping(self) -> Stopping:
        """Conditions that end the answer."""
        strings = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Stopping(self.max_new_tokens, strings, tuple(self.stop_token_ids or ()), bool(self.ignore_eos))

    @property
    def constraint(self) -> Constraint | None:
        """The form of the answer; None for any."""
        return constraint_of(self.response_format, self.guided_regex, self.guided_choice)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a piece for the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class TextPart(BaseModel):
    """A text part of a message."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _text_only(cls, value: object) -> object:
        kind = value.get("type", "text") if isinstance(value, dict) else "text"
        if kind != "text":
            raise ValueError(f"not supported: parts of type {str(kind)[:32]!r}; only text is served, of any model")
        return value


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    # Fields of OpenAI's own answers, so that a client can send an answer back unchanged.
    name: Annotated[str | None, _neutral()] = None
    refusal: Annotated[str | None, _neutral()] = None
    tool_calls: Annotated[list[Any] | None, _neutral([])] = None
    function_call: Annotated[Any, _neutral()] = None
    audio: Annotated[Any, _neutral()] = None
    annotations: Annotated[list[Any] | None, _neutral([])] = None

    @property
    def text(self) -> str:
        """The text of the message, with parts joined."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatParameters(Parameters):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=0)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=_MAX_TOP_LOGPROBS)] = None

    tools: Annotated[list[Any] | None, _neutral([])] = None
    tool_choice: Annotated[Any, _neutral("none", "auto")] = None
    parallel_tool_calls: Ignored = None
    functions: Annotated[list[Any] | None, _neutral([])] = None
    function_call: Annotated[Any, _neutral("none", "auto")] = None
    modalities: Annotated[list[str] | None, _neutral(["text"])] = None
    audio: Annotated[Any, _neutral()] = None
    prediction: Annotated[Any, _neutral()] = None
    reasoning_effort: Annotated[Any, _neutral("none")] = None
    verbosity: Annotated[Any, _neutral("medium")] = None
    web_search_options: Annotated[Any, _neutral()] = None
    moderation: Annotated[Any, _neutral()] = None

    @property
    def max_new_tokens(self) -> int | None:
        """The most tokens of the answer: `max_completion_tokens`, else its older name `max_tokens`."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def output(self) -> Output:
        """The log-probabilities to report beside the text."""
        return Output(logprobs=bool(self.logprobs), top_logprobs=self.top_logprobs or 0)


class CompletionParameters(Parameters):
    """The body of `/v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: Annotated[int | None, Field(ge=0, le=_MAX_TOP_LOGPROBS)] = None

    best_of: Annotated[int | None, _neutral(1)] = None
    echo: Annotated[bool | None, _neutral(False)] = None
    suffix: Annotated[str | None, _neutral("")] = None

    @property
    def one_prompt(self) -> str | Sequence[int]:
        """The prompt; a list that holds a single prompt is unwrapped.

        Raises:
            HttpProblem: the list does not hold exactly one prompt.
        """
        prompt = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return prompt
        if len(prompt) != 1:
            raise HttpProblem(400, f"{len(prompt)} prompts in one request, but it has to be 1", param="prompt")
        return prompt[0]  # type: ignore[return-value]

    @property
    def max_new_tokens(self) -> int | None:
        """The most tokens of the answer, `_COMPLETION_TOKENS` by default."""
        return _COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def output(self) -> Output:
        """The log-probabilities to report beside the text."""
        return Output(logprobs=self.logprobs is not None, top_logprobs=self.logprobs or 0)


def parse_chat(body: bytes) -> ChatParameters:
    """Reads the body of `/v1/chat/completions`.

    Raises:
        HttpProblem: the body is not valid, or a field asks for an unsupported feature.
    """
    try:
        parameters = ChatParameters.model_validate_json(body)
    except ValidationError as error:
        raise _problem(error) from error
    _check(parameters)
    if parameters.top_logprobs is not None and not parameters.logprobs:
        raise HttpProblem(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    return parameters


def parse_completion(body: bytes) -> CompletionParameters:
    """Reads the body of `/v1/completions`.

    Raises:
        HttpProblem: the body is not valid, or a field asks for an unsupported feature.
    """
    try:
        parameters = CompletionParameters.model_validate_json(body)
    except ValidationError as error:
        raise _problem(error) from error
    _check(parameters)
    return parameters


def _check(parameters: Parameters) -> None:
    if parameters.stream_options is not None and not parameters.stream:
        raise HttpProblem(400, "stream_options needs stream to be true", param="stream_options")


def _problem(error: ValidationError) -> HttpProblem:
    """Describes the first field that pydantic refused; for a union, by the error of the branch that came furthest."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    same = [each for each in details if each["loc"][:1] == details[0]["loc"][:1]]
    # An error of type means that the branch did not match at all.
    first = max(same, key=lambda each: (len(each["loc"]), not each["type"].endswith("_type")))
    if first["type"] == "json_invalid":
        return HttpProblem(400, f"the body is not JSON: {first['msg']}", code="invalid_json")
    path = [str(part) for part in first["loc"] if not _is_branch(part)]
    param = ".".join(path) or None
    if first["type"] == "extra_forbidden":
        return HttpProblem(400, f"unknown parameter: {param}", param=param, code="unknown_parameter")
    if first["type"] == "missing":
        return HttpProblem(400, f"missing parameter: {param}", param=param, code="missing_required_parameter")
    text = first["msg"].removeprefix("Value error, ")
    code = "unsupported_value" if text.startswith("not supported") else "invalid_value"
    return HttpProblem(400, f"{param or 'the body'}: {text[:1].lower()}{text[1:]}", param=param, code=code)


def _is_branch(part: int | str) -> bool:
    """Whether a part of pydantic's path names a branch of a union, and not a field or index of the body."""
    return isinstance(part, str) and (part in ("str", "int") or "[" in part)
