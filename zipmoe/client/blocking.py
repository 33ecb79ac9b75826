"""The client for threads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import grpc

from zipmoe.client.connection import connection_to
from zipmoe.client.event import Event, Finished, TokenText
from zipmoe.client.model import Model
from zipmoe.client.parameters import Constraint, Output, Prompt, Sampling, Stopping
from zipmoe.client.wire import detokenize_request, event_of, generate_request, model_of, prompt_message
from zipmoe.errors import Unavailable
from zipmoe.rpc.status import to_error
from zipmoe.v1 import generation_pb2 as pb
from zipmoe.v1 import generation_pb2_grpc

if TYPE_CHECKING:
    from typing import Self

QUICK_TIMEOUT_S = 30.0
"""Deadline of calls that run no model."""


class GenerationClient:
    """Client of a router over a single channel; a context manager that closes the channel.

    Thread: any number of threads may share one client, but never across a fork.
    """

    def __init__(
        self, target: str | None = None, *, token: str | None = None, tls_ca: str | os.PathLike[str] | None = None
    ) -> None:
        """Makes a client; the first call connects.

        Args:
            target: gRPC target, `unix:PATH` or `HOST:PORT`; the router of the run directory by default.
            token: bearer token, where the router was started with one.
            tls_ca: PEM file of the authority that signed the router's certificate; None speaks plain text.

        Raises:
            InvalidRequest: the token cannot travel in a header.
            NotFound: the certificate file does not exist.
        """
        self._connection = connection_to(target, token, tls_ca)
        self._channel = self._connection.open()
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)

    @property
    def target(self) -> str:
        """The gRPC target that this client talks to."""
        return self._connection.target

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel; streams that still run are cancelled."""
        self._channel.close()

    def generate(
        self,
        prompt: Prompt,
        *,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        stopping: Stopping = Stopping(),  # noqa: B008 (frozen)
        output: Output = Output(),  # noqa: B008 (frozen)
        forced_token_ids: Sequence[int] = (),
        constraint: Constraint | None = None,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> Iterator[Event]:
        """Generates, and yields each event when it arrives.

        Closing the iterator early, or leaving its loop, cancels the request on the router.

        Args:
            prompt: a text, token ids or messages.
            sampling: parameters for choosing the next token.
            stopping: conditions that end the generation.
            output: values to report beside the tokens.
            forced_token_ids: tokens to emit instead of the model's own choice, one per step; the model chooses after
                the last of them.
            constraint: the form that the answer has to have; None for any.
            request_id: id in the router's log; if empty, the router makes one.
            timeout_s: deadline for the whole answer; None waits for ever.

        Yields:
            Any number of `PromptProgress` if `output` asks for it, one `Started`, any number of `Token`, one
            `Finished`; with several choices, the tokens and one `Finished` of each, in any order among the choices.

        Raises:
            InvalidRequest: the request cannot be sent (raised by the call itself), or the router refuses it.
            ZipMoeError: any other class that the router raised; the events before it are valid but not complete.
        """
        request = generate_request(prompt, sampling, stopping, output, forced_token_ids, request_id, constraint)
        return self._stream(request, timeout_s)

    def _stream(self, request: pb.GenerateRequest, timeout_s: float | None) -> Iterator[Event]:
        call = self._stub.Generate(request, timeout=timeout_s, metadata=self._connection.metadata)
        left = request.sampling.choices or 1
        try:
            for response in call:  # to the end of the stream, or the router counts the call as cancelled
                event = event_of(response)
                left -= isinstance(event, Finished)
                yield event
        except grpc.RpcError as error:
            if left:
                raise to_error(error) from error
        finally:
            call.cancel()
        if left:
            raise Unavailable("the stream ended without saying that the answer is complete")

    def model(self, *, timeout_s: float = QUICK_TIMEOUT_S) -> Model:
        """Returns the description of the served model.

        Raises:
            Unavailable: no router serves at the target.
        """
        try:
            request = pb.GetModelRequest()
            return model_of(self._stub.GetModel(request, timeout=timeout_s, metadata=self._connection.metadata))
        except grpc.RpcError as error:
            raise to_error(error) from error

    def tokenize(
        self, prompt: Prompt, *, add_special_tokens: bool = True, timeout_s: float = QUICK_TIMEOUT_S
    ) -> list[int]:
        """Turns a prompt into the token ids that `generate` would see.

        Args:
            prompt: a text, token ids or messages.
            add_special_tokens: whether a text gets the tokenizer's special tokens, as `generate` has it.
            timeout_s: deadline of the call.

        Raises:
            InvalidRequest: the prompt is empty, cannot be sent, or the model has no chat template.
            Unavailable: no router serves at the target.
        """
        request = pb.TokenizeRequest(prompt=prompt_message(prompt))
        if not add_special_tokens:
            request.add_special_tokens = False
        try:
            response = self._stub.Tokenize(request, timeout=timeout_s, metadata=self._connection.metadata)
        except grpc.RpcError as error:
            raise to_error(error) from error
        return list(response.token_ids)

    def token_texts(self, token_ids: Sequence[int], *, timeout_s: float = QUICK_TIMEOUT_S) -> list[TokenText]:
        """Returns the text and the bytes of each token alone; the text of a special token is its name.

        Raises:
            InvalidRequest: an id is not in the vocabulary.
            Unavailable: no router serves at the target.
        """
        request = detokenize_request(token_ids)
        told = self._detokenized(request, timeout_s)
        return list(map(TokenText, told.tokens, told.token_bytes))

    def detokenize(self, token_ids: Sequence[int], *, timeout_s: float = QUICK_TIMEOUT_S) -> list[str]:
        """Returns the text of each token alone; the text of a special token is its name.

        Raises:
            InvalidRequest: an id is not in the vocabulary.
            Unavailable: no router serves at the target.
        """
        return list(self._detokenized(detokenize_request(token_ids), timeout_s).tokens)

    def sequence_text(self, token_ids: Sequence[int], *, timeout_s: float = QUICK_TIMEOUT_S) -> str:
        """Returns the text of token ids as one sequence, with special tokens by their names.

        Raises:
            InvalidRequest: an id is not in the vocabulary.
            Unavailable: no router serves at the target.
        """
        request = detokenize_request(token_ids, as_sequence=True)
        return self._detokenized(request, timeout_s).text

    def _detokenized(self, request: pb.DetokenizeRequest, timeout_s: float) -> pb.DetokenizeResponse:
        try:
            response: pb.DetokenizeResponse = self._stub.Detokenize(
                request, timeout=timeout_s, metadata=self._connection.metadata
            )
        except grpc.RpcError as error:
            raise to_error(error) from error
        return response
