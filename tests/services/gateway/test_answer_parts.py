"""The parts of an answer do not depend on how the router cuts it into events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given

from tests.services.gateway.parts import ANSWER, Event, cut_answers, finished, part, token
from zipmoe.client import Event as RouterEvent
from zipmoe.client.wire import event_of
from zipmoe.errors import Unavailable
from zipmoe.services.gateway.answers.answer_parts import PartKind, PartsReader
from zipmoe.services.gateway.answers.answer_writer import AnswerWriter
from zipmoe.services.gateway.answers.messages_writer import MessagesWriter
from zipmoe.services.gateway.answers.responses_writer import ResponsesWriter
from zipmoe.v1 import generation_pb2 as pb

LAST = event_of(pb.GenerateResponse(finished=finished()))


def router_events(events: Sequence[Event], *, ends: bool = False) -> list[RouterEvent]:
    """The events of a router; with `ends`, the last part comes with the end, as text that was held back does."""
    made = [
        pb.GenerateResponse(token=token(event.text, event.reasoning, *event.calls))
        for event in (events[:-1] if ends else events)
    ]
    last = finished()
    if ends:
        last.text, last.reasoning = events[-1].text, events[-1].reasoning
        last.tool_calls.extend(events[-1].calls)
    return [event_of(each) for each in (*made, pb.GenerateResponse(finished=last))]


def streamed(writer: AnswerWriter, events: Sequence[RouterEvent]) -> list[dict[str, Any]]:
    frames = [frame for event in events for frame in writer.frames(0, event, {})] + list(writer.end())
    return [json.loads(frame.decode().rpartition("data: ")[2]) for frame in frames]


def message_of(frames: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Puts the blocks of a stream together, as a client does; a block has to end before the next begins."""
    blocks: list[dict[str, Any]] = []
    open_block: int | None = None
    for frame in frames:
        if frame["type"] == "content_block_start":
            assert open_block is None and frame["index"] == len(blocks)
            open_block = frame["index"]
            blocks.append({**frame["content_block"], "input": ""})
        elif frame["type"] == "content_block_delta":
            assert frame["index"] == open_block
            kind, delta = frame["delta"].pop("type"), frame["delta"]
            ((name, text),) = delta.items()
            field = {"thinking_delta": "thinking", "text_delta": "text", "input_json_delta": "input"}[kind]
            assert name == (field if field != "input" else "partial_json") and text
            blocks[-1][field] += text
        elif frame["type"] == "content_block_stop":
            assert frame["index"] == open_block
            open_block = None
    assert open_block is None
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block["input"] or "{}")
        else:
            del block["input"]
    return blocks


EXPECTED = [
    {"type": "thinking", "thinking": "Hm, yes", "signature": ""},
    {"type": "text", "text": "So: wait", "citations": None},
    {"type": "tool_use", "id": "id0", "name": "weather", "input": {"city": "Paris", "days": [1, 2]}},
    {"type": "tool_use", "id": "id1", "name": "stop", "input": {}},
]


@given(cut_answers())
def test_any_cut_of_the_answer_gives_the_same_message_streamed_and_whole(cut: list[Event]) -> None:
    for ends in (False, True):
        events = router_events(cut, ends=ends)
        assert MessagesWriter("x", "m", ()).whole([events], {})["content"] == EXPECTED
        assert message_of(streamed(MessagesWriter("x", "m", ()), events)) == EXPECTED


def response_output(frames: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Checks a stream of a response against itself, and returns the output of its end."""
    assert [frame["sequence_number"] for frame in frames] == list(range(len(frames)))
    added: dict[str, str] = {}
    done: dict[str, str] = {}
    for frame in frames:
        kind = frame["type"]
        if kind.endswith(".delta"):
            added[frame["item_id"]] = added.get(frame["item_id"], "") + frame["delta"]
        elif kind.endswith((".output_text.done", ".reasoning_text.done")):
            done[frame["item_id"]] = frame["text"]
        elif kind.endswith("arguments.done"):
            done[frame["item_id"]] = frame["arguments"]
    assert added == done
    output: list[dict[str, Any]] = frames[-1]["response"]["output"]
    assert output == [frame["item"] for frame in frames if frame["type"] == "response.output_item.done"]
    assert [item["id"] for item in output] == list(done)
    return output


def without_times(response: dict[str, Any]) -> dict[str, Any]:
    """A response without the fields that depend on the clock and on the number of tokens."""
    return {**response, "created_at": 0, "completed_at": 0, "usage": None}


@given(cut_answers())
def test_any_cut_of_the_answer_gives_the_same_response_streamed_and_whole(cut: list[Event]) -> None:
    expected = ResponsesWriter("x", "m", {}).whole([router_events([Event("So: wait", "Hm, yes", cut_calls())])], {})
    for ends in (False, True):
        events = router_events(cut, ends=ends)
        whole = ResponsesWriter("x", "m", {}).whole([events], {})
        frames = streamed(ResponsesWriter("x", "m", {}), events)
        assert without_times(whole) == without_times(expected) == without_times(frames[-1]["response"])
        assert response_output(frames) == expected["output"]


def cut_calls() -> list[pb.ToolCallDelta]:
    return [part(0, '{"city": "Paris", "days": [1, 2]}', "weather"), part(1, "{}", "stop")]


def test_the_rest_of_a_call_comes_before_a_text_in_the_same_event() -> None:
    reader = PartsReader()
    events = [token("a", "", part(0, "{", "f")), token("b", "", part(0, "}"), part(1, "{}", "g"))]
    reader.read_all([*(event_of(pb.GenerateResponse(token=each)) for each in events), LAST])
    found = [(each.kind, each.name, each.text) for each in reader.parts]
    assert found == [
        (PartKind.TEXT, "", "a"), (PartKind.CALL, "f", "{}"), (PartKind.TEXT, "", "b"), (PartKind.CALL, "g", "{}")
    ]  # fmt: skip


def test_a_text_between_calls_is_a_part_of_its_own_in_its_place() -> None:
    events = [token("", "", part(0, "{}", "f")), token("b"), token(reasoning="c"), token("d")]
    whole = MessagesWriter("x", "m", ()).whole(
        [[*(event_of(pb.GenerateResponse(token=each)) for each in events), LAST]], {}
    )
    assert [block["type"] for block in whole["content"]] == ["tool_use", "text", "thinking", "text"]


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", '"x"', "{" * 100_000])
def test_arguments_that_are_no_object_are_named_so_in_a_message(arguments: str) -> None:
    events = [event_of(pb.GenerateResponse(token=token("", "", part(0, arguments, "f")))), LAST]
    (block,) = MessagesWriter("x", "m", ()).whole([events], {})["content"]
    assert block["input"] == {"INVALID_JSON": arguments}


def test_an_answer_that_does_not_end_is_no_answer() -> None:
    events = [event_of(pb.GenerateResponse(token=each)) for each in ANSWER]
    for writer in (MessagesWriter("x", "m", ()), ResponsesWriter("x", "m", {})):
        with pytest.raises(Unavailable, match="after 7 events"):
            writer.whole([events], {})


def test_tokens_of_reasoning_are_counted() -> None:
    reader = PartsReader()
    reader.read_all([*(event_of(pb.GenerateResponse(token=each)) for each in ANSWER), LAST])
    assert reader.reasoning_tokens == 2
