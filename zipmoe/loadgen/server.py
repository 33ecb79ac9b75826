"""Interface of the asked servers, and the router over gRPC. `http_server` has servers with OpenAI's API."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import NamedTuple

from zipmoe.client import AsyncGenerationClient, Event, Finished, Sampling, Stopping, Token
from zipmoe.loadgen.jobs import Job


class AnswerUsage(NamedTuple):
    """Usage that a server reports at the end of an answer."""

    prompt_tokens: int = 0
    expert_hits: int = 0
    expert_misses: int = 0
    expert_read_bytes: int = 0


class Server(ABC):
    """A server that answers jobs."""

    @abstractmethod
    def ask(self, job: Job) -> AsyncIterator[AnswerUsage | None]:
        """Yields None for each arriving token, and an `AnswerUsage` at the end of a complete answer.

        Raises:
            ZipMoeError: the request is refused or fails.
        """


class RouterServer(Server):
    """A router. Answers have exactly the length of the job, because end-of-sequence tokens do not end them."""

    def __init__(self, client: AsyncGenerationClient, sampling: Sampling, timeout_s: float | None) -> None:
        self._client = client
        self._sampling = sampling
        self._timeout_s = timeout_s

    async def ask(self, job: Job) -> AsyncIterator[AnswerUsage | None]:
        """Streams one generation."""
        stopping = Stopping(max_new_tokens=job.answer_tokens, ignore_eos=True)
        events: AsyncIterator[Event] = self._client.generate(
            job.prompt,
            sampling=self._sampling,
            stopping=stopping,
            request_id=f"bench-{job.index}",
            timeout_s=self._timeout_s,
        )
        async for event in events:
            if isinstance(event, Token):
                yield None
            elif isinstance(event, Finished):
                usage = event.usage
                yield AnswerUsage(usage.prompt_tokens, usage.expert_hits, usage.expert_misses, usage.expert_bytes_read)
