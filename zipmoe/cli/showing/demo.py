"""`zipmoe demo`: packs and serves a small model, and compares the tokens with stock transformers."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

import zipmoe
from zipmoe.cli.console import JsonFlag, err, out, print_json
from zipmoe.cli.flags import Settings
from zipmoe.cli.problem import FAILURE_EXIT_CODE
from zipmoe.cli.serving.free_ports import free_ports
from zipmoe.cli.serving.service_group import ServiceGroup, running, wait_until_serving
from zipmoe.cli.showing.demo_outcome import DemoOutcome
from zipmoe.cli.showing.stock import Draw, stock_process
from zipmoe.cli.size import format_size
from zipmoe.cli.stores.pack import pack_options, run_pack
from zipmoe.cli.talking.answer import stream_text, usage_line
from zipmoe.errors import Unavailable
from zipmoe.planning.pool_sizes import PoolSizes

if TYPE_CHECKING:
    from zipmoe.cli.serving.supervisor import Supervisor
    from zipmoe.client import Completion
    from zipmoe.store.format.manifest import Manifest

_MODEL: Final = Path(zipmoe.__file__).parents[1] / "demo" / "model"
#: 19 MB of experts: large enough that padding to whole disk blocks does not hide the savings of the codec.
_SIZES: Final = {"hidden_size": 256, "moe_intermediate_size": 256, "num_experts": 16, "num_experts_per_tok": 4}
_START_TIMEOUT_S: Final = 300.0
_TOP_P: Final = 0.9
_PROMPT: Final = "And it came to pass in those days, that"


def demo(
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What to continue.")] = _PROMPT,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="The most tokens to generate.")] = 48,
    temperature: Annotated[float, typer.Option(min=0.0, help="Randomness of sampling; 0 is greedy.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="Makes the sampling repeatable.")] = 1,
    model: Annotated[
        Path | None, typer.Option(metavar="SRC", help="Another checkpoint than the built-in one; decoder-only.")
    ] = None,
    directory: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Work here and keep what is made.  [default: a temporary place]")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Packs a small model, starts the three services, streams a generation, and checks it against stock transformers.

    Every token id has to equal the id that stock transformers draws with the same seed; otherwise the exit code is 1.
    The arenas are deliberately too small for all experts.
    """
    begin_s = time.monotonic()
    with _terminated_like_interrupted(), _work_directory(directory) as work:
        checkpoint = model or _built_in(work, json_output)
        _say(f"checkpoint  {checkpoint}", json_output)
        report = run_pack(checkpoint, work / "store", pack_options(None, 4, None), quiet=json_output).report
        size, was = format_size(report.store_bytes), format_size(report.source_bytes)
        _say(f"store       {size}, {report.store_bytes / report.source_bytes:.3f} of {was}", json_output)
        draw = Draw(temperature=temperature, top_p=_TOP_P, seed=seed)
        outcome = _serve(work, checkpoint, report.manifest, prompt, max_new_tokens, draw, json_output)
    seconds = time.monotonic() - begin_s
    if json_output:
        print_json(outcome.to_json(seconds))
    else:
        outcome.print(seconds)
    if not outcome.passed:
        raise typer.Exit(FAILURE_EXIT_CODE)


def _serve(
    work: Path, checkpoint: Path, manifest: Manifest, prompt: str, max_new_tokens: int, draw: Draw, quiet: bool
) -> DemoOutcome:
    runtime, logs = work / "run", work / "logs"
    for path in (runtime, logs):
        path.mkdir(mode=0o700, exist_ok=True)
    experts = sum(layer.expert_count for layer in manifest.layers)
    packed = max(4, experts // 3)  # so that experts are evicted and fetched again
    slots = PoolSizes(packed, packed, max(2, experts // 8))
    shared: Settings = {"store": work / "store", "device": "cpu", "cache_slots": str(slots)}
    group = ServiceGroup(runtime, logs, free_ports(3), shared)
    begin_s = time.monotonic()
    with stock_process(checkpoint) as stock, running(group) as supervisor:
        wait_until_serving(supervisor, _START_TIMEOUT_S, quiet=quiet)
        startup_s = time.monotonic() - begin_s
        try:
            prompt_ids, answer = _generate(runtime, prompt, max_new_tokens, draw, quiet)
        except Unavailable:
            supervisor.check()
            raise
        metrics = _metrics(supervisor)
        _say("stock       transformers generates the same, on its own ...", quiet)
        stock_ids = stock.generate(prompt_ids, max_new_tokens, draw)
    return DemoOutcome(answer, prompt_ids, stock_ids, startup_s, metrics)


def _generate(runtime: Path, prompt: str, max_new_tokens: int, draw: Draw, quiet: bool) -> tuple[list[int], Completion]:
    from zipmoe.client import GenerationClient, Sampling, Stopping, complete
    from zipmoe.process.runtime import SocketPaths

    sampling = Sampling(**draw, top_k=0, min_p=0.0, repetition_penalty=1.0)
    with GenerationClient(f"unix:{SocketPaths(runtime).router}") as client:
        prompt_ids = client.tokenize(prompt)
        events = client.generate(prompt, sampling=sampling, stopping=Stopping(max_new_tokens))
        if quiet:
            return prompt_ids, complete(events)
        out().print(f"\n{prompt}", style="dim", end="", markup=False, soft_wrap=True)
        answer = stream_text(events)
        err().print(usage_line(answer.usage), style="dim", soft_wrap=True)
        return prompt_ids, answer


def _metrics(supervisor: Supervisor) -> dict[str, float]:
    from zipmoe.cli.watching.scrape import scrape

    totals: dict[str, float] = {}
    for process in supervisor.processes:
        prefixed = (item for item in scrape(process.spec.metrics_port).items() if item[0].startswith("zipmoe_"))
        totals.update(prefixed)
    return totals


def _built_in(work: Path, quiet: bool) -> Path:
    """Returns the trained model of the source tree, or random weights in a wheel, which has no trained model."""
    if _MODEL.is_dir():
        return _MODEL
    _say("checkpoint  random weights: this installation comes without demo/model, expect no sentences", quiet)
    from zipmoe.model.synth.writer import synthesise

    path = work / "checkpoint"
    if not path.exists():
        synthesise("qwen2_moe", path, layers=4, seed=1, shards_bytes=8_000_000, overrides=_SIZES)
    return path


@contextmanager
def _work_directory(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted.absolute()
        return
    path = Path(tempfile.mkdtemp(prefix="zipmoe-demo-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Handles SIGTERM like Ctrl-C during the block, so that processes and files are removed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(line: str, quiet: bool) -> None:
    if not quiet:
        err().print(line, markup=False, soft_wrap=True)
