"""Shows an answer: as text while tokens arrive, or as one JSON object when it is complete."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from zipmoe.cli.size import format_size

if TYPE_CHECKING:
    from zipmoe.client import Completion, Event, TokenLogprob, Usage


def stream_text(events: Iterable[Event]) -> Completion:
    """Writes the text of an answer to stdout as tokens arrive, and a line break at the end.

    The line break also follows an answer that breaks off after its first event.

    Returns:
        The whole answer.
    """
    from zipmoe.client import Finished, Token, complete

    def shown() -> Iterator[Event]:
        begun = False
        try:
            for event in events:
                begun = True
                if isinstance(event, Token | Finished):
                    sys.stdout.write(event.text)
                    sys.stdout.flush()
                yield event
        finally:
            if begun:
                sys.stdout.write("\n")
                sys.stdout.flush()

    return complete(shown())


def usage_line(usage: Usage) -> str:
    """Describes the usage of an answer on one line."""
    parts = [f"{usage.prompt_tokens} prompt + {usage.generated_tokens} generated tokens"]
    if usage.reused_tokens:
        exact = f", {usage.approximate_tokens} of them not exact" if usage.approximate_tokens else ""
        parts.append(f"{usage.reused_tokens} from the cache{exact}")
    if usage.generated_tokens:
        parts.append(f"first after {usage.time_to_first_token_s:.2f} s")
    if usage.inter_token_s:
        parts.append(f"then {1 / usage.inter_token_s:.1f} tokens/s")
    if usage.drafted_tokens:
        parts.append(f"{usage.accepted_tokens} of {usage.drafted_tokens} drafted tokens accepted")
    read = f"{format_size(usage.expert_bytes_read)} read, {usage.expert_stall_s:.2f} s waited"
    return f"{', '.join(parts)}; experts: {usage.expert_hits} hits, {usage.expert_misses} misses, {read}"


def usage_json(usage: Usage) -> dict[str, Any]:
    """Describes the usage of an answer as JSON-ready data: `usage`, `timings` and `experts`."""
    return {
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "generated_tokens": usage.generated_tokens,
            "reused_tokens": usage.reused_tokens,
            "approximate_tokens": usage.approximate_tokens,
            "drafted_tokens": usage.drafted_tokens,
            "accepted_tokens": usage.accepted_tokens,
        },
        "timings": {
            "time_to_first_token_s": usage.time_to_first_token_s,
            "inter_token_s": usage.inter_token_s,
            "duration_s": usage.duration_s,
            "expert_stall_s": usage.expert_stall_s,
        },
        "experts": {
            "hits": usage.expert_hits,
            "misses": usage.expert_misses,
            "bytes_read": usage.expert_bytes_read,
        },
    }


def completion_json(completion: Completion) -> dict[str, Any]:
    """Describes a whole answer as JSON-ready data, with log-probabilities if they were requested."""
    result = {
        "request_id": completion.request_id,
        "token_ids": list(completion.token_ids),
        "text": completion.text,
        "finish_reason": completion.finish_reason.value,
        **usage_json(completion.usage),
    }
    if any(token.logprob is not None for token in completion.tokens):
        result["logprobs"] = [_finite(token.logprob) for token in completion.tokens]
    if any(token.top_logprobs for token in completion.tokens):
        result["top_logprobs"] = [_top(token.top_logprobs) for token in completion.tokens]
    if completion.prompt_logprobs:
        result["prompt_logprobs"] = [_finite(logprob) for logprob in completion.prompt_logprobs]
    if completion.prompt_top_logprobs:
        result["prompt_top_logprobs"] = [_top(place) for place in completion.prompt_top_logprobs]
    return result


def _top(entries: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    return [{"token_id": each.token_id, "logprob": _finite(each.logprob)} for each in entries]


def _finite(logprob: float | None) -> float | None:
    """Replaces the infinite log-probability of an impossible token by None, because JSON has no infinity."""
    return logprob if logprob is not None and math.isfinite(logprob) else None
