"""The places that are found in a .bin shard hold the bytes that torch loads; a malformed or hostile one is refused."""

from __future__ import annotations

import builtins
import gc
import io
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.hub import bytes_of, read
from zipmoe.errors import CorruptData, InvalidRequest, NotFound, ResourceExhausted, UnsupportedModel, ZipMoeError
from zipmoe.model.checkpoint import bin_shard
from zipmoe.model.checkpoint.bin_shard import read_bin_shard
from zipmoe.model.checkpoint.memory_file import MemoryFile
from zipmoe.model.checkpoint.shard import TensorEntry
from zipmoe.model.raw_tensor import DTYPES

FORMS = [pytest.param(True, id="zip"), pytest.param(False, id="before 1.6")]
zipped = pytest.mark.parametrize("zipped", FORMS)


def save(path: Path, content: object, *, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def tensors() -> dict[str, torch.Tensor]:
    """Every dtype, and every relation of a tensor to its storage."""
    base = torch.randn(6, 8, 10)
    whole = {name: torch.randn(3, 5).to(dtype) for name, dtype in DTYPES.items()}
    return {
        **whole,
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "base": base,
        "again": base,
        "rows": base[2:4],
        "columns": base[:, :, 3:7],
        "transposed": base.mT,
        "outermost last": base.permute(1, 2, 0),
        "one row": base[:1, 3:4],
        "repeated": torch.randn(1, 7).expand(4, 7),
        "parameter": torch.nn.Parameter(torch.randn(4, 3).t()),
    }


def content_of(entry: TensorEntry) -> bytes:
    """The tensor's bytes, row-major, from the bytes in the file."""
    raw = torch.frombuffer(bytearray(read((entry.byte_range,))) or bytearray(8), dtype=DTYPES[entry.dtype])
    return bytes_of(raw.as_strided(entry.shape, entry.steps))


@zipped
def test_the_places_hold_the_bytes_of_every_tensor(zipped: bool, tmp_path: Path) -> None:
    saved = tensors()
    path = save(tmp_path / "shard.bin", OrderedDict(saved), zipped=zipped)
    found = read_bin_shard(path)
    assert list(found) == list(saved)
    for name, tensor in saved.items():
        entry = found[name]
        assert (entry.shape, DTYPES[entry.dtype]) == (tuple(tensor.shape), tensor.dtype)
        assert content_of(entry) == bytes_of(tensor), name
        assert entry.is_row_major == tensor.is_contiguous()
    assert found["base"].byte_range == found["again"].byte_range
    assert found["rows"].offset == found["base"].offset + 2 * 80 * 4
    assert {entry.path == path for entry in found.values()} == {zipped}


def test_a_tensor_that_is_no_array_of_numbers_is_refused(tmp_path: Path) -> None:
    for number, odd in enumerate(
        (torch.eye(3).to_sparse(), torch.zeros(2, device="meta"), torch.ones(2, dtype=torch.complex128))
    ):
        with pytest.raises(UnsupportedModel, match=r"tensor 'odd'.*no plain array"):
            read_bin_shard(save(tmp_path / f"{number}.bin", {"odd": odd}))


def test_what_is_no_tensor_is_left_to_the_coverage_check(tmp_path: Path) -> None:
    assert list(read_bin_shard(save(tmp_path / "shard.bin", {"step": 3, "a": torch.ones(2)}))) == ["a"]


class CallOnLoad:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


class Own:
    """An object of a class that a checkpoint brings along."""


@zipped
@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (lambda trap: CallOnLoad(os.system, f"touch {trap}"), r"posix\.system"),
        (lambda trap: CallOnLoad(builtins.exec, f"open({str(trap)!r}, 'w')"), "exec"),
        (lambda trap: CallOnLoad(builtins.open, str(trap), "w"), "open"),
        (lambda trap: CallOnLoad(getattr, "word", "upper"), "getattr"),
        (lambda trap: Own(), "Own"),
    ],
)  # fmt: skip
def test_a_shard_with_code_is_refused_and_the_code_never_runs(
    payload: Any, named: str, zipped: bool, tmp_path: Path
) -> None:
    content = {"a": torch.ones(3), "b": payload(tmp_path / "ran")}
    path = save(tmp_path / "shard.bin", content, zipped=zipped)
    with pytest.raises(UnsupportedModel, match=f"holds more than weights: loading it would call .*{named}") as error:
        read_bin_shard(path)
    assert "safetensors" in error.value.diagnostics()
    assert not (tmp_path / "ran").exists()


def test_the_environment_cannot_allow_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = save(tmp_path / "shard.bin", {"b": CallOnLoad(os.system, f"touch {tmp_path / 'ran'}")})
    with pytest.raises(UnsupportedModel, match="holds more than weights"):
        read_bin_shard(path)
    assert not (tmp_path / "ran").exists()


