from __future__ import annotations

import pytest

from zipmoe.process.web_names import parse_host, parse_origin


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://chat.example.com", "https://chat.example.com"),
        ("HTTP://LocalHost:3000/", "http://localhost:3000"),
        ("https://x:443", "https://x"),
        ("http://x:443", "http://x:443"),
        ("http://[::1]:80", "http://[::1]"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("chrome-extension://abc", "chrome-extension://abc"),
        ("null", "null"),
        ("*", "*"),
    ],
)
def test_an_origin_is_as_browsers_write_it(given: str, origin: str) -> None:
    assert parse_origin(given) == origin


@pytest.mark.parametrize(
    "given",
    ["", "localhost:3000", "http://", "http://x/path", "http://u@x", "http://x:port", "https://*.x:*", "a b://c"],
)
def test_what_is_no_origin_is_refused_by_name(given: str) -> None:
    with pytest.raises(ValueError, match="is no origin such as"):
        parse_origin(given)


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("Gateway", "gateway"),
        ("a.example.com.", "a.example.com"),
        ("10.0.0.7", "10.0.0.7"),
        ("[FD00::0:1]", "fd00::1"),
        ("fd00::1", "fd00::1"),
        ("*", "*"),
    ],
)
def test_a_host_has_one_form(given: str, host: str) -> None:
    assert parse_host(given) == host


@pytest.mark.parametrize("given", ["", "gateway:8080", "http://gateway", "a/b", "a b", "[::1]:80"])
def test_what_is_no_host_is_refused_by_name(given: str) -> None:
    with pytest.raises(ValueError, match="is no host such as"):
        parse_host(given)
