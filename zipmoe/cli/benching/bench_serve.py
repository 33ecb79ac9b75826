"""`zipmoe bench serve`: puts load on a running router, or on a server with OpenAI's API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zipmoe.cli.console import JsonFlag, err, facts, out, print_json, table
from zipmoe.cli.problem import FAILURE_EXIT_CODE
from zipmoe.cli.size import format_size
from zipmoe.cli.talking.router_target import TargetOption, TlsCaOption, TokenFileOption
from zipmoe.errors import InvalidRequest

if TYPE_CHECKING:
    from zipmoe.loadgen.sample import RequestSample
    from zipmoe.loadgen.session import Load
    from zipmoe.loadgen.statistics import Spread, Summary


def serve(
    requests: Annotated[int, typer.Option("--requests", "-n", min=1, help="Requests that are measured.")] = 50,
    rate: Annotated[
        float | None, typer.Option(help="Open loop: Poisson arrivals, so many a second.", show_default=False)
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Closed loop: so many clients at a time.  [default: 1]", show_default=False),
    ] = None,
    prompt_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTHS",
            help="Random prompts: N, uniform:LEAST:MOST or lognormal:MEDIAN:SIGMA[:MOST].  [default: 128]",
            show_default=False,
        ),
    ] = None,
    answer_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTHS",
            help="Answers, which are made exactly so long.  [default: 64, or as recorded]",
            show_default=False,
        ),
    ] = None,
    sharegpt: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts, and lengths of answers, from a ShareGPT JSON file.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed sends the same requests at the same times.")] = 0,
    warmup: Annotated[int, typer.Option(min=0, help="Requests beforehand that are not measured.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    slo_ttft_ms: Annotated[
        float | None, typer.Option(help="Goodput: the longest time to the first token.", show_default=False)
    ] = None,
    slo_itl_ms: Annotated[
        float | None, typer.Option(help="Goodput: the longest mean time between tokens.", show_default=False)
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Give up a request after so long.")] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask http://HOST:PORT, which speaks OpenAI's API, instead of a router."),
    ] = None,
    target: TargetOption = None,
    token_file: TokenFileOption = None,
    tls_ca: TlsCaOption = None,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw latencies and the course of the run.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Puts load on a running server, and reports latencies, throughput, goodput and errors.

    Latency counts from the time when a request was due. Percentiles are nearest-rank, over complete answers. With --url
    the token file holds the API key. The exit code is 1 if no request was answered.
    """
    from zipmoe.bench.machine import describe_machine
    from zipmoe.bench.plot import check_plotting
    from zipmoe.loadgen.lengths import parse_lengths
    from zipmoe.loadgen.plot import plot as draw
    from zipmoe.loadgen.session import Load, LoadTarget, run_load
    from zipmoe.loadgen.statistics import Slo, summarise

    if rate is not None and (concurrency is not None or not 0 < rate < float("inf")):
        raise InvalidRequest("give either --rate, more than 0, or --concurrency")
    if sharegpt is not None and prompt_tokens is not None:
        raise InvalidRequest("give either --prompt-tokens or --sharegpt")
    if plot is not None:
        check_plotting(plot)
    prompts = None if sharegpt is not None else parse_lengths("--prompt-tokens", prompt_tokens or "128")
    recorded = sharegpt is not None and answer_tokens is None
    answers = None if recorded else parse_lengths("--answer-tokens", answer_tokens or "64")
    load = Load(requests, warmup, rate, concurrency or 1, prompts, answers, sharegpt, seed, temperature, timeout)
    asked = LoadTarget(target, url, token_file, tls_ca)
    with _progress(requests, quiet=json_output) as on_sample:
        name, samples = asyncio.run(run_load(load, asked, on_sample))
    slo = Slo(_seconds(slo_ttft_ms), _seconds(slo_itl_ms))
    summary = summarise(samples, slo)
    if plot is not None and summary.completed:
        draw(samples, f"{name}: {_course(load)}", plot)
    if json_output:
        print_json(
            {
                "machine": describe_machine(),
                "model": name,
                "load": load.to_json(),
                "slo": asdict(slo),
                **asdict(summary),
            }
        )
    else:
        _print(f"{name}: {_course(load)}", summary)
    if not summary.completed:
        raise typer.Exit(FAILURE_EXIT_CODE)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _course(load: Load) -> str:
    how = f"{load.concurrency} at a time" if load.rate_per_s is None else f"{load.rate_per_s:g} a second"
    return f"{load.requests} requests, {how}"


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[RequestSample], None]]:
    """Shows a progress bar on a terminal, with counts of tokens and of failed requests."""
    if quiet or not err().is_terminal:
        yield lambda sample: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[tokens]} tokens, {task.fields[failed]} failed"),
    )
    tokens = failed = 0
    with Progress(*columns, console=err()) as progress:
        task = progress.add_task("requests", total=total, tokens=0, failed=0)

        def show(sample: RequestSample) -> None:
            nonlocal tokens, failed
            tokens += len(sample.token_times_s)
            failed += sample.error is not None
            progress.update(task, advance=1, tokens=tokens, failed=failed)

        yield show


def _print(title: str, summary: Summary) -> None:
    rows = [
        _row("time to first token", summary.first_token_s),
        _row("between tokens", summary.inter_token_s),
        _row("whole answer", summary.request_s),
    ]
    out().print(table(title, ("milliseconds", "mean", "p50", "p90", "p99", "max", "of"), rows))
    told: dict[str, object] = {
        "answered": f"{summary.completed} of {summary.requests} in {summary.seconds:.1f} s",
        "throughput": f"{summary.requests_per_s:.3f} requests/s, {summary.tokens_per_s:.2f} tokens/s",
    }
    if summary.goodput_per_s is not None and summary.good_share is not None:
        told["goodput"] = f"{summary.goodput_per_s:.3f} requests/s, {summary.good_share:.0%} of all keep the SLO"
    if summary.hit_share is not None:
        told["experts"] = (
            f"{summary.hit_share:.0%} at hand, {format_size(summary.read_bytes_per_token or 0)} read a token"
        )
    if summary.errors:
        told["errors"] = ", ".join(f"{count} {name}" for name, count in summary.errors.items())
    out().print(facts("", told))


def _row(name: str, spread: Spread | None) -> tuple[object, ...]:
    if spread is None:
        return (name, *["-"] * 6)
    values = (spread.mean, spread.p50, spread.p90, spread.p99, spread.maximum)
    return (name, *(f"{value * 1000:.1f}" for value in values), spread.count)