@zipped
def test_a_truncated_shard_is_refused_wherever_it_ends(zipped: bool, tmp_path: Path) -> None:
    whole = save(tmp_path / "shard.bin", {"a": torch.randn(40, 50), "b": torch.randn(7)}, zipped=zipped).read_bytes()
    cut = tmp_path / "cut.bin"
    for nbytes in (0, 1, 3, 4, 30, 200, len(whole) // 2, len(whole) - 300, len(whole) - 1):
        cut.write_bytes(whole[:nbytes])
        with pytest.raises(CorruptData, match="cannot be used"):
            read_bin_shard(cut)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>", "cannot be used"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (pickle.dumps({"a": 1}), "cannot be used"),
        (b"PK\x03\x04" + bytes(500), "truncated or no zip archive"),
    ],
)
def test_what_torch_did_not_write_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "shard.bin").write_bytes(content)
    with pytest.raises(CorruptData, match=message):
        read_bin_shard(tmp_path / "shard.bin")


def test_a_shard_that_holds_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptData, match="holds a list, not tensors by name"):
        read_bin_shard(save(tmp_path / "shard.bin", [torch.ones(2)]))


def edited(source: Path, target: Path, *, compression: int = zipfile.ZIP_STORED, **records: bytes) -> Path:
    """A copy of an archive with some records replaced or added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        folder = old.namelist()[0].partition("/")[0]
        content = {name: old.read(name) for name in old.namelist()}
        content.update({f"{folder}/{name.replace('_', '.')}": data for name, data in records.items()})
        for name, data in content.items():
            new.writestr(name, data)
    return target


def test_archives_that_torch_does_not_write_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = save(tmp_path / "shard.bin", {"a": torch.randn(40, 50)})
    assert content_of(read_bin_shard(edited(whole, tmp_path / "copy.bin"))["a"]) == content_of(
        read_bin_shard(whole)["a"]
    )
    with pytest.raises(CorruptData, match="is compressed"):
        read_bin_shard(edited(whole, tmp_path / "small.bin", compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(UnsupportedModel, match="TorchScript archive: it holds code"):
        read_bin_shard(edited(whole, tmp_path / "script.bin", constants_pkl=b""))
    with pytest.raises(UnsupportedModel, match="big-endian"):
        read_bin_shard(edited(whole, tmp_path / "other.bin", byteorder=b"big"))
    monkeypatch.setattr(bin_shard, "MAX_PICKLE_BYTES", 10)
    with pytest.raises(CorruptData, match=r"table of tensors has \d+ bytes, the limit is 10"):
        read_bin_shard(whole)


def test_a_storage_that_torch_would_read_beyond_the_file_is_refused(tmp_path: Path) -> None:
    """The pickle tells more numbers than the record has, so that the storage would end behind the file."""
    small, large = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.ones(4)}, small)
    torch.save({"a": torch.ones(1 << 20)}, large)
    (tmp_path / "small.bin").write_bytes(small.getvalue())
    with zipfile.ZipFile(large) as archive:
        table = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    with pytest.raises(CorruptData, match="cannot be used"):
        read_bin_shard(edited(tmp_path / "small.bin", tmp_path / "shard.bin", data_pkl=table))


@zipped
def test_a_damaged_shard_gives_an_error_or_places_inside_the_file(zipped: bool, tmp_path: Path) -> None:
    path = save(tmp_path / "shard.bin", {"a": torch.randn(4, 6), "b": torch.randn(3).half()}, zipped=zipped)
    whole = path.read_bytes()
    chance = random.Random(7)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 1, 4))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            found = read_bin_shard(path)
        except ZipMoeError:
            continue
        for entry in found.values():
            assert len(read((entry.byte_range,))) == entry.nbytes


def test_a_missing_shard_and_one_that_is_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        read_bin_shard(tmp_path / "shard.bin")
    os.mkfifo(tmp_path / "fifo.bin")
    with pytest.raises(InvalidRequest, match="is a FIFO"):
        read_bin_shard(tmp_path / "fifo.bin")
    (tmp_path / "device.bin").symlink_to("/dev/zero")
    with pytest.raises(InvalidRequest, match="is a device"):
        read_bin_shard(tmp_path / "device.bin")


def test_a_shard_that_cannot_be_mapped_has_a_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "shard.bin", {"a": torch.randn(40, 50)}, zipped=False)
    monkeypatch.setattr(bin_shard, "UNMAPPED_BYTES", 1000)
    with pytest.raises(UnsupportedModel, match=r"before torch 1\.6 .* at most 1000 are read into memory") as error:
        read_bin_shard(path)
    assert "save_pretrained" in error.value.diagnostics()


def test_a_map_that_the_kernel_refuses_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "shard.bin", {"a": torch.randn(40, 50)})

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(f"unable to mmap 8000 bytes from file <{path}>: Cannot allocate memory (12)")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(ResourceExhausted, match=r"cannot be mapped.*memory and swap") as error:
        read_bin_shard(path)
    assert "swap" in error.value.diagnostics()


def test_the_memory_of_a_shard_that_cannot_be_mapped_is_freed_with_its_last_place(tmp_path: Path) -> None:
    entry = read_bin_shard(save(tmp_path / "shard.bin", {"a": torch.randn(40)}, zipped=False))["a"]
    assert isinstance(entry.path, MemoryFile)
    place = entry.byte_range
    del entry
    gc.collect()
    assert len(read((place,))) == 160
    descriptor = Path(str(place.path))
    assert descriptor.exists()
    del place
    gc.collect()
    assert not descriptor.exists()
