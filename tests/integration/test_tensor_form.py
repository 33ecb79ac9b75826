"""Experts that the decoder recovers to an in-memory form: the router answers as stock does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.stacks.stack import PackedModel, StockModel, generate, pack_family, stack
from zipmoe.cli.flags import Settings
from zipmoe.cli.watching.scrape import Samples, read_samples
from zipmoe.client import GenerationClient
from zipmoe.model.build.dense_forms import form_of_machine
from zipmoe.model.linear.native_linear import Linears

WIDE = {"hidden_size": 256, "moe_intermediate_size": 128}
PROMPTS = ([17, 3, 99, 250, 31, 8, 41], [5], [200, 201, 17, 60, 61, 62, 63, 64, 90, 45, 123, 12, 77])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    return pack_family("qwen2_moe", tmp_path_factory.mktemp("wide"), **WIDE)


@pytest.fixture(scope="module")
def form() -> str:
    found = form_of_machine(Linears(), 256, 128)
    if found is None:
        pytest.skip("no in-memory form has the bits of this machine's torch")
    return found.name


@pytest.mark.parametrize("slots", ["8:8:64", "7:6:5"], ids=["all experts fit", "experts come and go"])
def test_tokens_and_log_probabilities_equal_stock(
    slots: str, form: str, wide: PackedModel, stock_of: Callable[[PackedModel], StockModel], short_folder: Path
) -> None:
    stock = stock_of(wide)
    settings: Settings = {"cache_slots": slots, "workers": 2, "tensor_form": form}
    with stack(wide, short_folder, settings) as running, GenerationClient(running.target) as client:
        for prompt in PROMPTS * 2:
            assert generate(client, prompt, 12) == stock.generate(prompt, 12)
        assert running.metric("decoder", "zipmoe_decoder_recoveries_total") > 0
        samples = Samples(read_samples(running.process("router").spec.metrics_port))
        assert samples.total("zipmoe_expert_hits_total", residency="full") > 0, "no expert was computed from the form"
