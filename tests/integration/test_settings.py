"""Policies, orders of fetching, guesses, pools and codecs change what is in memory when, and never a token."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.calibration.measurement_time import TINY
from tests.integration.stacks.stack import PackedModel, StockModel, generate, stack
from zipmoe.calibration.measure import calibrate
from zipmoe.client import GenerationClient
from zipmoe.codec.registry import create_codec
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.store.pack.writer import PackOptions, pack_store

PROMPTS = ([17, 3, 99, 250, 31, 8, 41], [5])
TOKENS = 12

#: A router takes seven seconds to start: what is marked runs on request only.
extra = pytest.mark.extra  # each takes a router

#: Each value of each setting at least once.
ROUTERS = [
    pytest.param({"policy": "zipmoe", "scheduler": "fifo", "prefetch": "1"}),
    pytest.param({"policy": "lru", "scheduler": "block", "prefetch": "2", "fill": "off"}),
    pytest.param({"policy": "marking", "scheduler": "block", "prefetch": "auto"}, marks=extra),
    pytest.param({"policy": "adaptive", "scheduler": "block", "prefetch": "0"}, marks=extra),
    pytest.param({"policy": "lfu", "scheduler": "fifo", "prefetch": "auto"}, marks=extra),
    pytest.param({"policy": "fifo", "scheduler": "block", "prefetch": "1"}, marks=extra),
]


@pytest.fixture(scope="module")
def calibrated(packed: Callable[[str], PackedModel]) -> PackedModel:
    """A tiny Qwen on a machine that has been measured: without figures there is no order but that of the asking."""
    model = packed("qwen2_moe")
    calibrate(model.store, "cpu", TINY)
    return model


@pytest.mark.parametrize("router", ROUTERS, ids=lambda router: "-".join(router.values()))
def test_policy_order_and_guesses_never_show_in_an_answer(
    router: dict[str, str], calibrated: PackedModel, stock_of: Callable[[PackedModel], StockModel], short_folder: Path
) -> None:
    shared = {"cache_slots": "7:6:2", "workers": 2}
    with stack(calibrated, short_folder, shared, **router) as running, GenerationClient(running.target) as client:
        for prompt in PROMPTS:
            assert generate(client, prompt, TOKENS) == stock_of(calibrated).generate(prompt, TOKENS)
        assert running.metric("router", "zipmoe_expert_misses_total") > 0
        guessed = running.metric("router", "zipmoe_prefetches_total")
        depth = running.metric("router", "zipmoe_prefetch_depth")
        assert running.metric("router", "zipmoe_forecast_time_per_token_seconds") > 0
        assert "not_calibrated" not in running.process("router").log_path.read_text()
    if router["prefetch"] != "auto":
        assert (depth, guessed > 0) == (int(router["prefetch"]), router["prefetch"] != "0")


@pytest.fixture(scope="module")
def repacked(packed: Callable[[str], PackedModel]) -> Iterator[Callable[[str, str], PackedModel]]:
    """A tiny model of a family, packed with a codec."""
    folder = Path(tempfile.mkdtemp(prefix="zipmoe-"))

    def get(family: str, codec: str) -> PackedModel:
        checkpoint = packed(family).checkpoint
        model = PackedModel(checkpoint, folder / f"{family}-{codec}")
        pack_store(catalogue(checkpoint), model.store, PackOptions(codec=create_codec(codec)))
        return model

    yield get
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("family", "codec", "slots"),
    [
        pytest.param("qwen2_moe", "cascade", "5:6:64", marks=extra),
        ("deepseek_v2", "cascade", "5:6:0"),
        ("switch_transformers", "zstd", "2:2:5"),
        pytest.param("qwen2_moe", "cascade", "6:5:0", marks=extra),
        pytest.param("qwen2_moe", "zstd", "4:4:6", marks=extra),
        pytest.param("deepseek_v2", "zstd", "4:3:64", marks=extra),
        pytest.param("switch_transformers", "cascade", "3:4:0", marks=extra),
    ],
)
def test_pools_and_codecs_never_show_in_an_answer(
    family: str,
    codec: str,
    slots: str,
    repacked: Callable[[str, str], PackedModel],
    stock_of: Callable[[PackedModel], StockModel],
    short_folder: Path,
) -> None:
    model = repacked(family, codec)
    tensors = int(slots.rpartition(":")[2])
    # Not filled: where all tensors have a slot, nothing would be missing.
    with (
        stack(model, short_folder, {"cache_slots": slots, "workers": 2}, fill="off") as running,
        GenerationClient(running.target) as client,
    ):
        for prompt in PROMPTS:
            assert generate(client, prompt, TOKENS) == stock_of(model).generate(prompt, TOKENS)
        recovered = running.metric("decoder", "zipmoe_decoder_recoveries_total")
        assert running.metric("router", "zipmoe_expert_misses_total") > 0
        # What cannot be computed from its chunks is recovered; what can be is only where there is room for it.
        assert (recovered > 0) == (tensors > 0)
