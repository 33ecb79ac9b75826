"""This system as its users run it: `zipmoe up` in the cgroup, and a gRPC client outside of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Lock
from typing import TYPE_CHECKING, Any, Final

from benchmarks.memory_cgroup import MemoryCgroup
from benchmarks.peers.answer import Answer
from benchmarks.peers.job import ModelShape, PeerJob, PromptSequence
from zipmoe.errors import CorruptData, Unavailable

if TYPE_CHECKING:
    from zipmoe.client import GenerationClient

KV_STEP_TOKENS: Final = 64
"""A sequence's share of the cache is rounded up to this."""

END_TIMEOUT_S: Final = 120.0
ANSWER_TIMEOUT_S: Final = 3600.0


class PeerServices:
    """Services that are ready."""

    def __init__(self, client: GenerationClient, facts: dict[str, Any]) -> None:
        """Use `running_services`."""
        self._client = client
        self.facts = facts

    def run(self, job: PeerJob, on_all_began: Callable[[], None]) -> Answer:
        """Has a job done, a request for each sequence, all at once; as `Worker.run`.

        Raises:
            CorruptData: other tokens came than were forced.
            ZipMoeError: the router's.
        """
        batch = len(job.sequences)
        start, lock, waiting = Barrier(batch + 1), Lock(), set(range(batch))

        def began(place: int) -> None:
            with lock:
                waiting.discard(place)
                if not waiting:
                    on_all_began()

        def generate(place: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
            start.wait()
            return self._generate(job.sequences[place], lambda: began(place))

        with ThreadPoolExecutor(batch, "client") as pool:
            requests = [pool.submit(generate, place) for place in range(batch)]
            begin_s = time.monotonic()
            start.wait()
            rows = [request.result() for request in requests]
        return Answer(begin_s, tuple(times for times, _ in rows), tuple(choices for _, choices in rows))

    def _generate(
        self, sequence: PromptSequence, on_first: Callable[[], None]
    ) -> tuple[tuple[float, ...], tuple[int, ...]]:
        from zipmoe.client import Output, Stopping, Token

        stopping = Stopping(max_new_tokens=len(sequence.forced), ignore_eos=True)
        times, emitted, choices = [], [], []
        for event in self._client.generate(
            sequence.prompt,
            stopping=stopping,
            output=Output(top_logprobs=1),
            forced_token_ids=sequence.forced,
            timeout_s=ANSWER_TIMEOUT_S,
        ):
            if isinstance(event, Token):
                times.append(time.monotonic())
                emitted.append(event.token_id)
                choices.append(event.top_logprobs[0].token_id)
                if len(times) == 1:
                    on_first()
        if tuple(emitted) != sequence.forced:
            raise CorruptData(f"the router emitted {emitted}, forced were {list(sequence.forced)}")
        return tuple(times), tuple(choices)


@contextmanager
def running_services(cgroup: MemoryCgroup, store: Path, shape: ModelShape, log: Path) -> Iterator[PeerServices]:
    """Starts the services in a cgroup, with its limit as their budget; their own logs go beside `log`.

    Raises:
        Unavailable: they did not start.
    """
    from zipmoe.client import GenerationClient

    settings = {
        "memory-budget": cgroup.limit_bytes,
        "kv-tokens": shape.batch * -(-shape.tokens // KV_STEP_TOKENS) * KV_STEP_TOKENS,
        "max-prompt-tokens": shape.prompt_tokens,
        "max-running": max(4, shape.batch),
        "device": "cpu",
        "fill": "off",  # every system begins cold, and what is read is read for the work
        "listen": "",
        "metrics-port": 0,
        "log-level": "warning",
        "log-dir": log.with_suffix(""),
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    with tempfile.TemporaryDirectory(prefix="zipmoe-") as folder, open(log, "w", encoding="utf-8") as errors:
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "zipmoe.cli",
            "up",
            store,
            "--json",
            f"--runtime-dir={folder}",
            *flags,
        ]
        process = cgroup.popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            facts = _ready(process, log)
            with GenerationClient(f"unix:{folder}/router.sock") as client:
                yield PeerServices(client, facts)
        finally:
            _end(process)


def _ready(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    text = ""
    for line in process.stdout:  # until the object is whole
        text += line
        try:
            ready: dict[str, Any] = json.loads(text)
        except ValueError:
            continue
        if "services" not in ready:
            raise Unavailable(f"zipmoe up did not start: {text.strip()}", next_step=f"see {log}")
        return {"startup_s": ready["startup_s"]}
    last = (text.strip() or log.read_text(errors="replace").strip() or "it said nothing").splitlines()[-1]
    raise Unavailable(f"zipmoe up ended with {process.wait()}: {last}", next_step=f"see {log}")


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
