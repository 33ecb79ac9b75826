"""Slots are filled after the start, without any request; who comes then finds its experts there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.integration.conftest import ROOMY
from tests.integration.stacks.stack import PackedModel, Stack, StockModel, generate, stack
from zipmoe.cli.watching.scrape import Samples, read_samples
from zipmoe.client import GenerationClient

PROMPT = [17, 3, 99, 250, 31, 8, 41]


def samples(running: Stack) -> Samples:
    """What the router tells now."""
    return Samples(read_samples(running.process("router").spec.metrics_port))


def resident(now: Samples) -> float:
    """Experts that can be computed with."""
    return sum(now.total("zipmoe_experts_resident", state=state) for state in ("packed", "full"))


def read_for(now: Samples) -> dict[str, float]:
    """Bytes that experts were read in, by what for."""
    return {why: now.total("zipmoe_expert_read_bytes_total", reason=why) for why in ("need", "prefetch", "fill")}


def test_the_first_request_misses_nothing_where_everything_fits(
    packed: Callable[[str], PackedModel], stock_of: Callable[[PackedModel], StockModel], short_folder: Path
) -> None:
    model = packed("qwen2_moe")
    with stack(model, short_folder, ROOMY) as running, GenerationClient(running.target) as client:
        while samples(running).total("zipmoe_experts_resident", state="absent"):
            pass
        assert generate(client, PROMPT, 10) == stock_of(model).generate(PROMPT, 10)
        now, read = samples(running), running.metric("expert-store", "zipmoe_store_read_bytes_total")
    assert now.total("zipmoe_expert_misses_total") == 0
    assert read_for(now) == {"need": 0, "prefetch": 0, "fill": read}


def test_filling_ends_when_no_slot_is_free(
    packed: Callable[[str], PackedModel], stock_of: Callable[[PackedModel], StockModel], short_folder: Path
) -> None:
    model = packed("qwen2_moe")
    shared = {"cache_slots": "6:6:6", "workers": 2}
    with stack(model, short_folder, shared) as running, GenerationClient(running.target) as client:
        # Through the six chunk slots first those that become tensors, then those that stay there.
        while (now := samples(running)).total("zipmoe_experts_resident", state="packed") < 6 or resident(now) < 12:
            pass
        assert now.total("zipmoe_free_slots") == 0
        assert now.total("zipmoe_expert_evictions_total", pool="tensor") == 0
        read = read_for(now)
        assert read["fill"] == running.metric("expert-store", "zipmoe_store_read_bytes_total") > 0
        assert generate(client, PROMPT, 10) == stock_of(model).generate(PROMPT, 10)
        now = samples(running)
    assert now.total("zipmoe_expert_misses_total") > 0
    # A read for an announced expert is a prefetch, also of a missed one. Timing decides how many are.
    assert read_for(now)["need"] + read_for(now)["prefetch"] > 0
    # A slot that a request leaves free may be filled again; no tensor ever makes way for that.
    assert now.total("zipmoe_expert_evictions_total", pool="tensor", reason="fill") == 0


def test_slots_stay_free_where_they_are_not_to_be_filled(
    packed: Callable[[str], PackedModel], short_folder: Path
) -> None:
    only_needed = {"fill": "off", "prefetch": "0"}
    with (
        stack(packed("qwen2_moe"), short_folder, ROOMY, **only_needed) as running,
        GenerationClient(running.target) as client,
    ):
        generate(client, PROMPT, 1)
        now = samples(running)
    # Where slots are filled, that begins before the first request can come.
    assert now.total("zipmoe_expert_misses_total") > 0
    assert now.total("zipmoe_free_slots") > 0
    assert read_for(now)["fill"] == 0 < read_for(now)["need"]
