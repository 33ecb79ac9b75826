"""The bodies of OpenAI's requests: what is understood, and what is refused because ignoring it would change answers.

Absent fields are left to the model's generation_config.json. `top_k`, `min_p`, `repetition_penalty`, `stop_token_ids`
and `ignore_eos` are extensions under the names that other servers have given them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from zipmoe.client import Output, Sampling, Stopping
from zipmoe.services.gateway.http_problem import HttpProblem

_COMPLETION_TOKENS = 16
"""OpenAI's own default of `max_tokens` for plain completions."""

_MAX_STOPS = 16
_MAX_TOP_LOGPROBS = 20
_SEEDS = 2**64


def _neutral(*accepted: object) -> AfterValidator:
    """A parameter that is not supported: accepted only with values that change nothing."""

    def check(value: object) -> object:
        # `is`-like comparison of type as well: 1 == True in Python, not in JSON.
        if value is not None and not any(value == each and type(value) is type(each) for each in accepted):
            raise ValueError("not supported" + (f" but as {_shown(accepted[0])}" if accepted else ""))
        return value

    return AfterValidator(check)


def _shown(value: object) -> str:
    return {False: "false", True: "true"}[value] if isinstance(value, bool) else repr(value).replace("'", '"')


Ignored = Any
"""A parameter that only concerns OpenAI's own platform: whatever it says, the answer is the same."""


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, _neutral(False)] = None


class Parameters(BaseModel):
    """What both kinds of requests have in common."""

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
        """How tokens are chosen. OpenAI's seeds may be negative; they are taken modulo 2**64."""
        seed = None if self.seed is None else self.seed % _SEEDS
        return Sampling(self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty, seed)

    @property
    def max_new_tokens(self) -> int | None:
        """The longest answer."""
        return self.max_tokens

    @property
    def stopping(self) -> Stopping:
        """When the answer ends."""
        strings = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Stopping(self.max_new_tokens, strings, tuple(self.stop_token_ids or ()), bool(self.ignore_eos))

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class TextPart(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    # What OpenAI's own answers carry, so that they can be sent back as they came.
    name: Annotated[str | None, _neutral()] = None
    refusal: Annotated[str | None, _neutral()] = None
    tool_calls: Annotated[list[Any] | None, _neutral([])] = None
    function_call: Annotated[Any, _neutral()] = None
    audio: Annotated[Any, _neutral()] = None
    annotations: Annotated[list[Any] | None, _neutral([])] = None

    @property
    def text(self) -> str:
        """What was said."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ResponseFormat(BaseModel):
    """The form of an answer: text is all that there is."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]


class ChatParameters(Parameters):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=0)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=_MAX_TOP_LOGPROBS)] = None

    response_format: ResponseFormat | None = None
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
        """The longest answer: the newer of the two names wins."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def output(self) -> Output:
        """What is told beside the text."""
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
        """The prompt, out of the list that it may be wrapped in."""
        prompt = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return prompt
        if len(prompt) != 1:
            raise HttpProblem(400, f"{len(prompt)} prompts in one request, but it has to be 1", param="prompt")
        return prompt[0]  # type: ignore[return-value]

    @property
    def max_new_tokens(self) -> int | None:
        """The longest answer."""
        return _COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def output(self) -> Output:
        """What is told beside the text."""
        return Output(logprobs=self.logprobs is not None, top_logprobs=self.logprobs or 0)


def parse_chat(body: bytes) -> ChatParameters:
    """Reads the body of `/v1/chat/completions`.

    Raises:
        HttpProblem: it is not valid, or asks for something that is not supported.
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
        HttpProblem: it is not valid, or asks for something that is not supported.
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
    """The first of the problems that pydantic found; of a union's branches, the one that came closest says why."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    same = [each for each in details if each["loc"][:1] == details[0]["loc"][:1]]
    # A branch that found another type altogether did not get far.
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
    """Whether a part of pydantic's path is the name of a union's branch, not of anything that the client has sent."""
    return isinstance(part, str) and (part in ("str", "int") or "[" in part)
