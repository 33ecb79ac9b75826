"""Packs a checkpoint, and compares all bytes and the answers with those of `from_pretrained` of the same directory."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.model.hub import Tensors, assert_same_as_stock
from tests.model.passes.test_sequence import prompt
from tests.model.store_provider import StoreProvider
from tests.model.tiny import load_stock
from zipmoe.codec.registry import create_codec
from zipmoe.model.build.build import build_from_store
from zipmoe.model.checkpoint.catalogue import Catalogue, catalogue
from zipmoe.model.experts.device import HostPlacement
from zipmoe.model.passes.sequence import Sequence
from zipmoe.store.format.manifest import read_manifest
from zipmoe.store.pack.writer import PackOptions, pack_store
from zipmoe.store.verify.verify import verify_against

ANSWER_TOKENS = 6


def widened(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """The tensors in a wider dtype, off every bf16 number, so that a cast has to round in both directions."""
    noise = torch.Generator().manual_seed(5)
    return {
        name: (tensor.float() * (1 + (torch.rand(tensor.shape, generator=noise) - 0.5) / 100)).to(dtype)
        for name, tensor in tensors.items()
    }


def assert_packs_as_stock(checkpoint: Path, store: Path) -> Catalogue:
    """Catalogue, store, verification and logits are those of the model that stock loads from the checkpoint."""
    found = catalogue(checkpoint)
    stock = load_stock(checkpoint)
    assert_same_as_stock(found, stock)
    pack_store(found, store, PackOptions(codec=create_codec("zstd"), workers=2))
    report = verify_against(store, catalogue(checkpoint))
    assert report.intact, report.damages
    ids = torch.tensor([prompt(17)])
    output = stock.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=ANSWER_TOKENS,
        min_new_tokens=ANSWER_TOKENS, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    provider = StoreProvider(store, read_manifest(store))
    sequence = Sequence(build_from_store(store, read_manifest(store), provider, HostPlacement()))
    assert torch.equal(sequence.prefill(ids[0].tolist()).logits.float(), output.logits[0][0])
    for token_id, logits in zip(output.sequences[0, -ANSWER_TOKENS:].tolist(), output.logits[1:], strict=False):
        assert torch.equal(sequence.step(token_id).float(), logits[0])
    provider.close()
    return found
