"""Layers for multi-token prediction through three processes: their experts come and go as the others do."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.conftest import TIGHT
from tests.integration.stacks.stack import PackedModel, StockModel, generate, stack
from tests.model.mtp_checkpoint import write_mtp_checkpoint
from zipmoe.cli.watching.scrape import Samples, read_samples
from zipmoe.client import GenerationClient, Sampling, Stopping, Token
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.store.pack.writer import pack_store

PROMPTS = ([17, 3, 99, 250, 31, 8, 41], [5], [200, 201, 17, 60, 61, 62, 63, 64, 90, 45, 123, 12, 77])
TOKENS = 24


@pytest.fixture(scope="module")
def model() -> Iterator[PackedModel]:
    folder = Path(tempfile.mkdtemp(prefix="zipmoe-"))
    path = write_mtp_checkpoint("deepseek_v3", folder / "checkpoint")
    pack_store(catalogue(path, with_mtp=True), folder / "store")
    yield PackedModel(path, folder / "store")
    shutil.rmtree(folder)


def seeded(client: GenerationClient, prompt: list[int], seed: int) -> list[int]:
    sampling = Sampling(temperature=0.7, top_k=5, seed=seed)
    events = client.generate(prompt, sampling=sampling, stopping=Stopping(max_new_tokens=TOKENS))
    return [event.token_id for event in events if isinstance(event, Token)]


def test_answers_with_drafts_are_those_of_stock_and_of_no_drafts(model: PackedModel, short_folder: Path) -> None:
    stock = StockModel(model.checkpoint)
    sampled: list[list[list[int]]] = []
    for drafts in (3, "off"):
        folder = short_folder / str(drafts)
        folder.mkdir()
        with (
            stack(model, folder, TIGHT, speculate=drafts) as running,
            GenerationClient(running.target) as client,
            ThreadPoolExecutor(3) as threads,
        ):
            assert client.model().moe_layers == 3
            answers = threads.map(lambda prompt: generate(client, prompt, TOKENS), PROMPTS)
            assert list(answers) == [stock.generate(prompt, TOKENS) for prompt in PROMPTS]
            sampled.append([seeded(client, prompt, seed) for seed, prompt in enumerate(PROMPTS)])
            sample = Samples(read_samples(running.process("router").spec.metrics_port))
            accepted = sample.total("zipmoe_drafted_tokens_accepted_total", source="mtp")
            stalled = sample.total("zipmoe_layer_stalled_seconds_total", layer="2")
            assert (accepted > 0) == (drafts != "off")
            assert (stalled > 0) == (drafts != "off")  # experts of the layer are read
    assert sampled[0] == sampled[1]
