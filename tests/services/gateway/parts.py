"""Answers of a scripted router: tokens with text, reasoning and calls, and the cuts of an answer into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import strategies
from pydantic import BaseModel

from tests.cli.fake_router import USAGE
from zipmoe.v1 import generation_pb2 as pb


def token(text: str = "", reasoning: str = "", *calls: pb.ToolCallDelta) -> pb.GeneratedToken:
    return pb.GeneratedToken(token_id=1, text=text, reasoning=reasoning, tool_calls=calls)


def part(index: int, arguments: str, name: str = "") -> pb.ToolCallDelta:
    return pb.ToolCallDelta(index=index, id=f"id{index}" if name else "", name=name, arguments=arguments)


def finished(
    reason: pb.FinishReason = pb.FINISH_REASON_STOP, stop_string: str = "", text: str = "", *calls: pb.ToolCallDelta
) -> pb.GenerationFinished:
    return pb.GenerationFinished(reason=reason, text=text, usage=USAGE, stop_string=stop_string, tool_calls=calls)


ARGUMENTS = '{"city": "Paris", "days": [1, 2]}'
ANSWER = [
    token(reasoning="Hm"),
    token(reasoning=", yes"),
    token("So: "),
    token("wait"),
    token("", "", part(0, "", "weather")),
    token("", "", part(0, ARGUMENTS[:9])),
    token("", "", part(0, ARGUMENTS[9:]), part(1, "{}", "stop")),
]
"""Reasoning, text and two calls."""


class City(BaseModel):
    """A schema that clients send, and read the answer with."""

    name: str


class Event(NamedTuple):
    """What one token, or the end, carries."""

    text: str
    reasoning: str
    calls: Sequence[pb.ToolCallDelta]


def _pieces() -> list[tuple[str, str]]:
    """The answer character by character: where it goes, and the character; calls begin with an empty one."""
    call = [("0", character) for character in ARGUMENTS]
    return [
        *(("reasoning", character) for character in "Hm, yes"),
        *(("text", character) for character in "So: wait"),
        ("weather", ""), *call, ("stop", ""), ("1", "{"), ("1", "}"),
    ]  # fmt: skip


@strategies.composite
def cut_answers(draw: Any) -> list[Event]:
    """The answer in any number of events, cut anywhere."""
    pieces = _pieces()
    cuts = draw(strategies.sets(strategies.integers(1, len(pieces) - 1)))
    bounds = [0, *sorted(cuts), len(pieces)]
    events = []
    for begin, end in pairwise(bounds):
        texts: dict[str, str] = {"text": "", "reasoning": ""}
        calls: list[pb.ToolCallDelta] = []
        for kind, character in pieces[begin:end]:
            if kind in texts:
                texts[kind] += character
            elif kind in ("weather", "stop"):
                calls.append(part(0 if kind == "weather" else 1, "", kind))
            elif calls and calls[-1].index == int(kind):
                calls[-1].arguments += character
            else:
                calls.append(part(int(kind), character))
        events.append(Event(texts["text"], texts["reasoning"], calls))
    return events
