"""A system that is one process: jobs go in line by line, and one JSON object a line comes out.

worker:  {"ready": {...}}                                       what it is, as it likes
harness: a job, see `PeerJob.line`
worker:  {"first": time}                                        all sequences have their first token
worker:  {"begin_s": .., "times_s": [..], "choices": [[..]]}    times of steps, which all sequences share
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.memory_cgroup import MemoryCgroup
from benchmarks.peers.answer import Answer
from benchmarks.peers.job import PeerJob
from zipmoe.errors import Unavailable


class Worker:
    """A worker that is ready."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        """Use `running_worker`."""
        self._process = process
        self._log = log
        self.facts: dict[str, Any] = self._reply()["ready"]

    def run(self, job: PeerJob, on_all_began: Callable[[], None]) -> Answer:
        """Has a job done.

        Args:
            job: what to do.
            on_all_began: called when all sequences have their first token.

        Raises:
            Unavailable: the process has ended; the message has its last words.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(job.line() + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None
        assert "first" in self._reply()
        on_all_began()
        reply = self._reply()
        batch = len(job.sequences)
        return Answer(reply["begin_s"], (tuple(reply["times_s"]),) * batch, tuple(map(tuple, reply["choices"])))

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._gone()
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _gone(self) -> Unavailable:
        code = self._process.wait()
        last = (self._log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        return Unavailable(f"the process ended with {code}: {last}", next_step=f"see {self._log}")


@contextmanager
def running_worker(
    cgroup: MemoryCgroup, command: Sequence[str | Path], log: Path, environment: Mapping[str, str]
) -> Iterator[Worker]:
    """Starts a worker in a cgroup and waits until it is ready; its stderr goes to `log`.

    Raises:
        Unavailable: it ended instead.
    """
    pipe = subprocess.PIPE
    with open(log, "w", encoding="utf-8") as errors:
        settings = {"stdin": pipe, "stdout": pipe, "stderr": errors, "text": True}
        process = cgroup.popen(command, env={**os.environ, **environment}, **settings)
        try:
            yield Worker(process, log)
        finally:
            process.kill()
            process.communicate()
