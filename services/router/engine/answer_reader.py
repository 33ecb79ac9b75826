"""Separates reasoning and tool calls from the text of an answer, on its way from the engine to the client."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from zipmoe.model.conversation.answer_pieces import AnswerPiece, CallArguments, CallBegun, ReasoningPiece, TextPiece
from zipmoe.services.router.engine.request import GenerationSpec
from zipmoe.v1 import generation_pb2 as pb

_ID_LETTERS: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ID_LENGTH: Final = 9
"""Letters and digits of a call's id: the templates of Mistral take no other ids back."""


class AnswerReader:
    """Completes the events of one answer. Thread: the event loop's; a few microseconds a character."""

    def __init__(self, spec: GenerationSpec, choice: int = 0) -> None:
        self._changes = spec.chat_changes
        self._id = f"{choice} {spec.request_id}"
        self._parser = None if spec.reading is None else spec.reading.parser()

    def read(self, response: pb.GenerateResponse) -> pb.GenerateResponse:
        """Completes the next event, in place, and returns it."""
        kind = response.WhichOneof("event")
        if kind == "started":
            response.started.system_message_merged = self._changes.system_merged
            response.started.broken_control_tokens.extend(self._changes.broken_tokens)
            response.started.tools_unseen = self._changes.tools_unseen
        elif self._parser is not None and kind == "token":
            self._fill(response.token, self._parser.feed(response.token.text))
        elif self._parser is not None and kind == "finished":
            pieces = self._parser.feed(response.finished.text)
            self._fill(response.finished, [*pieces, *self._parser.finish()])
        return response

    def _fill(self, event: pb.GeneratedToken | pb.GenerationFinished, pieces: Iterable[AnswerPiece]) -> None:
        event.text = ""
        for piece in pieces:
            if isinstance(piece, TextPiece):
                event.text += piece.text
            elif isinstance(piece, ReasoningPiece):
                event.reasoning += piece.text
            elif isinstance(piece, CallBegun):
                event.tool_calls.add(index=piece.index, id=call_id(self._id, piece.index), name=piece.name)
            elif event.tool_calls and event.tool_calls[-1].index == piece.index:
                event.tool_calls[-1].arguments += piece.text
            else:
                assert isinstance(piece, CallArguments), "there is no other piece"
                event.tool_calls.add(index=piece.index, arguments=piece.text)


def call_id(answer_id: str, index: int) -> str:
    """Returns the id of an answer's tool call: nine letters and digits."""
    number = int.from_bytes(hashlib.blake2b(f"{index} {answer_id}".encode(), digest_size=8).digest())
    letters = []
    for _ in range(_ID_LENGTH):
        number, letter = divmod(number, len(_ID_LETTERS))
        letters.append(_ID_LETTERS[letter])
    return "".join(letters)
