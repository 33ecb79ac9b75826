"""What `--trace` records is what the gates chose, for `zipmoe simulate` to replay; a full disk ends it, and only it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from tests.cli.run import zipmoe
from tests.integration.conftest import TIGHT
from tests.integration.stacks.gates import chosen_experts
from tests.integration.stacks.stack import PackedModel, StockModel, generate, stack
from tests.integration.stacks.up import running_up
from tests.small_disk import small_disk
from zipmoe.client import GenerationClient
from zipmoe.residency.pools import Phase
from zipmoe.simulation.trace import RoutedPass, read_trace

PROMPT = [17, 3, 99, 250, 31, 8, 41]


def recorded(trace: Path) -> list[RoutedPass]:
    with trace.open() as lines:
        return list(read_trace(lines))


def test_a_trace_holds_the_choices_of_the_gates_and_can_be_simulated(
    packed: Callable[[str], PackedModel],
    stock_of: Callable[[PackedModel], StockModel],
    short_folder: Path,
    tmp_path: Path,
) -> None:
    model, trace, tokens = packed("qwen2_moe"), tmp_path / "trace.jsonl", 9
    # Rows of drafted tokens would be traced too.
    flags = ("--cache-slots", "7:6:5", "--speculate", "off", "--trace", trace)
    with running_up(model.store, short_folder, *flags) as up:
        with GenerationClient(f"unix:{short_folder / 'router.sock'}") as client:
            answer = generate(client, PROMPT, tokens)
        up.process.send_signal(signal.SIGTERM)
        assert up.end() == (0, "")
    stock = stock_of(model)
    with chosen_experts(stock.model) as chosen:
        assert stock.generate(PROMPT, tokens) == answer
    layers = len(chosen)
    assert [routed.experts for routed in recorded(trace)] == [
        chosen[layer][step] for step in range(tokens) for layer in range(layers)
    ]
    assert [routed[:3] + routed[4:] for routed in recorded(trace)] == [
        (step, layer, Phase.DECODE if step else Phase.PREFILL, 1 if step else len(PROMPT))
        for step in range(tokens)
        for layer in range(layers)
    ]
    ran = zipmoe("simulate", trace, "--capacity", 0.5, "--json")
    assert ran.exit_code == 0, ran.stderr
    misses = {row["policy"]: row["misses"] for row in ran.json["rows"]}
    assert misses.keys() >= {"adaptive", "zipmoe", "lru", "lfu", "fifo", "marking", "belady"}
    assert misses["belady"] == min(misses.values()) > 0


def test_a_full_disk_ends_the_trace_at_a_whole_line_and_serving_goes_on(
    packed: Callable[[str], PackedModel],
    stock_of: Callable[[PackedModel], StockModel],
    short_folder: Path,
    tmp_path: Path,
) -> None:
    model = packed("qwen2_moe")
    with small_disk(tmp_path, "8k") as disk:
        trace = disk / "trace.jsonl"
        with stack(model, short_folder, TIGHT, trace=trace) as running, GenerationClient(running.target) as client:
            log = running.process("router").log_path
            while "event=trace_ended" not in log.read_text():
                assert generate(client, PROMPT, 12) == stock_of(model).generate(PROMPT, 12)
            assert generate(client, PROMPT, 12) == stock_of(model).generate(PROMPT, 12)
        assert len(recorded(trace)) > 3
        assert trace.read_bytes().endswith(b"\n")
