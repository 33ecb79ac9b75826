"""Runs a load: opens the named server, creates the jobs and runs the chosen loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zipmoe.client import AsyncGenerationClient, Sampling
from zipmoe.loadgen.http_server import HttpServer, served_model
from zipmoe.loadgen.http_stream import HttpAddress
from zipmoe.loadgen.jobs import Job, poisson_arrivals_s, random_jobs
from zipmoe.loadgen.lengths import Lengths
from zipmoe.loadgen.recorded import recorded_jobs
from zipmoe.loadgen.run import OnSample, closed_loop, open_loop
from zipmoe.loadgen.sample import RequestSample
from zipmoe.loadgen.server import RouterServer, Server
from zipmoe.loadgen.sharegpt import read_dialogues
from zipmoe.process.secret_file import read_secret

_BYTES_PER_TOKEN = 4
"""Estimate for servers without a tokenizer call. Only the token counts of recorded dialogues depend on it."""

_VOCABULARY = 10_000
"""Vocabulary size assumed for servers that report none. Every model is assumed to have at least this size."""

CountTokens = Callable[[str], Awaitable[int]]


@dataclass(frozen=True)
class Load:
    """The requests of a run: number, arrivals, lengths and sampling.

    Attributes:
        requests: number of measured requests.
        warmup: number of requests before the measured requests.
        rate_per_s: rate of Poisson arrivals; None for a closed loop.
        concurrency: number of clients of the closed loop.
        prompts: lengths of random prompts; None with `dialogues`.
        answers: lengths of answers; None for the recorded lengths.
        dialogues: file in ShareGPT's format.
        seed: seed of prompts, lengths and arrivals, and of the sampling of a router.
        temperature: temperature of sampling.
        timeout_s: limit of one request; None for no limit.
    """

    requests: int
    warmup: int
    rate_per_s: float | None
    concurrency: int
    prompts: Lengths | None
    answers: Lengths | None
    dialogues: Path | None
    seed: int
    temperature: float
    timeout_s: float | None

    def to_json(self) -> dict[str, Any]:
        """Describes the load as JSON-ready data, with distributions as text."""
        return {
            name: value if isinstance(value, int | float | None) else str(value) for name, value in vars(self).items()
        }


@dataclass(frozen=True)
class LoadTarget:
    """The server to ask: the server at `url`, with the token as API key, or else the router at `target`."""

    target: str | None
    url: str | None
    token_file: Path | None
    tls_ca: Path | None


@dataclass(frozen=True)
class _Opened:
    server: Server
    model: str
    vocabulary_size: int
    context_tokens: int
    count_tokens: CountTokens


async def run_load(load: Load, asked: LoadTarget, on_sample: OnSample) -> tuple[str, list[RequestSample]]:
    """Runs a load and returns the samples of the measured requests.

    Returns:
        The name of the model, and one sample for each measured request.

    Raises:
        ZipMoeError: the server does not answer before the first request. Later failures are in the samples.
    """
    async with _open(load, asked) as opened:
        jobs = await _jobs(load, opened)
        warmup = [replace(job, index=job.index - load.warmup) for job in jobs[: load.warmup]]
        measured = [replace(job, index=index) for index, job in enumerate(jobs[load.warmup :])]
        await closed_loop(opened.server, warmup, 1, lambda sample: None)
        if load.rate_per_s is None:
            return opened.model, await closed_loop(opened.server, measured, load.concurrency, on_sample)
        due_s = poisson_arrivals_s(len(measured), load.rate_per_s, load.seed)
        return opened.model, await open_loop(opened.server, measured, due_s, on_sample)


async def _jobs(load: Load, opened: _Opened) -> list[Job]:
    count = load.warmup + load.requests
    if load.dialogues is not None:
        found = read_dialogues(load.dialogues)
        context = opened.context_tokens
        return await recorded_jobs(found, count, load.answers, context, opened.count_tokens, load.seed)
    assert load.prompts is not None and load.answers is not None, "the command line sees to that"
    return random_jobs(count, load.prompts, load.answers, opened.vocabulary_size, load.seed)


@asynccontextmanager
async def _open(load: Load, asked: LoadTarget) -> AsyncIterator[_Opened]:
    token = None if asked.token_file is None else read_secret(asked.token_file)
    if asked.url is not None:
        address = HttpAddress.parse(asked.url, token, None if asked.tls_ca is None else str(asked.tls_ca))
        model = await served_model(address)

        async def guess(text: str) -> int:
            return -(-len(text.encode()) // _BYTES_PER_TOKEN)

        server = HttpServer(address, model.name, load.temperature, load.timeout_s)
        context = model.context_tokens or 1 << 30
        yield _Opened(server, model.name, model.vocabulary_size or _VOCABULARY, context, guess)
        return
    async with AsyncGenerationClient(asked.target, token=token, tls_ca=asked.tls_ca) as client:
        described = await client.model()

        async def count(text: str) -> int:
            return len(await client.tokenize(text))

        # Explicit values, so that the model's generation_config.json does not change the measured sampling.
        sampling = Sampling(load.temperature, 1.0, 0, 0.0, 1.0, load.seed % 2**64)
        router = RouterServer(client, sampling, load.timeout_s)
        yield _Opened(router, described.name, described.vocabulary_size, described.context_tokens, count)
