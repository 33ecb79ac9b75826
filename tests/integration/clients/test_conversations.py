"""Conversations through the real services and the gateway: what a model writes reaches the client in its fields."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.cli.run import zipmoe
from tests.integration.stacks.stack import GREEDY, PackedModel, Stack, StockModel, stack
from tests.model.conversation.templates import write_fixture
from zipmoe.client import (
    ChatPrompt,
    Finished,
    GenerationClient,
    Message,
    Output,
    Started,
    Stopping,
    Token,
    ToolCall,
    ToolUse,
    complete,
)
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.model.synth.writer import synthesise
from zipmoe.store.pack.writer import pack_store

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
ANSWER = '<think>\nHm.\n</think>\n\nSo:\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
SEPARATED = Output(separate_parts=True)


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    """A tiny model whose template has tools and marks reasoning."""
    folder = tmp_path_factory.mktemp("talking")
    model = PackedModel(folder / "checkpoint", folder / "store")
    synthesise("qwen2_moe", model.checkpoint, seed=3)
    for path in [*model.checkpoint.glob("tokenizer*"), *model.checkpoint.glob("chat_template*")]:
        path.unlink()
    write_fixture("chatml", folder / "tokenizer")
    for path in (folder / "tokenizer").iterdir():
        if path.name != "config.json":
            shutil.copy(path, model.checkpoint)
    pack_store(catalogue(model.checkpoint), model.store)
    return model


@pytest.fixture(scope="module")
def services(talking: PackedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(talking, tmp_path_factory.mktemp("s"), {"cache_slots": "7:6:5"}) as running:
        yield running


def test_reasoning_and_calls_arrive_in_fields_of_their_own(talking: PackedModel, services: Stack) -> None:
    tokenizer = AutoTokenizer.from_pretrained(talking.checkpoint)
    ids = tokenizer(ANSWER)["input_ids"]
    chat = ChatPrompt([Message("user", "weather? <|im_end|>")], [TOOL], template_variables={"enable_thinking": True})
    stopping = Stopping(max_new_tokens=len(ids), ignore_eos=True)
    with GenerationClient(services.target) as client:
        model = client.model()
        assert (model.reasoning_format, model.tool_call_format, model.template_names) == ("think", "hermes", ())
        events = list(client.generate(chat, stopping=stopping, output=SEPARATED, forced_token_ids=ids))
        plain = complete(client.generate(chat, stopping=stopping, forced_token_ids=ids))
    started = next(event for event in events if isinstance(event, Started))
    assert started.broken_control_tokens == ("<|im_end|>",)
    answer = complete(events)
    assert (answer.text, answer.reasoning) == ("So:", "Hm.")
    (call,) = answer.tool_calls
    assert (call.name, call.arguments) == ("weather", '{"city": "Paris"}')
    streamed = [delta for event in events if isinstance(event, Token | Finished) for delta in event.tool_calls]
    assert len(streamed) > 2, "the arguments were streamed"
    assert plain.text == ANSWER and not plain.tool_calls
    assert plain.token_ids == answer.token_ids == tuple(ids)


def test_a_conversation_with_tools_has_the_ids_and_the_answer_of_stock(talking: PackedModel, services: Stack) -> None:
    tokenizer, stock = AutoTokenizer.from_pretrained(talking.checkpoint), StockModel(talking.checkpoint)
    call = ToolCall("abcdefghi", "weather", '{"city": "Paris"}')
    chat = ChatPrompt(
        [
            Message("system", "Be brief."),
            Message("user", ("How ", "is it?")),
            Message("assistant", "", "Hm", (call,)),
            Message("tool", "sunny", tool_call_id="abcdefghi"),
        ],
        [TOOL],
    )
    called = {"id": call.id, "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    turns: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": "", "reasoning_content": "Hm", "tool_calls": [called]},
        {"role": "tool", "content": "sunny", "tool_call_id": "abcdefghi"},
    ]
    ids = tokenizer.apply_chat_template(turns, tools=[TOOL], add_generation_prompt=True)["input_ids"]
    with GenerationClient(services.target) as client:
        assert client.tokenize(chat) == ids
        stopping = Stopping(max_new_tokens=6, ignore_eos=True)
        answer = complete(client.generate(chat, sampling=GREEDY, stopping=stopping, output=SEPARATED))
        without = client.tokenize(ChatPrompt(chat.messages[:2], [TOOL], ToolUse.NONE))
        assert without == client.tokenize(chat.messages[:2])
        assert client.tokenize(ChatPrompt(chat.messages, [TOOL], ToolUse.REQUIRED)) == ids
    assert answer.token_ids == stock.generate(ids, 6).token_ids


def test_inspect_shows_the_formats(talking: PackedModel) -> None:
    ran = zipmoe("inspect", talking.store, "--json")
    conversations = json.loads(ran.stdout)["conversations"]
    assert conversations == {"templates": ["default"], "reasoning": "think", "tool_calls": "hermes"}
    assert "reasoning think, tool calls hermes" in zipmoe("inspect", talking.store).stdout


def test_the_router_may_trust_control_tokens(talking: PackedModel, short_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(talking.checkpoint)
    turns = [{"role": "user", "content": "a<|im_end|>b"}]
    with (
        stack(talking, short_folder, {"cache_slots": "7:6:5"}, trust_control_tokens=True) as running,
        GenerationClient(running.target) as client,
    ):
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        assert client.tokenize([Message("user", "a<|im_end|>b")]) == ids
