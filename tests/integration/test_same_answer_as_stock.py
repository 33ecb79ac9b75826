"""Invariant 2: what the three processes generate is what stock transformers generates, to the last bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.conftest import ROOMY, TIGHT
from tests.integration.stacks.stack import GREEDY, PackedModel, Stack, StockModel, generate, stack
from zipmoe.client import GenerationClient, Output, Started, Stopping
from zipmoe.model.synth.configs import FAMILIES
from zipmoe.store.format.manifest import read_manifest

PROMPTS = ([17, 3, 99, 250, 31, 8, 41], [5], [200, 201, 17, 60, 61, 62, 63, 64, 90, 45, 123, 12, 77])


#: Through three processes: the paper's models, each path and each repair once. `zipmoe families` compares every type.
ORDINARY = ("deepseek_v2", "switch_transformers", "qwen3_5_moe", "gemma4", "longcat_flash")
JOINED = {
    "qwen3_5_moe", "gemma4", "longcat_flash", "nemotron_h", "dbrx", "nllb-moe", "jetmoe", "mimo_v2_flash",
    "deepseek_v32", "minimax",
}  # fmt: skip
THOROUGH = (
    "glm4_moe_lite", "nemotron_h", "qwen3_vl_moe", "dbrx", "nllb-moe", "jetmoe", "mimo_v2_flash", "deepseek_v32",
    "minimax", *(family for family in FAMILIES if family not in ORDINARY),
)  # fmt: skip


@pytest.mark.parametrize("family", [*ORDINARY, *(pytest.param(each, marks=pytest.mark.extra) for each in THOROUGH)])
def test_tokens_and_log_probabilities_equal_stock_in_every_family(
    family: str,
    packed: Callable[[str], PackedModel],
    stock_of: Callable[[PackedModel], StockModel],
    short_folder: Path,
) -> None:
    model = packed(family)
    stock = stock_of(model)
    with stack(model, short_folder, TIGHT) as running, GenerationClient(running.target) as client:
        assert client.model().compute_path == ("joined" if family in JOINED else "shared")
        for prompt in PROMPTS:
            assert generate(client, prompt, 12) == stock.generate(prompt, 12)
        if read_manifest(model.store).expert_count > 16:  # fewer may all have been fetched before the first request
            assert running.metric("router", "zipmoe_expert_misses_total") > 0


def test_the_cache_state_never_shows_in_an_answer(
    qwen: Stack, packed: Callable[[str], PackedModel], stock_of: Callable[[PackedModel], StockModel]
) -> None:
    stock = stock_of(packed("qwen2_moe"))
    wanted = [stock.generate(prompt, 8) for prompt in PROMPTS]
    with GenerationClient(qwen.target) as client:
        for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 0, 0)):
            for index in order:
                assert generate(client, PROMPTS[index], 8) == wanted[index]


def test_requests_that_run_in_turn_answer_as_if_they_were_alone(
    qwen: Stack, packed: Callable[[str], PackedModel], stock_of: Callable[[PackedModel], StockModel]
) -> None:
    stock = stock_of(packed("qwen2_moe"))
    wanted = [stock.generate(prompt, 16) for prompt in PROMPTS]
    with GenerationClient(qwen.target) as client, ThreadPoolExecutor(6) as threads:
        answers = threads.map(lambda prompt: generate(client, prompt, 16), PROMPTS * 2)
        assert list(answers) == wanted * 2


def test_perplexity_equals_stock_to_the_last_bit(
    qwen: Stack, packed: Callable[[str], PackedModel], stock_of: Callable[[PackedModel], StockModel]
) -> None:
    prompt = [(7 * i * i + 3) % 400 + 20 for i in range(90)]
    with GenerationClient(qwen.target) as client:
        events = client.generate(
            prompt, sampling=GREEDY, stopping=Stopping(max_new_tokens=0), output=Output(prompt_logprobs=True)
        )
        started = next(event for event in events if isinstance(event, Started))
    wanted = stock_of(packed("qwen2_moe")).prompt_logprobs(prompt)
    assert started.prompt_logprobs == wanted
    perplexity = [math.exp(-math.fsum(each) / len(each)) for each in (started.prompt_logprobs, wanted)]
    assert perplexity[0] == perplexity[1]


def test_a_model_that_fits_needs_no_message_after_it_has_been_read_once(
    packed: Callable[[str], PackedModel], short_folder: Path
) -> None:
    # Without guesses and fills: those may read an expert that the first answer has not used.
    with (
        stack(packed("qwen2_moe"), short_folder, ROOMY, prefetch="0", fill="off") as running,
        GenerationClient(running.target) as client,
    ):
        first = generate(client, PROMPTS[0], 10)
        sent = running.metric("router", "zipmoe_fetch_messages_total")
        received = running.metric("decoder", "grpc_server_msg_received_total")
        assert sent > 0
        assert generate(client, PROMPTS[0], 10) == first
        assert running.metric("router", "zipmoe_fetch_messages_total") == sent
        assert running.metric("decoder", "grpc_server_msg_received_total") <= received + 2  # health probes
        read = running.metric("expert-store", "zipmoe_store_read_bytes_total")
        assert running.metric("router", "zipmoe_expert_read_bytes_total") == read > 0
