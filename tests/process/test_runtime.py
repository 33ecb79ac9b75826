"""The run directory is found in a fixed order, is ours alone, and nothing else is accepted."""

import os
import stat
from pathlib import Path

import pytest

from zipmoe.errors import InvalidRequest
from zipmoe.process import runtime
from zipmoe.process.runtime import SocketPaths, runtime_directory


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("ZIPMOE_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


def test_it_is_made_for_its_owner_only(tmp_path):
    made = runtime_directory(tmp_path / "a" / "b")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert runtime_directory(made) == made


def test_the_argument_wins_over_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ZIPMOE_RUNTIME_DIR", str(tmp_path / "environment"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_directory(tmp_path / "argument") == tmp_path / "argument"
    assert runtime_directory() == tmp_path / "environment"
    monkeypatch.delenv("ZIPMOE_RUNTIME_DIR")
    assert runtime_directory() == tmp_path / "zipmoe"


def test_without_a_session_directory_it_is_under_tmp_by_user(monkeypatch):
    assert runtime._default_directory() == Path(f"/tmp/zipmoe-{os.geteuid()}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/no/such/directory")
    assert runtime._default_directory() == Path(f"/tmp/zipmoe-{os.geteuid()}")


def test_it_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runtime_directory(Path("here")) == tmp_path / "here"


class TestRefused:
    def test_is_one_that_others_may_write_into(self, tmp_path):
        path = tmp_path / "open"
        path.mkdir()
        path.chmod(0o770)
        with pytest.raises(InvalidRequest, match="mode 0770, others may write") as caught:
            runtime_directory(path)
        assert caught.value.diagnostics() == f"chmod 700 {path}"

    def test_is_one_of_another_user(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "geteuid", lambda: 54321)
        with pytest.raises(InvalidRequest, match="this process runs as 54321"):
            runtime_directory(tmp_path)

    def test_is_a_file(self, tmp_path):
        path = tmp_path / "file"
        path.write_text("")
        with pytest.raises(InvalidRequest, match="file exists"):
            runtime_directory(path)
        with pytest.raises(InvalidRequest, match="not a directory"):
            runtime_directory(path / "below")

    def test_is_a_link_that_somebody_planted_at_the_default_place(self, tmp_path, monkeypatch):
        (tmp_path / "zipmoe").symlink_to(tmp_path)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        with pytest.raises(InvalidRequest, match="is not a directory"):
            runtime_directory()

    def test_is_one_that_cannot_be_made(self):
        with pytest.raises(InvalidRequest, match="cannot make the run directory") as caught:
            runtime_directory(Path("/proc/zipmoe"))
        assert "--runtime-dir" in caught.value.diagnostics()


def test_every_socket_has_its_own_name():
    sockets = SocketPaths(Path("/run/z"))
    names = [
        *(sockets.expert_store, sockets.e_arena, sockets.sm_arena),
        *(sockets.decoder, sockets.tensor_arena, sockets.router),
    ]
    assert [str(name.relative_to("/run/z")) for name in names] == [
        *("expert-store.sock", "e-arena.sock", "sm-arena.sock"),
        *("decoder.sock", "tensor-arena.sock", "router.sock"),
    ]
