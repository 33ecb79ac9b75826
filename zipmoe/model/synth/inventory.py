"""Lists the tensors of a synthetic checkpoint: the hub's names, and the shapes of a configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

import torch

from zipmoe.model.checkpoint.expert_modules import find_experts
from zipmoe.model.checkpoint.skeleton import Skeleton, mtp_skeleton
from zipmoe.model.stock.conversion_tables import checkpoint_tensors, in_stock_order

_DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}
_NORM = re.compile(r"norm\w*\.weight$")
_GATE = re.compile(r"(\.gate|_gate|router\w*(\.\w+)?)\.weight$")

_MTP_NAME = re.compile(r"layers\.(\d+)\.(mtp_block\.)?(.*)")
_HUB_MTP_NAMES = {"post_norm.weight": "shared_head.norm.weight"}

MATRIX_STD = 0.02
_TRUE_WIDTH = 1024


@dataclass(frozen=True)
class SynthTensor:
    """A tensor of a synthetic checkpoint: normally distributed with `std`, or all ones if `std` is 0."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    std: float

    @property
    def weight_count(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight."""
        return 2 if self.dtype == "BF16" else 4

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.weight_count * self.weight_bytes


def list_tensors(skeleton: Skeleton, *, packed: bool, mtp: bool = False) -> list[SynthTensor]:
    """Lists the tensors of a checkpoint of a model.

    Args:
        skeleton: the model; only names, shapes and dtypes are taken.
        packed: whether names and shapes are those of the model's own parameters (one tensor for all experts of a
            layer). Otherwise they are those of the inputs of transformers' conversion tables (a tensor per expert).
        mtp: whether to list the layers for multi-token prediction, too, by the names that DeepSeek and GLM give them.

    Returns:
        The tensors in the order in which transformers writes them. Of tied parameters only the source of the value.

    Raises:
        UnsupportedModel: the configuration makes a model without experts, or without layers for multi-token prediction.
    """
    find_experts(skeleton)
    state = {
        name: torch.empty(tensor.shape, dtype=skeleton.dtype_of(name), device="meta")
        for name, tensor in skeleton.state.items()
        if name not in skeleton.model.all_tied_weights_keys
    }
    if mtp:
        state |= _mtp_state(skeleton)
    if not packed:
        state = checkpoint_tensors(skeleton.model, state)
    return [_tensor(name, state[name]) for name in in_stock_order(state)]


def _mtp_state(skeleton: Skeleton) -> dict[str, torch.Tensor]:
    """Returns the tensors of MTP layers: a layer behind those of the model, with copies of embeddings and head."""
    config = skeleton.model.config.get_text_config(decoder=True)
    state = {}
    for name, tensor in mtp_skeleton(skeleton).state.items():
        match = _MTP_NAME.fullmatch(name)
        assert match is not None
        layer = f"model.layers.{config.num_hidden_layers + int(match[1])}"
        hub_name = f"{layer}.{_HUB_MTP_NAMES.get(match[3], match[3])}"
        state[hub_name] = torch.empty(tensor.shape, dtype=skeleton.dtype_of_name(hub_name, tensor), device="meta")
        for shared in ("embed_tokens.weight", "shared_head.head.weight"):
            shape = (config.vocab_size, config.hidden_size)
            state[f"{layer}.{shared}"] = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    return state


def _tensor(name: str, tensor: torch.Tensor) -> SynthTensor:
    shape = tuple(tensor.shape)
    return SynthTensor(name, _DTYPE_NAMES[tensor.dtype], shape, _std(name, shape))


def _std(name: str, shape: tuple[int, ...]) -> float:
    if len(shape) == 1:
        return 0.0 if _NORM.search(name) else MATRIX_STD
    # Gates give scores of about unit variance, so that tokens spread over the experts. In tiny models every matrix
    # keeps the scale of its input: with 0.02 the layers would add almost nothing to the residual stream.
    if _GATE.search(name) or shape[-1] < _TRUE_WIDTH:
        return float(round(shape[-1] ** -0.5, 6))
    return MATRIX_STD
