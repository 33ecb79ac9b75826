"""Reads whole answers with a parser, cut anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from zipmoe.model.conversation.answer_pieces import (
    AnswerParser,
    AnswerPiece,
    CallArguments,
    CallBegun,
    ReasoningPiece,
    TextPiece,
)


@dataclass
class ReadAnswer:
    """An answer's pieces, joined by kind."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)


def joined(pieces: Iterable[AnswerPiece]) -> ReadAnswer:
    """Joins pieces, as a client does."""
    answer = ReadAnswer()
    for piece in pieces:
        if isinstance(piece, TextPiece):
            answer.text += piece.text
        elif isinstance(piece, ReasoningPiece):
            answer.reasoning += piece.text
        elif isinstance(piece, CallBegun):
            assert piece.index == len(answer.calls), "calls come one after the other"
            answer.calls.append((piece.name, ""))
        else:
            assert isinstance(piece, CallArguments) and piece.index == len(answer.calls) - 1
            name, arguments = answer.calls[-1]
            answer.calls[-1] = (name, arguments + piece.text)
    return answer


def read(make: Callable[[], AnswerParser], text: str, cuts: Sequence[int] = ()) -> ReadAnswer:
    """Feeds a text to a new parser in the pieces that the cuts make."""
    parser = make()
    pieces: list[AnswerPiece] = []
    begin = 0
    for cut in [*sorted({min(cut, len(text)) for cut in cuts}), len(text)]:
        pieces += parser.feed(text[begin:cut])
        begin = cut
    return joined([*pieces, *parser.finish()])
