from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from zipmoe.errors import BudgetInfeasible, CorruptData, InvalidRequest, NotFound
from zipmoe.planning.memory_split import slot_bytes
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.process.budgeted import BudgetedConfig, read_model_config
from zipmoe.process.config import parse_config
from zipmoe.store.format.measured import MeasuredSizes

CONFIG = '{"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "num_experts_per_tok": 2}'


@dataclass(frozen=True)
class FakeManifest:
    codec_name: str = "zstd"
    max_e_bytes: int = 1 << 18
    max_sm_bytes: int = 3 << 18
    max_tensor_bytes: int = 3 << 19
    dense_bytes: int = 1 << 20
    expert_count: int = 64
    measured: MeasuredSizes | None = None
    mtp_layers: int = 0


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(CONFIG)
    return tmp_path


def parse(store: Path, *flags: str) -> BudgetedConfig:
    return parse_config(BudgetedConfig, ["--store", str(store), *flags])


def test_without_a_budget_there_is_no_split(store: Path) -> None:
    assert parse(store).split(FakeManifest()) is None  # type: ignore[arg-type]


def test_all_three_services_compute_the_same_split_from_the_same_flags(store: Path) -> None:
    flags = ("--memory-budget", "1.5GiB", "--workers", "3", "--kv-tokens", "2048", "--max-prompt-tokens", "1024")
    splits = {parse(store, *flags).split(FakeManifest()) for _ in range(3)}  # type: ignore[arg-type]
    assert len(splits) == 1
    (split,) = splits
    assert split is not None
    assert split.store_bytes + split.decoder_bytes + split.router_bytes == 3 << 29


def test_an_unresolved_device_counts_as_the_cpu(store: Path) -> None:
    config = parse(store, "--memory-budget", "4GiB", "--device", "auto")
    manifest: object = FakeManifest(expert_count=4096)
    assert config.split(manifest) == config.split(manifest, "cpu")  # type: ignore[arg-type]
    assert config.split(manifest) != config.split(manifest, "cuda:0")  # type: ignore[arg-type]


def test_a_budget_beyond_the_machine_is_refused_for_this_machine_only(store: Path) -> None:
    config = parse(store, "--memory-budget", "1000TiB")
    assert config.split(FakeManifest()) is not None  # type: ignore[arg-type]
    with pytest.raises(BudgetInfeasible, match="more than this machine's"):
        config.split_here(FakeManifest())  # type: ignore[arg-type]


def test_a_store_without_a_readable_config_is_refused_by_path(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"config\.json"):
        read_model_config(tmp_path, FakeManifest())  # type: ignore[arg-type]
    for text in ("{", "[1]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CorruptData, match=r"config\.json"):
            read_model_config(tmp_path, FakeManifest())  # type: ignore[arg-type]


def test_slots_come_from_the_budget_else_as_given_else_from_the_memory_for_experts(store: Path) -> None:
    manifest: object = FakeManifest()
    planned = parse(store, "--cache-slots", "9:7:5")
    assert planned.slots(manifest) == PoolSizes(9, 7, 5)  # type: ignore[arg-type]
    both = parse(store, "--cache-slots", "9:7:5", "--memory-budget", "2GiB")
    assert both.slots(manifest) == PoolSizes(9, 7, 5)  # type: ignore[arg-type]
    budgeted = parse(store, "--memory-budget", "2GiB")
    split = budgeted.split(manifest)  # type: ignore[arg-type]
    assert split is not None
    assert budgeted.slots(manifest) == split.slots  # type: ignore[arg-type]
    small, large = (parse(store, "--expert-memory", size).slots(manifest) for size in ("16MiB", "32MiB"))  # type: ignore[arg-type]
    size = slot_bytes(FakeManifest())
    assert small.nbytes(size) <= 16 << 20 < large.nbytes(size) <= 32 << 20


def test_planned_slots_that_the_budget_cannot_hold_are_refused(store: Path) -> None:
    config = parse(store, "--cache-slots", "60:60:60", "--memory-budget", "1GiB")
    with pytest.raises(BudgetInfeasible, match="60 for E-chunks"):
        config.slots(FakeManifest())  # type: ignore[arg-type]


@pytest.mark.parametrize("slots", ["9:7", "9:7:5:3", "9:7:x", "0:7:5", "9:0:5", "9:7:-1"])
def test_slots_that_are_not_three_numbers_are_refused(store: Path, slots: str) -> None:
    with pytest.raises(InvalidRequest, match="--cache-slots"):
        parse(store, f"--cache-slots={slots}")
