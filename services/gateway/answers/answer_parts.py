"""The parts of an answer in the order in which the model wrote them: reasoning, text and calls of tools."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zipmoe.client import Event, Finished, FinishReason, Token
from zipmoe.errors import Unavailable


class PartKind(enum.Enum):
    """The kind of a part."""

    REASONING = "reasoning"
    TEXT = "text"
    CALL = "call"


@dataclass
class AnswerPart:
    """A part of an answer, which grows at its end.

    Attributes:
        kind: the kind of the part.
        index: number of the part in the answer, from 0.
        text: reasoning, text, or a call's arguments.
        call_id: id of the call.
        name: name of the tool that is called.
        is_cut: whether the limit of tokens ended the part.
    """

    kind: PartKind
    index: int
    text: str = ""
    call_id: str = ""
    name: str = ""
    is_cut: bool = False


@dataclass(frozen=True)
class PartBegun:
    """A part begins, without text."""

    part: AnswerPart


@dataclass(frozen=True)
class PartGrown:
    """Some text, never empty, has been added to a part."""

    part: AnswerPart
    added: str


@dataclass(frozen=True)
class PartEnded:
    """A part is complete, or cut. The next part begins after it."""

    part: AnswerPart


PartChange = PartBegun | PartGrown | PartEnded


class PartsReader:
    """Reads the events of one answer. Streams and whole answers are written from the same parts.

    How the router cuts a text into events does not change the parts. Inside one event, the rest of the open call comes
    first, then reasoning, text, and further calls.

    Attributes:
        parts: the parts so far. All but the last have ended.
        reasoning_tokens: tokens that completed some reasoning.
        finished: the event that ended the answer; None before.
    """

    def __init__(self) -> None:
        self.parts: list[AnswerPart] = []
        self.reasoning_tokens = 0
        self.finished: Finished | None = None
        self._is_open = False
        self._calls = 0

    def read(self, event: Event) -> Iterator[PartChange]:
        """Yields the changes by one event; events before the answer change nothing."""
        if not isinstance(event, Token | Finished):
            return
        self.reasoning_tokens += isinstance(event, Token) and bool(event.reasoning)
        later = [delta for delta in event.tool_calls if delta.index >= self._calls]
        for delta in event.tool_calls[: len(event.tool_calls) - len(later)]:
            yield from self._grow(PartKind.CALL, delta.arguments)
        yield from self._grow(PartKind.REASONING, event.reasoning)
        yield from self._grow(PartKind.TEXT, event.text)
        for delta in later:
            if delta.index >= self._calls:
                self._calls = delta.index + 1
                yield from self._begin(AnswerPart(PartKind.CALL, len(self.parts), "", delta.id, delta.name))
            yield from self._grow(PartKind.CALL, delta.arguments)
        if isinstance(event, Finished):
            self.finished = event
            yield from self._end(is_cut=event.reason is FinishReason.LENGTH)

    def read_all(self, events: Sequence[Event]) -> Finished:
        """Reads a whole answer, and returns the event that ended it.

        Raises:
            Unavailable: the events end before the answer is complete.
        """
        for event in events:
            for _ in self.read(event):
                pass
        if self.finished is None:
            raise Unavailable(f"the stream ended after {len(events)} events without saying that it is complete")
        return self.finished

    def _grow(self, kind: PartKind, added: str) -> Iterator[PartChange]:
        if not added:
            return
        if not (self._is_open and self.parts[-1].kind is kind):
            yield from self._begin(AnswerPart(kind, len(self.parts)))
        part = self.parts[-1]
        part.text += added
        yield PartGrown(part, added)

    def _begin(self, part: AnswerPart) -> Iterator[PartChange]:
        yield from self._end(is_cut=False)
        self.parts.append(part)
        self._is_open = True
        yield PartBegun(part)

    def _end(self, *, is_cut: bool) -> Iterator[PartChange]:
        if self._is_open:
            self._is_open = False
            self.parts[-1].is_cut = is_cut
            yield PartEnded(self.parts[-1])
