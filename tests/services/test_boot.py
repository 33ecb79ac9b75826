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

from tests.services.processes import ROOT
from tests.services.tiny_store import TinyStore
from zipmoe.errors import AlreadyRunning, BudgetInfeasible, CorruptData, InvalidRequest, NotFound, UnsupportedStore
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.process.config import parse_config
from zipmoe.rpc.listener import UnixListener
from zipmoe.services.decoder import __main__ as decoder
from zipmoe.services.decoder.config import DecoderConfig
from zipmoe.services.expert_store import __main__ as expert_store
from zipmoe.services.expert_store.config import StoreConfig
from zipmoe.store.format.manifest import seal_manifest

SERVICES = [
    pytest.param((expert_store, StoreConfig, "expert-store"), id="expert_store"),
    pytest.param((decoder, DecoderConfig, "decoder"), id="decoder"),
]
TOO_MANY_SLOTS = ("--cache-slots", "2000000000:2000000000:2000000000")


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="zm-") as folder:
        yield Path(folder)


@pytest.fixture(params=SERVICES)
def boot(request: pytest.FixtureRequest, runtime_dir: Path, tiny_store: TinyStore) -> Callable[..., None]:
    """Starts a service in this process, which has to fail."""
    module, config_class, socket_name = request.param

    def start(*flags: str, store: Path = tiny_store.path) -> None:
        argv = ["--store", str(store), "--runtime-dir", str(runtime_dir), "--metrics-port", "0"]
        asyncio.run(module.serve(parse_config(config_class, [*argv, *flags])))

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
        boot(*TOO_MANY_SLOTS)
    assert list(runtime_dir.iterdir()) == []


def test_an_sm_arena_larger_than_the_machine_is_refused(runtime_dir: Path, tiny_store: TinyStore) -> None:
    """The E arena is there by then."""
    argv = ["--store", str(tiny_store.path), "--runtime-dir", str(runtime_dir), "--metrics-port", "0"]
    config = parse_config(StoreConfig, [*argv, "--cache-slots", "4:2000000000:0"])
    with pytest.raises(BudgetInfeasible, match="expert-store/sm"):
        asyncio.run(expert_store.serve(config))
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
            boot(*TOO_MANY_SLOTS)  # would be refused as well, but later
    finally:
        first.release()


def test_a_run_directory_that_others_may_write_into_is_refused(boot: Callable[..., None], runtime_dir: Path) -> None:
    runtime_dir.chmod(0o777)
    with pytest.raises(InvalidRequest, match="0777"):
        boot()
    assert list(runtime_dir.iterdir()) == []


@pytest.mark.parametrize("config_class", [StoreConfig, DecoderConfig])
def test_all_problems_of_the_command_line_are_named_at_once(config_class: Any) -> None:
    argv = ["--cache-slots", "0:1:1", "--metrics-port", "70000", "--no-such-flag"]
    with pytest.raises(InvalidRequest) as raised:
        parse_config(config_class, argv)
    for word in ("--store", "--cache-slots", "--metrics-port", "--no-such-flag"):
        assert word in raised.value.message


@pytest.mark.parametrize(
    "flags", [(), ("--cache-slots", "3:2:1"), ("--memory-budget", "2GiB"), ("--expert-memory", "100KiB")]
)
def test_both_services_work_out_the_same_slots(tiny_store: TinyStore, flags: tuple[str, ...]) -> None:
    argv = ["--store", str(tiny_store.path), *flags]
    sizes = [parse_config(kind, argv).slots(tiny_store.manifest) for kind in (StoreConfig, DecoderConfig)]
    assert sizes[0] == sizes[1]
    if "--cache-slots" in flags:
        assert sizes[0] == PoolSizes(3, 2, 1)
    if not flags:
        assert sizes[0].tensor == tiny_store.manifest.expert_count


def test_a_budget_that_cannot_hold_the_model_is_refused_by_both(tiny_store: TinyStore) -> None:
    argv = ["--store", str(tiny_store.path), "--memory-budget", "64MiB"]
    for kind in (StoreConfig, DecoderConfig):
        with pytest.raises(BudgetInfeasible, match="smallest feasible"):
            parse_config(kind, argv).slots(tiny_store.manifest)


@pytest.mark.parametrize("module", ["expert_store", "decoder"])
def test_a_service_that_cannot_start_says_why_and_exits_with_2(module: str, runtime_dir: Path) -> None:
    flags = ["--store", "/nonexistent", "--runtime-dir", str(runtime_dir), "--metrics-port", "0"]
    command = [sys.executable, "-m", f"zipmoe.services.{module}", *flags]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "error=NotFound" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_neither_service_imports_torch_or_transformers() -> None:
    code = (
        "import sys, zipmoe.services.decoder.__main__, zipmoe.services.expert_store.__main__\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "[]\n"
