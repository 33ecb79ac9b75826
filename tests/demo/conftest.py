"""The built-in model and the texts it has not seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.corpus import Document
from tests.one_thread import one_thread
from zipmoe.cli.showing.stock import load_stock

DEMO = Path(__file__).parents[2] / "demo"
MODEL = DEMO / "model"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The other worker computes at the same time: more threads than cores would wait for one another."""
    with one_thread():
        yield


@pytest.fixture(scope="session")
def held_out() -> list[Document]:
    return [Document(**json.loads(line)) for line in (DEMO / "held-out.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def figures() -> dict[str, Any]:
    return json.loads((DEMO / "figures.json").read_text())


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="session")
def model() -> Any:
    return load_stock(MODEL)
