"""Refusals of memory budgets, of the verbs' own arguments, and of what a service needs when it starts."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.cli.run import Ran, zipmoe, zipmoe_process
from tests.properties.next_steps.bench import Bench, Steps, attempt, performs
from zipmoe.arena.headroom import memory_headroom
from zipmoe.calibration.calibrated_costs import calibrated_costs
from zipmoe.cli.planning.budget_settings import parse_budgeted
from zipmoe.cli.serving.instance_lock import instance_lock
from zipmoe.model.experts.device import resolve_device
from zipmoe.process.config import parse_config
from zipmoe.process.metrics import start_metrics_server
from zipmoe.process.runtime import runtime_directory
from zipmoe.process.secret_file import read_secret
from zipmoe.services.expert_store.config import StoreConfig
from zipmoe.services.router.experts.trace_file import TraceFile
from zipmoe.store.format.manifest import read_manifest

SPLIT = "zipmoe/planning/memory_split.py"
RUNTIME = "zipmoe/process/runtime.py"
SYNTH = "zipmoe/model/synth/writer.py"
CORRECT = "correct the named argument and call again"


def _plan(store: Path, budget: str, *options: object) -> Ran:
    return zipmoe("plan", store, "--memory-budget", budget, *options, "--json")


@performs(SPLIT, "a memory budget of {} cannot hold this model")
def a_budget_that_is_too_small(bench: Bench) -> Steps:
    refused = yield _plan(bench.store_of_all, "8MiB")
    assert refused.next_step.startswith("use the smallest feasible budget named in the message")
    match = re.search(r"the smallest feasible one is (\S+) GiB", refused.message)
    assert match is not None
    yield _plan(bench.store_of_all, f"{match[1]} GiB")


@performs(SPLIT, "a memory budget of {} cannot hold this model")
def a_budget_that_is_too_small_for_expanded_keys(bench: Bench) -> Steps:
    latent = bench.hub.get("deepseek_v2", layers=2, vocab=300)
    assert bench.pack(latent).exit_code == 0
    refused = yield _plan(bench.folder / "packed", "8MiB", "--kv-tokens", 65536)
    match = re.search(r"or (--kv-cache latent) on all three, with which (\S+) GiB are enough", refused.next_step)
    assert match is not None
    options = ("--kv-tokens", 65536, *match[1].split())
    yield _plan(bench.folder / "packed", f"{match[2]} GiB", *options)


@performs("zipmoe/process/budgeted.py", "a memory budget of {} bytes is more than this machine's")
def a_budget_of_a_larger_machine(bench: Bench) -> Steps:
    manifest = read_manifest(bench.store_of_all)

    def split(budget_bytes: int) -> Ran:
        settings = {"store": bench.store_of_all, "memory_budget": str(budget_bytes)}
        return attempt(lambda: parse_budgeted(settings, "up").split_here(manifest))

    refused = yield split(2 * memory_headroom().total_bytes)
    match = re.match(r"give a --memory-budget below (\d+)", refused.next_step)
    assert match is not None
    yield split(int(match[1]) - 1)


@performs("zipmoe/process/config.py", "{} in the configuration{}")
@performs("zipmoe/cli/planning/budget_settings.py", "{}")
def slots_that_are_no_numbers(bench: Bench) -> Steps:
    refused = yield _plan(bench.store_of_all, "4GiB", "--cache-slots", "many")
    assert refused.next_step == "see `zipmoe plan --help`"
    shown = zipmoe(*refused.next_step.split("`")[1].split()[1:])
    assert "--cache-slots" in shown.stdout
    yield shown
    yield _plan(bench.store_of_all, "4GiB", "--cache-slots", "8:8:0")


@performs("zipmoe/process/config.py", "1 problem in the configuration")
def a_flag_that_a_service_does_not_have(bench: Bench) -> Steps:
    flags = ["--store", str(bench.store_of_all)]
    refused = yield attempt(lambda: parse_config(StoreConfig, [*flags, "--io-thread", "2"]))
    assert refused.next_step == "see zipmoe expert-store --help"
    shown = zipmoe_process(*refused.next_step.split()[2:])
    assert "--io-threads" in shown.stdout
    yield shown
    yield attempt(lambda: parse_config(StoreConfig, [*flags, "--io-threads", "2"]))


@performs("zipmoe/cli/planning/plan.py", "device {} is not cpu or cuda")
def a_plan_for_an_unknown_device(bench: Bench) -> Steps:
    refused = yield _plan(bench.store_of_all, "4GiB", "--device", "tpu")
    assert refused.next_step == CORRECT
    yield _plan(bench.store_of_all, "4GiB", "--device", "cpu")


@performs("zipmoe/cli/chart.py", "plots are SVG files")
def a_plot_that_is_no_svg(bench: Bench) -> Steps:
    refused = yield _plan(bench.store_of_all, "4GiB", "--plot", bench.folder / "plot.png")
    assert refused.next_step == "name a file that ends in .svg"
    yield _plan(bench.store_of_all, "4GiB", "--plot", bench.folder / "plot.svg")


@performs("zipmoe/cli/device_choice.py", "device {} is not cpu, cuda or auto")
def a_calibration_on_an_unknown_device(bench: Bench) -> Steps:
    refused = yield zipmoe("calibrate", bench.store_of_all, "--device", "tpu", "--json")
    assert refused.next_step == CORRECT
    yield zipmoe("calibrate", bench.store_of_all, "--device", "cpu", "--json")


@performs("zipmoe/cli/size.py", "{} is not a size")
def a_size_in_words(bench: Bench) -> Steps:
    refused = yield zipmoe("synth", "qwen2_moe", bench.folder / "a", "--shard-size", "big", "--json")
    sizes = refused.next_step.removeprefix("write a size as ").replace(" or ", ", ").split(", ")
    assert len(sizes) == 4
    for index, size in enumerate(sizes):
        yield zipmoe("synth", "qwen2_moe", bench.folder / f"{index}", "--layers", 1, "--shard-size", size, "--json")


@performs("zipmoe/cli/stores/synth.py", "--set {} is not NAME=VALUE")
def a_setting_without_a_value(bench: Bench) -> Steps:
    yield from _synth(bench, CORRECT, ("--set", "num_experts"), ("--set", "num_experts=4"))


@performs(SYNTH, "the {} is {}, at least {} is needed")
def no_layers(bench: Bench) -> Steps:
    yield from _synth(bench, CORRECT, ("--layers", 0), ("--layers", 1))


@performs(SYNTH, "transformers refuses this {} configuration")
def a_setting_that_transformers_refuses(bench: Bench) -> Steps:
    yield from _synth(bench, "correct or leave out the values", ("--set", "num_attention_heads=many"), ())


@performs("zipmoe/model/synth/tokenizer_files.py", "a vocabulary of {} is too small")
def a_vocabulary_that_is_too_small(bench: Bench) -> Steps:
    refused = yield zipmoe("synth", "qwen2_moe", bench.folder / "made", "--vocab", 5, "--json")
    assert refused.next_step == CORRECT
    least = re.findall(r"\d+", refused.message)[-1]
    yield zipmoe("synth", "qwen2_moe", bench.folder / "made", "--layers", 1, "--vocab", least, "--json")


def _synth(bench: Bench, next_step: str, wrong: tuple[object, ...], right: tuple[object, ...]) -> Steps:
    refused = yield zipmoe("synth", "qwen2_moe", bench.folder / "made", *wrong, "--json")
    assert refused.next_step.startswith(next_step)
    yield zipmoe("synth", "qwen2_moe", bench.folder / "made", "--vocab", 300, *right, "--json")


@performs(SYNTH, "no configuration of a {} model is known here")
def an_unknown_family(bench: Bench) -> Steps:
    refused = yield zipmoe("synth", "kimi_k2", bench.folder / "made", "--json")
    names = refused.next_step.removeprefix("name one of ").split(", ")
    for name in names[:2]:
        yield zipmoe("synth", name, bench.folder / name, "--layers", 2, "--vocab", 400, "--json")


@performs(SYNTH, "{} is not empty")
def a_directory_with_files_for_synth(bench: Bench) -> Steps:
    refused = yield zipmoe("synth", "qwen2_moe", bench.original, "--json")
    assert refused.next_step == "name a directory that does not exist yet"
    yield zipmoe("synth", "qwen2_moe", bench.folder / "new", "--layers", 1, "--json")


@performs(SYNTH, "cannot write to {}")
def a_file_for_synth(bench: Bench) -> Steps:
    refused = yield zipmoe("synth", "qwen2_moe", bench.original / "config.json", "--json")
    assert refused.next_step == "name another directory"
    yield zipmoe("synth", "qwen2_moe", bench.folder / "new", "--layers", 1, "--json")


@performs("zipmoe/store/verify/verify.py", "workers have to be")
def a_verification_without_workers(bench: Bench) -> Steps:
    refused = yield zipmoe("verify", bench.store_of_all, "--workers", 0, "--json")
    assert refused.next_step == CORRECT
    yield zipmoe("verify", bench.store_of_all, "--workers", 1, "--json")


@performs("zipmoe/cli/showing/families.py", "{} is no Mixture-of-Experts model type")
def a_misspelt_model_type(bench: Bench) -> Steps:
    refused = yield zipmoe("families", "qwen3-moe", "--json")
    match = re.match(r"name another type, such as (\w+)", refused.next_step)
    assert match is not None
    yield zipmoe("families", match[1], "--json")


@performs("zipmoe/calibration/calibrated_costs.py", "this machine has not been measured")
def a_machine_that_is_not_measured(bench: Bench) -> Steps:
    manifest = read_manifest(bench.store_of_all)
    refused = yield attempt(lambda: calibrated_costs(bench.store_of_all, manifest, "cpu", 1))
    assert refused.next_step == "run `zipmoe calibrate STORE`"
    yield zipmoe("calibrate", bench.store_of_all, "--device", "cpu", "--json")
    yield attempt(lambda: calibrated_costs(bench.store_of_all, manifest, "cpu", 1))


@performs("zipmoe/calibration/calibration.py", "store {} has not been measured on {}")
def a_store_that_is_not_measured(bench: Bench) -> Steps:
    assert zipmoe("calibrate", bench.store_of_all, "--device", "cpu", "--json").exit_code == 0
    assert bench.pack(bench.original, "raw", "--codec", "raw").exit_code == 0
    store = bench.folder / "raw"
    refused = yield attempt(lambda: calibrated_costs(store, read_manifest(store), "cpu", 1))
    assert refused.next_step == "run `zipmoe calibrate STORE`"
    yield zipmoe("calibrate", store, "--device", "cpu", "--json")
    yield attempt(lambda: calibrated_costs(store, read_manifest(store), "cpu", 1))


def _runtime(path: Path) -> Ran:
    return attempt(lambda: runtime_directory(path))


@performs(RUNTIME, "the run directory {} is not a directory")
def a_link_in_place_of_the_run_directory(bench: Bench) -> Steps:
    (bench.folder / "run").symlink_to(bench.original)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZIPMOE_RUNTIME_DIR", str(bench.folder / "run"))
        refused = yield attempt(runtime_directory)
    assert refused.next_step == "choose another --runtime-dir"
    yield _runtime(bench.folder / "another")


@performs(RUNTIME, "cannot make the run directory {}")
def a_file_in_place_of_the_run_directory(bench: Bench) -> Steps:
    refused = yield _runtime(bench.original / "config.json")
    assert refused.next_step == "choose another --runtime-dir"
    yield _runtime(bench.folder / "another")


@performs(RUNTIME, "the run directory {} has mode {}")
def a_run_directory_of_everybody(bench: Bench) -> Steps:
    path = bench.folder / "run"
    path.mkdir()
    path.chmod(0o777)
    refused = yield _runtime(path)
    assert refused.next_step == f"chmod 700 {path}"
    subprocess.run(shlex.split(refused.next_step), check=True)
    yield _runtime(path)


@performs("zipmoe/cli/serving/instance_lock.py", "another zipmoe already runs in {}")
def a_second_instance(bench: Bench) -> Steps:
    def start(name: str) -> Ran:
        def hold() -> None:
            with instance_lock(bench.folder / name):
                pass

        return attempt(hold)

    with instance_lock(bench.folder / "lock"):
        refused = yield start("lock")
        assert refused.next_step == "stop it, or choose another --runtime-dir"
        yield start("another")
    yield start("lock")


@performs("zipmoe/process/metrics.py", "metrics port {} on {} is in use")
def a_metrics_port_in_use(bench: Bench) -> Steps:
    def start(port: int) -> Ran:
        return attempt(lambda: start_metrics_server(port, CollectorRegistry()).stop())

    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        refused = yield start(other.getsockname()[1])
        assert refused.next_step == "choose another --metrics-port"
        yield start(0)


@performs("zipmoe/process/secret_file.py", "cannot read the secret in {}")
def a_token_file_that_does_not_exist(bench: Bench) -> Steps:
    refused = yield attempt(lambda: read_secret(bench.folder / "typo"))
    assert refused.next_step == "check the name or path"
    (bench.folder / "token").write_text("secret")
    yield attempt(lambda: read_secret(bench.folder / "token"))


@performs("zipmoe/process/secret_file.py", "{} holds no secret")
def an_empty_token_file(bench: Bench) -> Steps:
    path = bench.folder / "token"
    path.write_text("")
    refused = yield attempt(lambda: read_secret(path))
    assert refused.next_step == f"write one into {path}"
    path.write_text("secret")
    yield attempt(lambda: read_secret(path))


@performs("services/router/experts/trace_file.py", "cannot write the trace {}")
def a_trace_in_no_directory(bench: Bench) -> Steps:
    refused = yield attempt(lambda: TraceFile(bench.folder / "typo" / "trace.jsonl"))
    assert refused.next_step == "check the name or path"
    yield attempt(lambda: TraceFile(bench.folder / "trace.jsonl").close())


@performs("zipmoe/model/experts/device.py", "device is {}, but torch {} finds {} CUDA devices")
def a_device_that_is_not_there(bench: Bench) -> Steps:
    refused = yield attempt(lambda: resolve_device("cuda:99"))
    match = re.search(r"or use --device (\w+)$", refused.next_step)
    assert match is not None
    yield attempt(lambda: resolve_device(match[1]))


@performs("zipmoe/model/experts/device.py", "device is {}, but has to be")
def a_device_that_is_none(bench: Bench) -> Steps:
    refused = yield attempt(lambda: resolve_device("tpu"))
    assert refused.next_step == CORRECT
    yield attempt(lambda: resolve_device("cpu"))
