"""This system beside what people would use instead, on the same tokens, in cgroups of the same size.

    python -m benchmarks.peers --work-dir DIR [--systems zipmoe,lru] [--budgets 3,4,6,resident] [--batches 1,4,16] ...

Makes what is missing (checkpoint, store, GGUF file, llama.cpp, stock's choices), prints how long everything will take,
then runs. Each run starts a system with nothing in the page cache, in a memory cgroup of its budget, and gives it jobs
one after the other; disk bandwidth is measured beside each job. Systems take turns, round by round. Every job is
recorded as it ends: the same command goes on where it was interrupted, and `--report` shows what there is. A run that
ended in a problem is not done again until its line is taken out of the records.

TTFT and TPOT are means over a batch's sequences; a step is TPOT where all sequences are decoded. A step's limit is the
larger of what `floor` takes for one (our kernels, everything in memory) and the bytes that the run read a step over the
bandwidth measured beside it. tokens/s are all new tokens over the time from the hand-over to the last. Belady's bytes
are what a system would read a token that knew the future, with what its budget leaves for experts.

Needs root or a delegated cgroup (see benchmarks/memory_cgroup.py), and `pip install 'zipmoe[peers]'`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.disk import read_ahead_kb
from benchmarks.peers.limits import floors_of
from benchmarks.peers.measure import measure
from benchmarks.peers.record import RESIDENT, PeerCase, Record, Records
from benchmarks.peers.reference import make_references
from benchmarks.peers.report import explain, report
from benchmarks.peers.row import PeerRow, rows_of
from benchmarks.peers.schedule import Selection, clock, expected_s, left_of
from benchmarks.peers.systems.conversion.architectures import ARCHITECTURES
from benchmarks.peers.systems.llama_build import build_llama
from benchmarks.peers.systems.system import SYSTEMS
from benchmarks.peers.work import MODELS, PeerWork
from zipmoe.errors import InvalidRequest, ZipMoeError

RESIDENT_EXTRA_BYTES = 5 << 30
"""What a cgroup gets beyond the weights where everything is to be resident."""


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says; returns the exit code."""
    options = _parse(arguments)
    try:
        _benchmark(options)
    except ZipMoeError as error:
        print(f"{error.message}\n{error.diagnostics()}", file=sys.stderr)
        return 1
    return 0


def _benchmark(options: argparse.Namespace) -> None:
    selection = _selection(options)
    works = {model: PeerWork(options.work_dir, model, options.reference) for model in selection.models}
    folder = options.out or options.work_dir
    folder.mkdir(parents=True, exist_ok=True)
    records = Records(options.results or folder / "records.jsonl")
    runs = selection.runs()
    left = left_of(runs, records, selection.jobs)
    known = list(records)

    def limit_of(case: PeerCase) -> int:
        return limit_bytes(case, works[case.model])

    seconds = sum(expected_s(run, selection.jobs, known) for run in left)
    print(f"{explain(selection.systems)}\n{len(left)} of {len(runs)} runs are left, about {clock(seconds)}", flush=True)
    if options.plan:
        return
    if not options.report:
        _make(selection, works)
        for work in works.values():
            print(f"{work.folder}: read_ahead_kb {read_ahead_kb(work.folder)}, load {os.getloadavg()[0]:.2f}")
        for index, run in enumerate(left):
            log = folder / "logs" / f"{'-'.join(map(str, run.case))}-{run.round}.log"
            log.parent.mkdir(exist_ok=True)
            begin_s = time.monotonic()
            found = []
            for record in measure(works[run.case.model], run, limit_of(run.case), selection.jobs, log):
                records.add(record)
                found.append(record)
            seconds -= expected_s(run, selection.jobs, known)
            row = rows_of([*floors_of(run, records), *found], works, limit_of)[-1]
            print(
                f"[{index + 1}/{len(left)}, {clock(max(0.0, seconds))} left] {_line(found, row, begin_s)}", flush=True
            )
    wanted = {run.case for run in runs}
    report([record for record in records if record.run.case in wanted], works, limit_of, folder)


def limit_bytes(case: PeerCase, work: PeerWork) -> int:
    """What the cgroup of a case may hold."""
    if case.budget == RESIDENT:
        return work.model_bytes + RESIDENT_EXTRA_BYTES
    return round(float(case.budget) * (1 << 30))


