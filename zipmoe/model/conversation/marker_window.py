"""Finds markers in streamed characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Marker:
    """A marker that has arrived as a whole."""

    text: str


class MarkerWindow:
    """Passes characters through, holds back what may become a marker, and turns a complete marker into `Marker`.

    Of two markers that begin alike, the one that is complete first is taken.
    """

    def __init__(self, markers: Sequence[str]) -> None:
        """Begins with nothing held back.

        Args:
            markers: the markers, none empty.
        """
        assert all(markers), "an empty marker would be everywhere"
        self._markers = tuple(markers)
        self._first = frozenset(marker[0] for marker in markers)
        self._held = ""

    def take(self, character: str) -> Iterator[str | Marker]:
        """Takes a character; yields the characters and markers that are certain now."""
        if not self._held and character not in self._first:
            yield character
            return
        self._held += character
        while self._held:
            if self._held in self._markers:
                marker, self._held = self._held, ""
                yield Marker(marker)
            elif any(marker.startswith(self._held) for marker in self._markers):
                return
            else:
                first, self._held = self._held[0], self._held[1:]
                yield first

    def flush(self) -> str:
        """Returns the characters that were held back, and holds them no longer."""
        held, self._held = self._held, ""
        return held


def written(item: str | Marker) -> str:
    """Returns a character, or the text of a marker."""
    return item.text if isinstance(item, Marker) else item
