"""Events of an answer, from the tokens of a real tokenizer to the fields that a client reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from tests.model.conversation.templates import FIXTURES, write_fixture
from zipmoe.client import ChatPrompt, Completion, Message, Output, complete
from zipmoe.client.parameters import Sampling, Stopping
from zipmoe.client.wire import event_of, generate_request, prompt_message
from zipmoe.errors import InvalidRequest
from zipmoe.model.conversation.conversation_renderer import ConversationRenderer
from zipmoe.model.text.tokenizer import StopStrings, StreamingDetokenizer, Tokenizer
from zipmoe.services.router.engine.answer_reader import AnswerReader, call_id
from zipmoe.services.router.engine.intake import Intake, TokenLimits
from zipmoe.services.router.engine.request import GenerationSpec
from zipmoe.v1 import generation_pb2 as pb

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CHAT = ChatPrompt([Message("user", "hi")], [TOOL])
HARMONY = (
    "<|channel|>analysis<|message|>Hm, yes.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
    '<|constrain|>json<|message|>{"city": "Paris 🎉"}'
)


@pytest.fixture(scope="module")
def intakes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Intake]:
    made = {}
    for name in FIXTURES:
        tokenizer = write_fixture(name, tmp_path_factory.mktemp(name))
        limits = TokenLimits(4096, 8192, len(tokenizer.backend), encoder_decoder=False)
        made[name] = Intake(tokenizer, limits, GenerationConfig(eos_token_id=[]), ConversationRenderer(tokenizer))
    return made


def spec_of(intake: Intake, chat: ChatPrompt, *, separate: bool = True, stops: tuple[str, ...] = ()) -> GenerationSpec:
    output = Output(separate_parts=separate)
    return intake.spec(generate_request(chat, Sampling(), Stopping(stop_strings=stops), output, (), "request"))


def answered(
    intake: Intake, spec: GenerationSpec, token_ids: Sequence[int]
) -> tuple[list[pb.GenerateResponse], Completion]:
    """Streams tokens as the engine does: detokenizer, stop strings, events, reader."""
    tokenizer = intake.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    text, stops, reader = (
        StreamingDetokenizer(tokenizer, spec.shown_ids),
        StopStrings(spec.stop_strings),
        AnswerReader(spec),
    )
    responses = [reader.read(pb.GenerateResponse(started=pb.GenerationStarted(request_id="request", prompt_tokens=1)))]
    for token_id in token_ids:
        shown = stops.feed(text.feed(token_id))
        token = pb.GeneratedToken(token_id=token_id, text=shown)
        responses.append(reader.read(pb.GenerateResponse(token=token)))
        if stops.met is not None:
            break
    held = stops.feed(text.finish()) + stops.finish()
    finished = pb.GenerationFinished(reason=pb.FINISH_REASON_STOP, text=held)
    responses.append(reader.read(pb.GenerateResponse(finished=finished)))
    return responses, complete(event_of(response) for response in responses)


def ids_of(intake: Intake, text: str) -> list[int]:
    tokenizer = intake.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    return list(tokenizer.backend(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("name", "answer", "text", "reasoning", "calls"),
    [
        ("chatml", "<think>\nHm.\n</think>\n\nHello", "Hello", "Hm.", []),
        ("chatml", 'So:\n<tool_call>{"name": "weather", "arguments": {"a": 1}}</tool_call>', "So:", "", ['{"a": 1}']),
        ("deepseek", "Hm.\n</think>\n\nHello", "Hello", "Hm.", []),
        ("mistral", '[TOOL_CALLS][{"name": "weather", "arguments": {"a": 1}}]', "", "", ['{"a": 1}']),
        ("llama", '<|python_tag|>{"name": "weather", "parameters": {"a": 1}}', "", "", ['{"a": 1}']),
        ("harmony", HARMONY, "", "Hm, yes.", ['{"city": "Paris 🎉"}']),
        ("harmony", "<|channel|>final<|message|>Hello", "Hello", "", []),
        ("gemma", "Hello <think>x</think>", "Hello <think>x</think>", "", []),
    ],
)  # fmt: skip
def test_reasoning_and_calls_of_an_answer_are_fields_of_their_own(
    name: str, answer: str, text: str, reasoning: str, calls: list[str], intakes: Mapping[str, Intake]
) -> None:
    spec = spec_of(intakes[name], CHAT)
    _, completion = answered(intakes[name], spec, ids_of(intakes[name], answer))
    assert (completion.text.lstrip(" "), completion.reasoning.lstrip(" ")) == (text, reasoning)
    assert [(call.name, call.arguments) for call in completion.tool_calls] == [("weather", each) for each in calls]
    assert [call.id for call in completion.tool_calls] == [call_id("0 request", index) for index in range(len(calls))]


@pytest.mark.parametrize("name", FIXTURES)
def test_an_answer_that_is_not_separated_is_the_text_that_stock_decodes(
    name: str, intakes: Mapping[str, Intake]
) -> None:
    intake = intakes[name]
    ids = ids_of(intake, HARMONY + "<think>x</think>[TOOL_CALLS]<|python_tag|>{}")
    spec = spec_of(intake, CHAT, separate=False)
    assert not spec.shown_ids
    _, completion = answered(intake, spec, ids)
    assert completion.text == intake.tokenizer.decode(ids)


@given(length=st.integers(0, 120))
def test_an_answer_cut_anywhere_leaks_no_channel(length: int, intakes: Mapping[str, Intake]) -> None:
    ids = ids_of(intakes["harmony"], HARMONY)[:length]
    _, completion = answered(intakes["harmony"], spec_of(intakes["harmony"], CHAT), ids)
    assert completion.text == ""
    assert "Hm, yes.".startswith(completion.reasoning)


def test_a_stop_string_ends_reasoning_and_the_text_stays_empty(intakes: Mapping[str, Intake]) -> None:
    spec = spec_of(intakes["deepseek"], CHAT, stops=("END",))
    _, completion = answered(intakes["deepseek"], spec, ids_of(intakes["deepseek"], "Hm. END\n</think>\n\nHello"))
    assert (completion.text, completion.reasoning) == ("", "Hm.")


def test_text_held_for_a_stop_string_stays_before_the_marker(intakes: Mapping[str, Intake]) -> None:
    spec = spec_of(intakes["harmony"], CHAT, stops=("yes.!",))
    _, completion = answered(intakes["harmony"], spec, ids_of(intakes["harmony"], HARMONY))
    assert completion.reasoning == "Hm, yes."


def test_arguments_come_while_they_are_generated(intakes: Mapping[str, Intake]) -> None:
    responses, _ = answered(intakes["harmony"], spec_of(intakes["harmony"], CHAT), ids_of(intakes["harmony"], HARMONY))
    deltas = [delta for response in responses for delta in response.token.tool_calls]
    assert len(deltas) > 10, "a byte a token"
    assert [bool(delta.name) for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert "".join(delta.arguments for delta in deltas) == '{"city": "Paris 🎉"}'


def test_the_start_says_how_the_conversation_was_changed(intakes: Mapping[str, Intake]) -> None:
    def started(name: str, *messages: Message) -> pb.GenerationStarted:
        spec = spec_of(intakes[name], ChatPrompt(messages, [TOOL]), separate=False)
        return answered(intakes[name], spec, [])[0][0].started

    merged = started("gemma", Message("system", "s"), Message("user", "u"))
    assert (merged.system_message_merged, merged.tools_unseen) == (True, True)
    broken = started("chatml", Message("user", "<|im_end|><|im_end|></think>"))
    assert list(broken.broken_control_tokens) == ["</think>", "<|im_end|>"]
    assert not (broken.system_message_merged or broken.tools_unseen)


def test_tools_are_not_read_where_there_are_none(intakes: Mapping[str, Intake]) -> None:
    answer = '<tool_call>{"name": "weather"}</tool_call>'
    ids = ids_of(intakes["chatml"], answer)
    _, completion = answered(intakes["chatml"], spec_of(intakes["chatml"], ChatPrompt(CHAT.messages)), ids)
    assert (completion.text, completion.tool_calls) == (answer, ())


def test_only_the_answer_to_a_conversation_is_separated(intakes: Mapping[str, Intake]) -> None:
    request = pb.GenerateRequest(prompt=pb.Prompt(text="x"), output=pb.OutputOptions(separate_parts=True))
    with pytest.raises(InvalidRequest, match="separate_parts needs a conversation"):
        intakes["chatml"].spec(request)


def test_a_prompt_in_text_may_hold_control_tokens(intakes: Mapping[str, Intake]) -> None:
    ids = intakes["chatml"].token_ids(prompt_message("<|im_end|>"))
    assert ids == ids_of(intakes["chatml"], "<|im_end|>") and len(ids) == 1


def test_ids_of_calls_are_nine_letters_and_digits_and_differ() -> None:
    ids = {call_id(request, index) for request in ("a", "b", json.dumps({})) for index in range(100)}
    assert len(ids) == 300
    assert all(len(each) == 9 and each.isalnum() and each.isascii() for each in ids)
