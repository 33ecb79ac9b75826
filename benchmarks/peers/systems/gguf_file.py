"""A hub checkpoint of Qwen2-MoE as one GGUF file: every weight as it is, experts stacked as llama.cpp wants them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zipmoe.errors import Unavailable, UnsupportedModel
from zipmoe.model.checkpoint.checkpoint import Checkpoint, open_checkpoint
from zipmoe.model.checkpoint.shard import TensorEntry

Bits = npt.NDArray[np.uint16]
"""bf16 values as raw bits."""

_WHOLE: Final = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_OF_LAYER: Final = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    "mlp.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
}
_OF_EXPERT: Final = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
_LAYER: Final = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT: Final = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(\w+)\.weight")


@dataclass(frozen=True)
class Stacked:
    """One tensor of the file.

    Attributes:
        name: llama.cpp's.
        sources: bf16 tensors of the checkpoint of one shape; several are stacked, one expert after the other.
        fp32: whether it is widened, which is exact: llama.cpp adds and multiplies vectors, and gates, in fp32 only.
    """

    name: str
    sources: tuple[TensorEntry, ...]
    fp32: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows before columns, experts before both."""
        shape = tuple(self.sources[0].shape)
        if self.name.endswith("ffn_gate_inp_shexp.weight"):
            return shape[-1:]  # a matrix of one row in the checkpoint, a vector there
        return (len(self.sources), *shape) if "_exps." in self.name else shape

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return int(np.prod(self.shape)) * (4 if self.fp32 else 2)

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """The values, one source at a time."""
        for source in self.sources:
            bits = _read(source)
            yield (bits.astype(np.uint32) << 16).view(np.float32) if self.fp32 else bits


def tensors_of(checkpoint: Checkpoint) -> list[Stacked]:
    """Names every tensor of a checkpoint as llama.cpp does.

    Raises:
        UnsupportedModel: the family is another, or a tensor has no place.
    """
    if checkpoint.config.get("model_type") != "qwen2_moe" or checkpoint.config.get("tie_word_embeddings"):
        raise UnsupportedModel("only qwen2_moe with a head of its own is converted to GGUF")
    experts: dict[str, dict[int, TensorEntry]] = {}
    found: dict[str, tuple[TensorEntry, ...]] = {}
    for key, entry in checkpoint.tensors.items():
        if entry.dtype != "BF16":
            raise UnsupportedModel(f"{key} has dtype {entry.dtype}, only BF16 is converted")
        if match := _EXPERT.fullmatch(key):
            experts.setdefault(f"blk.{match[1]}.{_OF_EXPERT[match[3]]}.weight", {})[int(match[2])] = entry
        elif key in _WHOLE:
            found[_WHOLE[key]] = (entry,)
        elif (match := _LAYER.fullmatch(key)) and match[2] in _OF_LAYER:
            found[f"blk.{match[1]}.{_OF_LAYER[match[2]]}"] = (entry,)
        else:
            raise UnsupportedModel(f"there is no place for {key} in a GGUF file of qwen2moe")
    found.update({name: tuple(entry for _, entry in sorted(each.items())) for name, each in experts.items()})
    return [Stacked(name, sources, _in_fp32(name, sources)) for name, sources in sorted(found.items())]


def write_gguf(src: Path, path: Path) -> None:
    """Converts a checkpoint.

    Args:
        src: a hub directory of Qwen2-MoE in bf16, one tensor for each matrix of an expert.
        path: where the file goes; written beside first, so that it is complete if it is there.

    Raises:
        Unavailable: the package `gguf` is not installed.
        UnsupportedModel: as `tensors_of`.

    Cost: reads and writes all weights once; memory of one tensor.
    """
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
    except ImportError as error:
        raise Unavailable("the package gguf is not installed", next_step="pip install 'zipmoe[peers]'") from error
    checkpoint = open_checkpoint(src)
    tensors = tensors_of(checkpoint)
    partial = path.with_suffix(".partial")
    writer = GGUFWriter(partial, "qwen2moe")
    _describe(writer, checkpoint.config)
    for tensor in tensors:
        kind = GGMLQuantizationType.F32 if tensor.fp32 else GGMLQuantizationType.BF16
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float16), tensor.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(_Streamed(tensor))
    writer.close()
    partial.rename(path)


def _describe(writer: Any, config: Mapping[str, Any]) -> None:
    if config.get("norm_topk_prob"):
        raise UnsupportedModel("llama.cpp does not normalise the weights of qwen2moe's experts, this model does")
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(rope.get("rope_theta", config.get("rope_theta", 10000.0))))
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")  # token ids go in and come out


def _in_fp32(name: str, sources: Sequence[TensorEntry]) -> bool:
    return len(sources[0].shape) == 1 or "ffn_gate_inp" in name


def _read(source: TensorEntry) -> Bits:
    return np.fromfile(source.path, np.uint16, source.nbytes // 2, offset=source.offset)


class _Streamed:
    """As much of an array as `GGUFWriter` asks for, so that no stack is ever in memory as a whole."""

    def __init__(self, tensor: Stacked) -> None:
        self._tensor = tensor
        self.nbytes = tensor.nbytes

    def tofile(self, file: Any) -> None:
        for piece in self._tensor.pieces():
            piece.tofile(file)


if __name__ == "__main__":
    write_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
