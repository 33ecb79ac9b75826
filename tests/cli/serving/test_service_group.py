"""How the three services are started: flags, the lock of the runtime directory, logs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.run import zipmoe
from tests.services.tiny_store import make_store
from zipmoe.cli.device_choice import resolve_device
from zipmoe.cli.flags import flags
from zipmoe.cli.serving.free_ports import free_ports
from zipmoe.cli.serving.instance_lock import instance_lock
from zipmoe.cli.serving.service_group import ServiceGroup
from zipmoe.cli.serving.up import log_directory
from zipmoe.errors import AlreadyRunning, InvalidRequest


def test_settings_become_flags() -> None:
    settings = {"kv_tokens": 16, "store": Path("/s"), "listen": "", "insecure_listen": True, "a": None, "b": False}
    assert flags(settings) == ["--kv-tokens=16", "--store=/s", "--listen=", "--insecure-listen"]


def test_every_service_gets_the_shared_and_its_own_settings(tmp_path: Path) -> None:
    shared = {"store": Path("/s"), "cache_slots": "7:6:5"}
    own = {"expert-store": {"io_threads": 2}, "router": {"threads": 1}}
    group = ServiceGroup(tmp_path, tmp_path, [1, 2, 3], shared, own, "127.0.0.1:9")
    directory = f"--runtime-dir={tmp_path}"
    store, decoder, router = group.specs()
    common = ("--store=/s", "--cache-slots=7:6:5")
    assert store.arguments == (*common, "--io-threads=2", directory, "--metrics-port=1")
    assert decoder.arguments == (*common, directory, "--metrics-port=2")
    assert router.arguments == (*common, "--threads=1", directory, "--metrics-port=3", "--listen=127.0.0.1:9")
    assert [spec.name for spec in group.specs()] == ["expert-store", "decoder", "router"]
    assert router.endpoints == (f"unix:{tmp_path}/router.sock", "127.0.0.1:9")


def test_the_gateway_is_started_last_and_gets_none_of_the_models_settings(tmp_path: Path) -> None:
    shared = {"store": Path("/s"), "log_level": "debug", "metrics_address": "127.0.0.1"}
    group = ServiceGroup(tmp_path, tmp_path, [1, 2, 3, 4], shared, {"gateway": {"drain_timeout_s": 5}}, http_port=8)
    *_, router, gateway = group.specs()
    assert (router.name, gateway.name) == ("router", "gateway")
    assert gateway.arguments == (
        "--log-level=debug",
        "--metrics-address=127.0.0.1",
        "--drain-timeout-s=5",
        f"--router=unix:{tmp_path}/router.sock",
        "--listen=127.0.0.1:8",
        f"--runtime-dir={tmp_path}",
        "--metrics-port=4",
    )
    assert (gateway.socket, gateway.health_url) == (None, "http://127.0.0.1:8")
    assert gateway.endpoints == ("http://127.0.0.1:8/v1",)


def test_a_setting_with_several_values_is_a_flag_for_each(tmp_path: Path) -> None:
    own = {"gateway": {"allow_origin": ["https://a", "http://b:1"], "allow_host": []}}
    *_, gateway = ServiceGroup(tmp_path, tmp_path, [1, 2, 3, 4], {}, own, http_port=8).specs()
    assert gateway.arguments[:2] == ("--allow-origin=https://a", "--allow-origin=http://b:1")
    assert not [each for each in gateway.arguments if each.startswith("--allow-host")]


class TestInstanceLock:
    def test_a_second_instance_is_refused_and_a_later_one_is_not(self, tmp_path: Path) -> None:
        lock = tmp_path / "up.lock"
        with instance_lock(lock):
            with pytest.raises(AlreadyRunning, match=f"already runs in {tmp_path}"), instance_lock(lock):
                raise AssertionError("two instances")
            assert lock.exists()
        assert not lock.exists()
        with instance_lock(lock):
            pass

    def test_it_goes_when_its_holder_fails(self, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError), instance_lock(tmp_path / "up.lock"):
            raise ZeroDivisionError
        assert not any(tmp_path.iterdir())

    def test_what_a_killed_holder_leaves_is_no_lock(self, tmp_path: Path) -> None:
        lock = tmp_path / "up.lock"
        code = (
            "import os, sys\nfrom pathlib import Path\nfrom zipmoe.cli.serving.instance_lock import instance_lock\n"
            "with instance_lock(Path(sys.argv[1])):\n    os._exit(1)"
        )
        subprocess.run([sys.executable, "-c", code, str(lock)], check=False)
        assert lock.exists()
        with instance_lock(lock):
            pass


class TestLogs:
    def test_they_go_after_a_clean_end(self, tmp_path: Path) -> None:
        with log_directory(tmp_path, None) as logs:
            (logs / "router.log").touch()
        assert not any(tmp_path.iterdir())

    def test_they_stay_after_a_failure(self, tmp_path: Path) -> None:
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "router.log").touch()
        with pytest.raises(ZeroDivisionError), log_directory(tmp_path, None):
            raise ZeroDivisionError
        assert (tmp_path / "logs" / "router.log").exists()

    def test_they_stay_where_the_user_wants_them(self, tmp_path: Path) -> None:
        with log_directory(tmp_path, tmp_path / "mine") as logs:
            (logs / "router.log").touch()
        assert (tmp_path / "mine" / "router.log").exists()


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(3))) == 3


class TestDevice:
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_a_named_device_is_taken_at_its_word(self, device: str) -> None:
        assert resolve_device(device) == device

    def test_another_name_is_refused(self) -> None:
        with pytest.raises(InvalidRequest, match="'gpu' is not cpu, cuda or auto"):
            resolve_device("gpu")

    def test_without_hardware_auto_is_the_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("zipmoe.doctor.gpu._NODES", ("/nonexistent/node",))
        assert resolve_device("auto") == "cpu"


class TestUp:
    def test_a_missing_store_is_told_before_anything_starts(self, tmp_path: Path) -> None:
        ran = zipmoe("up", tmp_path / "none", "--runtime-dir", tmp_path / "run", "--json")
        assert (ran.exit_code, ran.error["class"]) == (2, "NotFound")
        assert not (tmp_path / "run").exists()

    def test_a_budget_and_memory_for_experts_alone_exclude_each_other(self, tmp_path: Path) -> None:
        ran = zipmoe("up", tmp_path, "--memory-budget", "4GiB", "--expert-memory", "1GiB")
        assert ran.exit_code == 2
        assert "not both" in ran.stderr

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (("--allow-origin", "https://a"), "are about the gateway"),
            (("--gateway", "--allow-origin", "a"), "'a' is no origin"),
            (("--gateway", "--allow-host", "a:80"), "'a:80' is no host"),
        ],
    )
    def test_wrong_settings_of_web_pages_are_told_before_anything_starts(
        self, flags: tuple[str, ...], message: str, tmp_path: Path
    ) -> None:
        ran = zipmoe("up", tmp_path / "none", *flags, "--runtime-dir", tmp_path / "run")
        assert ran.exit_code == 2
        assert message in ran.stderr
        assert not (tmp_path / "run").exists()

    def test_a_gateway_without_its_libraries_is_told_before_anything_starts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("zipmoe.cli.serving.up.find_spec", lambda name: None)
        ran = zipmoe("up", tmp_path / "none", "--gateway", "--runtime-dir", tmp_path / "run")
        assert ran.exit_code == 2
        assert "needs starlette and uvicorn" in ran.stderr and "zipmoe[gateway]" in ran.stderr
        assert not (tmp_path / "run").exists()

    def test_a_second_instance_is_refused_and_leaves_the_first_ones_logs_alone(self, tmp_path: Path) -> None:
        store = make_store(tmp_path / "store").path
        run = tmp_path / "run"
        (run / "logs").mkdir(parents=True, mode=0o700)
        run.chmod(0o700)
        (run / "logs" / "router.log").write_text("of the first")
        with instance_lock(run / "up.lock"):
            ran = zipmoe("up", store, "--runtime-dir", run, "--json")
        assert (ran.exit_code, ran.error["class"]) == (1, "AlreadyRunning")
        assert (run / "logs" / "router.log").read_text() == "of the first"
