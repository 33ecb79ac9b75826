"""`zipmoe pack`: packs a hub-format checkpoint into a store."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from zipmoe.cli.console import JsonFlag, err, facts, out, print_json
from zipmoe.cli.progress_bar import progress_bar
from zipmoe.cli.size import format_size
from zipmoe.cli.stores.store_progress import step_of
from zipmoe.errors import InvalidRequest, UnsupportedStore
from zipmoe.model.torch_version import check_torch
from zipmoe.process.python_command import python_command
from zipmoe.system_error import reason_of

if TYPE_CHECKING:
    from zipmoe.model.checkpoint.catalogue import Catalogue
    from zipmoe.model.probe.result import ProbeResult
    from zipmoe.store.pack.writer import PackOptions, PackReport

TOKENIZER_TIMEOUT_S = 120.0
"""A tokenizer loads within seconds; the import of transformers on a busy machine takes most of the time."""


def pack(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Hub-format checkpoint directory; fp32 and fp16 are cast to bfloat16.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Directory of the store: new, or unfinished.")],
    codec: Annotated[
        str | None,
        typer.Option(
            help="cascade, huffman, lz4hc, raw or zstd.  [default: cascade, without SIMD huffman]", show_default=False
        ),
    ] = None,
    codec_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A parameter of the codec, as block_rows=8; may be repeated."),
    ] = None,
    e_chunks: Annotated[int, typer.Option(help="E-chunks of a tensor: so many workers can share one tensor.")] = 4,
    with_mtp: Annotated[
        bool, typer.Option("--with-mtp", help="Also the layers for multi-token prediction, which draft tokens.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Threads.  [default: all cores]", show_default=False)] = None,
    json_output: JsonFlag = False,
) -> None:
    """Packs a checkpoint into a store, losslessly from bfloat16 on.

    The same command resumes an interrupted pack. The same checkpoint, codec and options always give the same bytes.
    """
    options = pack_options(codec, e_chunks, workers, codec_option or ())
    report, seconds, checkpoint, probe = run_pack(source, destination, options, quiet=json_output, with_mtp=with_mtp)
    result = {
        **pack_result(report, destination, seconds),
        "cast_tensors": checkpoint.casts,
        "requests": probe.to_plain(),
        "warnings": [
            *cast_warnings(checkpoint.casts),
            *mtp_warnings(checkpoint, probe),
            *generation_warnings(destination),
            *tokenizer_warnings(destination),
        ],
    }
    for warning in result["warnings"]:
        err().print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    if json_output:
        print_json(result)
        return
    source_size, store_size = format_size(report.source_bytes), format_size(report.store_bytes)
    out().print(
        facts(
            "already packed" if report.already_packed else "packed",
            {
                "store": destination,
                "model": f"{report.manifest.family}, {result['experts']} experts in {result['layers']} layers"
                + (f", {report.manifest.mtp_layers} of them for multi-token prediction" * bool(checkpoint.mtp_layers)),
                "requests": probe,
                "size": f"{store_size}, {result['ratio']:.4f} of {source_size}",
                "time": f"{seconds:.1f} s",
                "digest": report.manifest.digest,
            },
        )
    )


def pack_options(
    codec: str | None, e_chunks: int, workers: int | None, codec_options: Sequence[str] = ()
) -> PackOptions:
    """Builds the options of a pack and fills in the defaults.

    Args:
        codec: name of a codec; None for the default.
        e_chunks: E-chunks of a tensor.
        workers: threads; None for all cores.
        codec_options: parameters of the codec, each `KEY=VALUE`; a value of digits becomes an integer.

    Raises:
        InvalidRequest: the codec or a parameter is unknown, or a number is out of range.
    """
    from zipmoe.codec.registry import codec_names, create_codec, default_codec
    from zipmoe.store.pack.writer import PackOptions

    if codec is not None and codec not in codec_names():
        raise InvalidRequest(f"codec {codec!r} is not one of {', '.join(codec_names())}")
    parameters = dict(map(_codec_parameter, codec_options))
    try:
        chosen = create_codec(codec or default_codec().name, parameters)
    except UnsupportedStore as error:
        raise InvalidRequest(error.message) from error
    if workers is None:
        return PackOptions(codec=chosen, e_chunks_per_tensor=e_chunks)
    return PackOptions(codec=chosen, e_chunks_per_tensor=e_chunks, workers=workers)


def _codec_parameter(text: str) -> tuple[str, int | str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise InvalidRequest(f"--codec-option {text!r} is not KEY=VALUE")
    return key, int(value) if value.isascii() and value.isdigit() else value


class PackRun(NamedTuple):
    """A finished pack: the report, its seconds without opening and probing, the checkpoint, and the probe."""

    report: PackReport
    seconds: float
    checkpoint: Catalogue
    probe: ProbeResult


def run_pack(source: Path, destination: Path, options: PackOptions, *, quiet: bool, with_mtp: bool = False) -> PackRun:
    """Packs a checkpoint, on request with its layers for multi-token prediction, and shows a progress bar."""
    check_torch()
    from zipmoe.calibration.saved_probe import ProbeRun
    from zipmoe.model.checkpoint.catalogue import catalogue
    from zipmoe.store.pack.writer import pack_store

    checkpoint = catalogue(source, with_mtp=with_mtp)
    probe = ProbeRun(source).result()  # refuses a model that cannot be served, before a byte is written
    begin_s = time.monotonic()
    try:
        with progress_bar("packing", quiet=quiet) as show:
            report = pack_store(checkpoint, destination, options, lambda progress: show(step_of(progress)))
    except KeyboardInterrupt:
        if not quiet:
            err().print("interrupted; the same command resumes where it stopped")
        raise
    return PackRun(report, time.monotonic() - begin_s, checkpoint, probe)


def cast_warnings(casts: Mapping[str, int]) -> list[str]:
    """Says how many tensors of a checkpoint were cast, by dtype; a cast to bf16 loses bits of the checkpoint."""
    if not casts:
        return []
    counts = ", ".join(f"{count} tensors of {dtype}" for dtype, count in casts.items())
    return [f"{counts} were cast as transformers' from_pretrained(dtype=torch.bfloat16) casts them"]


def mtp_warnings(checkpoint: Catalogue, probe: ProbeResult) -> list[str]:
    """Says that layers for multi-token prediction are not packed, or are packed and will not be used."""
    if checkpoint.unpacked_mtp:
        left_out = f"{checkpoint.unpacked_mtp} tensors of layers for multi-token prediction were left out"
        return [f"{left_out}; packed with --with-mtp, they draft tokens"]
    if checkpoint.mtp_layers and probe.path.value != "shared":
        return ["the layers for multi-token prediction will not be used: requests of this model share no passes"]
    return []


def generation_warnings(store: Path) -> list[str]:
    """Names the settings of a store's generation_config.json that serving does not follow."""
    from transformers import GenerationConfig, logging

    from zipmoe.model.stock.generation_settings import IGNORED_EFFECT, ignored_settings

    if not (store / "generation_config.json").is_file():
        return []
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # stock's remarks on the same settings
    try:
        defaults = GenerationConfig.from_pretrained(store, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        return [f"generation_config.json cannot be read, and a router will refuse it: {error}"]
    settings = ", ".join(f"{name} {value}" for name, value in ignored_settings(defaults).items())
    return [f"generation_config.json: {settings} will not be followed: {IGNORED_EFFECT}"] if settings else []


def tokenizer_warnings(store: Path, timeout_s: float = TOKENIZER_TIMEOUT_S) -> list[str]:
    """Loads the tokenizer of a store once, in a process of its own, and says why that fails.

    A store without a tokenizer serves token ids, so a failure is a warning.

    Args:
        store: the store.
        timeout_s: time after which the process is killed.
    """
    command = python_command("-m", "zipmoe.model.text.load_once", str(store))
    try:
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        problem = f"loading it took more than {timeout_s:g} s"
    except OSError as error:
        problem = f"the process that loads it cannot be started: {reason_of(error)}"
    else:
        problem = _told_problem(ran)
    return [f"tokenizer: {problem}; without it a router serves token ids, no text"] if problem else []


def _told_problem(ran: subprocess.CompletedProcess[bytes]) -> str:
    """Returns the problem that the process reports, or how the process ended without a report; empty for none."""
    try:
        outcome = json.loads((ran.stdout.splitlines() or [b""])[-1])
        return "" if outcome is None else f"{outcome['problem']} ({outcome['next_step']})"
    except (ValueError, KeyError, TypeError):
        last = (ran.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        return f"the process that loads it ended with exit code {ran.returncode}: {last}"


def pack_result(report: PackReport, destination: Path, seconds: float) -> dict[str, Any]:
    """Describes a finished pack as JSON-ready data."""
    manifest = report.manifest
    return {
        "store": str(destination),
        "digest": manifest.digest,
        "family": manifest.family,
        "codec": manifest.codec_name,
        "layers": len(manifest.layers),
        "mtp_layers": manifest.mtp_layers,
        "experts": sum(layer.expert_count for layer in manifest.layers),
        "already_packed": report.already_packed,
        "source_bytes": report.source_bytes,
        "store_bytes": report.store_bytes,
        "ratio": report.store_bytes / report.source_bytes,
        "seconds": seconds,
    }
