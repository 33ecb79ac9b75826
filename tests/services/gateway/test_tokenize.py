"""`/tokenize` and `/detokenize`, as clients of vLLM and of llama.cpp's server call them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.services.gateway.running import MODEL, USER, front
from zipmoe.v1 import generation_pb2 as pb


async def test_a_prompt_is_tokenized_in_the_form_of_either_server() -> None:
    async with front() as gateway, gateway.http() as http:
        ours = (await http.post("/tokenize", json={"model": MODEL, "prompt": "abc"})).json()
        llama = (await http.post("/tokenize", json={"content": "abc", "with_pieces": True})).json()
        strings = (await http.post("/tokenize", json={"prompt": "ab", "return_token_strs": True})).json()
    assert ours == {"tokens": [0, 1, 2], "count": 3, "max_model_len": 64}
    assert llama["tokens"] == [{"id": token_id, "piece": f"<{token_id}>"} for token_id in range(3)]
    assert strings["token_strs"] == ["<0>", "<1>"]


@pytest.mark.parametrize(
    ("fields", "special"),
    [
        ({"prompt": "a"}, True),
        ({"prompt": "a", "add_special_tokens": False}, False),
        ({"content": "a"}, False),
        ({"content": "a", "add_special": True}, True),
        ({"content": "a", "parse_special": True, "add_special_tokens": True}, True),
    ],
)
async def test_special_tokens_are_those_of_either_server(fields: dict[str, Any], special: bool) -> None:
    async with front() as gateway, gateway.http() as http:
        assert (await http.post("/tokenize", json=fields)).status_code == 200
    (asked,) = gateway.router.tokenized
    assert (asked.add_special_tokens if asked.HasField("add_special_tokens") else True) is special


async def test_a_conversation_is_tokenized_as_a_chat_is() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    fields = {
        "messages": [{"role": "system", "content": "x"}, USER], "tools": [tool], "add_generation_prompt": False,
        "chat_template_kwargs": {"a": 1}, "continue_final_message": True,
    }  # fmt: skip
    async with front() as gateway, gateway.http() as http:
        assert (await http.post("/tokenize", json=fields)).json()["count"] == 8
        await http.post("/v1/chat/completions", json={"model": MODEL, **fields})
    (asked,) = gateway.router.tokenized
    expected: pb.Prompt = gateway.router.requests[0].prompt
    assert asked.prompt == expected


async def test_token_ids_become_text() -> None:
    async with front() as gateway, gateway.http() as http:
        answer = await http.post("/detokenize", json={"model": MODEL, "tokens": [1, 2, 1]})
        empty = await http.post("/detokenize", json={"tokens": []})
    assert answer.json() == {"content": "<1><2><1>", "prompt": "<1><2><1>"}
    assert empty.json()["content"] == ""


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [USER]}, "messages"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": "no"}, "add_special_tokens"),
        ("/tokenize", {"content": "a", "parse_special": False}, "parse_special"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": "a", "unheard_of": 1}, "unheard_of"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
    ],
)
async def test_what_is_not_understood_is_refused_and_named(path: str, body: dict[str, Any], param: str) -> None:
    async with front() as gateway, gateway.http() as http:
        answer = await http.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert not gateway.router.tokenized and not gateway.router.detokenized


async def test_another_model_is_not_found_and_a_key_is_needed() -> None:
    async with front() as gateway, gateway.http() as http:
        for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
            assert (await http.post(path, json={**body, "model": "other"})).status_code == 404
            assert (await http.get(path)).status_code == 405
    async with front(api_key="s3cret") as gateway, gateway.http() as http:
        assert (await http.post("/tokenize", json={"prompt": "a"})).status_code == 401
