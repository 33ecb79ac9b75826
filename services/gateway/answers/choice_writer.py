"""Writes answers as OpenAI's choices: `/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from zipmoe.client import Event, Finished, PromptProgress, Started, Token, Usage, complete_all
from zipmoe.services.gateway.answers.answer_writer import AnswerWriter, Texts
from zipmoe.services.gateway.answers.shapes import AnswerShape, prompt_entries
from zipmoe.services.gateway.json_frames import DONE, frame


class ChoiceWriter(AnswerWriter):
    """Writes the answers to any number of prompts, numbered as choices."""

    def __init__(self, shape: AnswerShape, include_usage: bool) -> None:
        """Prepares an answer.

        Args:
            shape: the form of choices.
            include_usage: whether a stream ends with a piece for the usage.
        """
        self.with_logprobs = shape.with_logprobs
        self._shape = shape
        self._include_usage = include_usage
        self._usages: dict[int, Usage] = {}
        self._calling: set[int] = set()

    def whole(self, answers: Sequence[Sequence[Event]], texts: Texts) -> dict[str, Any]:
        """Returns all choices."""
        completions = [answer for events in answers for answer in complete_all(events, self._shape.choices)]
        return self._shape.whole(completions, texts)

    def frames(self, prompt: int, event: Event, texts: Texts) -> Iterator[bytes]:
        """Yields the pieces of one event."""
        for piece in self._pieces(prompt, event, texts):
            # With include_usage, every piece but the last has a usage of null.
            yield frame({**piece, "usage": None} if self._include_usage else piece)

    def end(self) -> Iterator[bytes]:
        """Yields the piece for the usage, if the client asked for it, and the end."""
        if self._include_usage:
            yield frame(self._shape.usage_piece([self._usages[index] for index in sorted(self._usages)]))
        yield DONE

    def _pieces(self, prompt: int, event: Event, texts: Texts) -> Iterator[dict[str, Any]]:
        shape = self._shape
        if isinstance(event, PromptProgress):
            return
        if isinstance(event, Started):
            for index in range(prompt * shape.choices, (prompt + 1) * shape.choices):
                if (opening := shape.opening(index)) is not None:
                    yield opening
                if shape.echo:
                    yield shape.piece(index, event.prompt_text, prompt_entries(event), texts)
            return
        index = prompt * shape.choices + event.choice
        yield from shape.pieces_before(index, event)
        if isinstance(event, Token) and (event.text or shape.with_logprobs):
            yield shape.piece(index, event.text, [event], texts)
        elif isinstance(event, Finished) and event.text:
            yield shape.piece(index, event.text, [], {})
        after = shape.pieces_after(index, event)
        if after:
            self._calling.add(index)
            yield from after
        if isinstance(event, Finished):
            self._usages[index] = event.usage
            yield shape.piece(index, "", [], {}, shape.end(event.reason, calls_tools=index in self._calling))
