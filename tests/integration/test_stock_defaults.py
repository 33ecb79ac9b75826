"""A request that sets nothing but its seed and length is answered as stock's `generate()` answers it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.conftest import TIGHT
from tests.integration.stacks.stack import PackedModel, StockModel, stack
from zipmoe.client import Finished, FinishReason, GenerationClient, Sampling, Stopping, Token
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.store.pack.writer import PackOptions, pack_store

PROMPT = [7, 30, 12, 9, 30, 12, 44]
DEFAULTS: list[Any] = [
    pytest.param({"do_sample": True}, marks=pytest.mark.extra),
    {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "no_repeat_ngram_size": 2, "suppress_tokens": [3, 4, 5]},
    pytest.param({"repetition_penalty": 1.3, "min_new_tokens": 4, "num_beams": 1}, marks=pytest.mark.extra),
]


@pytest.fixture(params=DEFAULTS, ids=str, scope="module")
def model(
    request: pytest.FixtureRequest, packed: Callable[[str], PackedModel], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PackedModel]:
    """A tiny Qwen that was published with these defaults."""
    folder = tmp_path_factory.mktemp("defaults")
    checkpoint = shutil.copytree(packed("qwen2_moe").checkpoint, folder / "checkpoint")
    path = checkpoint / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **request.param}))
    pack_store(catalogue(checkpoint), folder / "store", PackOptions())
    yield PackedModel(checkpoint, folder / "store")
    shutil.rmtree(folder)


def test_a_request_without_parameters_is_stocks_generate(model: PackedModel, short_folder: Path) -> None:
    stock = StockModel(model.checkpoint).model
    with stack(model, short_folder, TIGHT) as running, GenerationClient(running.target) as client:
        for seed in range(3):
            torch.manual_seed(seed)
            ids = torch.tensor([PROMPT])
            output = stock.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24)
            wanted = output[0, len(PROMPT) :].tolist()
            events = list(client.generate(PROMPT, sampling=Sampling(seed=seed), stopping=Stopping(max_new_tokens=24)))
            assert [event.token_id for event in events if isinstance(event, Token)] == wanted
            (end,) = [event for event in events if isinstance(event, Finished)]
            assert end.reason is FinishReason.LENGTH or wanted[-1] == stock.generation_config.eos_token_id
