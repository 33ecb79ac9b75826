"""Tables show what they are given, letter by letter."""

from __future__ import annotations

import pytest

from zipmoe.cli.console import facts, out, print_json, table


def test_brackets_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    out().print(facts("/a/[bold]b", {"path": "/x/[red]y"}))
    out().print(table("[i]t", ("column",), [("[link]z",)]))
    shown = capsys.readouterr().out
    for text in ("/a/[bold]b", "/x/[red]y", "[i]t", "[link]z"):
        assert text in shown


def test_a_table_in_a_pipe_is_not_squeezed(capsys: pytest.CaptureFixture[str]) -> None:
    out().print(facts("title", {"path": "x" * 150}))
    assert "x" * 150 in capsys.readouterr().out


def test_json_is_one_line_and_keeps_its_letters(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": "größer\n"})
    assert capsys.readouterr().out == '{"text": "größer\\n"}\n'
