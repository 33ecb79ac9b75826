"""Converts between the client's plain values and the messages of protos/zipmoe/v1/generation.proto."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import cast

from zipmoe.client.dialogue import ChatPrompt, Message
from zipmoe.client.dialogue_wire import conversation_message
from zipmoe.client.event import (
    CallDelta,
    Event,
    Finished,
    FinishReason,
    PromptProgress,
    Started,
    Token,
    TokenLogprob,
    Usage,
)
from zipmoe.client.model import Model
from zipmoe.client.parameters import Constraint, Output, Prompt, Sampling, Stopping
from zipmoe.errors import InternalError, InvalidRequest
from zipmoe.v1 import generation_pb2 as pb

_REASONS = {pb.FINISH_REASON_STOP: FinishReason.STOP, pb.FINISH_REASON_LENGTH: FinishReason.LENGTH}


def generate_request(
    prompt: Prompt,
    sampling: Sampling,
    stopping: Stopping,
    output: Output,
    forced_token_ids: Sequence[int],
    request_id: str,
    constraint: Constraint | None = None,
) -> pb.GenerateRequest:
    """Converts the parameters of a request into a message; the router checks the ranges of values.

    Raises:
        InvalidRequest: a value cannot be sent: an empty prompt, a number that is not finite or does not fit its field,
            text that is not valid Unicode.
    """
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        value = getattr(sampling, name)
        if value is not None and not math.isfinite(value):
            raise InvalidRequest(f"{name} has to be a finite number, not {value}")
    if not all(math.isfinite(bias) for bias in sampling.logit_bias.values()):
        raise InvalidRequest("a number of logit_bias is not finite")
    message = prompt_message(prompt)
    try:
        request = pb.GenerateRequest(
            request_id=request_id,
            prompt=message,
            sampling=pb.SamplingParameters(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                repetition_penalty=sampling.repetition_penalty,
                seed=sampling.seed,
                presence_penalty=sampling.presence_penalty,
                frequency_penalty=sampling.frequency_penalty,
                logit_bias=sampling.logit_bias,
                choices=0 if sampling.choices == 1 else sampling.choices,
                best_of=sampling.best_of or 0,
            ),
            stopping=pb.StoppingCriteria(
                max_new_tokens=stopping.max_new_tokens,
                stop_strings=stopping.stop_strings,
                stop_token_ids=stopping.stop_token_ids,
                ignore_eos=stopping.ignore_eos,
                min_new_tokens=stopping.min_new_tokens,
            ),
            output=pb.OutputOptions(
                logprobs=output.logprobs,
                top_logprobs=output.top_logprobs,
                prompt_logprobs=output.prompt_logprobs,
                progress=output.progress,
                prompt_top_logprobs=output.prompt_top_logprobs,
                prompt_tokens=output.prompt_tokens,
                separate_parts=output.separate_parts,
            ),
            forced_token_ids=forced_token_ids,
            constraint=None if constraint is None else _constraint(constraint),
        )
        if not output.skip_special_tokens:
            request.output.skip_special_tokens = False
        return request
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"a parameter cannot be sent: {error}") from error


def _constraint(constraint: Constraint) -> pb.AnswerConstraint:
    schema, choice = constraint.json_schema, constraint.choice
    given = [constraint.json_object or None, schema, constraint.regex, choice]
    if sum(each is not None for each in given) != 1:
        raise InvalidRequest("a constraint has to have exactly one form, and not several or none")
    if schema is not None:
        return pb.AnswerConstraint(json_schema=schema if isinstance(schema, str) else json.dumps(schema))
    if choice is not None:
        return pb.AnswerConstraint(choice=pb.ChoiceOfTexts(texts=choice))
    if constraint.regex is not None:
        return pb.AnswerConstraint(regex=constraint.regex)
    return pb.AnswerConstraint(json_object=True)


def prompt_message(prompt: Prompt) -> pb.Prompt:
    """Converts a prompt into a message; the type of the prompt decides the form.

    Raises:
        InvalidRequest: the prompt is empty, mixes forms, or holds a value that cannot be sent.
    """
    if len(prompt) == 0:
        raise InvalidRequest("the prompt is empty", next_step="give a text, token ids or chat messages")
    try:
        if isinstance(prompt, str):
            prompt.encode()  # a lone surrogate fails here, with its position, rather than inside gRPC
            return pb.Prompt(text=prompt)
        if not isinstance(prompt, ChatPrompt) and all(isinstance(item, Message) for item in prompt):
            prompt = ChatPrompt(cast("Sequence[Message]", prompt))
        if isinstance(prompt, ChatPrompt):
            return pb.Prompt(conversation=conversation_message(prompt))
        return pb.Prompt(token_ids=pb.TokenIds(ids=cast("Sequence[int]", prompt)))
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"the prompt cannot be sent: {error}") from error


def detokenize_request(token_ids: Sequence[int], *, as_sequence: bool = False) -> pb.DetokenizeRequest:
    """Makes the request for the texts of single tokens, or for the text of a sequence.

    Raises:
        InvalidRequest: a token id does not fit its field.
    """
    try:
        return pb.DetokenizeRequest(token_ids=token_ids, as_sequence=as_sequence)
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"the token ids cannot be sent: {error}") from error


def event_of(response: pb.GenerateResponse) -> Event:
    """Converts a message of the stream into an event.

    Raises:
        InternalError: this version does not know the message.
    """
    kind = response.WhichOneof("event")
    if kind == "progress":
        progress = response.progress
        return PromptProgress(progress.queue_position, progress.prompt_tokens_done, progress.prompt_tokens)
    if kind == "started":
        started = response.started
        return Started(
            started.request_id,
            started.prompt_tokens,
            tuple(started.prompt_logprobs),
            tuple(_logprobs(place.entries) for place in started.prompt_top_logprobs),
            tuple(started.prompt_token_ids),
            started.prompt_text,
            started.system_message_merged,
            tuple(started.broken_control_tokens),
            started.tools_unseen,
        )
    if kind == "token":
        token = response.token
        return Token(
            token.token_id,
            token.text,
            token.logprob if token.HasField("logprob") else None,
            _logprobs(token.top_logprobs),
            response.choice,
            token.reasoning,
            _calls_of(token.tool_calls),
        )
    if kind == "finished" and response.finished.reason in _REASONS:
        finished = response.finished
        return Finished(
            _REASONS[finished.reason],
            finished.text,
            _usage_of(finished.usage),
            response.choice,
            finished.reasoning,
            _calls_of(finished.tool_calls),
            finished.stop_string,
        )
    raise InternalError("the router sent an event that this client does not know", next_step="upgrade the client")


def _logprobs(entries: Iterable[pb.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(entry.token_id, entry.logprob) for entry in entries)


def _calls_of(deltas: Iterable[pb.ToolCallDelta]) -> tuple[CallDelta, ...]:
    return tuple(CallDelta(delta.index, delta.id, delta.name, delta.arguments) for delta in deltas)


def model_of(response: pb.GetModelResponse) -> Model:
    """Converts the message that describes a model."""
    return Model(
        name=response.name,
        family=response.family,
        store_digest=response.store_digest,
        context_tokens=response.context_tokens,
        vocabulary_size=response.vocabulary_size,
        has_chat_template=response.has_chat_template,
        moe_layers=response.moe_layers,
        experts_per_layer=response.experts_per_layer,
        encoder_decoder=response.encoder_decoder,
        version=response.version,
        compute_path=response.compute_path,
        compute_path_reason=response.compute_path_reason,
        lazy_experts_reason=response.lazy_experts_reason,
        recorded_layers=response.recorded_layers,
        eager_pass_reason=response.eager_pass_reason,
        prompt_limit_tokens=response.prompt_limit_tokens,
        reasoning_format=response.reasoning_format,
        tool_call_format=response.tool_call_format,
        template_names=tuple(response.template_names),
    )


def _usage_of(usage: pb.Usage) -> Usage:
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        generated_tokens=usage.generated_tokens,
        time_to_first_token_s=usage.time_to_first_token_s,
        duration_s=usage.duration_s,
        expert_hits=usage.expert_hits,
        expert_misses=usage.expert_misses,
        expert_bytes_read=usage.expert_bytes_read,
        expert_stall_s=usage.expert_stall_s,
        reused_tokens=usage.reused_tokens,
        approximate_tokens=usage.approximate_tokens,
        drafted_tokens=usage.drafted_tokens,
        accepted_tokens=usage.accepted_tokens,
        discarded_tokens=usage.discarded_tokens,
    )