def _make(selection: Selection, works: dict[str, PeerWork]) -> None:
    llama = any(name.startswith("llama") for name in selection.systems)
    if llama:
        build_llama()
    for work in works.values():
        work.make(gguf=False)
        work.make(gguf=llama and work.config["model_type"] in ARCHITECTURES)
        wanted = [(index, shape) for shape in selection.shapes() for index in range(selection.jobs)]
        make_references(work.src, work.reference, work.stock, wanted)


def _line(records: Sequence[Record], row: PeerRow, begin_s: float) -> str:
    case, last = records[-1].run.case, records[-1]
    head = f"{case.system} {case.budget} batch {case.batch} prompt {case.prompt_tokens} round {records[-1].run.round}"
    if last.problem:
        return f"{head}: {last.problem}"
    steps = ", ".join("-" if record.tpot_ms is None else f"{record.tpot_ms:.0f}" for record in records)
    firsts = ", ".join(f"{record.ttft_ms / 1e3:.2f}" for record in records)
    return (
        f"{head}: TTFT {firsts} s, TPOT {steps} ms, {last.bytes_per_token / 1e6:.0f} MB a token, peak "
        f"{last.peak_bytes / (1 << 30):.2f} GiB, {_bounds(row)}disk {last.disk_gbps:.2f} GB/s, as stock "
        f"{min(record.choices_equal for record in records):.1%}, {time.monotonic() - begin_s:.0f} s"
    )


def _bounds(row: PeerRow) -> str:
    parts = []
    if (limit_ms := row["limit_ms"]) is not None and (ratio := row["vs_limit"]) is not None:
        parts.append(f"a step {ratio:.2f} of its limit of {limit_ms:.0f} ms, ")
    if (belady := row["belady_bytes_per_token"]) is not None:
        parts.append(f"Belady {belady / 1e6:.0f} MB a token, ")
    return "".join(parts)


def _selection(options: argparse.Namespace) -> Selection:
    for name in options.systems:
        if name not in SYSTEMS:
            raise InvalidRequest(f"there is no system {name!r}, only {', '.join(SYSTEMS)}")
    for model in options.models:
        if model not in MODELS:
            raise InvalidRequest(f"there is no model {model!r}, only {', '.join(MODELS)}")
    return Selection(
        options.models,
        options.systems,
        options.budgets,
        options.batches,
        options.prompt_tokens,
        options.tokens,
        options.rounds,
        options.prompts,
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work-dir", type=Path, required=True, help="where models are made; 26 GB for qwen2_moe")
    parser.add_argument("--models", type=_words, default=["qwen2_moe"], help=f"of {', '.join(MODELS)}")
    parser.add_argument("--systems", type=_words, default=list(SYSTEMS), help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--budgets", type=_budgets, default=["3", "4", "6", RESIDENT], help="GiB, or resident")
    parser.add_argument("--batches", type=_counts, default=[1, 4, 16])
    parser.add_argument("--prompt-tokens", type=_counts, default=[64, 512], help="all but the first for TTFT alone")
    parser.add_argument("--tokens", type=_count, default=48, help="forced after a prompt")
    parser.add_argument("--rounds", type=_count, default=3)
    parser.add_argument("--prompts", type=_count, default=3, help="jobs of a run")
    parser.add_argument(
        "--reference", choices=("stock", "mapped"), default="stock", help="see benchmarks.peers.reference"
    )
    parser.add_argument(
        "--out", type=Path, help="where records, logs, JSON and plots go; the work directory by default"
    )
    parser.add_argument("--results", type=Path, help="file of records; records.jsonl there by default")
    parser.add_argument("--plan", action="store_true", help="only say how long it would take")
    parser.add_argument("--report", action="store_true", help="only report what is recorded")
    return parser.parse_args(arguments)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _counts(text: str) -> list[int]:
    return [_count(word) for word in _words(text)]


def _budgets(text: str) -> list[str]:
    words = _words(text)
    for word in words:
        if word != RESIDENT and float(word) <= 0:
            raise argparse.ArgumentTypeError(f"{word} is no budget")
    return words


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
