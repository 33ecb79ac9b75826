"""What clients send, through the gateway and the real services, on the built-in model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from transformers import AutoTokenizer

from tests.integration.stacks.stack import StockModel
from tests.integration.stacks.up import running_up
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.store.pack.writer import pack_store

MODEL = Path(__file__).parents[3] / "demo" / "model"
SENTENCE = "And it came to pass"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("p")
    store = folder / "store"
    pack_store(catalogue(MODEL), store)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ZIPMOE_KEEP_ALIVE_S", "0.5")
        yield from _client(store, folder / "r")


def _client(store: Path, runtime: Path) -> Iterator[openai.OpenAI]:
    with running_up(store, runtime, "--gateway", "--gateway-port", 0) as up:
        (url,) = up.services["gateway"]["endpoints"]  # type: ignore[misc]
        with openai.OpenAI(base_url=str(url), api_key="none", max_retries=0) as made:
            yield made


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    (served,) = client.models.list()
    return served.id


def ids_of(text: str) -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(MODEL)(text)["input_ids"]
    return ids


def test_a_limit_above_the_context_ends_at_the_context(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(
        model=model, prompt=[*ids_of(SENTENCE), 100], max_tokens=4096, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 2042)
    assert answer.choices[0].finish_reason == "length"


def test_a_prompt_above_the_context_is_told_the_context(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt=[100] * 3004)
    assert caught.value.code == "context_length_exceeded"
    body: Any = caught.value.body
    assert body["message"].startswith("This model's maximum context length is 2048 tokens")
    assert "3004" in body["message"]


def test_an_echo_has_the_log_probabilities_of_stock(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=SENTENCE, echo=True, logprobs=1, max_tokens=1)
    (choice,) = answer.choices
    logprobs = choice.logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None and logprobs.top_logprobs is not None
    first: Any = logprobs.token_logprobs[0]
    assert (len(logprobs.token_logprobs), first) == (6, None)
    told = logprobs.token_logprobs[1:5]
    assert told == pytest.approx([-3.6437, -0.9516, -0.2686, -0.5199], abs=5e-5)
    stock = StockModel(MODEL)
    assert told == pytest.approx(stock.prompt_logprobs(ids_of(SENTENCE)), abs=1e-6)
    with torch.inference_mode():
        rows = stock.model(torch.tensor([ids_of(SENTENCE)])).logits[0].float().log_softmax(-1)
    best = [max(top.values()) for top in logprobs.top_logprobs[1:]]
    assert best == pytest.approx(rows.max(-1).values.tolist(), abs=1e-6), "the likeliest, for lm-eval's is_greedy"
    assert choice.text.startswith(SENTENCE)


def test_a_random_seed_is_random_and_choice_i_is_stock_with_the_seed_plus_i(client: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "prompt": SENTENCE, "temperature": 1, "max_tokens": 24, "logprobs": 0}
    more = {"ignore_eos": True, "top_k": 0}
    random = {client.completions.create(**asked, seed=-1, extra_body=more).choices[0].text for _ in range(2)}
    assert len(random) == 2
    several = client.completions.create(**asked, seed=40, n=3, presence_penalty=0.5, extra_body=more)
    alone = [
        client.completions.create(**asked, seed=40 + number, presence_penalty=0.5, extra_body=more).choices[0]
        for number in range(3)
    ]
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert [(each.text, each.logprobs) for each in several.choices] == [(each.text, each.logprobs) for each in alone]
    assert several.usage is not None and several.usage.prompt_tokens == 5
    plain = client.completions.create(**asked, seed=40, n=3, extra_body=more)
    stock, ids = StockModel(MODEL), ids_of(SENTENCE)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for number, choice in enumerate(plain.choices):
        torch.manual_seed(40 + number)
        output = stock.model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=True,
            temperature=1.0, top_k=0, max_new_tokens=24, eos_token_id=-1,
        )  # fmt: skip
        assert choice.text == tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)


def test_a_batch_of_prompts_is_what_each_prompt_alone_is(client: openai.OpenAI, model: str) -> None:
    prompts = [ids_of(SENTENCE), ids_of("In the beginning")]
    asked: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": 8, "echo": True, "logprobs": 1}
    batch = client.completions.create(prompt=prompts, **asked).choices
    for prompt, choice in zip(prompts, batch, strict=True):
        (alone,) = client.completions.create(prompt=prompt, **asked).choices
        assert (choice.text, choice.logprobs) == (alone.text, alone.logprobs)


def test_a_system_message_is_taken_and_tools_that_may_not_be_called_change_nothing(
    client: openai.OpenAI, model: str
) -> None:
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is Ruth?"}]
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    asked: Any = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0}
    plain = client.chat.completions.create(**asked)
    none = client.chat.completions.create(**asked, tools=[tool], tool_choice="none")
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens
    assert none.choices[0].message == plain.choices[0].message
    with pytest.raises(openai.BadRequestError, match="the model's chat template shows no format of calls"):
        client.chat.completions.create(**asked, tools=[tool], tool_choice="required")


def test_the_17th_stream_has_headers_and_bytes_while_16_run(client: openai.OpenAI, model: str) -> None:
    body = {"model": model, "prompt": SENTENCE, "max_tokens": 2000, "ignore_eos": True, "stream": True}
    url = f"{client.base_url}completions"
    with ExitStack() as open_streams, httpx2.Client(timeout=120) as http:

        def lines() -> Iterator[str]:
            answer = open_streams.enter_context(http.stream("POST", url, json=body))
            assert answer.status_code == 200
            return answer.iter_lines()

        running = [lines() for _ in range(16)]
        for each in running:
            assert next(line for line in each if line.startswith("data: "))
        waiting = lines()  # its headers are there
        told = [line for line, _ in zip(filter(None, waiting), range(3), strict=False)]
    assert told == [": keep-alive"] * 3


def test_the_limits_are_those_of_the_router(client: openai.OpenAI, model: str) -> None:
    card = client.models.retrieve(model).model_dump()
    assert (card["max_model_len"], card["max_prompt_tokens"]) == (2048, 2048)
