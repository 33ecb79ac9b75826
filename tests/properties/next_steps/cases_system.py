"""Refusals of the system: no permission, no room, an address of another machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.cli.run import Ran, zipmoe
from tests.properties.next_steps.bench import Bench, Steps, attempt, performs
from tests.small_disk import small_disk
from zipmoe.model.checkpoint.bin_shard import read_bin_shard
from zipmoe.model.checkpoint.checkpoint import open_checkpoint
from zipmoe.model.checkpoint.shard import read_shard_header
from zipmoe.process.metrics import start_metrics_server
from zipmoe.process.runtime import runtime_directory
from zipmoe.store.format.manifest import read_manifest
from zipmoe.store.read.reader import StoreReader

NOBODY = 65534
OWNER = "check the permissions, or run as the owner"


def _as_stranger(run: Callable[[], Ran]) -> Ran:
    """Runs as a user who owns nothing; the files' modes have been taken away for tests that are not run by root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        return run()
    finally:
        if root:
            os.seteuid(0)


def _refused_to_strangers(path: Path, mode: int, run: Callable[[], Ran]) -> Steps:
    """The permissions of `path` are missing, then there again."""
    before = path.stat().st_mode
    path.chmod(mode)
    refused = yield _as_stranger(run)
    assert refused.next_step == OWNER
    path.chmod(before)
    yield run()


@performs("zipmoe/store/format/manifest.py", "no permission to read {}")
def a_manifest_of_somebody_else(bench: Bench) -> Steps:
    store = bench.store()
    run = lambda: zipmoe("inspect", store, "--json")  # noqa: E731
    yield from _refused_to_strangers(store / "manifest.json", 0, run)


@performs("zipmoe/model/checkpoint/checkpoint.py", "cannot read {}: {}")
def a_checkpoint_of_somebody_else(bench: Bench) -> Steps:
    path = bench.checkpoint()
    yield from _refused_to_strangers(path, 0, lambda: attempt(lambda: open_checkpoint(path)))


@performs("zipmoe/model/checkpoint/shard.py", "cannot read shard {}: {}")
def a_shard_of_somebody_else(bench: Bench) -> Steps:
    shard = next(bench.checkpoint().glob("*.safetensors"))
    yield from _refused_to_strangers(shard, 0, lambda: attempt(lambda: read_shard_header(shard)))


@performs("zipmoe/model/checkpoint/bin_shard.py", "cannot read shard {}: {}")
def a_bin_shard_of_somebody_else(bench: Bench) -> Steps:
    import torch

    shard = bench.folder / "pytorch_model.bin"
    torch.save({"a": torch.zeros(3)}, shard)
    yield from _refused_to_strangers(shard, 0, lambda: attempt(lambda: read_bin_shard(shard)))


@performs("zipmoe/store/read/record_file.py", "no permission to read {}")
def experts_of_somebody_else(bench: Bench) -> Steps:
    store = bench.store()
    manifest = read_manifest(store)
    run = lambda: attempt(lambda: StoreReader(store, manifest).close())  # noqa: E731
    yield from _refused_to_strangers(store / "experts-00000.bin", 0, run)


@performs("zipmoe/store/pack/partial_file.py", "no permission to write {}")
def a_destination_of_somebody_else(bench: Bench) -> Steps:
    parent = Path(tempfile.mkdtemp(prefix="zipmoe-"))
    from zipmoe.store.pack.writer import _make_directory

    run = lambda: attempt(lambda: _make_directory(parent / "store"))  # noqa: E731
    yield from _refused_to_strangers(parent, 0o500, run)
    shutil.rmtree(parent)


@performs("zipmoe/store/pack/writer.py", "no permission to read {}")
def a_hidden_destination(bench: Bench) -> Steps:
    parent = Path(tempfile.mkdtemp(prefix="zipmoe-"))
    from zipmoe.store.pack.writer import _refuse_foreign_files

    yield from _refused_to_strangers(parent, 0o300, lambda: attempt(lambda: _refuse_foreign_files(parent)))
    shutil.rmtree(parent)


