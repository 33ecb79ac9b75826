"""The public client: what is asked arrives, what is answered comes back as values, what fails raises our classes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.cli.fake_router import SERVICE, FakeRouter, running_router
from zipmoe.client import (
    AsyncGenerationClient,
    ChatPrompt,
    Event,
    Finished,
    FinishReason,
    GenerationClient,
    Message,
    Output,
    Prompt,
    Sampling,
    Started,
    Stopping,
    Token,
    TokenLogprob,
    Usage,
    complete,
    complete_all,
)
from zipmoe.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    ZipMoeError,
)
from zipmoe.rpc.listener import tls_credentials
from zipmoe.rpc.server import ServiceHost
from zipmoe.v1 import generation_pb2 as pb
from zipmoe.v1 import generation_pb2_grpc

USAGE = Usage(3, 2, 0.5, 0.75, 10, 4, 2048, 0.125)
EVENTS: list[Event] = [
    Started("made-up", 3),
    Token(0, "Hello"),
    Token(1, " world"),
    Finished(FinishReason.STOP, "!", USAGE),
]


def test_a_stream_comes_back_as_values() -> None:
    with running_router(FakeRouter()) as target, GenerationClient(target) as client:
        assert list(client.generate("Hi")) == EVENTS


async def test_a_stream_comes_back_as_values_in_asyncio() -> None:
    with running_router(FakeRouter()) as target:
        async with AsyncGenerationClient(target) as client:
            assert [event async for event in client.generate("Hi")] == EVENTS
            assert (await client.model()).name == "fake"
            assert await client.tokenize("abc") == [0, 1, 2]
            assert await client.detokenize([5, 0]) == ["<5>", "<0>"]
            assert await client.sequence_text([5, 0, 5]) == "<5><0><5>"
            for refused in (client.detokenize([-1]), client.sequence_text([-1])):
                with pytest.raises(InvalidRequest, match="cannot be sent"):
                    await refused


def test_tokens_have_names() -> None:
    with running_router(FakeRouter()) as target, GenerationClient(target) as client:
        assert client.detokenize([5, 0]) == ["<5>", "<0>"]
        assert client.sequence_text([5, 0, 5]) == "<5><0><5>"
        with pytest.raises(InvalidRequest, match="cannot be sent"):
            client.detokenize([2**32])


async def test_special_tokens_are_added_unless_the_client_says_no() -> None:
    router = FakeRouter()
    with running_router(router) as target:
        with GenerationClient(target) as client:
            client.tokenize("abc")
            client.tokenize("abc", add_special_tokens=False)
        async with AsyncGenerationClient(target) as client_of_loop:
            await client_of_loop.tokenize("abc", add_special_tokens=False)
    said = [asked.HasField("add_special_tokens") for asked in router.tokenized]
    assert said == [False, True, True]
    assert not any(asked.add_special_tokens for asked in router.tokenized)


def test_the_stop_string_of_an_answer_is_told() -> None:
    last = pb.GenerationFinished(reason=pb.FINISH_REASON_STOP, stop_string="END")
    with running_router(FakeRouter(last=last)) as target, GenerationClient(target) as client:
        finished = [event for event in client.generate("Hi") if isinstance(event, Finished)]
    assert [event.stop_string for event in finished] == ["END"]


def test_a_whole_answer_joins_its_text_and_keeps_its_ids() -> None:
    with running_router(FakeRouter(prompt_logprobs=[-1.5, -2.0])) as target, GenerationClient(target) as client:
        answer = complete(client.generate("Hi", request_id="mine"))
    assert (answer.request_id, answer.text, answer.token_ids) == ("mine", "Hello world!", (0, 1))
    assert (answer.finish_reason, answer.usage) == (FinishReason.STOP, USAGE)
    assert answer.prompt_logprobs == (-1.5, -2.0)
    assert answer.usage.inter_token_s == 0.25


def test_every_parameter_arrives() -> None:
    router = FakeRouter()
    with running_router(router) as target, GenerationClient(target) as client:
        list(
            client.generate(
                "Hi",
                sampling=Sampling(0.0, 0.5, 0, 0.25, 1.5, 7, -0.5, 1.25, {3: -2.0}, best_of=1),
                stopping=Stopping(0, ("a", "b"), (1, 2), ignore_eos=True, min_new_tokens=0),
                output=Output(True, 3, True, prompt_top_logprobs=2, prompt_tokens=True, skip_special_tokens=False),
                forced_token_ids=[4, 5],
                request_id="mine",
            )
        )
    expected = pb.GenerateRequest(
        request_id="mine",
        prompt=pb.Prompt(text="Hi"),
        sampling=pb.SamplingParameters(
            temperature=0.0,
            top_p=0.5,
            top_k=0,
            min_p=0.25,
            repetition_penalty=1.5,
            seed=7,
            presence_penalty=-0.5,
            frequency_penalty=1.25,
            logit_bias={3: -2.0},
            best_of=1,
        ),
        stopping=pb.StoppingCriteria(max_new_tokens=0, stop_strings=["a", "b"], stop_token_ids=[1, 2], ignore_eos=True),
        output=pb.OutputOptions(
            logprobs=True,
            top_logprobs=3,
            prompt_logprobs=True,
            prompt_top_logprobs=2,
            prompt_tokens=True,
            skip_special_tokens=False,
        ),
        forced_token_ids=[4, 5],
    )
    assert router.requests == [expected]


def test_what_is_not_given_is_absent_not_zero() -> None:
    router = FakeRouter()
    with running_router(router) as target, GenerationClient(target) as client:
        list(client.generate("Hi"))
    (request,) = router.requests
    assert not request.sampling.ListFields()
    assert not request.stopping.ListFields()


def test_a_stream_of_several_answers_ends_with_the_last_of_them() -> None:
    with running_router(FakeRouter()) as target, GenerationClient(target) as client:
        answers = complete_all(client.generate("Hi", sampling=Sampling(choices=3)), 3)
    assert [answer.text for answer in answers] == ["Hello world!"] * 3
    with (
        running_router(FakeRouter(ends_early=True)) as target,
        GenerationClient(target) as client,
        pytest.raises(Unavailable),
    ):
        complete_all(client.generate("Hi", sampling=Sampling(choices=3)), 3)


def test_bytes_of_tokens_come_beside_their_texts() -> None:
    with running_router(FakeRouter()) as target, GenerationClient(target) as client:
        assert client.token_texts([7, 200]) == [("<7>", b"<7>"), ("\ufffd", b"\xc8")]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("text", pb.Prompt(text="text")),
        (
            ChatPrompt([Message("user", "u")], add_generation_prompt=False, template_variables={"x": [1, None]}),
            pb.Prompt(
                conversation=pb.Conversation(
                    messages=[pb.ChatMessage(role="user", content="u")],
                    add_generation_prompt=False,
                    template_variables_json='{"x": [1, null]}',
                )
            ),
        ),
        ([1, 2], pb.Prompt(token_ids=pb.TokenIds(ids=[1, 2]))),
        ((0,), pb.Prompt(token_ids=pb.TokenIds(ids=[0]))),
        (
            [Message("system", "s"), Message("user", "u")],
            pb.Prompt(
                conversation=pb.Conversation(
                    messages=[pb.ChatMessage(role="system", content="s"), pb.ChatMessage(role="user", content="u")]
                )
            ),
        ),
    ],
)
def test_a_prompt_takes_the_form_of_its_type(prompt: Prompt, expected: pb.Prompt) -> None:
    router = FakeRouter()
    with running_router(router) as target, GenerationClient(target) as client:
        list(client.generate(prompt))
    assert router.requests[0].prompt == expected


@pytest.mark.parametrize("prompt", ["", [], [-1], [2**32], [1.5], ["1"], [Message("user", "u"), 1], "\udcff"])
def test_a_prompt_that_cannot_be_sent_is_refused_before_anything_is_sent(prompt: Prompt) -> None:
    with GenerationClient("unix:/nonexistent") as client:
        with pytest.raises(InvalidRequest, match="prompt"):
            client.generate(prompt)
        with pytest.raises(InvalidRequest, match="prompt"):
            client.tokenize(prompt)


@pytest.mark.parametrize(
    ("sampling", "stopping"),
    [
        (Sampling(temperature=float("nan")), Stopping()),
        (Sampling(top_p=float("inf")), Stopping()),
        (Sampling(top_k=-1), Stopping()),
        (Sampling(seed=2**64), Stopping()),
        (Sampling(), Stopping(max_new_tokens=-1)),
        (Sampling(), Stopping(stop_strings=("\udcff",))),
        (Sampling(), Stopping(stop_token_ids=(2**32,))),
    ],
)
def test_a_parameter_that_cannot_be_sent_is_refused(sampling: Sampling, stopping: Stopping) -> None:
    with GenerationClient("unix:/nonexistent") as client, pytest.raises(InvalidRequest):
        client.generate("Hi", sampling=sampling, stopping=stopping)


def test_log_probabilities_come_back_where_they_were_asked_for() -> None:
    with running_router(FakeRouter(words=["a"])) as target, GenerationClient(target) as client:
        asked = list(client.generate("Hi", output=Output(logprobs=True)))
        unasked = list(client.generate("Hi"))
    assert asked[1] == Token(0, "a", -0.5, (TokenLogprob(7, -0.25),))
    assert unasked[1] == Token(0, "a", None, ())


def test_an_error_of_the_router_is_raised_as_its_class_after_the_tokens_before_it() -> None:
    router = FakeRouter(error=ResourceExhausted("queue is full with 64 requests", retry_after_s=2.5))
    with running_router(router) as target, GenerationClient(target) as client:
        events = client.generate("Hi")
        assert [next(events) for _ in range(3)] == EVENTS[:3]
        with pytest.raises(ResourceExhausted, match="queue is full with 64 requests") as caught:
            next(events)
        assert caught.value.retry_after_s == 2.5
        with pytest.raises(ResourceExhausted):
            client.tokenize("Hi")


async def test_an_error_of_the_router_is_raised_as_its_class_in_asyncio() -> None:
    with running_router(FakeRouter(error=NotFound("no such thing"))) as target:
        async with AsyncGenerationClient(target) as client:
            with pytest.raises(NotFound, match="no such thing"):
                _ = [event async for event in client.generate("Hi")]
            with pytest.raises(NotFound, match="no such thing"):
                await client.tokenize("Hi")


def test_a_stream_without_an_end_is_no_answer() -> None:
    with (
        running_router(FakeRouter(ends_early=True)) as target,
        GenerationClient(target) as client,
        pytest.raises(Unavailable, match="without saying that the answer is complete"),
    ):
        complete(client.generate("Hi"))


def test_an_iterator_without_an_end_is_no_answer() -> None:
    with pytest.raises(Unavailable, match="ended after 2 tokens"):
        complete(EVENTS[:3])


def test_leaving_the_loop_cancels_the_request() -> None:
    router = FakeRouter(hangs=True)
    with running_router(router) as target, GenerationClient(target) as client:
        for event in client.generate("Hi"):
            if isinstance(event, Token):
                break
        assert router.cancelled.wait(30)


async def test_closing_the_iterator_cancels_the_request_in_asyncio() -> None:
    router = FakeRouter(hangs=True)
    with running_router(router) as target:
        async with AsyncGenerationClient(target) as client:
            events = client.generate("Hi")
            await anext(events)
            await events.aclose()  # type: ignore[attr-defined]
        assert router.cancelled.wait(30)


def test_a_deadline_is_kept() -> None:
    with (
        running_router(FakeRouter(hangs=True)) as target,
        GenerationClient(target) as client,
        pytest.raises(DeadlineExceeded),
    ):
        complete(client.generate("Hi", timeout_s=0.2))


def test_threads_share_one_client() -> None:
    with running_router(FakeRouter()) as target, GenerationClient(target) as client:
        answers: list[str] = []
        threads = [
            threading.Thread(target=lambda: answers.append(complete(client.generate("Hi")).text)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == ["Hello world!"] * 4


def test_no_router_is_unavailable(tmp_path: object) -> None:
    with GenerationClient(f"{tmp_path}/router.sock") as client:
        for call in (lambda: list(client.generate("Hi")), client.model):
            with pytest.raises(Unavailable):
                call()


def test_the_default_target_is_the_router_of_the_runtime_directory(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIPMOE_RUNTIME_DIR", str(tmp_path))
    with GenerationClient() as client:
        assert client.target == f"unix:{tmp_path}/router.sock"


class TestCredentials:
    def test_a_token_goes_to_this_machine_but_not_to_another_in_plain_text(self) -> None:
        for target in ("unix:/a.sock", "127.0.0.1:1", "localhost:1", "[::1]:1"):
            GenerationClient(target, token="secret").close()
        with pytest.raises(InvalidRequest, match="plain text"):
            GenerationClient("192.0.2.1:1", token="secret")

    async def test_a_token_goes_to_any_machine_over_tls(self) -> None:
        router, tls = FakeRouter(), Path(__file__).parent / "rpc" / "tls"
        credentials = tls_credentials(tls / "test-only.crt", tls / "test-only.key")
        host = ServiceHost("test", CollectorRegistry(), [SERVICE], token="secret", grace_s=0.0)
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(router, host.server)
        target = f"localhost:{host.listen('localhost:0', credentials)}"
        await host.start()
        try:
            async with AsyncGenerationClient(target, token="secret", tls_ca=tls / "test-only.crt") as client:
                assert [event async for event in client.generate("Hi")] == EVENTS
            async with AsyncGenerationClient(target, token="wrong", tls_ca=tls / "test-only.crt") as client:
                with pytest.raises(Unauthenticated, match="wrong token"):
                    await client.model()
            async with AsyncGenerationClient(target, tls_ca=tls / "test-only.crt") as client:
                with pytest.raises(Unauthenticated, match="needs a token"):
                    await client.model()
        finally:
            await host.stop()

    @pytest.mark.parametrize("token", ["", "a\nb", "\u00e9"])
    def test_a_token_that_no_header_can_carry_is_refused(self, token: str) -> None:
        with pytest.raises(InvalidRequest, match="printable ASCII"):
            GenerationClient("unix:/a.sock", token=token)

    def test_a_missing_authority_file_is_named(self) -> None:
        with pytest.raises(NotFound, match=r"/nonexistent/ca\.pem"):
            GenerationClient("unix:/a.sock", tls_ca="/nonexistent/ca.pem")

    def test_an_authority_file_that_is_a_directory_is_refused(self) -> None:
        with pytest.raises(InvalidRequest, match="is a directory"):
            GenerationClient("unix:/a.sock", tls_ca="/")


def test_every_error_of_the_client_is_ours() -> None:
    with GenerationClient("unix:/nonexistent") as client, pytest.raises(ZipMoeError):
        client.model()
