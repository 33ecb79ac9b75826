"""Finds by trial in which forms a chat template takes the contents of messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from zipmoe.model.conversation.chat_request import Turn

_FIRST: Final = "zipmoefirst"
_SECOND: Final = "zipmoesecond"

Render = Callable[[Sequence[Turn]], str]
"""Renders turns to text; raises any exception where the template refuses."""


@dataclass(frozen=True)
class TemplateFit:
    """The forms of contents that a template takes.

    Attributes:
        parts: whether it loops over a list of parts.
        text: whether it takes a text. A template that takes neither is given texts, and refuses by itself.
    """

    parts: bool
    text: bool

    def content(self, content: str | Sequence[str]) -> str | list[dict[str, str]]:
        """Returns a content, one text or the texts of its parts, in a form that the template takes."""
        if isinstance(content, str):
            return content if self.text or not self.parts else [_part(content)]
        return [_part(text) for text in content] if self.parts else "".join(content)


def template_fit(render: Render) -> TemplateFit:
    """Renders a turn as text and one as parts, and looks whether the texts arrive."""
    return TemplateFit(
        parts=_arrive(render, [_part(_FIRST), _part(_SECOND)], {_FIRST, _SECOND}),
        text=_arrive(render, _FIRST, {_FIRST}),
    )


def _arrive(render: Render, content: Any, texts: set[str]) -> bool:
    try:
        shown = render([{"role": "user", "content": content}])
    except Exception:  # any exception of jinja2 or of a template is a refusal
        return False
    # A template that does not loop writes the list itself, in Python's or in JSON's form.
    return all(text in shown for text in texts) and f"'{_FIRST}'" not in shown and f'"{_FIRST}"' not in shown


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