@performs("zipmoe/process/runtime.py", "the run directory {} belongs to user {}")
def a_run_directory_of_somebody_else(bench: Bench) -> Steps:
    if os.geteuid() != 0:
        pytest.skip("only root can act as two users")
    folder = Path(tempfile.mkdtemp(prefix="zipmoe-"))
    folder.chmod(0o755)
    refused = yield _as_stranger(lambda: attempt(lambda: runtime_directory(folder)))
    assert refused.next_step == "run all services as one user, or choose another --runtime-dir"
    yield attempt(lambda: runtime_directory(folder))
    yield _as_stranger(lambda: attempt(lambda: runtime_directory(Path("/tmp") / f"{folder.name}-of-nobody")))
    shutil.rmtree(folder)
    shutil.rmtree(f"{folder}-of-nobody")


@performs("zipmoe/store/pack/disk_space.py", "the store needs about {} bytes in {}")
def a_disk_that_is_too_small_for_the_store(bench: Bench) -> Steps:
    with small_disk(bench.folder, "600k") as disk:
        (disk / "old").write_bytes(bytes(500_000))
        refused = yield zipmoe("pack", bench.original, disk / "store", "--json")
        assert refused.next_step == "make room, or choose a destination on another disk"
        yield bench.pack(bench.original)
        (disk / "old").unlink()
        yield zipmoe("pack", bench.original, disk / "store", "--json")


@performs("zipmoe/model/synth/writer.py", "the checkpoint needs {} bytes, the disk of {} has {} left")
def a_disk_that_is_too_small_for_the_checkpoint(bench: Bench) -> Steps:
    with small_disk(bench.folder, "36m") as disk:
        synth = ("synth", "qwen2_moe", disk / "made", "--vocab", 300, "--json", "--layers")
        refused = yield zipmoe(*synth, 200)
        assert refused.next_step == "free disk space, or ask for fewer layers"
        yield zipmoe(*synth, 1)


@performs("zipmoe/calibration/measure.py", "less than {} bytes are free in {}")
def a_disk_that_is_too_small_to_measure(bench: Bench) -> Steps:
    def calibrate(cache: Path) -> Ran:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ZIPMOE_CACHE_DIR", str(cache))
            return zipmoe("calibrate", store, "--device", "cpu", "--json")

    with small_disk(bench.folder, "1500k") as disk:
        store = Path(shutil.copytree(bench.store_of_all, disk / "store"))
        refused = yield calibrate(disk)
        assert refused.next_step.endswith("set ZIPMOE_CACHE_DIR to a folder on another disk")
        yield calibrate(bench.folder / "cache")


@performs("zipmoe/cli/planning/store_forecast.py", "there is no forecast to draw: {}")
def a_plot_on_a_machine_that_cannot_be_measured(bench: Bench) -> Steps:
    plan = ("plan", bench.store_of_all, "--memory-budget", "4GiB", "--json")
    (bench.folder / "file").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZIPMOE_CACHE_DIR", str(bench.folder / "file"))
        refused = yield zipmoe(*plan, "--plot", bench.folder / "plot.svg")
        assert refused.next_step == "leave out --plot, or run `zipmoe calibrate STORE` and do what it says"
        yield zipmoe(*plan)
        assert zipmoe("calibrate", bench.store_of_all, "--device", "cpu", "--json").error["next_step"]
    yield zipmoe(*plan, "--plot", bench.folder / "plot.svg")


@performs("zipmoe/process/metrics.py", "cannot show metrics on {} port {}")
def metrics_on_another_machines_address(bench: Bench) -> Steps:
    def start(address: str) -> Ran:
        return attempt(lambda: start_metrics_server(0, CollectorRegistry(), address=address).stop())

    refused = yield start("203.0.113.1")
    assert refused.next_step == "correct --metrics-address or --metrics-port"
    yield start("127.0.0.1")
