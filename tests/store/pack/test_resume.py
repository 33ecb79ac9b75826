"""A pack that was killed anywhere goes on to the same bytes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.store.conftest import Packed
from tests.store.sources import make_source, tree
from zipmoe.codec.registry import create_codec
from zipmoe.errors import InvalidRequest, NotFound
from zipmoe.store.format.manifest import read_manifest
from zipmoe.store.pack.progress import Progress
from zipmoe.store.pack.writer import PackOptions, pack_store

ROOT = Path(__file__).parents[3]

# Kills itself, uncatchably, at the n-th progress event or at the n-th call that changes the disk.
PACK_AND_DIE = """
import os, signal, sys
from pathlib import Path
from tests.store.sources import make_source
from zipmoe.store.pack.writer import PackOptions, pack_store

source_folder, store, at, kind = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
count = 0

def tick(*_):
    global count
    count += 1
    if count == at:
        os.kill(os.getpid(), signal.SIGKILL)

if kind != "progress":
    real = getattr(os, kind)
    def dying(*arguments, **keywords):
        tick()
        return real(*arguments, **keywords)
    setattr(os, kind, dying)
pack_store(make_source(source_folder), store, PackOptions(workers=2), tick if kind == "progress" else lambda p: None)
"""


@pytest.mark.parametrize(
    ("at", "kind"), [(1, "progress"), (7, "progress"), (9, "progress"), (11, "progress"), (6, "pwritev"), (5, "fsync")]
)
def test_a_pack_killed_by_sigkill_resumes_to_the_same_bytes(packed: Packed, tmp_path: Path, at: int, kind: str) -> None:
    command = [sys.executable, "-c", PACK_AND_DIE, str(tmp_path / "source"), str(tmp_path / "store"), str(at), kind]
    died = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert died.returncode == -signal.SIGKILL
    with pytest.raises(NotFound, match="unfinished pack"):
        read_manifest(tmp_path / "store")
    seen: list[Progress] = []
    pack_store(make_source(tmp_path / "source"), tmp_path / "store", progress=seen.append)
    assert tree(tmp_path / "store") == tree(packed.store)
    assert seen[-1].done_bytes == seen[-1].total_bytes
    assert seen[-1].done_experts == 6
    if kind == "progress" and at > 6:
        # An event comes after its expert's journal entry, so what was reported is never packed again.
        assert seen[-1].resumed_bytes >= (at - 5) * 2880


class Death(BaseException):
    """Stands for SIGKILL where thousands of processes would take too long."""


CALLS = ("pwritev", "write", "fsync", "replace", "unlink", "ftruncate", "open")


@contextmanager
def dying_at(monkeypatch: pytest.MonkeyPatch, at: int, *, torn: bool) -> Iterator[None]:
    """Dies at the `at`-th call that changes the disk; `torn`: after half of a write has been done."""
    count = 0

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count >= at:
                if torn and count == at and name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                if torn and count == at and name == "pwritev":
                    real(arguments[0], [buffer[: len(buffer) // 2] for buffer in arguments[1][:3]], arguments[2])
                raise Death
            return real(*arguments, **keywords)

        patch.setattr(os, name, call)

    with monkeypatch.context() as patch:
        for name in CALLS:
            wrap(name)
        yield


def dies(packed: Packed, store: Path, monkeypatch: pytest.MonkeyPatch, at: int, *, torn: bool) -> bool:
    try:
        with dying_at(monkeypatch, at, torn=torn):
            pack_store(packed.source, store, PackOptions(workers=1))
    except Death:
        return True
    return False


@pytest.mark.parametrize("torn", [False, True], ids=["between calls", "inside a write"])
def test_a_pack_that_dies_at_any_call_resumes_to_the_same_bytes(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    expected = tree(packed.store)
    at = 1
    while dies(packed, tmp_path / str(at), monkeypatch, at, torn=torn):
        pack_store(packed.source, tmp_path / str(at), PackOptions(workers=1))
        assert tree(tmp_path / str(at)) == expected, f"died at call {at}"
        at += 1
    assert at > 60
    assert tree(tmp_path / str(at)) == expected


def test_a_pack_that_dies_again_and_again_still_gets_there(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths = 0
    while dies(packed, tmp_path / "store", monkeypatch, at=20, torn=deaths % 2 == 0):
        deaths += 1
    assert 3 <= deaths <= 10
    assert tree(tmp_path / "store") == tree(packed.store)


def interrupted(packed: Packed, store: Path, *, after_experts: int) -> None:
    def stop(progress: Progress) -> None:
        if progress.done_experts == after_experts:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_store(packed.source, store, PackOptions(workers=1), stop)


def resumed(packed: Packed, store: Path) -> int:
    """Finishes the pack, checks its bytes and returns how many bytes were taken over."""
    seen: list[Progress] = []
    pack_store(packed.source, store, PackOptions(workers=1), seen.append)
    assert tree(store) == tree(packed.store)
    return seen[-1].resumed_bytes


def test_what_was_packed_before_the_interruption_is_not_packed_again(packed: Packed, tmp_path: Path) -> None:
    interrupted(packed, tmp_path / "store", after_experts=5)
    dense_bytes = sum(tensor.nbytes for tensor in packed.source.dense_tensors)
    assert resumed(packed, tmp_path / "store") == dense_bytes + 5 * 2880


def test_bytes_that_a_power_failure_took_are_packed_again(packed: Packed, tmp_path: Path) -> None:
    interrupted(packed, tmp_path / "store", after_experts=5)
    partial = tmp_path / "store" / "experts-00001.bin.partial"
    content = bytearray(partial.read_bytes())
    content[16384 + 100 :] = bytes(len(content) - 16384 - 100)
    partial.write_bytes(content)
    dense_bytes = sum(tensor.nbytes for tensor in packed.source.dense_tensors)
    assert resumed(packed, tmp_path / "store") == dense_bytes + 4 * 2880


def test_a_partial_file_that_a_power_failure_took_is_packed_again(packed: Packed, tmp_path: Path) -> None:
    interrupted(packed, tmp_path / "store", after_experts=5)
    (tmp_path / "store" / "experts-00001.bin.partial").unlink()
    dense_bytes = sum(tensor.nbytes for tensor in packed.source.dense_tensors)
    assert resumed(packed, tmp_path / "store") == dense_bytes + 3 * 2880


@pytest.mark.parametrize("damage", ["first", "last", "short", "gone"])
def test_a_finished_expert_file_is_looked_at_before_it_is_believed(packed: Packed, tmp_path: Path, damage: str) -> None:
    interrupted(packed, tmp_path / "store", after_experts=5)
    path = tmp_path / "store" / "experts-00000.bin"
    content = bytearray(path.read_bytes())
    if damage == "first":
        content[0] ^= 1
    elif damage == "last":
        content[32768] ^= 1
    elif damage == "short":
        del content[-1:]
    path.write_bytes(content)
    if damage == "gone":
        path.unlink()
    dense_bytes = sum(tensor.nbytes for tensor in packed.source.dense_tensors)
    still_good = {"first": 0, "last": 2, "short": 2, "gone": 0}[damage]
    assert resumed(packed, tmp_path / "store") == dense_bytes + (still_good + 2) * 2880


def test_finished_dense_and_model_files_that_have_gone_are_written_again(packed: Packed, tmp_path: Path) -> None:
    interrupted(packed, tmp_path / "store", after_experts=1)
    (tmp_path / "store" / "dense-00001.safetensors").unlink()
    (tmp_path / "store" / "config.json").write_text("short")
    assert resumed(packed, tmp_path / "store") == 2880


@pytest.mark.parametrize("junk", [b"\0" * 100, b'0123456789abcdef {"event":"expert"}\n', b"\n", b"\xff\xff \n{}"])
def test_a_torn_journal_ends_at_its_last_whole_line(packed: Packed, tmp_path: Path, junk: bytes) -> None:
    interrupted(packed, tmp_path / "store", after_experts=4)
    with (tmp_path / "store" / "packing.journal").open("ab") as journal:
        journal.write(junk)
    assert resumed(packed, tmp_path / "store") > 4 * 2880


def test_a_journal_that_lost_its_end_only_costs_the_work_it_described(packed: Packed, tmp_path: Path) -> None:
    interrupted(packed, tmp_path / "store", after_experts=6)
    journal = tmp_path / "store" / "packing.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        store = tmp_path / str(kept)
        interrupted(packed, store, after_experts=6)
        (store / "packing.journal").write_bytes(b"".join(lines[:kept]))
        resumed(packed, store)


def test_a_store_whose_journal_outlived_the_manifest_is_finished(copied: Packed, packed: Packed) -> None:
    interrupted(packed, copied.store.parent / "other", after_experts=6)
    os.replace(copied.store.parent / "other" / "packing.journal", copied.store / "packing.journal")
    assert read_manifest(copied.store).family == "qwen2_moe"
    assert pack_store(packed.source, copied.store).already_packed
    assert tree(copied.store) == tree(packed.store)


def test_an_unfinished_pack_of_other_inputs_is_not_taken_over(packed: Packed, tmp_path: Path) -> None:
    interrupted(packed, tmp_path / "store", after_experts=2)
    before = tree(tmp_path / "store")
    for source, options in (
        (make_source(tmp_path / "other", seed=2), PackOptions()),
        (packed.source, PackOptions(codec=create_codec("raw"))),
        (packed.source, PackOptions(e_chunks_per_tensor=1)),
        (packed.source, PackOptions(dense_shard_bytes=64)),
    ):
        with pytest.raises(InvalidRequest, match="unfinished pack of another checkpoint, with other options") as raised:
            pack_store(source, tmp_path / "store", options)
        assert "delete" in raised.value.diagnostics()
    assert tree(tmp_path / "store") == before
    resumed(packed, tmp_path / "store")


def test_a_foreign_file_called_like_our_journal_is_not_overwritten(packed: Packed, tmp_path: Path) -> None:
    (tmp_path / "packing.journal").write_text("my own notes\n")
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidRequest):
        pack_store(packed.source, tmp_path)
    assert tree(tmp_path) == {"packing.journal": b"my own notes\n", "thesis.txt": b"years of work"}
