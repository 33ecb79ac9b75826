"""Finds the files that hold the vocabulary of a tokenizer, and the package that reading them needs."""

from __future__ import annotations

import base64
import binascii
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

VOCABULARY_PATTERNS = ("tokenizer.json", "*.model", "*.tiktoken", "tekken.json", "vocab*.json", "vocab*.txt")
_HEAD_BYTES = 4096


def vocabulary_files(folder: Path) -> list[Path]:
    """Returns the files of a store or checkpoint that hold a vocabulary, sorted by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in VOCABULARY_PATTERNS)
    )


def missing_package(files: list[Path]) -> str | None:
    """Returns the name of the package that is not installed and that reading the vocabulary needs; None if none is.

    transformers tries tiktoken after sentencepiece has failed, and its message then names tiktoken for a file of
    SentencePiece. The content of the file tells which package is meant.

    Args:
        files: result of `vocabulary_files`.
    """
    names = {path.name for path in files}
    if names & {"tokenizer.json", "tekken.json"}:
        return None  # the package tokenizers reads them, and is always installed
    for path in files:
        if path.suffix in (".model", ".tiktoken"):
            package = "tiktoken" if _is_tiktoken(path) else "sentencepiece"
            if find_spec(package) is None:
                return package
    return None


def _is_tiktoken(path: Path) -> bool:
    """Checks whether the first line is a token in base64 and its rank, as tiktoken writes it."""
    if path.suffix == ".tiktoken" or path.name == "tiktoken.model":
        return True
    with path.open("rb") as file:
        token, space, rank = file.read(_HEAD_BYTES).split(b"\n", 1)[0].rstrip().partition(b" ")
    try:
        base64.b64decode(token, validate=True)
    except binascii.Error:
        return False
    return space == b" " and rank.isdigit()
