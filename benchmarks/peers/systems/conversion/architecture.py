"""The form of a table: where each tensor of a checkpoint goes, and which metadata a configuration gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zipmoe.errors import UnsupportedModel

Config = Mapping[str, Any]
"""A configuration as `PreTrainedConfig.to_dict` gives it, with every default filled in."""

Values = npt.NDArray[Any]
"""Values of a tensor: bf16 as raw bits in uint16, or float32."""

Change = Callable[[Values, Config], Values]
"""Rearranges or computes values. Bits may only be rearranged; to be computed with, values are widened first."""

MetadataValue = int | float | bool | list[int] | list[bool]


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor goes.

    Attributes:
        name: llama.cpp's name, in which `#` is the number of the layer.
        change: the rearrangement on the way; None leaves the values as they are.
        fp32: whether values are widened before the change, which is exact. Vectors always are: llama.cpp adds and
            multiplies them in fp32 only.
    """

    name: str
    change: Change | None = None
    fp32: bool = False


Places = Mapping[str, str | TensorPlace | tuple[TensorPlace, ...]]
"""Places by the name of a tensor in the checkpoint. A string is a place without change; a tuple divides a tensor."""


@dataclass(frozen=True)
class Architecture:
    """The table of one architecture.

    Attributes:
        name: llama.cpp's name of the architecture, which prefixes its metadata.
        whole: places of the tensors outside layers, by their whole name.
        layer: places of the tensors in layers, by the name after `model.layers.#.`. A second `#` is the number of an
            expert: the experts of a layer are stacked, one after the other.
        metadata: values by their key without the prefix. A string is the name of a field of the configuration.
        fixed: fields of the configuration that llama.cpp does not read, with the value that it computes with.
        added: makes tensors that no checkpoint has, fp32, by llama.cpp's name.
    """

    name: str
    whole: Places
    layer: Places
    metadata: Mapping[str, str | Callable[[Config], MetadataValue]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    added: Callable[[Config], Mapping[str, npt.NDArray[np.float32]]] = lambda _: {}

    def places(self, pattern: str) -> tuple[TensorPlace, ...]:
        """Finds the places of a tensor by its name, in which `#` stands for every number.

        Returns:
            The places, with the prefix of their layer; none where the table has none.
        """
        inside = pattern.startswith(_IN_LAYER)
        found = self.layer.get(pattern.removeprefix(_IN_LAYER)) if inside else self.whole.get(pattern)
        if found is None:
            return ()
        places = found if isinstance(found, tuple) else (TensorPlace(found) if isinstance(found, str) else found,)
        return tuple(TensorPlace(f"blk.#.{each.name}", each.change, each.fp32) for each in places) if inside else places

    def metadata_of(self, config: Config) -> dict[str, MetadataValue]:
        """Computes the metadata of a configuration, by its key without the prefix.

        Raises:
            UnsupportedModel: the configuration asks for something that llama.cpp computes in one way only, or lacks a
                field.
        """
        for name, value in self.fixed.items():
            if config.get(name, value) != value:
                raise UnsupportedModel(f"llama.cpp computes {self.name} with {name} {value}, this is {config[name]}")
        try:
            return {
                key: config[source] if isinstance(source, str) else source(config)
                for key, source in self.metadata.items()
            }
        except KeyError as error:
            raise UnsupportedModel(f"the configuration of {self.name} lacks {error}") from None


_IN_LAYER: Final = "model.layers.#."

WHOLE: Final[Places] = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
"""The tensors outside layers of nearly every architecture."""

ATTENTION: Final[Places] = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
}
"""Attention by queries, keys and values of their own."""

DENSE: Final[Places] = {
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
"""A feed-forward block without experts."""

ROUTED: Final[Places] = {
    "mlp.gate.weight": TensorPlace("ffn_gate_inp.weight", fp32=True),
    "mlp.experts.#.gate_proj.weight": "ffn_gate_exps.weight",
    "mlp.experts.#.up_proj.weight": "ffn_up_exps.weight",
    "mlp.experts.#.down_proj.weight": "ffn_down_exps.weight",
    "mlp.experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
}
"""Routed experts and their gate, with one tensor an expert and matrix or with one for all experts of a layer."""

COMMON: Final[Mapping[str, str]] = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "vocab_size": "vocab_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "expert_feed_forward_length": "moe_intermediate_size",
}
"""Metadata of every architecture with routed experts."""


def shared_expert(stock: str) -> Places:
    """Makes the places of a shared expert by its name in the checkpoint."""
    return {f"mlp.{stock}.{part}_proj.weight": f"ffn_{part}_shexp.weight" for part in ("gate", "up", "down")}


def rope(config: Config, layer_type: str | None = None) -> dict[str, Any]:
    """Reads the rotary embedding of a configuration, or that of one type of its layers.

    Raises:
        UnsupportedModel: positions are scaled, for which no table has metadata.
    """
    found: dict[str, Any] = config["rope_parameters"][layer_type] if layer_type else config["rope_parameters"]
    if found["rope_type"] not in ("default", "proportional"):
        raise UnsupportedModel(f"rope_type {found['rope_type']} is not converted")
    return found


def rope_base(layer_type: str | None = None) -> Callable[[Config], float]:
    """Makes the source of a base of the rotary embedding."""
    return lambda config: float(rope(config, layer_type)["rope_theta"])
