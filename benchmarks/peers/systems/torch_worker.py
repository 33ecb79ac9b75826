"""The process of every system that computes with torch: `python -m benchmarks.peers.systems.torch_worker KIND SRC ...`.

It speaks the protocol of `benchmarks.peers.systems.worker`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from benchmarks.peers.job import PeerJob
from zipmoe.model.numerics import prepare_environment

prepare_environment()  # before torch: it decides how MKL computes

if TYPE_CHECKING:
    from benchmarks.peers.systems.torch_model import TorchModel


def main(arguments: list[str]) -> None:
    """Builds the model, says that it is ready, and runs jobs until there are no more."""
    from benchmarks.peers.systems.torch_model import LOADERS, load

    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=LOADERS)
    parser.add_argument("src", type=Path)
    parser.add_argument("--limit-bytes", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    options = parser.parse_args(arguments)
    replies = _own_stdout()
    model = load(options.kind, options)
    _tell(replies, {"ready": model.facts})
    for line in sys.stdin:
        job = PeerJob.parse(line)
        begin_s = time.monotonic()
        times_s, choices = [], []
        for chosen in steps(model, job):
            times_s.append(time.monotonic())
            choices.append(chosen)
            if len(times_s) == 1:
                _tell(replies, {"first": times_s[0]})
        columns = [list(column) for column in zip(*choices, strict=True)]
        _tell(replies, {"begin_s": begin_s, "times_s": times_s, "choices": columns})


def steps(model: TorchModel, job: PeerJob) -> Iterator[list[int]]:
    """Prefills all prompts at once, then feeds the forced tokens; yields every step's greedy choices."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    forced = torch.tensor([each.forced for each in job.sequences])
    ids = torch.tensor([each.prompt for each in job.sequences])
    with torch.inference_mode():
        for index in range(forced.shape[1]):
            logits = model.forward(ids, cache)
            yield logits.argmax(-1).tolist()
            ids = forced[:, index : index + 1]


def _own_stdout() -> TextIO:
    """Keeps stdout for replies; what libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _tell(replies: TextIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
