"""Codecs by name, as manifests ask for them."""

from __future__ import annotations

import pytest

from zipmoe.codec.registry import codec_names, create_codec, default_codec
from zipmoe.errors import UnsupportedStore
from zipmoe.kernels import backends as kernel_backends


def test_every_named_codec_can_be_created_and_knows_its_name() -> None:
    assert [create_codec(name).name for name in codec_names()] == codec_names()


def test_the_default_codec_is_cascade_where_there_is_simd_and_huffman_elsewhere() -> None:
    assert default_codec().name == ("huffman" if kernel_backends.backend() == "scalar" else "cascade")


def test_zstd_codes_literals_only_unless_told_otherwise() -> None:
    assert create_codec("zstd").parameters == {"strategy": "fast", "min_match": 7, "hash_log": 6, "target_length": 0}


def test_an_unknown_codec_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(
        UnsupportedStore, match=r"codec 'middle-out' is not one of .*cascade.*huffman.*lz4hc.*raw.*zstd"
    ):
        create_codec("middle-out")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("level", 3),
        ("strategy", "ultra"),
        ("strategy", 1),
        ("strategy", ["fast"]),
        ("min_match", 2),
        ("min_match", 8),
        ("min_match", "7"),
        ("min_match", 7.0),
        ("min_match", True),
        ("hash_log", 31),
        ("target_length", -1),
        ("target_length", 1 << 17),
        ("hash_log", None),
    ],
)
def test_a_zstd_parameter_that_this_version_does_not_know_is_refused(name: str, value: int | str) -> None:
    with pytest.raises(UnsupportedStore, match=f"parameter {name}="):
        create_codec("zstd", {name: value})


def test_parameters_for_raw_are_refused() -> None:
    with pytest.raises(UnsupportedStore, match="codec raw has no parameters, got level"):
        create_codec("raw", {"level": 1})
