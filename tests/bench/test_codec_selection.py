"""Codecs as the command line names them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from zipmoe.bench import codec_selection
from zipmoe.bench.synthetic import synthesise
from zipmoe.codec import registry
from zipmoe.codec.base import Codec
from zipmoe.codec.raw import RawCodec
from zipmoe.codec.registry import codec_names
from zipmoe.errors import InvalidRequest, UnsupportedStore


class Blocky(RawCodec):
    """Its chunks are smallest with blocks of 4 rows; 64 it refuses."""

    name = "blocky"

    def __init__(self, block_rows: int) -> None:
        self.parameters = {"block_rows": block_rows}

    @classmethod
    def create(cls, parameters: Mapping[str, int | str]) -> Blocky:
        block_rows = int(parameters.get("block_rows", 8))
        if block_rows > 32:
            raise UnsupportedStore("too many rows")
        return cls(block_rows)

    def compress(self, e_plane: object, cols: int | None = None) -> bytes:
        return bytes(abs(int(self.parameters["block_rows"]) - 4))


@pytest.fixture
def blocky(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._CODECS, "blocky", Blocky)


def test_without_a_name_all_codecs_are_chosen() -> None:
    assert list(codec_selection.choose_codecs([])) == codec_names()


def test_parameters_are_numbers_where_they_look_like_it() -> None:
    codec = codec_selection.parse_codec("zstd:strategy=dfast,hash_log=12")
    assert (codec.parameters["strategy"], codec.parameters["hash_log"]) == ("dfast", 12)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("middle-out", "is not one of"),
        ("zstd:hash_log", "is not of the form"),
        ("zstd:=3", "is not of the form"),
        ("zstd:hash_log=", "is not of the form"),
        ("zstd:hash_log=99", "hash_log=99"),
        ("raw:level=1", "level"),
    ],
)
def test_what_is_no_codec_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        codec_selection.parse_codec(text)


@pytest.mark.usefixtures("blocky")
def test_a_codec_with_blocks_is_also_measured_with_the_best_of_them() -> None:
    sample = synthesise("gaussian", 1, 8, 8)
    chosen: dict[str, Codec] = codec_selection.choose_codecs(["raw", "blocky"])
    assert list(codec_selection.with_best_blocks(chosen, sample)) == ["raw", "blocky", "blocky:block_rows=4"]


@pytest.mark.usefixtures("blocky")
def test_a_codec_named_with_its_blocks_is_measured_with_those_alone() -> None:
    chosen = codec_selection.choose_codecs(["blocky:block_rows=16"])
    assert codec_selection.with_best_blocks(chosen, synthesise("gaussian", 1, 8, 8)) == chosen
