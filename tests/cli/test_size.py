"""Sizes as people write them."""

from __future__ import annotations

import pytest

from zipmoe.cli.size import format_size, parse_size
from zipmoe.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("4096", 4096),
        ("4GiB", 4 << 30),
        ("1.5GiB", 3 << 29),
        ("2G", 2 << 30),
        ("2GB", 2_000_000_000),
        ("800 MB", 800_000_000),
        ("1k", 1024),
        ("7b", 7),
        ("1TiB", 1 << 40),
    ],
)
def test_a_size_is_read(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "0", "1.5.5G", "4 gigs", "nan", "inf", "1e9", "٣GiB", "0.1b"])
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3 << 29, "1.50 GiB"), (5 << 40, "5.00 TiB")]
)
def test_a_size_is_written_with_its_unit(nbytes: int, text: str) -> None:
    assert format_size(nbytes) == text
