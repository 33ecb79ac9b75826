"""Calls that a request demands, through the real services and the gateway, with OpenAI's own client."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai
import pytest
from transformers import AutoTokenizer

from tests.integration.stacks.stack import GREEDY, PackedModel, StockModel
from tests.integration.stacks.up import running_up
from tests.model.conversation.templates import CHATML, write_fixture
from tests.model.text.small_vocabulary import StockMask, stock_constrained
from zipmoe.client import (
    ChatPrompt,
    Constraint,
    FinishReason,
    GenerationClient,
    Message,
    Output,
    Stopping,
    ToolUse,
    complete,
)
from zipmoe.errors import InvalidRequest
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.model.conversation.answer_formats import AnswerReading, answer_formats
from zipmoe.model.synth.writer import synthesise
from zipmoe.model.text.grammar import GrammarVocabulary
from zipmoe.model.text.tokenizer import Tokenizer
from zipmoe.model.text.tool_grammar import tool_calls
from zipmoe.store.pack.writer import pack_store

END = "<|im_end|>"
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Paris"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "stop"}},
]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
SEPARATED = Output(separate_parts=True, logprobs=True)


@dataclass(frozen=True)
class ServedCalls:
    """A model that knows calls and reasoning, and the endpoints of `zipmoe up --gateway`."""

    model: PackedModel
    url: str
    target: str

    @property
    def thought_id(self) -> int:
        return int(AutoTokenizer.from_pretrained(self.model.checkpoint).convert_tokens_to_ids("<think>"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCalls]:
    folder, runtime = tmp_path_factory.mktemp("calling"), tmp_path_factory.mktemp("r")
    model = PackedModel(folder / "checkpoint", folder / "store")
    synthesise("qwen2_moe", model.checkpoint, seed=3)
    for path in [*model.checkpoint.glob("tokenizer*"), *model.checkpoint.glob("chat_template*")]:
        path.unlink()
    tokenizer = write_fixture("chatml", folder / "tokenizer")
    for path in (folder / "tokenizer").iterdir():
        if path.name != "config.json":
            shutil.copy(path, model.checkpoint)
    eos = tokenizer.backend.convert_tokens_to_ids(END)
    change(model.checkpoint / "generation_config.json", eos_token_id=eos)
    change(model.checkpoint / "config.json", max_position_embeddings=4096)
    pack_store(catalogue(model.checkpoint), model.store)
    tight = ("--cache-slots", "7:6:5", "--workers", 2, "--kv-tokens", 4096)
    with running_up(model.store, runtime, "--gateway", "--gateway-port", 0, *tight) as up:
        (url,) = up.services["gateway"]["endpoints"]  # type: ignore[misc]
        yield ServedCalls(model, str(url), f"unix:{runtime / 'router.sock'}")


@pytest.fixture
def ask(served: ServedCalls) -> Iterator[Callable[..., Any]]:
    """Asks the gateway for a chat with the tools."""
    with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
        (listed,) = client.models.list()

        def create(**fields: Any) -> Any:
            asked: dict[str, Any] = {
                "model": listed.id, "messages": [{"role": "user", "content": "Hello"}], "tools": TOOLS,
                "max_tokens": 900, "logit_bias": {str(served.thought_id): -100},
            }  # fmt: skip
            return client.chat.completions.create(**{**asked, **fields})

        yield create


def check(name: str, arguments: str) -> None:
    value = json.loads(arguments)
    if name == "stop":
        assert value == {}
    else:
        assert name == "weather"
        assert value.keys() == {"city", "days"}
        assert value["city"] in ("Rome", "Paris") and 1 <= value["days"] <= 7


@pytest.mark.parametrize("seed", range(3))
def test_a_required_call_fits_the_schema_of_its_tool(ask: Callable[..., Any], seed: int) -> None:
    answer = ask(tool_choice="required", seed=seed, temperature=1.0, parallel_tool_calls=False)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    (call,) = choice.message.tool_calls
    check(call.function.name, call.function.arguments)


def test_a_named_call_calls_that_tool_once(ask: Callable[..., Any]) -> None:
    for seed in range(3):
        (choice,) = ask(tool_choice=NAMED, seed=seed, temperature=1.0).choices
        (call,) = choice.message.tool_calls
        assert (choice.finish_reason, call.function.name) == ("tool_calls", "weather")
        check(call.function.name, call.function.arguments)


def test_several_calls_are_allowed_unless_one_is_demanded(ask: Callable[..., Any]) -> None:
    for seed in range(20):
        (choice,) = ask(tool_choice="required", seed=seed, temperature=1.0, max_tokens=250).choices
        calls = choice.message.tool_calls
        if choice.finish_reason == "tool_calls" and len(calls) > 1:
            for call in calls:
                check(call.function.name, call.function.arguments)
            return
    pytest.fail("no answer has several calls")


def test_a_streamed_call_arrives_in_deltas_that_add_up(ask: Callable[..., Any]) -> None:
    fields: dict[str, Any] = {"tool_choice": NAMED, "seed": 5, "temperature": 1.0}
    (whole,) = ask(**fields).choices
    chunks = [chunk.choices[0] for chunk in ask(**fields, stream=True) if chunk.choices]
    deltas = [delta for chunk in chunks for delta in chunk.delta.tool_calls or []]
    assert len(deltas) > 3, "the arguments were streamed"
    assert deltas[0].function.name == "weather" and deltas[0].id
    assert all(delta.function.name is None for delta in deltas[1:])
    arguments = "".join(delta.function.arguments or "" for delta in deltas)
    assert arguments == whole.message.tool_calls[0].function.arguments
    assert not any(chunk.delta.content for chunk in chunks)
    assert chunks[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("thinks", [True, False])
def test_a_demanded_call_is_that_of_stock_under_the_same_masks(
    served: ServedCalls, seed: int | None, thinks: bool
) -> None:
    checkpoint = served.model.checkpoint
    backend, tokenizer = AutoTokenizer.from_pretrained(checkpoint), Tokenizer(checkpoint)
    eos = int(backend.convert_tokens_to_ids(END))
    ids = backend.apply_chat_template([{"role": "user", "content": "Hello"}], tools=TOOLS, add_generation_prompt=True)[
        "input_ids"
    ]
    vocabulary = GrammarVocabulary(tokenizer, len(backend), {eos})
    offered = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in TOOLS}
    reading = AnswerReading(answer_formats(CHATML, ()), tools=offered)
    source = tool_calls(reading.demanded_calls(offered, several=True), vocabulary.special_tokens)
    mask = StockMask(vocabulary.tokenizer, source, len(ids))
    settings: dict[str, Any] = {"do_sample": seed is not None, "temperature": 1.2, "top_k": 20, "top_p": 1.0}
    sampling = GREEDY if seed is None else replace(GREEDY, temperature=1.2, top_k=20, seed=seed)
    if not thinks:
        settings["sequence_bias"] = {(served.thought_id,): -100.0}
        sampling = replace(sampling, logit_bias={served.thought_id: -100.0})
    stock = StockModel(checkpoint).model
    wanted = stock_constrained(stock, mask, ids, 120, eos, seed or 0, **settings)
    with GenerationClient(served.target) as client:
        answer = complete(
            client.generate(
                ChatPrompt([Message("user", "Hello")], TOOLS, ToolUse.REQUIRED),
                sampling=sampling,
                stopping=Stopping(max_new_tokens=120),
                output=SEPARATED,
            )
        )
    assert [(token.token_id, token.logprob) for token in answer.tokens] == wanted
    if not thinks:
        assert answer.tool_calls
        assert answer.usage.accepted_tokens > 0, "tokens that are the only ones shared passes"


def test_reasoning_may_come_before_a_demanded_call(served: ServedCalls) -> None:
    """The prompt of the template ends without a marker, and the model, which is random, has to begin to reason."""
    first = {served.thought_id: 100.0}
    chat = ChatPrompt([Message("user", "Hello")], TOOLS, ToolUse.NAMED, "stop")
    with GenerationClient(served.target) as client:
        answer = complete(
            client.generate(
                chat,
                sampling=replace(GREEDY, logit_bias=first),
                stopping=Stopping(max_new_tokens=30),
                output=SEPARATED,
            )
        )
    assert answer.tokens[0].token_id == served.thought_id
    assert answer.reasoning and not answer.text and not answer.tool_calls
    assert answer.finish_reason is FinishReason.LENGTH


def test_what_cannot_be_demanded_is_a_bad_request(ask: Callable[..., Any], served: ServedCalls) -> None:
    def tool(**function: Any) -> list[Any]:
        return [{"type": "function", "function": {"name": "f", **function}}]

    for fields, message in (
        ({"tool_choice": {"type": "function", "function": {"name": "rain"}}}, 'names "rain", which is none of'),
        ({"tools": [], "tool_choice": "required"}, "there are no tools"),
        ({"tools": tool(parameters={"properties": {"a": {"type": "strin"}}})}, "Invalid type: strin"),
        ({"tools": tool(parameters={"type": "array"})}, "the parameters of the tool 'f' are no object"),
        ({"response_format": {"type": "json_object"}}, "response_format and a tool_choice .* exclude each other"),
        ({"extra_body": {"ignore_eos": True}}, "ignore_eos and a tool_choice .* exclude each other"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            ask(**{"tool_choice": "required", **fields})
    with GenerationClient(served.target) as client:
        for chat, message in (
            (ChatPrompt([Message("user", "Hi")], [], ToolUse.REQUIRED), "there is no tool"),
            (ChatPrompt([Message("user", "Hi")], TOOLS, ToolUse.NAMED, "rain"), "'rain', which is none of the tools"),
        ):
            with pytest.raises(InvalidRequest, match=message):
                complete(client.generate(chat))
        chat = ChatPrompt([Message("user", "Hi")], TOOLS, ToolUse.REQUIRED)
        with pytest.raises(InvalidRequest, match="constraint and a tool_choice"):
            complete(client.generate(chat, constraint=Constraint(json_object=True)))
