"""Starting the expert store and the decoder: what is refused, with which error, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.decoder import __main__ as decoder
from services.decoder.config import DecoderConfig
from services.expert_store import __main__ as expert_store
from services.expert_store.config import StoreConfig
from tests.services.processes import ROOT
from tests.services.tiny_store import TinyStore, make_store
from zipmoe.errors import AlreadyRunning, BudgetInfeasible, CorruptData, InvalidRequest, NotFound, UnsupportedStore
from zipmoe.rpc.config import parse_config
from zipmoe.rpc.listener import UnixListener
from zipmoe.store.manifest import seal_manifest

SERVICES = [
    pytest.param((expert_store, StoreConfig, "chunk", "expert-store"), id="expert_store"),
    pytest.param((decoder, DecoderConfig, "tensor", "decoder"), id="decoder"),
]


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="zm-") as folder:
        yield Path(folder)


@pytest.fixture(params=SERVICES)
def boot(request: pytest.FixtureRequest, runtime_dir: Path, tiny_store: TinyStore) -> Callable[..., None]:
    """Starts a service in this process, which has to fail; `ARENA` and `SOCKET` stand for the service's own words."""
    module, config_class, arena, socket_name = request.param

    def start(*flags: str, store: Path = tiny_store.path) -> None:
        argv = ["--store", str(store), "--runtime-dir", str(runtime_dir), "--metrics-port", "0"]
        argv += [flag.replace("ARENA", arena) for flag in flags]
        asyncio.run(module.serve(parse_config(config_class, argv)))

    start.socket = runtime_dir / f"{socket_name}.sock"  # type: ignore[attr-defined]
    return start


def test_a_missing_store_is_refused(boot: Callable[..., None], runtime_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="not a directory"):
        boot(store=tmp_path / "nowhere")
    assert list(runtime_dir.iterdir()) == []


def test_a_store_of_another_version_is_refused(
    boot: Callable[..., None], runtime_dir: Path, own_store: TinyStore
) -> None:
    manifest = own_store.path / "manifest.json"
    document = json.loads(manifest.read_bytes())
    del document["digest"]
    manifest.write_bytes(seal_manifest({**document, "version": 99}))
    with pytest.raises(UnsupportedStore, match="99"):
        boot(store=own_store.path)
    assert list(runtime_dir.iterdir()) == []


def test_a_truncated_store_is_refused(boot: Callable[..., None], runtime_dir: Path, own_store: TinyStore) -> None:
    file = own_store.path / own_store.manifest.files[0].name
    with file.open("r+b") as opened:
        opened.truncate(4096)
    with pytest.raises(CorruptData, match="4096"):
        boot(store=own_store.path)
    assert list(runtime_dir.iterdir()) == []


def test_an_arena_larger_than_the_machine_is_refused(boot: Callable[..., None], runtime_dir: Path) -> None:
    with pytest.raises(BudgetInfeasible, match="this machine has"):
        boot("--ARENA-arena", "8TiB")
    assert list(runtime_dir.iterdir()) == []


def test_an_arena_smaller_than_one_expert_is_refused(boot: Callable[..., None], runtime_dir: Path) -> None:
    with pytest.raises(BudgetInfeasible, match="cannot hold one expert") as raised:
        boot("--ARENA-arena", "4096")
    assert raised.value.smallest_bytes > 4096
    assert list(runtime_dir.iterdir()) == []


def test_a_metrics_port_in_use_is_refused(boot: Callable[..., None], runtime_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AlreadyRunning, match=str(port)):
            boot("--metrics-port", str(port))
    assert list(runtime_dir.iterdir()) == []


def test_a_second_instance_is_refused_before_it_takes_memory(boot: Any) -> None:
    first = UnixListener(boot.socket)
    try:
        with pytest.raises(AlreadyRunning, match=r"\.sock"):
            boot("--ARENA-arena", "8TiB")  # would be refused as well, but later
    finally:
        first.release()


def test_a_run_directory_that_others_may_write_into_is_refused(boot: Callable[..., None], runtime_dir: Path) -> None:
    runtime_dir.chmod(0o777)
    with pytest.raises(InvalidRequest, match="0777"):
        boot()
    assert list(runtime_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("config_class", "arena"), [(StoreConfig, "chunk"), (DecoderConfig, "tensor")], ids=["expert_store", "decoder"]
)
def test_all_problems_of_the_command_line_are_named_at_once(config_class: Any, arena: str) -> None:
    argv = [f"--{arena}-slots", "0", "--metrics-port", "70000", "--no-such-flag"]
    with pytest.raises(InvalidRequest) as raised:
        parse_config(config_class, argv)
    for word in ("--store", f"--{arena}-slots", "--metrics-port", "--no-such-flag"):
        assert word in raised.value.message
    with pytest.raises(InvalidRequest, match="only one of"):
        parse_config(config_class, ["--store", "x", f"--{arena}-slots", "1", "--memory-budget", "1GiB"])


def test_without_a_size_the_arena_has_at_most_a_slot_for_every_expert(tiny_store: TinyStore) -> None:
    argv = ["--store", str(tiny_store.path)]
    for config in (parse_config(StoreConfig, argv), parse_config(DecoderConfig, argv)):
        assert config.slot_count(tiny_store.manifest) == tiny_store.manifest.expert_count


def test_an_arena_size_is_as_many_slots_as_fit(tiny_store: TinyStore) -> None:
    manifest = tiny_store.manifest
    size = str(3 * manifest.max_record_bytes - 1)
    config = parse_config(StoreConfig, ["--store", str(tiny_store.path), "--chunk-arena", size])
    assert config.slot_count(manifest) == 2
    size = str(3 * manifest.max_tensor_bytes)
    decoder_config = parse_config(DecoderConfig, ["--store", str(tiny_store.path), "--tensor-arena", size])
    assert decoder_config.slot_count(manifest) == 3


def test_one_budget_gives_both_services_their_shares(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    model = {"num_experts_per_tok": 2, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8}
    (store.path / "config.json").write_text(json.dumps(model))
    argv = ["--store", str(store.path), "--memory-budget", "2GiB"]
    assert parse_config(StoreConfig, argv).slot_count(store.manifest) == 4
    assert parse_config(DecoderConfig, argv).slot_count(store.manifest) == store.manifest.expert_count
    argv[-1] = "64MiB"
    for config in (parse_config(StoreConfig, argv), parse_config(DecoderConfig, argv)):
        with pytest.raises(BudgetInfeasible, match="smallest feasible"):
            config.slot_count(store.manifest)


@pytest.mark.parametrize("module", ["expert_store", "decoder"])
def test_a_service_that_cannot_start_says_why_and_exits_with_2(module: str, runtime_dir: Path) -> None:
    flags = ["--store", "/nonexistent", "--runtime-dir", str(runtime_dir), "--metrics-port", "0"]
    command = [sys.executable, "-m", f"services.{module}", *flags]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "error=NotFound" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_neither_service_imports_torch_or_transformers() -> None:
    code = (
        "import sys, services.decoder.__main__, services.expert_store.__main__\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "[]\n"
