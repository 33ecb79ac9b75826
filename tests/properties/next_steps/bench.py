"""Checkpoints, stores and verbs for the cases, and the registry of cases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cli.run import Ran, zipmoe
from tests.model.hub import HubCheckpoints, Tensors, edit_checkpoint, edit_config
from tests.properties.next_steps.sites import Site, sites
from zipmoe.cli.problem import problem_of
from zipmoe.errors import ZipMoeError
from zipmoe.store.format.manifest import MANIFEST_NAME, seal_manifest

FAMILY = "qwen2_moe"
SIZES = {"layers": 2, "vocab": 300, "overrides": {"hidden_size": 32, "num_experts": 4}}


@dataclass(frozen=True)
class Refused:
    """A refusal as a user sees it."""

    kind: str
    message: str
    next_step: str


Steps = Generator[Ran, Refused, None]
"""A case: yields the run that is refused, receives the refusal, then yields the runs of its next step, which work."""


@dataclass(frozen=True)
class PerformedStep:
    """A function that produces a refusal of some places and performs its next step."""

    sites: tuple[tuple[str, str], ...]
    steps: Callable[[Bench], Steps]

    def named_sites(self) -> set[Site]:
        """The places: a file, and the beginning of a message that only one place in it has."""
        found = set()
        for file, beginning in self.sites:
            there = {each for each in sites() if each.file == file}
            exact = {each for each in there if each.message == beginning}
            (site,) = exact or {each for each in there if each.message.startswith(beginning)}
            found.add(site)
        return found


CASES: list[PerformedStep] = []


def performs(file: str, *beginnings: str) -> Callable[[Callable[[Bench], Steps]], Callable[[Bench], Steps]]:
    """Registers a case for the refusals of a file whose messages begin so."""

    def register(steps: Callable[[Bench], Steps]) -> Callable[[Bench], Steps]:
        named = tuple((file, beginning) for beginning in beginnings)
        if CASES and CASES[-1].steps is steps:  # refused in one file, passed on by another
            named += CASES.pop().sites
        CASES.append(PerformedStep(named, steps))
        return steps

    return register


def attempt(call: Callable[[], Any]) -> Ran:
    """Calls what a service calls when it starts, and reports as the command line does."""
    try:
        call()
    except ZipMoeError as error:
        problem = problem_of(error)
        assert problem is not None
        fields = {"class": problem.kind, "message": problem.message, "next_step": problem.next_step}
        return Ran(problem.exit_code, "", json.dumps({"error": fields}))
    return Ran(0, "", "")


@dataclass(frozen=True)
class Bench:
    """What a case works on: a folder of its own, and copies of a checkpoint and of its store."""

    folder: Path
    hub: HubCheckpoints
    store_of_all: Path

    @property
    def original(self) -> Path:
        """A tiny checkpoint, shared and unchanged."""
        return self.hub.get(FAMILY, **SIZES)

    def checkpoint(self, name: str = "checkpoint") -> Path:
        """A copy of the tiny checkpoint."""
        return Path(shutil.copytree(self.original, self.folder / name))

    def edited(self, edit: Callable[[Tensors], Tensors], name: str = "checkpoint") -> Path:
        """A copy of the tiny checkpoint with other tensors, in one shard."""
        return edit_checkpoint(self.original, self.folder / name, edit)

    def configured(self, **values: Any) -> Path:
        """A copy of the tiny checkpoint with other values in config.json."""
        path = self.checkpoint()
        edit_config(path, **values)
        return path

    def store(self, name: str = "store") -> Path:
        """A copy of the store of the tiny checkpoint."""
        return Path(shutil.copytree(self.store_of_all, self.folder / name))

    def pack(self, source: Path, name: str = "packed", *options: object) -> Ran:
        """Packs a checkpoint by the verb."""
        return zipmoe("pack", source, self.folder / name, "--workers", "1", *options, "--json")

    def download_again(self, path: Path) -> None:
        """Replaces a damaged checkpoint by the whole one."""
        shutil.rmtree(path)
        shutil.copytree(self.original, path)

    def pack_again(self, store: Path) -> Ran:
        """Deletes a store and packs the checkpoint again."""
        shutil.rmtree(store)
        return zipmoe("pack", self.original, store, "--workers", "1", "--json")


def edit_manifest(store: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest of a store and gives it the digest of its new content."""
    manifest = json.loads((store / MANIFEST_NAME).read_bytes())
    manifest.pop("digest")
    edit(manifest)
    (store / MANIFEST_NAME).write_bytes(seal_manifest(manifest))


def built(store: Path) -> None:
    """Builds the model of a store as the router does when it starts."""
    from zipmoe.model.build.build import build_from_store
    from zipmoe.model.experts.device import HostPlacement
    from zipmoe.model.experts.provider import CheckpointProvider
    from zipmoe.model.stock.generation_settings import StockGeneration
    from zipmoe.store.format.manifest import read_manifest

    model = build_from_store(store, read_manifest(store), CheckpointProvider(()), HostPlacement(), None)
    StockGeneration(model.model, model.generation_config)
