"""Whatever JSON a client sends, a body is read or refused, and nothing else is raised."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.services.gateway.running import MODEL, USER
from zipmoe.services.gateway.http_problem import HttpProblem
from zipmoe.services.gateway.json_frames import to_json
from zipmoe.services.gateway.request_body.body_field import BodyField
from zipmoe.services.gateway.request_body.generation_body import GenerationBody
from zipmoe.services.gateway.request_body.message_body import MESSAGE_FIELDS, parse_message
from zipmoe.services.gateway.request_body.openai_body import parse_chat, parse_completion
from zipmoe.services.gateway.request_body.openai_fields import CHAT_FIELDS, COMPLETION_FIELDS
from zipmoe.services.gateway.request_body.response_body import RESPONSE_FIELDS, parse_response
from zipmoe.services.gateway.request_body.tokenize_body import parse_detokenize, parse_tokenize

WORDS = [
    "type", "role", "content", "text", "name", "id", "input", "function", "parameters", "input_schema", "format",
    "schema", "effort", "call_id", "arguments", "output", "tool_use_id", "thinking", "summary", "tools", "messages",
    "prompt", "tokens", "user", "assistant", "system", "message", "reasoning", "function_call", "function_call_output",
    "tool_use", "tool_result", "input_text", "output_text", "json_schema", "auto", "tool", "custom", "enabled",
]  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.sampled_from(WORDS) | st.text(max_size=3)
VALUES = st.recursive(
    LEAVES | TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)
BODIES: list[tuple[Callable[[bytes], GenerationBody], Mapping[str, BodyField], dict[str, Any]]] = [
    (parse_chat, CHAT_FIELDS, {"model": MODEL, "messages": [USER]}),
    (parse_completion, COMPLETION_FIELDS, {"model": MODEL, "prompt": "Hi"}),
    (parse_response, RESPONSE_FIELDS, {"model": MODEL, "input": "Hi"}),
    (parse_message, MESSAGE_FIELDS, {"model": MODEL, "messages": [USER]}),
]


@pytest.mark.parametrize(("parse", "table", "plain"), BODIES, ids=[parse.__name__ for parse, _, _ in BODIES])
@given(data=st.data())
def test_a_generation_is_read_or_refused(
    parse: Callable[[bytes], GenerationBody], table: Mapping[str, BodyField], plain: dict[str, Any], data: st.DataObject
) -> None:
    # Fields that are translated come first: of the others, hardly any value is read.
    names = st.sampled_from(sorted(name for name, field in table.items() if field.read is not None))
    fields = data.draw(st.dictionaries(names, VALUES, min_size=1, max_size=3))
    with contextlib.suppress(HttpProblem):
        to_json(dict(parse(json.dumps({**plain, **fields}).encode()).settings))


@pytest.mark.parametrize("parse", [parse_tokenize, parse_detokenize])
@given(fields=st.dictionaries(TEXTS, VALUES, max_size=4) | VALUES)
def test_other_bodies_are_read_or_refused(parse: Callable[[bytes], object], fields: Any) -> None:
    with contextlib.suppress(HttpProblem):
        parse(json.dumps(fields).encode())
