"""What stock transformers makes of the jobs: its greedy choices, and the experts that it uses.

    python -m benchmarks.peers.reference SRC FOLDER [--kind stock|mapped] < sequences

Each sequence is computed alone, one prefill and then token by token, once, and kept in a file of its own. `mapped` is
for machines that cannot hold the model: its linears and its order of summation are stock's, its experts are not copied.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.job import ModelShape, PeerJob, sequence_names, sequence_of
from zipmoe.errors import InternalError
from zipmoe.model.numerics import prepare_environment

Routed = tuple[tuple[int, ...], ...]
"""Experts of each MoE layer in one step, ascending."""


@dataclass(frozen=True)
class Reference:
    """One sequence.

    Attributes:
        choices: the greedy choice after the prompt, and after each forced token but the last.
        steps: experts that were used in the prefill, then in each decode step.
    """

    choices: tuple[int, ...]
    steps: tuple[Routed, ...]


def path_of(folder: Path, name: str, prompt_tokens: int) -> Path:
    """Where a sequence's outcome is kept."""
    return folder / f"{prompt_tokens}-{name}.json"


def read_reference(folder: Path, name: str, shape: ModelShape) -> Reference | None:
    """Reads what is kept of a sequence, as far as the shape needs it; None if it is not there or is too short."""
    try:
        kept = json.loads(path_of(folder, name, shape.prompt_tokens).read_text())
    except FileNotFoundError:
        return None
    if len(kept["choices"]) < shape.new_tokens:
        return None
    steps = tuple(tuple(tuple(layer) for layer in step) for step in kept["steps"][: shape.new_tokens])
    return Reference(tuple(kept["choices"][: shape.new_tokens]), steps)


def job_references(folder: Path, index: int, shape: ModelShape) -> list[Reference]:
    """The references of a job's sequences; raises InternalError if one has not been made."""
    found = []
    for name in sequence_names(index, shape.batch):
        reference = read_reference(folder, name, shape)
        if reference is None:
            raise InternalError(f"there is no reference for sequence {name} of {shape}")
        found.append(reference)
    return found


def make_references(src: Path, folder: Path, kind: str, wanted: Iterable[tuple[int, ModelShape]]) -> None:
    """Makes those that are missing, in a process of their own.

    Raises:
        InternalError: it failed; its output has been shown.
    """
    missing = {
        (name, shape.prompt_tokens, shape.new_tokens)
        for index, shape in wanted
        for name in sequence_names(index, shape.batch)
        if read_reference(folder, name, shape) is None
    }
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    print(f"stock transformers ({kind}): {len(missing)} sequences", flush=True)
    command = [sys.executable, "-m", "benchmarks.peers.reference", str(src), str(folder), "--kind", kind]
    lines = "".join(f"{name} {prompt} {new}\n" for name, prompt, new in sorted(missing))
    if code := subprocess.run(command, input=lines, text=True, check=False).returncode:
        raise InternalError(f"stock transformers ended with {code}", next_step="see its output")


def main(arguments: list[str]) -> None:
    """Computes the sequences on stdin: name, tokens of the prompt, tokens after it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=("stock", "mapped"), default="stock")
    parser.set_defaults(limit_bytes=0, batch=1, tokens=0, scratch=None, threads=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    prepare_environment()  # before torch: it decides how MKL computes
    _compute(options)


def _compute(options: argparse.Namespace) -> None:
    from benchmarks.peers.systems.torch_model import load
    from benchmarks.peers.systems.torch_worker import steps
    from zipmoe.model.checkpoint.catalogue import catalogue

    model = load(options.kind, options)
    layers = catalogue(options.src).layers
    routed: list[list[int]] = []
    model.on_routed(
        [layer.module for layer in layers], lambda _, chosen: routed.append(sorted(set(chosen.flatten().tolist())))
    )
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    for line in sys.stdin:
        name, prompt, new = line.split()
        job = PeerJob((sequence_of(name, vocabulary, int(prompt), int(new)),))
        routed.clear()
        choices = [chosen[0] for chosen in steps(model, job)]
        taken = [routed[start : start + len(layers)] for start in range(0, len(routed), len(layers))]
        _keep(path_of(options.folder, name, int(prompt)), {"kind": options.kind, "choices": choices, "steps": taken})


def _keep(path: Path, kept: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(kept))
    partial.rename(path)


if __name__ == "__main__":
    main(sys.argv[1:])
