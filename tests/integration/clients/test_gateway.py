"""OpenAI's own client against the real services: the answer is that of stock transformers."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.cli.run import command, zipmoe_process
from tests.integration.stacks.stack import PackedModel, StockModel

PROMPT = [5, 17, 29, 41, 53]
TOKENS = 8
GREEDY = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def url(packed: Callable[[str], PackedModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`zipmoe up --gateway` on a tiny model; nothing of it is left at the end."""
    arguments = ("--listen", "", "--device", "cpu", "--threads", 1, "--metrics-port", 0, "--gateway-port", 0)
    tight = ("--cache-slots", "7:6:5", "--workers", 2)
    runtime = tmp_path_factory.mktemp("run")
    with subprocess.Popen(
        command("up", packed("qwen2_moe").store, "--runtime-dir", runtime, "--gateway", *arguments, *tight, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as up:
        assert up.stdout is not None
        line = up.stdout.readline()
        assert line, up.communicate()[1]
        services = json.loads(line)["services"]
        assert [service["name"] for service in services] == ["expert-store", "decoder", "router", "gateway"]
        handles = [os.pidfd_open(service["pid"]) for service in services]
        yield services[-1]["endpoints"][0]
        up.send_signal(signal.SIGTERM)
        assert up.communicate(timeout=60)[1] == ""
        assert up.returncode == 0
        for handle in handles:
            assert select.select([handle], [], [], 0)[0], "a service is still there"
            os.close(handle)


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    (served,) = client.models.list()
    return served.id


def test_the_tokens_are_those_of_stock(
    client: openai.OpenAI,
    model: str,
    packed: Callable[[str], PackedModel],
    stock_of: Callable[[PackedModel], StockModel],
) -> None:
    stream = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=TOKENS, temperature=0, top_p=1, logprobs=1, stream=True,
        stream_options={"include_usage": True}, extra_body=GREEDY,
    )  # fmt: skip
    chunks = list(stream)
    logprobs = [c.choices[0].logprobs for c in chunks if c.choices and c.choices[0].logprobs]
    stock = packed("qwen2_moe")
    expected = stock_of(stock).generate(PROMPT, TOKENS)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stock.checkpoint)
    texts = [each.tokens[0] for each in logprobs if each.tokens]
    decoded = [tokenizer.decode([token_id]) for token_id in expected.token_ids]
    whole = [text for text in decoded if "\ufffd" not in text]
    assert [text for text in texts if not text.startswith("bytes:")] == whole
    assert len(texts) == TOKENS
    told = [each.token_logprobs[0] for each in logprobs if each.token_logprobs]
    assert told == pytest.approx(expected.logprobs, abs=1e-5)
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(PROMPT), TOKENS)


def test_a_chat_and_its_stream_say_the_same(client: openai.OpenAI, model: str) -> None:
    asked = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": TOKENS, "seed": 7}
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    stream = client.chat.completions.create(**asked, stream=True)  # type: ignore[call-overload]
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert streamed == whole.choices[0].message.content
    assert whole.usage.completion_tokens <= TOKENS


def test_a_chat_with_a_system_message_and_tools_is_answered(client: openai.OpenAI, model: str) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    asked: Any = {"model": model, "messages": messages, "max_tokens": TOKENS, "seed": 7}
    plain = client.chat.completions.create(**asked)
    none = client.chat.completions.create(**asked, tools=[tool], tool_choice="none")
    assert none.usage is not None and plain.usage is not None
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens, "the template got no tools"
    assert none.choices[0].message == plain.choices[0].message
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        with pytest.raises(openai.BadRequestError, match="shows no format of calls"):
            client.chat.completions.create(**asked, tools=[tool], tool_choice=choice)
    with pytest.raises(openai.BadRequestError, match="no chat template of the name"):
        client.chat.completions.create(**asked, extra_body={"chat_template": "{{ messages }}"})


def test_what_the_router_refuses_is_a_bad_request(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature is -1"):
        client.completions.create(model=model, prompt="Hi", temperature=-1)
    with pytest.raises(openai.BadRequestError, match="This model's maximum context length is") as refusal:
        client.completions.create(model=model, prompt="Hi " * 30_000)
    assert refusal.value.code == "context_length_exceeded"


def test_its_health_is_asked_like_that_of_the_others(url: str) -> None:
    ran = zipmoe_process("health", url.removesuffix("/v1"))
    assert (ran.exit_code, ran.stdout.split()[-1]) == (0, "SERVING")
