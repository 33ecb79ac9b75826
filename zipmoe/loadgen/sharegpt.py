"""Recorded dialogues in ShareGPT's format: a JSON list of `{"conversations": [{"from": ..., "value": ...}, ...]}`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from zipmoe.errors import InvalidRequest, NotFound

_USERS = {"human", "user"}
_MODELS = {"gpt", "assistant", "chatgpt", "bing", "bard"}


class Dialogue(NamedTuple):
    """The first question of a conversation and the answer to it."""

    prompt: str
    answer: str


def read_dialogues(path: Path) -> list[Dialogue]:
    """Reads the first question and answer of each conversation.

    Conversations that do not begin with a question and an answer are left out. System messages are skipped.

    Raises:
        NotFound: there is no such file.
        InvalidRequest: the file is not in ShareGPT's format, or no conversation begins with a question and an answer.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"no ShareGPT file {path}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} is no JSON file: {error}") from error
    if not isinstance(document, list):
        raise InvalidRequest(f"{path} is not in ShareGPT's format: a list of conversations is wanted")
    found = list(_dialogues(document))
    if not found:
        raise InvalidRequest(f"none of the {len(document)} entries of {path} begins with a question and an answer")
    return found


def _dialogues(document: list[Any]) -> Iterator[Dialogue]:
    for entry in document:
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list):
            continue
        said = [turn for turn in turns if isinstance(turn, dict) and turn.get("from") != "system"][:2]
        texts = [turn.get("value") for turn in said]
        if len(said) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
            continue
        if said[0].get("from") in _USERS and said[1].get("from") in _MODELS:
            yield Dialogue(str(texts[0]), str(texts[1]))
