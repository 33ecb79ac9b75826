"""One run: a system started cold in a cgroup, its jobs one after the other, and everything measured beside them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.memory_cgroup import MemoryCgroup, memory_cgroup
from benchmarks.peers.disk import evict, probe, read_bytes, resident_pages
from benchmarks.peers.job import ModelShape, PeerJob, job_of
from benchmarks.peers.record import RESIDENT, PeerCase, PeerRun, Record
from benchmarks.peers.reference import job_references
from benchmarks.peers.systems.system import SYSTEMS, Running, System
from benchmarks.peers.work import PeerWork
from zipmoe.errors import ZipMoeError

WARM_TOKENS = 512
"""A prompt so long, which is not measured, brings nearly every expert in; a batch of shorter ones does as well."""

WARM_INDEX = -1


@dataclass
class CgroupReadings:
    """What processes in a cgroup have read, at the beginning of a job and when all its sequences had begun."""

    cgroup: MemoryCgroup
    begin: int = 0
    all_began: int = 0

    def now(self) -> int:
        """Bytes up to now."""
        return read_bytes([int(process) for process in (self.cgroup.path / "cgroup.procs").read_text().split()])

    def note_begin(self) -> None:
        """A job is about to be handed over."""
        self.begin = self.all_began = self.now()

    def note_all_began(self) -> None:
        """All its sequences have their first token."""
        self.all_began = self.now()


def measure(work: PeerWork, run: PeerRun, limit_bytes: int, jobs: int, log: Path) -> Iterator[Record]:
    """Does a run.

    Args:
        work: the model, with everything made that the system needs, and stock's references.
        run: what to do.
        limit_bytes: of the cgroup, which is the system's budget.
        jobs: how many.
        log: where the system's log goes.

    Yields:
        A record for each job as it ends; one that tells the problem, if there was one, is the last.
    """
    system = SYSTEMS[run.case.system]
    if refusal := system.refusal(work):
        yield Record(run, 0, refusal)
        return
    begin_s = time.monotonic()
    files = system.files(work)
    done = 0
    evict(files)
    try:
        with memory_cgroup(limit_bytes) as cgroup:
            if run.case.budget == RESIDENT:
                _read_through(cgroup, files)
            share = _resident_share(files)
            try:
                with system.start(work, _largest(work, run.case), cgroup, log) as running:
                    _warm(running, work, run.case)
                    for record in _jobs(system, running, work, run, jobs, cgroup):
                        seconds = time.monotonic() - begin_s
                        yield replace(record, run_s=seconds, resident_share=share)
                        done += 1
            except ZipMoeError as error:
                kills = cgroup.usage().oom_kills
                problem = f"{type(error).__name__}: {error.message}" + (f" ({kills} OOM kills)" if kills else "")
                yield Record(run, done, problem, time.monotonic() - begin_s, oom_kills=kills)
    finally:
        evict(files)


def _jobs(
    system: System, running: Running, work: PeerWork, run: PeerRun, jobs: int, cgroup: MemoryCgroup
) -> Iterator[Record]:
    files, readings = system.files(work), CgroupReadings(cgroup)
    before_gbps = probe(files)
    for index in range(jobs):
        job = job_of(index, work.vocabulary, run.case.shape)
        readings.note_begin()
        answer = running.run(job, readings.note_all_began)
        end_bytes = readings.now()
        answer.check(job)
        after_gbps = probe(files)
        usage = cgroup.usage()
        yield Record(
            run,
            index,
            ttft_ms=answer.ttft_ms,
            tpot_ms=answer.tpot_ms,
            step_ms=answer.step_ms,
            tokens_per_s=answer.tokens_per_s,
            prefill_bytes=readings.all_began - readings.begin,
            decode_bytes=end_bytes - readings.all_began,
            decoded_tokens=answer.decoded_tokens,
            disk_gbps=(before_gbps + after_gbps) / 2,
            peak_bytes=usage.peak_bytes,
            held_bytes=usage.peak_held_bytes,
            anonymous_bytes=anonymous_bytes(cgroup),
            oom_kills=usage.oom_kills,
            choices_equal=_equal_share(answer.choices, work, index, job),
            facts=running.facts,
        )
        before_gbps = after_gbps


def anonymous_bytes(cgroup: MemoryCgroup) -> int:
    """Anonymous memory of a cgroup now, of either version."""
    pairs = (line.split() for line in (cgroup.path / "memory.stat").read_text().splitlines())
    stat = {name: int(value) for name, value in pairs}
    return stat["total_rss"] if "total_rss" in stat else stat["anon"]


def _equal_share(choices: Sequence[Sequence[int]], work: PeerWork, index: int, job: PeerJob) -> float:
    references = job_references(work.reference, index, job.shape)
    pairs = [
        (own, stock)
        for row, reference in zip(choices, references, strict=True)
        for own, stock in zip(row, reference.choices, strict=True)
    ]
    return sum(own == stock for own, stock in pairs) / len(pairs)


def _warm_shapes(work: PeerWork, case: PeerCase) -> list[ModelShape]:
    """Jobs before the ones that are measured: none where a start is to be cold."""
    if case.budget != RESIDENT:
        return []
    longest = min(WARM_TOKENS, work.config["max_position_embeddings"] // 2)
    return [ModelShape(1, longest, 2) if case.batch == 1 else case.shape, case.shape]


def _warm(running: Running, work: PeerWork, case: PeerCase) -> None:
    for shape in _warm_shapes(work, case):
        running.run(job_of(WARM_INDEX, work.vocabulary, shape), lambda: None)


def _largest(work: PeerWork, case: PeerCase) -> ModelShape:
    """What a system has to be ready for."""
    shapes = [case.shape, *_warm_shapes(work, case)]
    prompt_tokens = max(shape.prompt_tokens for shape in shapes)
    return ModelShape(case.batch, prompt_tokens, max(shape.tokens for shape in shapes) - prompt_tokens)


def _read_through(cgroup: MemoryCgroup, files: Sequence[Path]) -> None:
    """Brings files into the page cache, charged to the cgroup."""
    with open("/dev/null", "wb") as nowhere:
        cgroup.popen(["cat", *files], stdout=nowhere).wait()


def _resident_share(files: Sequence[Path]) -> float:
    pages = sum(-(-file.stat().st_size // 4096) for file in files)
    return sum(map(resident_pages, files)) / max(pages, 1)
