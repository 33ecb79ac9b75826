"""The dialects of the gateway through the real services, on the built-in model: one answer in several forms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletion
from transformers import AutoTokenizer

from tests.integration.stacks.up import running_up
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.store.pack.writer import pack_store

CHECKPOINT = Path(__file__).parents[3] / "demo" / "model"
TOKENS = 24
SYSTEM, QUESTION = "Be brief.", "And it came to pass"
TURNS: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The gateway's address, without a path."""
    folder = tmp_path_factory.mktemp("d")
    pack_store(catalogue(CHECKPOINT), folder / "store")
    with running_up(folder / "store", folder / "r", "--gateway", "--gateway-port", 0) as up:
        (found,) = up.services["gateway"]["endpoints"]  # type: ignore[misc]
        yield str(found).removesuffix("/v1")


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, trust_env=False, timeout=300) as made:
        yield made


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def other(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    (served,) = client.models.list()
    return served.id


@pytest.fixture
def chat(client: openai.OpenAI, model: str) -> ChatCompletion:
    return client.chat.completions.create(model=model, messages=TURNS, max_tokens=TOKENS, temperature=0)


def test_all_dialects_give_the_text_of_a_chat_whole_and_streamed(
    client: openai.OpenAI, other: anthropic.Anthropic, model: str, chat: ChatCompletion
) -> None:
    text, usage = chat.choices[0].message.content, chat.usage
    assert text and usage is not None
    of_responses: Any = {
        "model": model, "instructions": SYSTEM, "input": QUESTION, "max_output_tokens": TOKENS, "temperature": 0
    }  # fmt: skip
    of_messages: Any = {
        "model": model, "system": SYSTEM, "messages": TURNS[1:], "max_tokens": TOKENS, "extra_body": {"temperature": 0}
    }  # fmt: skip
    response = client.responses.create(**of_responses)
    with client.responses.stream(**of_responses) as responses:
        streamed = "".join(event.delta for event in responses if event.type == "response.output_text.delta")
    message = other.messages.create(**of_messages)
    with other.messages.stream(**of_messages) as messages:
        final = messages.get_final_message()
    texts = ["".join(block.text for block in each.content if block.type == "text") for each in (message, final)]
    assert [response.output_text, streamed, *texts] == [text] * 4
    cut = chat.choices[0].finish_reason == "length"
    assert response.status == ("incomplete" if cut else "completed")
    assert message.stop_reason == final.stop_reason == ("max_tokens" if cut else "end_turn")
    assert response.usage is not None
    assert response.usage.input_tokens == usage.prompt_tokens
    read = message.usage.cache_read_input_tokens or 0
    assert message.usage.input_tokens + read == usage.prompt_tokens
    assert response.usage.output_tokens == message.usage.output_tokens == usage.completion_tokens


def test_prompts_are_counted_as_they_are_computed(
    client: openai.OpenAI, other: anthropic.Anthropic, model: str, chat: ChatCompletion
) -> None:
    assert chat.usage is not None
    counted = other.messages.count_tokens(model=model, system=SYSTEM, messages=TURNS[1:])
    assert counted.input_tokens == chat.usage.prompt_tokens
    of_response = client.responses.input_tokens.count(model=model, instructions=SYSTEM, input=QUESTION)
    assert of_response.input_tokens == chat.usage.prompt_tokens


def test_a_stop_sequence_is_told(other: anthropic.Anthropic, model: str, chat: ChatCompletion) -> None:
    text = chat.choices[0].message.content or ""
    stop = text[5:9]
    message = other.messages.create(
        model=model, system=SYSTEM, messages=TURNS[1:], max_tokens=TOKENS, stop_sequences=[stop, "never written"],
        extra_body={"temperature": 0},
    )  # fmt: skip
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert "".join(block.text for block in message.content if block.type == "text") == text[: text.index(stop)]


def test_text_and_token_ids_are_those_of_stock(http: httpx2.Client, model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    ids = tokenizer(QUESTION)["input_ids"]
    answer = http.post("/tokenize", json={"model": model, "prompt": QUESTION}).json()
    assert (answer["tokens"], answer["count"], answer["max_model_len"]) == (ids, len(ids), 2048)
    bare = http.post("/tokenize", json={"content": QUESTION}).json()["tokens"]
    assert bare == tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    chat = http.post("/tokenize", json={"messages": TURNS}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": ids}).json()["content"] == tokenizer.decode(ids)
    assert http.post("/detokenize", json={"tokens": chat}).json()["prompt"] == tokenizer.decode(chat)
    refused = http.post("/detokenize", json={"tokens": [1 << 20]})
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("path", ["/health", "/healthz", "/v1/models"])
def test_head_answers_as_get_does(http: httpx2.Client, path: str) -> None:
    assert (http.head(path).status_code, http.get(path).status_code) == (200, 200)
