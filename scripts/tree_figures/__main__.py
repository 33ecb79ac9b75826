"""Prints the figures of a tree, or checks them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts.tree_figures.figures import measure
from scripts.tree_figures.limits import violations
from scripts.tree_figures.report import as_json, as_text

REPOSITORY = Path(__file__).resolve().parents[2]


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line, or the words given; the exit status is 1 if a limit is broken and `--check` is given."""
    parser = argparse.ArgumentParser(prog="python -m scripts.tree_figures", description=__doc__)
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="the tree to measure; this repository by default")
    parser.add_argument("--check", action="store_true", help="fail, with a line for each limit that is broken")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--sentences", action="store_true", help="list the first sentences with too many pronouns")
    arguments = parser.parse_args(words)
    try:
        figures = measure(arguments.root.resolve())
    except FileNotFoundError as error:
        parser.error(str(error))
    broken = violations(figures)
    if arguments.json:
        print(as_json(figures))
    elif arguments.check:
        print(*broken, sep="\n", end="\n" if broken else "")
    else:
        print(as_text(figures, with_sentences=arguments.sentences))
    return int(arguments.check and bool(broken))


if __name__ == "__main__":
    raise SystemExit(main())
