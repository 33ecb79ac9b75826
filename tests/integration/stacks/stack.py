"""The three real services on a tiny store, and stock transformers on the checkpoint it was packed from."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig

from zipmoe.cli.flags import Settings
from zipmoe.cli.serving.free_ports import free_ports
from zipmoe.cli.serving.service_group import ServiceGroup, running, wait_until_serving
from zipmoe.cli.serving.service_process import ServiceProcess
from zipmoe.cli.serving.supervisor import Supervisor
from zipmoe.cli.watching.scrape import scrape
from zipmoe.client import GenerationClient, Output, Sampling, Stopping, Token
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.model.families.twin import tiny_config, write_checkpoint
from zipmoe.model.stock.model_class import computes_eagerly, text_model_class
from zipmoe.model.synth.configs import FAMILIES
from zipmoe.model.synth.writer import synthesise
from zipmoe.store.pack.writer import pack_store

START_TIMEOUT_S = 120.0
GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)


@dataclass(frozen=True)
class PackedModel:
    """A synthetic checkpoint and the store that was packed from it."""

    checkpoint: Path
    store: Path


def pack_family(family: str, folder: Path, **overrides: object) -> PackedModel:
    """Writes a tiny checkpoint of a model type and packs it; with a tokenizer if `zipmoe synth` knows the type.

    `overrides` are further values of config.json, of types that `zipmoe synth` knows.
    """
    model = PackedModel(folder / "checkpoint", folder / "store")
    if family in FAMILIES:
        synthesise(family, model.checkpoint, seed=3, overrides=overrides)
    else:
        model.checkpoint.mkdir()
        write_checkpoint(tiny_config(family), model.checkpoint, seed=3)
    pack_store(catalogue(model.checkpoint), model.store)
    return model


@dataclass(frozen=True)
class Stack:
    """Three running services."""

    supervisor: Supervisor
    runtime: Path

    @property
    def target(self) -> str:
        """The router's socket."""
        return f"unix:{self.runtime / 'router.sock'}"

    def process(self, name: str) -> ServiceProcess:
        """One of `expert-store`, `decoder`, `router`."""
        return next(process for process in self.supervisor.processes if process.spec.name == name)

    def metric(self, service: str, name: str) -> float:
        """A sample of a service, summed over its labels."""
        return scrape(self.process(service).spec.metrics_port)[name]

    def kill(self, name: str) -> None:
        """Kills a service as a crash would, and waits until it is gone."""
        process = self.process(name)
        os.kill(process.pid, signal.SIGKILL)
        process.join(10.0)

    @contextmanager
    def restarted(self, name: str) -> Iterator[None]:
        """Runs a killed service again during the block."""
        spec = self.process(name).spec
        log = self.process(name).log_path.with_suffix(".again.log")
        again = ServiceProcess(spec, log, lambda process: None)
        try:
            yield
        finally:
            again.kill()
            again.join(10.0)


@contextmanager
def stack(model: PackedModel, folder: Path, shared: Settings, **router: object) -> Iterator[Stack]:
    """Runs the three services during the block.

    Args:
        model: what is served.
        folder: has to have a short path.
        shared: settings of all three: slots, workers.
        router: settings of the router alone.
    """
    runtime, logs = folder / "run", folder / "logs"
    for path in (runtime, logs):
        path.mkdir(mode=0o700)
    settings = {"store": model.store, "device": "cpu", **shared}
    group = ServiceGroup(runtime, logs, free_ports(3), settings, {"router": {"threads": 1, **router}})
    with running(group) as supervisor:
        assert wait_until_serving(supervisor, START_TIMEOUT_S, quiet=True) is not None
        yield Stack(supervisor, runtime)


@dataclass(frozen=True)
class Generated:
    """Tokens of an answer and their log-probabilities."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


def generate(client: GenerationClient, prompt_ids: Sequence[int], token_count: int) -> Generated:
    """Generates greedily through the services."""
    stopping = Stopping(max_new_tokens=token_count, ignore_eos=True)
    events = client.generate(prompt_ids, sampling=GREEDY, stopping=stopping, output=Output(logprobs=True))
    tokens = [event for event in events if isinstance(event, Token)]
    logprobs = [token.logprob for token in tokens]
    assert None not in logprobs
    return Generated(tuple(token.token_id for token in tokens), tuple(p for p in logprobs if p is not None))


class StockModel:
    """Stock transformers with eager attention and eager experts: what every answer is compared with."""

    def __init__(self, checkpoint: Path) -> None:
        model_class, config = text_model_class(computes_eagerly(AutoConfig.from_pretrained(checkpoint)))
        self.model = model_class.from_pretrained(checkpoint, config=config, dtype=torch.bfloat16).eval()

    def generate(self, prompt_ids: Sequence[int], token_count: int) -> Generated:
        """What stock `generate` gives: one prefill, then one token a step."""
        output = self.model.generate(
            torch.tensor([list(prompt_ids)]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=token_count,
            eos_token_id=-1,
            output_logits=True,
            return_dict_in_generate=True,
        )
        token_ids = output.sequences[0, -token_count:].tolist()
        rows = torch.cat(list(output.logits)).float().log_softmax(-1)
        return Generated(tuple(token_ids), tuple(float(row[t]) for row, t in zip(rows, token_ids, strict=True)))

    def prompt_logprobs(self, prompt_ids: Sequence[int]) -> tuple[float, ...]:
        """Log-probabilities of prompt tokens 1 .. n-1 from one pass over the prompt."""
        with torch.inference_mode():
            logits = self.model(torch.tensor([list(prompt_ids)])).logits[0, :-1]
        chosen = torch.tensor(list(prompt_ids[1:]))[:, None]
        return tuple(logits.float().log_softmax(-1).gather(1, chosen)[:, 0].tolist())


def run_python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts a Python program whose stdout can be read."""
    import sys

    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)
