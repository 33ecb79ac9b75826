"""The opponent: any zstd decoder reads what it writes, and it is held to what codecs are held to."""

from __future__ import annotations

import pytest
import zstandard

from zipmoe.bench import native_zstd
from zipmoe.codec.base import Codec
from zipmoe.errors import CorruptData

PLANE = bytes((120 - i * i % 7) for i in range(5000))


@pytest.fixture(params=["library", "python"])
def opponent(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Codec:
    library = native_zstd._load()
    if request.param == "python":
        monkeypatch.setattr(native_zstd, "_load", lambda: None)
    elif library is None:
        pytest.skip("this machine has no libzstd.so.1")
    return native_zstd.native_zstd()


def test_it_writes_zstd_and_reads_it_again(opponent: Codec) -> None:
    chunk = opponent.compress(PLANE)
    assert zstandard.ZstdDecompressor().decompress(chunk) == PLANE
    out = bytearray(len(PLANE))
    opponent.decompress(chunk, memoryview(out))
    assert out == PLANE


def test_a_chunk_of_another_size_or_a_damaged_one_is_corrupt(opponent: Codec) -> None:
    chunk = opponent.compress(PLANE)
    for wrong, count in ((chunk, len(PLANE) - 1), (chunk, len(PLANE) + 1), (chunk[:-1], len(PLANE))):
        with pytest.raises(CorruptData):
            opponent.decompress(wrong, memoryview(bytearray(count)))


def test_it_tells_its_version(opponent: Codec) -> None:
    assert "zstd " in native_zstd.zstd_version()
