"""The table of the dialects: the parser of each path's bodies, and the writer of its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from zipmoe.client import Model
from zipmoe.services.gateway.answers.answer_writer import AnswerWriter
from zipmoe.services.gateway.answers.choice_writer import ChoiceWriter
from zipmoe.services.gateway.answers.messages_writer import MessagesWriter
from zipmoe.services.gateway.answers.responses_writer import ResponsesWriter
from zipmoe.services.gateway.answers.shapes import AnswerShape, ChatShape, CompletionShape
from zipmoe.services.gateway.http_problem import ErrorForm, anthropic_error, openai_error
from zipmoe.services.gateway.request_body.generation_body import GenerationBody
from zipmoe.services.gateway.request_body.message_body import parse_message
from zipmoe.services.gateway.request_body.openai_body import parse_chat, parse_completion
from zipmoe.services.gateway.request_body.response_body import parse_response

MakeWriter = Callable[[str, GenerationBody, Model], AnswerWriter]
"""Makes the writer of an answer from the request's id, its body and the served model."""


@dataclass(frozen=True)
class Dialect:
    """A form of requests and answers.

    Attributes:
        parse: reads a body.
        writer: makes the writer of an answer.
        is_conversation: whether the prompt is a conversation, which needs a chat template.
    """

    parse: Callable[[bytes], GenerationBody]
    writer: MakeWriter
    is_conversation: bool = True


def _choices(kind: type[AnswerShape]) -> MakeWriter:
    def make(request_id: str, body: GenerationBody, model: Model) -> AnswerWriter:
        fingerprint = _fingerprint(model)
        shape = kind(request_id, body.model, fingerprint, body.with_logprobs, body.echo, body.sampling.choices)
        return ChoiceWriter(shape, body.include_usage)

    return make


def _response(request_id: str, body: GenerationBody, model: Model) -> AnswerWriter:
    return ResponsesWriter(request_id, body.model, body.settings)


def _message(request_id: str, body: GenerationBody, model: Model) -> AnswerWriter:
    return MessagesWriter(request_id, body.model, body.stopping.stop_strings)


DIALECTS: Final[Mapping[str, Dialect]] = {
    "/v1/chat/completions": Dialect(parse_chat, _choices(ChatShape)),
    "/v1/completions": Dialect(parse_completion, _choices(CompletionShape), is_conversation=False),
    "/v1/responses": Dialect(parse_response, _response),
    "/v1/messages": Dialect(parse_message, _message),
}
"""The dialects by the path that generates."""


def error_form(path: str) -> ErrorForm:
    """Returns the form of the errors of a path, also of a path that does not exist."""
    return anthropic_error if f"{path}/".startswith("/v1/messages/") else openai_error


def _fingerprint(model: Model) -> str:
    """Names the version and the weights: a change of either may change the answer to a request with a seed."""
    return f"zipmoe-{model.version}-{model.store_digest}"
