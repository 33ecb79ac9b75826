"""The systems that compute with torch choose what stock chooses, batched or not."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks.peers.job import ModelShape, PeerJob, job_of
from benchmarks.peers.systems.torch_model import OFFLOAD_RESERVE_BYTES, TorchModel, load
from benchmarks.peers.systems.torch_worker import steps
from zipmoe.model.checkpoint.catalogue import Catalogue

SHAPE = ModelShape(2, 12, 5)


def options(src: Path, scratch: Path, limit_bytes: int = 1 << 40) -> Namespace:
    settings = {"src": src, "scratch": scratch, "limit_bytes": limit_bytes, "batch": SHAPE.batch}
    return Namespace(**settings, tokens=SHAPE.tokens, threads=torch.get_num_threads())


@pytest.fixture(scope="module")
def stock(src: Path, tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    return load("stock", options(src, tmp_path_factory.mktemp("scratch")))


def chosen(model: TorchModel, job: PeerJob) -> list[list[int]]:
    return [list(column) for column in zip(*steps(model, job), strict=True)]


@pytest.mark.parametrize("kind", ["mapped", "lru", "floor"])
def test_choices_are_stocks_own(kind: str, src: Path, stock: TorchModel, tmp_path: Path) -> None:
    job = job_of(0, 512, SHAPE)
    alone = [chosen(stock, PeerJob((each,)))[0] for each in job.sequences]
    assert chosen(load(kind, options(src, tmp_path)), job) == alone


def test_offloaded_weights_are_on_disk_and_choices_are_stocks_own(src: Path, stock: TorchModel, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'zipmoe[peers]'")
    model = load("offload", options(src, tmp_path, OFFLOAD_RESERVE_BYTES + 400_000))
    assert model.facts["modules_on_disk"] > 0
    assert list(tmp_path.iterdir())
    job = job_of(0, 512, SHAPE)
    assert chosen(model, job) == chosen(stock, job)


def test_the_experts_that_stock_uses_are_told_layer_by_layer(src: Path, source: Catalogue, tmp_path: Path) -> None:
    model = load("mapped", options(src, tmp_path))
    told: list[tuple[int, tuple[int, ...]]] = []
    model.on_routed([layer.module for layer in source.layers], lambda layer, ids: told.append((layer, ids.shape)))
    list(steps(model, PeerJob(job_of(0, 512, SHAPE).sequences[:1])))
    assert [layer for layer, _ in told] == [0, 1, 2] * SHAPE.new_tokens
    assert told[0][1] == (12, 2) and told[3][1] == (1, 2)
