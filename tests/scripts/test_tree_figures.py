"""Figures of little trees: each limit is broken by one tree and kept by another."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from scripts.tree_figures.__main__ import main
from scripts.tree_figures.figures import Figures, measure
from scripts.tree_figures.limits import violations

MAP = '"""A package.\n\nIt has two files:\n`a` is one,\n`b` is the second.\n"""\n'


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def measured(root: Path, files: dict[str, str]) -> Figures:
    return measure(write(root, files))


def broken(root: Path, files: dict[str, str]) -> list[str]:
    return [str(violation) for violation in violations(measured(root, files))]


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", "-C", root, *words], check=True, capture_output=True)


def numbered(folder: str, count: int, suffix: str = ".py") -> dict[str, str]:
    return {f"{folder}/file{number}{suffix}": "" for number in range(count)}


@pytest.mark.parametrize("folder", ["zipmoe/wide", "services/wide", "tests", "benchmarks", "demo", "scripts"])
def test_a_nineteenth_file_is_one_too_many(tmp_path: Path, folder: str) -> None:
    assert broken(tmp_path, numbered(folder, 18)) == []
    assert broken(tmp_path, {f"{folder}/another.py": ""}) == [f"{folder}: 19 source files, limit 18"]


def test_native_files_are_counted_and_files_of_subfolders_are_not(tmp_path: Path) -> None:
    files = numbered("zipmoe/a", 6, ".cpp") | numbered("zipmoe/a", 6, ".h") | numbered("zipmoe/a", 6, ".c")
    assert broken(tmp_path, files | {"zipmoe/a/b/inner.py": "", "zipmoe/a/notes.txt": ""}) == []
    assert broken(tmp_path, {"zipmoe/a/more.py": ""}) == ["zipmoe/a: 19 source files, limit 18"]


def test_generated_code_is_not_counted(tmp_path: Path) -> None:
    generated = numbered("zipmoe/v1", 30, "_pb2.py") | numbered("zipmoe/v1", 30, "_pb2_grpc.py")
    figures = measured(tmp_path, generated | {"zipmoe/v1/mine.py": ""})
    assert figures.folders == {"zipmoe/v1": 1}


def test_a_class_name_belongs_to_one_file(tmp_path: Path) -> None:
    nested = "class Outer:\n    class Row:\n        pass\n"
    repeated = "class Row:\n    pass\n\n\nclass Row:\n    class Row:\n        pass\n"
    assert broken(tmp_path, {"zipmoe/a.py": repeated, "scripts/b.py": nested}) == []
    found = broken(tmp_path, {"tests/test_b.py": nested})
    assert found == [
        "tests/test_b.py:2 zipmoe/a.py:1 zipmoe/a.py:5 zipmoe/a.py:6: class Row in 2 files, limit 1",
    ]


def test_what_is_limited_in_docstrings_and_comments(tmp_path: Path) -> None:
    prose = "word " * 997 + "what " * 3
    assert broken(tmp_path, {"zipmoe/a.py": f'"""{prose}"""\n'}) == []
    assert broken(tmp_path, {"services/b.py": "# What's that?\n"}) == [
        "zipmoe services: 3.992 `what` in a thousand words, limit 3.0"
    ]


@pytest.mark.parametrize("word", ["who", "Whoever", "whom", "whose", "'who'", "who's"])
def test_who_in_any_form_is_limited(tmp_path: Path, word: str) -> None:
    plain = "word " * 1999
    assert broken(tmp_path, {"zipmoe/a.py": f"def f():\n    '''{plain}'''\n    # {word}\n"}) == []
    assert broken(tmp_path, {"zipmoe/b.py": f"# {word}\n"}) == [
        "zipmoe services: 1.000 `who` in a thousand words, limit 0.5"
    ]


def test_words_of_code_and_of_other_folders_are_no_prose(tmp_path: Path) -> None:
    files = {"zipmoe/a.py": "what = 'who # whose'\n", "tests/test_a.py": '"""What, and who."""\n'}
    words = measured(tmp_path, files).words
    assert (words.words, words.what, words.who) == (0, 0, 0)


def test_the_files_with_most_pointing_words_are_named(tmp_path: Path) -> None:
    files = {"zipmoe/a.py": "# what\n", "zipmoe/b.py": "# what who\n", "zipmoe/c.py": "# nothing\n"}
    assert [(w.place, w.words, w.what, w.who) for w in measured(tmp_path, files).worst_words] == [
        ("zipmoe/b.py", 2, 1, 1),
        ("zipmoe/a.py", 1, 1, 0),
    ]


def test_a_file_name_belongs_to_one_folder_unless_it_is_a_role(tmp_path: Path) -> None:
    kept = {"zipmoe/a/config.py": "", "services/b/config.py": "", "zipmoe/a/linear.py": "", "tests/linear.py": ""}
    assert broken(tmp_path, kept) == []
    assert broken(tmp_path, {"services/b/linear.py": ""}) == [
        "services/b/linear.py zipmoe/a/linear.py: file name linear in 2 folders, limit 1"
    ]


def test_a_package_has_a_map_of_five_lines(tmp_path: Path) -> None:
    assert broken(tmp_path, {"zipmoe/a/__init__.py": MAP}) == []
    short = {"zipmoe/b/__init__.py": MAP.replace("`a` is one,\n", ""), "zipmoe/c/__init__.py": ""}
    assert broken(tmp_path, short) == [
        "zipmoe/b/__init__.py: 4 lines of docstring, limit at least 5",
        "zipmoe/c/__init__.py: 0 lines of docstring, limit at least 5",
    ]


def test_a_package_holds_nothing_but_its_map(tmp_path: Path) -> None:
    kept = {
        "zipmoe/__init__.py": MAP + '__version__ = "1"\n',
        "zipmoe/client/__init__.py": MAP + 'from zipmoe.client.a import b\n__all__ = ["b"]\n',
        "services/__init__.py": MAP + "import os\nos.umask(0)\n",
    }
    assert broken(tmp_path, kept) == []
    code = "import os\nLIMIT = 3\ndef f() -> None: ...\n"
    assert broken(tmp_path, {"services/b/__init__.py": MAP + code}) == [
        "services/b/__init__.py: 3 statements beside the docstring, limit 0"
    ]


def test_generated_packages_and_tests_need_no_map(tmp_path: Path) -> None:
    names = ("zipmoe/v1", "zipmoe/internal", "zipmoe/internal/v1", "tests/a")
    assert broken(tmp_path, {f"{name}/__init__.py": "" for name in names}) == []


def test_lines_are_counted_with_and_without_prose(tmp_path: Path) -> None:
    text = (
        '"""Module."""\n\n# comment\n\n\nclass A:\n    """Two\n    lines."""\n\n    x = """data\n\n    more"""  # why\n'
    )
    sizes = measured(tmp_path, {"zipmoe/a.py": text, "services/b.py": "x = 1\n\n", "tests/c.py": text}).sizes
    assert (sizes.files, sizes.median, sizes.longest, sizes.longest_path) == (2, 7, 12, "zipmoe/a.py")
    assert (sizes.code_lines, sizes.docstrings) == (4, 2)


def test_first_sentences_with_more_than_two_pronouns_are_listed(tmp_path: Path) -> None:
    text = (
        '"""It says what it is. It and its own are these."""\n'
        'def f():\n    """It has its name. They and them and those."""\n'
        'def g():\n    """Whoever reads this, knows\n    one.\n\n    More."""\n'
    )
    assert measured(tmp_path, {"zipmoe/a.py": text}).sentences == [
        "zipmoe/a.py:1: It says what it is.",
        "zipmoe/a.py:5: Whoever reads this, knows one.",
    ]


def test_a_checkout_is_measured_by_its_tracked_files(tmp_path: Path) -> None:
    write(tmp_path, {"zipmoe/a.py": "", "zipmoe/gone.py": ""})
    (tmp_path / "zipmoe" / "link.py").symlink_to("a.py")
    git(tmp_path, "init")
    git(tmp_path, "add", "zipmoe")
    write(tmp_path, {"zipmoe/untracked.py": ""})
    (tmp_path / "zipmoe" / "gone.py").unlink()
    assert measure(tmp_path).folders == {"zipmoe": 1}


def test_without_a_checkout_all_files_count_but_those_of_builds_at_the_top(tmp_path: Path) -> None:
    write(tmp_path, {"zipmoe/a.py": "", "zipmoe/build/b.py": "", "build/zipmoe/c.py": "", ".venv/zipmoe/d.py": ""})
    (tmp_path / "zipmoe" / "link.py").symlink_to("a.py")
    (tmp_path / "services").symlink_to("zipmoe")
    assert measure(tmp_path).folders == {"zipmoe": 1, "zipmoe/build": 1}


def test_the_check_fails_with_a_line_for_each_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"zipmoe/a.py": "class A:\n    pass\n", "zipmoe/b.py": ""})
    assert main(["--root", str(tmp_path), "--check"]) == 0
    assert capsys.readouterr() == ("", "")
    write(tmp_path, {"services/b.py": "class A:\n    pass\n"})
    assert main(["--root", str(tmp_path), "--check"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "services/b.py:1 zipmoe/a.py:1: class A in 2 files, limit 1",
        "services/b.py zipmoe/b.py: file name b in 2 folders, limit 1",
    ]
    assert err == ""


def test_the_report_never_fails_and_is_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"zipmoe/a.py": "# what\n"})
    assert main(["--root", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["folders"] == {"zipmoe": 1}
    assert printed["what_in_a_thousand"] == 1000
    assert [violation["limit"] for violation in printed["violations"]] == ["3.0"]
    assert main(["--root", str(tmp_path), "--json", "--check"]) == 1


def test_the_report_lists_sentences_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"zipmoe/a.py": '"""It is what it is."""\n'})
    assert main(["--root", str(tmp_path)]) == 0
    assert "It is what it is." not in capsys.readouterr().out
    assert main(["--root", str(tmp_path), "--sentences"]) == 0
    assert "zipmoe/a.py:1: It is what it is." in capsys.readouterr().out


def test_an_empty_tree_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--root", str(tmp_path), "--check"])
    assert stopped.value.code == 2
    assert "no source files" in capsys.readouterr().err
