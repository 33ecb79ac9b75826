"""OpenAI's own Python package talks to the gateway as to anybody else."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.cli.fake_router import FakeRouter
from tests.services.gateway.running import MODEL, USER, front, until
from zipmoe.errors import (
    CorruptData,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    ZipMoeError,
)


async def test_a_chat_is_answered() -> None:
    async with front() as gateway:
        answer = await gateway.openai().chat.completions.create(model=MODEL, messages=[USER])
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.system_fingerprint is not None and answer.system_fingerprint.endswith("0123456789abcdef")
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello world!")
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 2, 5)
    assert answer.id == f"chatcmpl-{gateway.router.requests[0].request_id}"


async def test_a_conversation_arrives_at_the_router_turn_by_turn() -> None:
    messages: Any = [
        {"role": "developer", "content": "Be kind"},
        {"role": "user", "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "are you?"}]},
        {"role": "assistant", "content": "Well", "refusal": None},
        USER,
    ]
    async with front() as gateway:
        await gateway.openai().chat.completions.create(model=MODEL, messages=messages)
    turns = gateway.router.requests[0].prompt.conversation.messages
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user"]
    assert [turn.content or list(turn.parts) for turn in turns] == ["Be kind", ["How ", "are you?"], "Well", "Hi"]


async def test_every_parameter_arrives_at_the_router() -> None:
    async with front() as gateway:
        client = gateway.openai().chat.completions
        await client.create(
            model=MODEL, messages=[USER], temperature=0.5, top_p=0.25, seed=-2, max_tokens=9, max_completion_tokens=7,
            stop=["a", "b"], logprobs=True, top_logprobs=3, n=2, frequency_penalty=0.5, presence_penalty=-1.5,
            logit_bias={"7": -100}, user="me", store=False,
            extra_body={
                "top_k": 4, "min_p": 0.125, "repetition_penalty": 1.5, "stop_token_ids": [5], "ignore_eos": True,
                "min_tokens": 3, "skip_special_tokens": False, "continue_final_message": True,
                "add_generation_prompt": False, "chat_template_kwargs": {"enable_thinking": False},
            },
        )  # fmt: skip
        await client.create(model=MODEL, messages=[USER], stop="x", max_tokens=9)
    first, second = gateway.router.requests
    sampling = first.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.25, 4)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.125, 1.5, 2**64 - 2)
    assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.choices) == (0.5, -1.5, 2)
    assert dict(sampling.logit_bias) == {7: -100}
    stopping = first.stopping
    assert (stopping.max_new_tokens, list(stopping.stop_strings)) == (7, ["a", "b"])
    assert (list(stopping.stop_token_ids), stopping.ignore_eos) == ([5], True)
    assert stopping.min_new_tokens == 3
    assert (first.output.logprobs, first.output.top_logprobs) == (True, 3)
    assert first.output.HasField("skip_special_tokens") and not first.output.skip_special_tokens
    conversation = first.prompt.conversation
    assert conversation.continue_final_message
    assert conversation.HasField("add_generation_prompt") and not conversation.add_generation_prompt
    assert conversation.template_variables_json == '{"enable_thinking": false}'
    assert (list(second.stopping.stop_strings), second.stopping.max_new_tokens) == (["x"], 9)
    assert not second.sampling.HasField("temperature")


async def test_what_is_not_said_is_left_to_the_model() -> None:
    async with front() as gateway:
        await gateway.openai().chat.completions.create(model=MODEL, messages=[USER])
        await gateway.openai().completions.create(model=MODEL, prompt="Hi")
    chat, plain = gateway.router.requests
    assert not chat.sampling.ListFields()
    assert not chat.stopping.HasField("max_new_tokens")
    assert plain.stopping.max_new_tokens == 16, "OpenAI's own default of plain completions"


async def test_a_stream_has_the_text_of_the_whole_answer_and_its_usage() -> None:
    async with front() as gateway:
        stream = await gateway.openai().chat.completions.create(
            model=MODEL, messages=[USER], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert deltas[0].role == "assistant"
    assert [delta.content for delta in deltas] == ["", "Hello", " world", "!", None]
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices] == [None] * 4 + ["stop"]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * 5
    last = chunks[-1]
    assert (last.choices, last.usage is not None and last.usage.total_tokens) == ([], 5)
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1


async def test_a_stream_without_usage_has_none() -> None:
    async with front() as gateway:
        stream = await gateway.openai().chat.completions.create(model=MODEL, messages=[USER], stream=True)
        chunks = [chunk async for chunk in stream]
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


async def test_log_probabilities_of_a_chat_name_their_tokens() -> None:
    async with front() as gateway:
        client = gateway.openai().chat.completions
        answer = await client.create(model=MODEL, messages=[USER], logprobs=True, top_logprobs=1)
        stream = await client.create(model=MODEL, messages=[USER], logprobs=True, top_logprobs=1, stream=True)
        streamed = [c.logprobs.content[0] async for chunk in stream for c in chunk.choices if c.logprobs]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    first = logprobs.content[0]
    assert (first.token, first.logprob, first.bytes) == ("<0>", -0.5, list(b"<0>"))
    assert [(other.token, other.logprob) for other in first.top_logprobs] == [("<7>", -0.25)]
    assert streamed == logprobs.content
    assert gateway.router.detokenized == [(0, 1, 7)], "each token is asked for once"


async def test_log_probabilities_of_a_completion_are_four_lists() -> None:
    async with front() as gateway:
        answer = await gateway.openai().completions.create(model=MODEL, prompt="Hi", logprobs=1)
        stream = await gateway.openai().completions.create(model=MODEL, prompt="Hi", logprobs=1, stream=True)
        offsets = [o async for c in stream if c.choices[0].logprobs for o in c.choices[0].logprobs.text_offset or ()]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.token_logprobs) == (["<0>", "<1>"], [-0.5, -0.5])
    assert logprobs.top_logprobs == [{"<7>": -0.25}] * 2
    assert logprobs.text_offset == offsets == [0, 3]


@pytest.mark.parametrize("prompt", ["Hi", ["Hi"]])
async def test_a_text_is_completed(prompt: Any) -> None:
    async with front() as gateway:
        answer = await gateway.openai().completions.create(model=MODEL, prompt=prompt)
    assert (answer.object, answer.choices[0].text) == ("text_completion", "Hello world!")
    assert gateway.router.requests[0].prompt.text == "Hi"


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2]]])
async def test_token_ids_are_completed(prompt: Any) -> None:
    async with front() as gateway:
        stream = await gateway.openai().completions.create(model=MODEL, prompt=prompt, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello world!"
    assert list(gateway.router.requests[0].prompt.token_ids.ids) == [1, 2]


async def test_the_model_is_listed_under_its_name() -> None:
    async with front(model_name="org/mine") as gateway:
        client = gateway.openai()
        assert [model.id async for model in client.models.list()] == ["org/mine"]
        assert (await client.models.retrieve("org/mine")).owned_by == "zipmoe"
        answer = await client.completions.create(model="org/mine", prompt="Hi")
        assert answer.model == "org/mine"
        with pytest.raises(openai.NotFoundError) as caught:
            await client.completions.create(model="gpt-4", prompt="Hi")
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-4")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("top_p is 2"), 400, openai.BadRequestError),
        (NotFound("no such thing"), 404, openai.NotFoundError),
        (ResourceExhausted("64 requests wait", retry_after_s=2.5), 429, openai.RateLimitError),
        (CorruptData("bad checksum"), 500, openai.InternalServerError),
        (Unauthenticated("wrong token"), 502, openai.InternalServerError),
        (Unavailable("starting"), 503, openai.InternalServerError),
        (DeadlineExceeded("too late"), 504, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_has_its_status_also_where_a_stream_was_asked_for(
    error: ZipMoeError, status: int, kind: type[openai.APIStatusError], stream: bool
) -> None:
    async with front(FakeRouter(refusal=error)) as gateway:
        with pytest.raises(kind, match=error.message) as caught:
            await gateway.openai().chat.completions.create(model=MODEL, messages=[USER], stream=stream)
        assert caught.value.status_code == status
        route = "/v1/chat/completions"
        await until(lambda: gateway.metric("zipmoe_gateway_requests_total", route=route, status=str(status)) == 1)


async def test_a_full_queue_says_when_to_come_back() -> None:
    async with front(FakeRouter(refusal=ResourceExhausted("full", retry_after_s=2.25))) as gateway:
        with pytest.raises(openai.RateLimitError) as caught:
            await gateway.openai().completions.create(model=MODEL, prompt="Hi")
    headers = caught.value.response.headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("3", "2250")
    assert (caught.value.code, caught.value.type) == ("resource_exhausted", "rate_limit_error")


async def test_openais_client_comes_back_after_the_time_it_was_told() -> None:
    class Relenting(FakeRouter):
        async def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802
            self.refusal = None if self.requests else ResourceExhausted("full", retry_after_s=0.01)
            async for response in super().Generate(request, context):
                yield response

    router = Relenting()
    async with front(router) as gateway:
        client = gateway.openai().with_options(max_retries=3)
        answer = await client.completions.create(model=MODEL, prompt="Hi")
    assert answer.choices[0].text == "Hello world!"
    assert len(router.requests) == 2


async def test_a_stream_that_fails_half_way_says_so_and_has_no_end() -> None:
    async with front(FakeRouter(error=CorruptData("expert 3 has a wrong checksum"))) as gateway:
        stream = await gateway.openai().chat.completions.create(model=MODEL, messages=[USER], stream=True)
        said = []

        async def listen() -> None:
            async for chunk in stream:
                said.append(chunk.choices[0].delta.content)  # noqa: PERF401 (what came before the error counts)

        with pytest.raises(openai.APIError, match="expert 3 has a wrong checksum"):
            await listen()
    assert said == ["", "Hello", " world"]


async def test_an_answer_that_ends_without_its_end_is_an_error() -> None:
    async with front(FakeRouter(ends_early=True)) as gateway:
        with pytest.raises(openai.InternalServerError) as caught:
            await gateway.openai().completions.create(model=MODEL, prompt="Hi")
    assert caught.value.status_code == 503


async def test_a_model_without_a_template_takes_no_chat() -> None:
    async with front(FakeRouter(has_chat_template=False)) as gateway:
        with pytest.raises(openai.BadRequestError, match="has no chat template; use /v1/completions"):
            await gateway.openai().chat.completions.create(model=MODEL, messages=[USER])


async def test_without_a_router_the_service_is_unavailable() -> None:
    async with front(target="unix:/nonexistent") as gateway:
        with pytest.raises(openai.InternalServerError) as caught:
            await gateway.openai().completions.create(model=MODEL, prompt="Hi")
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "1"


async def test_a_key_is_asked_for_where_there_is_one() -> None:
    async with front(api_key="s3cret") as gateway:
        with pytest.raises(openai.AuthenticationError) as caught:
            await gateway.openai("wrong").models.list()
        assert [model.id async for model in gateway.openai("s3cret").models.list()] == [MODEL]
    assert caught.value.code == "invalid_api_key"
    assert caught.value.response.headers["www-authenticate"] == "Bearer"


SCHEMA: Any = {
    "type": "object",
    "properties": {"b": {"type": "integer"}, "a": {"$ref": "#/$defs/x"}},
    "$defs": {"x": {}},
}


async def test_the_form_of_an_answer_arrives_at_the_router() -> None:
    named: Any = {"name": "it", "schema": SCHEMA, "strict": True, "description": "what it is"}
    async with front() as gateway:
        client = gateway.openai().chat.completions
        forms: list[Any] = [
            {"response_format": {"type": "json_object"}},
            {"response_format": {"type": "json_schema", "json_schema": named}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "any"}}},
            {"extra_body": {"guided_regex": "a+", "response_format": {"type": "text"}, "guided_choice": None}},
            {"extra_body": {"guided_choice": ["yes", "no"]}},
            {"response_format": {"type": "text"}},
        ]
        for form in forms:
            await client.create(model=MODEL, messages=[USER], **form)
        await gateway.openai().completions.create(model=MODEL, prompt="Hi", extra_body={"guided_regex": "b"})
    told = [request.constraint for request in gateway.router.requests]
    assert told[0].json_object
    assert told[1].json_schema == json.dumps(SCHEMA), "the order of keys is the order of the answer"
    assert told[2].json_object
    assert told[3].regex == "a+"
    assert list(told[4].choice.texts) == ["yes", "no"]
    assert not gateway.router.requests[5].HasField("constraint")
    assert told[6].regex == "b"


async def test_a_schema_that_the_router_refuses_is_a_400_that_says_why() -> None:
    refusal = InvalidRequest("json_schema cannot be used: Invalid type: strin", next_step="correct the constraint")
    async with front(FakeRouter(error=refusal)) as gateway:
        with pytest.raises(openai.BadRequestError, match="Invalid type: strin"):
            await gateway.openai().chat.completions.create(
                model=MODEL, messages=[USER], response_format={"type": "json_object"}
            )
