from __future__ import annotations

from pathlib import Path

import torch

from tests.model.store_provider import StoreProvider
from tests.services.tiny_store import make_store
from zipmoe.calibration.packed_experts import read_packed


def test_experts_are_read_as_the_chunks_of_what_the_store_recovers(tmp_path: Path) -> None:
    store = make_store(tmp_path, layers=2, experts=3, shapes=((96, 64), (64, 48)), codec="cascade")
    provider = StoreProvider(store.path, store.manifest)
    wanted = [
        tuple(matrix.clone() for matrix in matrices)
        for layer in range(2)
        for _, matrices, _ in provider.experts(layer, dict.fromkeys(range(3), 1))
    ]
    provider.close()
    found = [tuple(matrix.recover() for matrix in matrices) for matrices in read_packed(store.path, store.manifest)]
    assert len(found) == len(wanted)
    for expert, recovered in zip(wanted, found, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(expert, recovered, strict=True))
