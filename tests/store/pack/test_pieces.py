import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from zipmoe.errors import CorruptData, InvalidRequest, NotFound, ResourceExhausted
from zipmoe.store.pack import pieces as pieces_module
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import ByteRange


@pytest.fixture
def reader() -> Iterator[PieceReader]:
    reader = PieceReader()
    yield reader
    reader.close()


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard"
    path.write_bytes(bytes(range(100)))
    return path


def test_pieces_are_read_one_after_the_other_from_any_byte_on(reader: PieceReader, shard: Path) -> None:
    pieces = (ByteRange(shard, 10, 5), ByteRange(shard, 50, 0), ByteRange(shard, 3, 4), ByteRange(shard, 90, 10))
    whole = bytes([*range(10, 15), *range(3, 7), *range(90, 100)])
    for skip in range(len(whole) + 1):
        for nbytes in range(len(whole) - skip + 1):
            target = memoryview(bytearray(nbytes))
            reader.read(pieces, target, skip=skip)
            assert target == whole[skip : skip + nbytes]


def test_pieces_with_too_few_bytes_are_corrupt(reader: PieceReader, shard: Path) -> None:
    with pytest.raises(CorruptData, match="end after 5 of 6 bytes"):
        reader.read((ByteRange(shard, 0, 5),), memoryview(bytearray(6)))


@pytest.mark.parametrize("piece", [(0, 101), (100, 1), (-1, 2), (5, -1), (1 << 62, 1)])
def test_a_piece_outside_its_shard_is_refused_beforehand(
    reader: PieceReader, shard: Path, piece: tuple[int, int]
) -> None:
    with pytest.raises(CorruptData, match="truncated: it has 100 bytes"):
        reader.check([ByteRange(shard, *piece)])


def test_reading_beyond_the_end_of_a_shard_is_corrupt(reader: PieceReader, shard: Path) -> None:
    with pytest.raises(CorruptData, match="it ends at 100, but tensor bytes reach up to 105"):
        reader.read((ByteRange(shard, 95, 10),), memoryview(bytearray(10)))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOENT, NotFound),
        (errno.EACCES, InvalidRequest),
        (errno.EMFILE, ResourceExhausted),
        (errno.EIO, CorruptData),
    ],
)
def test_a_shard_that_cannot_be_opened_says_why(
    reader: PieceReader, shard: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(pieces_module.os, "open", fail)
    with pytest.raises(kind, match="shard"):
        reader.whole_file(shard)


def test_a_device_that_fails_is_corrupt(reader: PieceReader, shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(pieces_module.os, "preadv", fail)
    with pytest.raises(CorruptData, match=r"cannot read shard .* at 3: input/output error"):
        reader.read((ByteRange(shard, 3, 1),), memoryview(bytearray(1)))
