"""Figures of the built-in model: bits per byte, load of the experts, entropy of exponents, ratios of codecs."""

from __future__ import annotations

import lzma
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen2MoeForCausalLM

from demo.corpus import Document
from demo.tokenizer import encode
from zipmoe.codec.registry import codec_names, create_codec

WINDOW, STRIDE = 512, 256
SEED = 7


@torch.inference_mode()
def nats(model: Qwen2MoeForCausalLM, ids: list[int]) -> float:
    """Negative log-likelihood of all tokens but the first, each given up to `WINDOW` - 1 tokens before it.

    Windows overlap so that every token but the first ones of a document sees at least `STRIDE` tokens before it.
    """
    total, scored = 0.0, 1
    for begin in range(0, max(1, len(ids) - STRIDE), STRIDE):
        window = torch.tensor([ids[begin : begin + WINDOW]])
        logits = model(window).logits[0, :-1].float()
        fresh = slice(scored - begin - 1, None)
        total += float(cross_entropy(logits[fresh], window[0, 1:][fresh], reduction="sum"))
        scored = begin + window.shape[1]
    return total


def bits_per_byte(
    model: Qwen2MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: Iterable[Document]
) -> dict[str, dict[str, float]]:
    """Compares the model with `xz -9e` on the same bytes, by book and over all.

    The model starts each document anew and pays for its title and its end; xz compresses all documents of the row as
    one stream, which is to its advantage.
    """
    by_book: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        by_book[document.book].append(document)
    by_book["all"] = [document for members in list(by_book.values()) for document in members]
    spent = {id(document): nats(model, encode(tokenizer, document)) for document in by_book["all"]}
    rows = {}
    for book, members in by_book.items():
        plain = "".join(document.plain for document in members).encode()
        packed = lzma.compress(plain, preset=9 | lzma.PRESET_EXTREME)
        rows[book] = {
            "documents": len(members),
            "bytes": len(plain),
            "model": sum(spent[id(document)] for document in members) / math.log(2) / len(plain),
            "xz": 8 * len(packed) / len(plain),
        }
    return rows


def load_figures(counts: torch.Tensor) -> list[dict[str, float]]:
    """How evenly a layer's experts are used.

    Args:
        counts: tokens an expert, shape (layers, experts).

    Returns:
        A layer each: `entropy` as a share of the largest possible, `least` and `most` as multiples of the fair share.
    """
    shares = counts.double() / counts.sum(-1, keepdim=True)
    experts = counts.shape[1]
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum(-1) / math.log(experts)
    return [
        {"entropy": float(each), "least": float(row.min() * experts), "most": float(row.max() * experts)}
        for each, row in zip(entropy, shares, strict=True)
    ]


def exponents(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """The exponent plane of a bf16 tensor."""
    bits = tensor.contiguous().view(torch.uint8).numpy().view(np.uint16)
    return (bits >> 7 & 0xFF).astype(np.uint8).reshape(-1)


def entropy_bits(plane: npt.NDArray[np.uint8]) -> float:
    """Zeroth-order entropy in bits a symbol."""
    shares = np.bincount(plane, minlength=256) / plane.size
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def tensor_kinds(model: Qwen2MoeForCausalLM) -> dict[str, list[torch.Tensor]]:
    """The matrices of the model by what they are; an expert's are apart."""
    kinds: dict[str, list[torch.Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 3:
            kinds["routed " + name.split(".")[-1]].extend(parameter.data)
        elif parameter.dim() == 2:
            kinds[_kind(name)].append(parameter.data)
    return dict(kinds)


def exponent_figures(model: Qwen2MoeForCausalLM) -> dict[str, dict[str, float]]:
    """Exponent entropy by kind, over all its matrices together and the mean of each alone."""
    rows = {}
    for kind, tensors in tensor_kinds(model).items():
        planes = [exponents(tensor) for tensor in tensors]
        rows[kind] = {
            "weights": sum(plane.size for plane in planes),
            "together": entropy_bits(np.concatenate(planes)),
            "apart": sum(entropy_bits(plane) for plane in planes) / len(planes),
        }
    return rows


def codec_figures(model: Qwen2MoeForCausalLM) -> dict[str, dict[str, float]]:
    """Stored bytes over bf16 bytes of the routed experts, of these weights and of normal ones of the same shapes."""
    kinds = tensor_kinds(model)
    trained = [tensor for kind in kinds if kind.startswith("routed") for tensor in kinds[kind]]
    generator = torch.Generator().manual_seed(SEED)
    drawn = [(0.02 * torch.randn(each.shape, generator=generator)).bfloat16() for each in trained]
    return {name: {"trained": _ratio(name, trained), "synthetic": _ratio(name, drawn)} for name in codec_names()} | {
        "limit (8 + H) / 16": {"trained": _limit(trained), "synthetic": _limit(drawn)}
    }


def _ratio(codec: str, tensors: Iterable[torch.Tensor]) -> float:
    coder = create_codec(codec)
    sizes = [
        (len(coder.compress(memoryview(exponents(each)), each.shape[1])) + each.numel(), 2 * each.numel())
        for each in tensors
    ]
    return sum(stored for stored, _ in sizes) / sum(whole for _, whole in sizes)


def _limit(tensors: Iterable[torch.Tensor]) -> float:
    limits = [(8 + entropy_bits(exponents(tensor))) / 16 for tensor in tensors]
    return sum(limits) / len(limits)


def _kind(name: str) -> str:
    if "embed" in name:
        return "embedding"
    if "self_attn" in name:
        return "attention"
    if "shared_expert" in name:
        return "shared expert"
    return "gate"


def windows(tokenizer: PreTrainedTokenizerFast, documents: Iterable[Document]) -> Iterator[torch.Tensor]:
    """Documents as token ids, shape (1, n), at most `WINDOW` at a time."""
    for document in documents:
        ids = encode(tokenizer, document)
        for begin in range(0, len(ids), WINDOW):
            yield torch.tensor([ids[begin : begin + WINDOW]])


def rounded(value: Any, digits: int = 4) -> Any:
    """Numbers of nested figures to so many decimals."""
    if isinstance(value, Mapping):
        return {key: rounded(each, digits) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each, digits) for each in value]
    return round(value, digits) if isinstance(value, float) else value
