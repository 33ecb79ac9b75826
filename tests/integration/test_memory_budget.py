"""The memory budget is a ceiling: all that `zipmoe up` starts runs to the end in a cgroup of exactly that size."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.benchmarks.real_cgroup import real_cgroup
from tests.cli.run import command, zipmoe_process
from zipmoe.errors import BudgetInfeasible
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.model.synth.writer import synthesise
from zipmoe.planning.memory_split import BudgetRequest, split_budget
from zipmoe.process.budgeted import read_model_config
from zipmoe.store.format.manifest import read_manifest
from zipmoe.store.pack.writer import pack_store

pytestmark = pytest.mark.slow

PROMPT_TOKENS, NEW_TOKENS, KV_TOKENS = 2000, 8, 2048
WORKERS = 2


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with room for a long prompt."""
    folder = tmp_path_factory.mktemp("long")
    synthesise("qwen2_moe", folder / "checkpoint", seed=3, overrides={"max_position_embeddings": 4096})
    pack_store(catalogue(folder / "checkpoint"), folder / "store")
    return folder / "store"


def smallest_budget(store: Path) -> int:
    """The least that `up` accepts for this store and these prompts, in bytes."""
    request = BudgetRequest(1, kv_tokens=KV_TOKENS, prompt_tokens=PROMPT_TOKENS, worker_count=WORKERS)
    with pytest.raises(BudgetInfeasible) as refused:
        split_budget(manifest := read_manifest(store), read_model_config(store, manifest), request)
    return refused.value.smallest_bytes


@pytest.mark.parametrize("policy", ["adaptive", pytest.param("marking", marks=pytest.mark.extra)])
def test_the_smallest_budget_holds_two_long_prompts(
    policy: str, store: Path, short_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget_bytes = smallest_budget(store)
    budget = ("--memory-budget", budget_bytes, "--kv-tokens", KV_TOKENS, "--max-prompt-tokens", PROMPT_TOKENS)
    experts = ("--cache-slots", "rule", "--policy", policy, "--prefetch", 2)
    place = ("--runtime-dir", short_folder, "--listen", "", "--metrics-port", 0, *experts)
    up = command("up", store, *budget, *place, "--workers", WORKERS, "--threads", 1, "--device", "cpu", "--json")
    with real_cgroup(budget_bytes) as cgroup:
        with cgroup.popen(up, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline(), process.communicate()[1]
            for seed in range(2):
                prompt = ",".join(str((index * 7 + seed * 3) % 500) for index in range(PROMPT_TOKENS))
                generation = ("generate", "--token-ids", prompt, "-n", NEW_TOKENS, "--ignore-eos", "--json")
                ran = zipmoe_process(*generation, env={"ZIPMOE_RUNTIME_DIR": str(short_folder)})
                assert ran.exit_code == 0, ran.stderr
                assert len(ran.json["token_ids"]) == NEW_TOKENS
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate()
            assert process.returncode == 0, stderr
        usage = cgroup.usage()
    with capsys.disabled():
        print(f"\n{usage}")
    assert usage.oom_kills == 0
    assert usage.peak_held_bytes < budget_bytes
