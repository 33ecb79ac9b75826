"""`zipmoe up --memory-budget`: plans by what this machine takes, and all three services divide alike."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from tests.cli.run import zipmoe, zipmoe_process
from tests.integration.stacks.stack import PackedModel, StockModel
from tests.integration.stacks.up import Up, running_up
from zipmoe.cli.watching.scrape import Samples, read_samples

LIMITS = ("--kv-tokens", 1024, "--max-prompt-tokens", 256, "--workers", 2)
GREEDY = ("--temperature", 0, "--top-p", 1, "--top-k", 0, "--min-p", 0, "--repetition-penalty", 1)
PROMPT = [5, 17, 29, 41, 53]


def smallest_budget(store: Path, verb: str) -> int:
    """What a verb says the smallest feasible budget is, in MiB, from its refusal of a smaller one."""
    ran = zipmoe(verb, store, "--memory-budget", "100MiB", *LIMITS, "--json")
    assert (ran.exit_code, ran.error["class"]) == (2, "BudgetInfeasible"), ran.stderr
    found = re.search(r"the smallest feasible one is (\d+\.\d+) GiB", ran.error["message"])
    assert found is not None
    return round(float(found[1]) * 1024)


def divided(up: Up) -> dict[str, str]:
    """The slots that each service was started with, from its log."""
    slots = {}
    for name, service in up.services.items():
        found = re.search(r"event=starting .*cache_slots=(\d+:\d+:\d+)", Path(str(service["log"])).read_text())
        assert found is not None, name
        slots[name] = found[1]
    return slots


def allocated(up: Up) -> str:
    """The slots that there are, from the metrics of those who own them."""
    samples = Samples(
        sample
        for name in ("expert-store", "decoder")
        for sample in read_samples(int(str(up.services[name]["metrics_port"])))
    )
    return ":".join(f"{samples.total('zipmoe_arena_slots', pool=pool):.0f}" for pool in ("e", "sm", "tensor"))


def test_a_budget_is_planned_and_all_three_services_agree_on_the_slots(
    packed: Callable[[str], PackedModel], stock_of: Callable[[PackedModel], StockModel], short_folder: Path
) -> None:
    model = packed("qwen2_moe")
    smallest = smallest_budget(model.store, "up")
    assert smallest == smallest_budget(model.store, "plan")
    budget = ("--memory-budget", f"{smallest + 12}MiB", *LIMITS)
    with running_up(model.store, short_folder, *budget) as up:
        (slots,) = set(divided(up).values())
        assert allocated(up) == slots
        assert (
            f"event=decoder_attached decoder=unix:{short_folder}/decoder.sock slots={slots}"
            in Path(str(up.services["router"]["log"])).read_text()
        )
        ids = ",".join(map(str, PROMPT))
        ran = zipmoe_process(
            "generate", "--token-ids", ids, "-n", 8, "--ignore-eos", *GREEDY, "--json", env=up.environment
        )
        assert tuple(ran.json["token_ids"]) == stock_of(model).generate(PROMPT, 8).token_ids
    planned = zipmoe("plan", model.store, *budget, "--cache-slots", slots, "--json").json
    assert planned["cache_slots"] == slots
    assert planned["memory_budget_bytes"] == (smallest + 12) << 20


def test_slots_that_a_budget_cannot_hold_are_refused_before_anything_starts(
    packed: Callable[[str], PackedModel], short_folder: Path
) -> None:
    store = packed("qwen2_moe").store
    budget = ("--memory-budget", f"{smallest_budget(store, 'up') + 12}MiB", *LIMITS)
    ran = zipmoe("up", store, *budget, "--cache-slots", "9000:9000:9000", "--runtime-dir", short_folder, "--json")
    assert (ran.exit_code, ran.error["class"]) == (2, "BudgetInfeasible")
    assert "9000 for E-chunks, 9000 for SM-chunks, 9000 for tensors" in json.dumps(ran.error)
    assert not any(short_folder.iterdir())
