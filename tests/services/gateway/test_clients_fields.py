"""Fields that clients of other servers send: neutral values change nothing, and others are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli.fake_router import FakeRouter
from tests.services.gateway.running import MODEL, USER, front
from zipmoe.errors import ContextLengthExceeded

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"

LLAMA_CPP: dict[str, Any] = {
    "n_predict": -1,
    "n_keep": 0,
    "min_keep": 0,
    "typical_p": 1.0,
    "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0,
    "xtc_probability": 0.0,
    "xtc_threshold": 0.1,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "dry_multiplier": 0.0,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": -1,
    "grammar": "",
    "cache_prompt": True,
    "id_slot": -1,
    "timings_per_token": False,
    "return_progress": False,
    "lora": [],
}
VLLM: dict[str, Any] = {
    "use_beam_search": False,
    "length_penalty": 1.0,
    "early_stopping": False,
    "include_stop_str_in_output": False,
    "spaces_between_special_tokens": True,
    "truncate_prompt_tokens": None,
    "prompt_logprobs": None,
    "guided_json": None,
    "guided_regex": None,
    "guided_choice": None,
    "guided_decoding_backend": "auto",
    "bad_words": [],
    "priority": 0,
    "return_tokens_as_token_ids": False,
}
SGLANG_AND_TGI: dict[str, Any] = {
    "regex": None,
    "ebnf": None,
    "no_stop_trim": False,
    "separate_reasoning": True,
    "watermark": False,
    "top_n_tokens": 0,
    "return_full_text": False,
}
OLLAMA_AND_INTERFACES: dict[str, Any] = {
    "keep_alive": "5m",
    "think": False,
    "options": {},
    "ttl": 300,
    "draft_model": None,
    "transforms": [],
    "provider": {"order": ["any"]},
    "chat_id": "6b1f",
    "session_id": "x",
    "background_tasks": {"title_generation": True},
}
NEUTRAL = {**LLAMA_CPP, **VLLM, **SGLANG_AND_TGI, **OLLAMA_AND_INTERFACES}


def test_the_neutral_fields_are_54() -> None:
    assert len(NEUTRAL) == 54


@pytest.mark.parametrize("path", [CHAT, PLAIN])
async def test_fields_of_other_servers_at_neutral_values_change_nothing(path: str) -> None:
    body = {"model": MODEL, "messages": [USER]} if path == CHAT else {"model": MODEL, "prompt": "Hi"}
    async with front() as gateway, gateway.http() as http:
        for fields in ({}, *({name: value} for name, value in NEUTRAL.items()), NEUTRAL, dict.fromkeys(NEUTRAL)):
            answer = await http.post(path, json={**body, **fields})
            assert answer.status_code == 200, (fields, answer.text)
    asked = []
    for request in gateway.router.requests:
        request.request_id = ""
        asked.append(request)
    assert len(asked) == 57
    assert all(request == asked[0] for request in asked)


@pytest.mark.parametrize(
    ("fields", "neutral"),
    [
        ({"max_tokens": 8.0}, {"max_tokens": 8}),
        ({"max_tokens": -1}, {}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"stop": [""]}, {}),
        ({"stop": ["", "x"]}, {"stop": "x"}),
        ({"top_logprobs": 0}, {}),
        ({"logprobs": False, "top_logprobs": 0}, {}),
        ({"seed": -1}, {}),
        ({"n": 1.0, "logit_bias": {}}, {}),
        ({"tool_choice": "auto", "functions": [], "stream_options": None}, {}),
        ({"something_new": None, "another": False, "list": [], "object": {}, "text": ""}, {}),
        ({"max_tokens": 10**12}, {"max_tokens": 2**32 - 1}),
        ({"max_tokens": 10**400}, {"max_tokens": 2**32 - 1}),
        ({"seed": 10**400 * 2**64 + 5}, {"seed": 5}),
    ],
)
async def test_values_of_other_forms_mean_the_same(fields: dict[str, Any], neutral: dict[str, Any]) -> None:
    async with front() as gateway, gateway.http() as http:
        for each in (fields, neutral):
            answer = await http.post(CHAT, json={"model": MODEL, "messages": [USER], **each})
            assert answer.status_code == 200, answer.text
    first, second = gateway.router.requests
    first.request_id = second.request_id = ""
    assert first == second


async def test_messages_as_clients_send_them_back_are_taken() -> None:
    messages = [
        {"role": "user", "name": "anna", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "x"}}]},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": None},
        {"role": "assistant", "refusal": None, "annotations": [], "audio": None, "function_call": None},
        {"role": "user", "content": "Well?", "cache_control": {"type": "ephemeral"}},
    ]
    async with front() as gateway, gateway.http() as http:
        answer = await http.post(CHAT, json={"model": MODEL, "messages": messages})
    assert answer.status_code == 200, answer.text
    asked = gateway.router.requests[0].prompt.conversation.messages
    turns = [(turn.role, turn.content, list(turn.parts), turn.reasoning) for turn in asked]
    assert turns == [
        ("user", "", ["Hi"], ""),
        ("assistant", "", [], "hm"),
        ("assistant", "", [], ""),
        ("user", "Well?", [], ""),
    ]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_of_a_key_is_taken_in_any_case(scheme: str) -> None:
    async with front(api_key="s3cret") as gateway, gateway.http() as http:
        answer = await http.get("/v1/models", headers={"authorization": f"{scheme} s3cret"})
        wrong = await http.get("/v1/models", headers={"authorization": f"{scheme} s3cre"})
        basic = await http.get("/v1/models", headers={"authorization": "Basic s3cret"})
    assert [each.status_code for each in (answer, wrong, basic)] == [200, 401, 401]


async def test_a_prompt_above_the_context_has_openais_code_and_sentence() -> None:
    refusal = ContextLengthExceeded(
        "this model's maximum context length is 2048 tokens, but the prompt has 3004 tokens"
    )
    async with front(FakeRouter(refusal=refusal)) as gateway, gateway.http() as http:
        answer = await http.post(CHAT, json={"model": MODEL, "messages": [USER], "stream": True})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["message"].startswith("This model's maximum context length is 2048 tokens, but the prompt has 3004")


async def test_the_list_of_models_tells_the_limits() -> None:
    async with front() as gateway, gateway.http() as http:
        (card,) = (await http.get("/v1/models")).json()["data"]
    assert (card["max_model_len"], card["context_length"], card["max_prompt_tokens"]) == (64, 64, 48)
