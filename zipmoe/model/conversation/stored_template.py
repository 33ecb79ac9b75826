"""Reads the chat templates and the added tokens of a store from its files, without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zipmoe.model.conversation.answer_formats import AnswerFormats, answer_formats
from zipmoe.store.format.fields import TEMPLATE_FOLDER


def stored_templates(store: Path) -> dict[str, str]:
    """Returns the sources of the chat templates of a store or checkpoint by name; the main one is `default`."""
    templates: dict[str, str] = {}
    written = _json(store / "tokenizer_config.json").get("chat_template")
    if isinstance(written, str):
        templates["default"] = written
    elif isinstance(written, list):  # the older form of named templates
        templates |= {
            str(each["name"]): str(each["template"])
            for each in written
            if isinstance(each, dict) and {"name", "template"} <= each.keys()
        }
    if (store / "chat_template.jinja").is_file():
        templates["default"] = _text(store / "chat_template.jinja")
    for path in sorted((store / TEMPLATE_FOLDER).glob("*.jinja")):
        templates[path.stem] = _text(path)
    return templates


def stored_formats(store: Path) -> AnswerFormats:
    """Returns the formats of answers that a store's own files tell; none where they cannot be read."""
    tokens: set[str] = set()
    for each in _json(store / "tokenizer.json").get("added_tokens") or ():
        if isinstance(each, dict):
            tokens.add(str(each.get("content", "")))
    listed = _json(store / "tokenizer_config.json").get("added_tokens_decoder")
    if isinstance(listed, dict):
        tokens |= {str(each.get("content", "")) for each in listed.values() if isinstance(each, dict)}
    templates = stored_templates(store)
    if not templates:
        return AnswerFormats()
    return answer_formats("\n".join(templates.values()), tokens - {""})


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
