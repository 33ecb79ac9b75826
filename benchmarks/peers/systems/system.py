"""The systems that are compared, by name."""

from __future__ import annotations

import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from benchmarks.memory_cgroup import MemoryCgroup
from benchmarks.peers.answer import Answer
from benchmarks.peers.job import ModelShape, PeerJob
from benchmarks.peers.systems.conversion.architectures import ARCHITECTURES
from benchmarks.peers.systems.llama_build import llama_build
from benchmarks.peers.systems.services import running_services
from benchmarks.peers.systems.worker import running_worker
from benchmarks.peers.work import PeerWork


class Running(Protocol):
    """A system that is ready for jobs."""

    facts: dict[str, Any]

    def run(self, job: PeerJob, on_all_began: Callable[[], None]) -> Answer:
        """Has a job done; as `Worker.run`."""


class System(ABC):
    """A way to run a model in less memory than it has weights."""

    def __init__(self, name: str, about: str) -> None:
        """Named as on the command line; `about` explains it in reports."""
        self.name = name
        self.about = about

    def files(self, work: PeerWork) -> list[Path]:
        """What it reads from: out of the page cache before a run, and probed beside it."""
        return work.shards

    def expert_bytes(self, work: PeerWork) -> float:
        """Mean bytes of an expert as it is read."""
        return work.expert_bytes

    def refusal(self, work: PeerWork) -> str:
        """Why it cannot run this model; empty if it can."""
        return ""

    @abstractmethod
    def start(
        self, work: PeerWork, shape: ModelShape, cgroup: MemoryCgroup, log: Path
    ) -> AbstractContextManager[Running]:
        """Starts it in a cgroup whose limit is its budget, ready for jobs of a shape."""


class ZipMoe(System):
    """This system."""

    def files(self, work: PeerWork) -> list[Path]:
        return work.store_files

    def expert_bytes(self, work: PeerWork) -> float:
        return sum(file.stat().st_size for file in work.expert_files) / work.manifest.expert_count

    def start(
        self, work: PeerWork, shape: ModelShape, cgroup: MemoryCgroup, log: Path
    ) -> AbstractContextManager[Running]:
        return running_services(cgroup, work.store, shape, log)


class Torch(System):
    """A process that computes with torch."""

    def __init__(self, name: str, kind: str, about: str) -> None:
        """`kind` is one of `torch_model.LOADERS`."""
        super().__init__(name, about)
        self._kind = kind

    @contextmanager
    def start(self, work: PeerWork, shape: ModelShape, cgroup: MemoryCgroup, log: Path) -> Iterator[Running]:
        scratch = work.folder / "offloaded"
        options = {
            "limit-bytes": cgroup.limit_bytes,
            "batch": shape.batch,
            "tokens": shape.tokens,
            "threads": usable_cores(),
            "scratch": scratch,
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "benchmarks.peers.systems.torch_worker",
            self._kind,
            work.src,
            *flags,
        ]
        try:
            with running_worker(cgroup, command, log, {}) as worker:
                yield worker
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


class Llama(System):
    """llama.cpp through its own API."""

    def __init__(self, name: str, about: str, *, advised: bool) -> None:
        """`advised` preloads the library that advises the kernel."""
        super().__init__(name, about)
        self._advised = advised

    def files(self, work: PeerWork) -> list[Path]:
        return [work.gguf]

    def refusal(self, work: PeerWork) -> str:
        model_type = work.config["model_type"]
        if model_type not in ARCHITECTURES:
            return f"{model_type} is not converted to GGUF, only {', '.join(ARCHITECTURES)}"
        return "" if llama_build().there else "llama.cpp has not been built"

    def start(
        self, work: PeerWork, shape: ModelShape, cgroup: MemoryCgroup, log: Path
    ) -> AbstractContextManager[Running]:
        built = llama_build()
        numbers = map(str, (usable_cores(), shape.batch, shape.tokens))
        environment = {"LD_PRELOAD": str(built.advise)} if self._advised else {}
        return running_worker(cgroup, [built.driver, work.gguf, *numbers], log, environment)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


SYSTEMS: Final[dict[str, System]] = {
    system.name: system
    for system in (
        ZipMoe("zipmoe", "this system: `zipmoe up --memory-budget`, a gRPC client"),
        Torch("lru", "lru", "O_DIRECT + LRU over bf16 slots, one process, torch, no overlap"),
        Llama("llama", "llama.cpp BF16, mmap, as it comes", advised=False),
        Llama("llama-madvise", "llama.cpp BF16, mmap, MADV_RANDOM + MADV_HUGEPAGE from outside", advised=True),
        Torch("transformers", "mapped", "transformers, experts as zero-copy views of mmapped safetensors"),
        Torch("accelerate", "offload", "HF accelerate disk offload"),
        Torch("floor", "floor", "our kernels with everything in memory, no services: the floor of computing"),
    )
}
FLOOR: Final = "floor"
"""Runs with everything resident alone."""
