from __future__ import annotations

from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import save_file

from tests.store.sources import BytesPiece
from zipmoe.errors import CorruptData, UnsupportedModel
from zipmoe.model.build.dense import DenseFiles, dense_from_source, lock_in_memory
from zipmoe.store.format.entries import ChecksummedFile
from zipmoe.store.pack.source import ByteRange, DenseTensor

TENSORS = {
    "a": torch.randn(5, 7).bfloat16(),
    "b.weight": torch.randn(3),
    "c": torch.arange(4),
    "empty": torch.empty(0, 2),
    "scalar": torch.tensor(2.5),
    "flag": torch.tensor([True, False]),
}


def entry(path: Path) -> ChecksummedFile:
    return ChecksummedFile(path.name, path.stat().st_size, xxhash.xxh3_64_intdigest(path.read_bytes()))


@pytest.fixture
def files(tmp_path: Path) -> list[ChecksummedFile]:
    names = list(TENSORS)
    for number, part in enumerate((names[:3], names[3:]), 1):
        save_file({name: TENSORS[name] for name in part}, tmp_path / f"dense-{number:05d}.safetensors")
    return [entry(path) for path in sorted(tmp_path.iterdir())]


def test_tensors_come_back_and_need_the_files_no_more(tmp_path: Path, files: list[ChecksummedFile]) -> None:
    weights = dict(DenseFiles(tmp_path, files).items())
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    assert set(weights) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert weights[name].dtype == tensor.dtype
        assert weights[name].shape == tensor.shape
        assert torch.equal(weights[name], tensor)


def test_every_flipped_byte_is_noticed(tmp_path: Path, files: list[ChecksummedFile]) -> None:
    path = tmp_path / files[0].name
    good = path.read_bytes()
    for position in range(0, len(good), 5):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises((CorruptData, UnsupportedModel)):  # a flip inside a dtype's name makes it an unknown one
            dict(DenseFiles(tmp_path, files).items())


def test_a_wrong_checksum_is_named_with_its_file(tmp_path: Path, files: list[ChecksummedFile]) -> None:
    path = tmp_path / files[1].name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptData, match=rf"{path.name} have checksum .*, the manifest says {files[1].xxh3:016x}"):
        dict(DenseFiles(tmp_path, files).items())


def test_a_truncated_or_missing_file_is_noticed(tmp_path: Path, files: list[ChecksummedFile]) -> None:
    path = tmp_path / files[0].name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptData):
        dict(DenseFiles(tmp_path, files).items())
    path.unlink()
    with pytest.raises(CorruptData, match="does not exist") as error:
        dict(DenseFiles(tmp_path, files).items())
    assert "zipmoe verify" in error.value.diagnostics()


def test_a_dtype_that_is_not_a_models_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dense.safetensors"
    save_file({"odd": torch.zeros(3, dtype=torch.complex64)}, path)
    with pytest.raises(CorruptData, match="dense tensor 'odd' has dtype C64"):
        dict(DenseFiles(tmp_path, [entry(path)]).items())


def test_tensors_of_a_checkpoint_come_from_pieces_or_from_bytes(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(b"..\x00\x3f#\x80\x40")
    pieces = (ByteRange(path, 2, 2), ByteRange(path, 5, 2))
    tensors = [
        DenseTensor("p", "BF16", (2,), pieces=pieces),
        DenseTensor("d", "F32", (1, 1), (BytesPiece(b"\x00\x00\x80\x3f"),)),
    ]
    weights = dense_from_source(tensors)
    assert weights["p"].tolist() == [0.5, 4.0]
    assert weights["d"].tolist() == [[1.0]]
    assert weights["p"].dtype == torch.bfloat16


def test_shared_memory_is_counted_once_and_a_refused_lock_is_reported() -> None:
    tensor = torch.zeros(1000)
    residency = lock_in_memory([tensor, tensor[10:20], torch.zeros(0)])
    assert residency.nbytes == 4000
    assert residency.locked == (residency.lock_error == "")
    assert lock_in_memory([]).locked
