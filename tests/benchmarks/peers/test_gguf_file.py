"""The GGUF file, and llama.cpp on it: skipped where the one is not installed or the other has not been built."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.job import ModelShape, job_of
from benchmarks.peers.systems.gguf_file import write_gguf
from benchmarks.peers.systems.llama_build import llama_build
from tests.benchmarks.peers.tiny_peers import TINY, VOCABULARY, save_tiny
from zipmoe.errors import UnsupportedModel
from zipmoe.model.checkpoint.checkpoint import Checkpoint, open_checkpoint
from zipmoe.model.synth.writer import synthesise

NEAR_TIE = 0.03
"""Logits, of standard deviation 1 here, so close that either may come out higher."""

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'zipmoe[peers]'")


@pytest.fixture(scope="module")
def path(src: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(src, path)
    return path


def bits(checkpoint: Checkpoint, key: str) -> np.ndarray:
    entry = checkpoint.tensors[key]
    return np.fromfile(entry.path, np.uint16, entry.nbytes // 2, offset=entry.offset)


def test_experts_are_stacked_in_order_and_nothing_is_changed(src: Path, path: Path) -> None:
    checkpoint = open_checkpoint(src)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert len(tensors) == 3 * (14 + 3) + 3
    for name, key in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
        stacked = tensors[f"blk.2.ffn_{name}_exps.weight"]
        assert stacked.tensor_type.name == "BF16"
        for expert in range(8):
            wanted = bits(checkpoint, f"model.layers.2.mlp.experts.{expert}.{key}.weight")
            assert np.array_equal(stacked.data[expert].view(np.uint16).ravel(), wanted)


def test_what_is_widened_has_the_same_values(src: Path, path: Path) -> None:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    gate = tensors["blk.0.ffn_gate_inp.weight"]
    assert gate.tensor_type.name == "F32"
    wanted = bits(open_checkpoint(src), "model.layers.0.mlp.gate.weight").astype(np.uint32) << 16
    assert np.array_equal(gate.data.ravel().view(np.uint32), wanted)


def test_another_family_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    synthesise("mixtral", tmp_path / "src")
    with pytest.raises(UnsupportedModel, match="mixtral is not converted to GGUF"):
        write_gguf(tmp_path / "src", tmp_path / "model.gguf")
    assert not list(tmp_path.glob("model.*"))


@pytest.mark.parametrize("name", TINY)
def test_llama_cpp_answers_nearly_as_stock_does_whatever_the_batch(name: str, tmp_path: Path) -> None:
    """Stock computes in fp32 here: llama.cpp rounds elsewhere than stock does in bf16."""
    built = llama_build()
    if not built.there:
        pytest.skip("llama.cpp has not been built: python -m benchmarks.peers does")
    import json

    import torch

    from zipmoe.cli.showing.stock import load_stock

    save_tiny(name, tmp_path, calm=True)
    write_gguf(tmp_path, tmp_path / "model.gguf")
    shape = ModelShape(3, 40, 24)
    job = job_of(0, VOCABULARY, shape)
    command = [built.driver, tmp_path / "model.gguf", "2", "3", str(shape.tokens)]
    ended = subprocess.run(command, input=job.line() + "\n", text=True, capture_output=True, check=True)
    ready, first, answer = map(json.loads, ended.stdout.splitlines())
    assert "system" in ready["ready"] and first["first"] == answer["times_s"][0]
    assert answer["begin_s"] < answer["times_s"][0] and len(answer["times_s"]) == 24
    ids = torch.tensor([each.prompt + each.forced[:-1] for each in job.sequences])
    with torch.inference_mode():
        stock = load_stock(tmp_path).float()(ids).logits[:, shape.prompt_tokens - 1 :]
    chosen = stock.gather(-1, torch.tensor(answer["choices"]).unsqueeze(-1)).squeeze(-1)
    assert (stock.max(-1).values - chosen < NEAR_TIE).float().mean() >= 0.95
