"""Conversations are rendered as stock renders them, unless the template refuses or text would become control."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.model.conversation.rendering import shown, stock, turns
from tests.model.conversation.templates import FIXTURES
from zipmoe.errors import InvalidRequest
from zipmoe.model.conversation.chat_request import ChatChanges, ChatRequest, Turn
from zipmoe.model.conversation.conversation_renderer import ConversationRenderer
from zipmoe.model.conversation.stored_template import stored_formats, stored_templates
from zipmoe.model.text.tokenizer import Tokenizer

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "tells it", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TEXTS = [
    "", " ", "hi", "  two  spaces\n\nand lines ", "<table>the table</table>", "a < b | c > [d]", "<|im_", "|im_end|>",
    "é🎉 the", "[INST", "</ s>", "think> <think", "{{ message }}", "user", "\u200b",
]  # fmt: skip
U, A, S = "user", "assistant", "system"


def corpus(name: str) -> list[tuple[list[Turn], dict[str, Any]]]:
    """Conversations that the template takes, without control tokens in contents of users and tools."""
    conversations: list[tuple[list[Turn], dict[str, Any]]] = []
    for index, text in enumerate(TEXTS):
        other = TEXTS[(index + 7) % len(TEXTS)]
        conversations += [(turns((U, text)), {}), (turns((U, text), (A, other), (U, other)), {})]
        if name != "gemma":
            tool = {"role": "tool", "content": other, "tool_call_id": "abcdefghi"}
            called = {"role": A, "content": "", "tool_calls": [CALL]}
            conversations += [
                (turns((S, other), (U, text)), {}),
                (turns((S, "<s><|im_end|>"), (U, text), (A, "<think>x</think><|im_end|></s>"), (U, other)), {}),
            ]
            if name not in ("deepseek", "parts"):
                conversations.append(([*turns((U, text)), called, tool], {"tools": [WEATHER]}))
    if name == "parts":
        return [
            ([{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in each], arguments)
            for each, arguments in conversations
        ]
    return conversations


@pytest.mark.parametrize("name", [name for name in FIXTURES if name != "named"])
def test_without_control_tokens_of_users_every_id_is_stocks(name: str, tokenizers: Mapping[str, Tokenizer]) -> None:
    tokenizer = tokenizers[name]
    renderer = ConversationRenderer(tokenizer)
    for conversation, arguments in corpus(name):
        flat = [
            {**turn, "content": "".join(part["text"] for part in turn["content"])}
            if isinstance(turn["content"], list)
            else turn
            for turn in conversation
        ]
        rendered = renderer.render(ChatRequest(flat, arguments.get("tools", ())))
        assert list(rendered.token_ids) == stock(tokenizer, conversation, **arguments), conversation
        assert rendered.changes.broken_tokens == ()


def test_a_system_message_that_the_template_refuses_goes_before_the_first_user_turn(
    tokenizers: Mapping[str, Tokenizer],
) -> None:
    tokenizer = tokenizers["gemma"]
    renderer = ConversationRenderer(tokenizer)
    rendered = renderer.render(ChatRequest(turns((S, "Be brief."), (U, "Hi"), (A, "Yes"), (U, "Go"))))
    assert rendered.changes == ChatChanges(system_merged=True)
    assert list(rendered.token_ids) == stock(tokenizer, turns((U, "Be brief.\n\nHi"), (A, "Yes"), (U, "Go")))
    late = renderer.render(ChatRequest(turns((U, "Hi"), (A, "Yes"), (S, "Be brief."), (U, "Go"))))
    assert late.token_ids == rendered.token_ids, "wherever it stands"
    parts = renderer.render(ChatRequest(turns((S, "Be brief."), (U, ["H", "i"]), (A, "Yes"), (U, "Go"))))
    assert parts.token_ids == rendered.token_ids
    alone = renderer.render(ChatRequest(turns((S, "Be brief."))))
    assert list(alone.token_ids) == stock(tokenizer, turns((U, "Be brief.")))


def test_a_template_that_takes_a_system_message_as_a_user_turn_gets_it_merged(
    tokenizers: Mapping[str, Tokenizer], tmp_path: Path
) -> None:
    turn_taking = (
        "{% for m in messages %}{% if (m.role != 'assistant') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('two in a row') }}{% endif %}[{{ m.content }}]{% endfor %}"
    )
    tokenizers["chatml"].backend.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(turn_taking)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_moe"}')
    renderer = ConversationRenderer(Tokenizer(tmp_path))
    rendered = renderer.render(ChatRequest(turns((S, "s"), (U, "u"))))
    assert rendered.changes.system_merged
    assert shown(tokenizers["chatml"], rendered.token_ids) == "[s\n\nu]"
    with pytest.raises(InvalidRequest, match="two in a row"):
        renderer.render(ChatRequest(turns((U, "a"), (U, "b"))))
    with pytest.raises(InvalidRequest, match="two in a row"):
        renderer.render(ChatRequest(turns((S, "s"), (U, "a"), (U, "b"))))


def test_other_refusals_of_the_template_are_invalid_requests(tokenizers: Mapping[str, Tokenizer]) -> None:
    for name, conversation, message in (
        ("gemma", turns((A, "x")), "take turns"),
        ("mistral", [{"role": A, "content": "", "tool_calls": [{**CALL, "id": "x"}]}], "nine letters"),
        ("chatml", [], "no message"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            ConversationRenderer(tokenizers[name]).render(ChatRequest(conversation))


def test_parts_reach_a_template_that_loops_over_them(tokenizers: Mapping[str, Tokenizer]) -> None:
    for name, parts in (("gemma", True), ("parts", True), ("chatml", False), ("mistral", False)):
        rendered = ConversationRenderer(tokenizers[name]).render(ChatRequest(turns((U, ["How ", "are you?"]))))
        content: Any = "How are you?"
        if parts:
            content = [{"type": "text", "text": "How "}, {"type": "text", "text": "are you?"}]
        assert list(rendered.token_ids) == stock(tokenizers[name], turns((U, content))), name


def test_arguments_of_calls_are_given_as_the_template_takes_them(tokenizers: Mapping[str, Tokenizer]) -> None:
    conversation = [*turns((U, "x")), {"role": A, "content": "", "tool_calls": [CALL]}]
    for name, written in (
        ("chatml", '"arguments": {"city": "Paris"}'),
        ("deepseek", 'call weather: {"city": "Paris"}'),
    ):
        rendered = ConversationRenderer(tokenizers[name]).render(ChatRequest(conversation))
        assert written in shown(tokenizers[name], rendered.token_ids)


def test_named_templates_are_chosen_by_name_and_by_tools(tokenizers: Mapping[str, Tokenizer]) -> None:
    tokenizer = tokenizers["named"]
    renderer = ConversationRenderer(tokenizer)
    assert renderer.template_names == ("default", "tool_use")
    asked = turns((U, "x"))
    named = renderer.render(ChatRequest(asked, template="tool_use"))
    assert list(named.token_ids) == stock(tokenizer, asked, chat_template="tool_use")
    with_tools = renderer.render(ChatRequest(asked, [WEATHER]))
    assert list(with_tools.token_ids) == stock(tokenizer, asked, tools=[WEATHER])
    assert not with_tools.changes.tools_unseen
    assert renderer.render(ChatRequest(asked, [WEATHER], template="default")).changes.tools_unseen
    with pytest.raises(InvalidRequest, match="no chat template of the name"):
        renderer.render(ChatRequest(asked, template="{{ messages }}"))
    with pytest.raises(InvalidRequest, match="no chat template of the name"):
        ConversationRenderer(tokenizers["chatml"]).render(ChatRequest(asked, template="default"))


def test_variables_reach_the_template(tokenizers: Mapping[str, Tokenizer]) -> None:
    asked = turns((U, "x"))
    harmony = ConversationRenderer(tokenizers["harmony"]).render(
        ChatRequest(asked, variables={"reasoning_effort": "low"})
    )
    assert list(harmony.token_ids) == stock(tokenizers["harmony"], asked, reasoning_effort="low")
    chatml = ConversationRenderer(tokenizers["chatml"])
    quiet = chatml.render(ChatRequest(asked, variables={"enable_thinking": False}))
    assert shown(tokenizers["chatml"], quiet.token_ids).endswith("<think>\n\n</think>\n\n")
    for name in ("messages", "tools", "tokenize", "chat_template", "padding", "__class__", "a b"):
        with pytest.raises(InvalidRequest, match="cannot be a variable"):
            chatml.render(ChatRequest(asked, variables={name: 1}))


def test_a_conversation_may_stay_open(tokenizers: Mapping[str, Tokenizer]) -> None:
    tokenizer = tokenizers["chatml"]
    asked = turns((U, "x"), (A, "Once upon"))
    open_ended = ConversationRenderer(tokenizer).render(ChatRequest(asked, opens_answer=False, continues=True))
    assert shown(tokenizer, open_ended.token_ids).endswith("<|im_start|>assistant\nOnce upon")
    closed = ConversationRenderer(tokenizer).render(ChatRequest(asked, opens_answer=False))
    assert shown(tokenizer, closed.token_ids).endswith("Once upon<|im_end|>\n")


def test_an_answer_begins_in_reasoning_where_the_prompt_opens_it(tokenizers: Mapping[str, Tokenizer]) -> None:
    def begins(name: str, text: str = "x", **variables: Any) -> bool:
        rendered = ConversationRenderer(tokenizers[name]).render(ChatRequest(turns((U, text)), variables=variables))
        return rendered.reading.begins_in_reasoning

    assert begins("deepseek")
    assert not begins("chatml")
    assert not begins("chatml", "<think>")
    assert not begins("chatml", enable_thinking=False)
    assert not begins("mistral", "<think>")


@pytest.mark.parametrize(
    ("name", "reasoning", "calls"),
    [
        ("chatml", "think", "hermes"), ("llama", "", "llama"), ("mistral", "", "mistral"), ("gemma", "", ""),
        ("deepseek", "think", ""), ("harmony", "harmony", "harmony"), ("parts", "", ""), ("named", "think", "hermes"),
    ],
)  # fmt: skip
def test_the_formats_of_a_model_are_found_from_its_tokenizer_and_from_its_files_alike(
    name: str, reasoning: str, calls: str, tokenizers: Mapping[str, Tokenizer]
) -> None:
    found = ConversationRenderer(tokenizers[name]).formats
    assert (found.reasoning_name, found.calls_name) == (reasoning, calls)
    folder = Path(tokenizers[name].backend.name_or_path)
    assert stored_formats(folder) == found
    assert sorted(stored_templates(folder)) == (["default", "tool_use"] if name == "named" else ["default"])


def test_files_that_cannot_be_read_tell_no_format(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("[")
    assert stored_formats(tmp_path).reasoning_name == ""
