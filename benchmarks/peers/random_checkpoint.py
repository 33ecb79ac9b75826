"""Checkpoints of the sizes of real models in a few layers, with random weights.

    python -m benchmarks.peers.random_checkpoint MODEL DST

`zipmoe synth` makes those of the families that it knows; these are of any model type of transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, PreTrainedConfig

from benchmarks.peers.work import WIDTHS
from zipmoe.model.stock.model_class import DTYPE, whole_class

STD: Final = 0.02
"""Standard deviation of all weights. Vectors, which are norms and scales, lie around one."""


def configuration(name: str) -> PreTrainedConfig:
    """Makes the configuration of one of `WIDTHS`."""
    fields: dict[str, Any] = {**WIDTHS[name]}
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def write_checkpoint(config: PreTrainedConfig, dst: Path, seed: int = 0) -> None:
    """Writes a checkpoint in the hub's format with random bf16 weights. Equal arguments give equal weights.

    Args:
        config: of any model type that generates text.
        dst: a directory; made where it does not exist.
        seed: of the weights, at least 0.

    Cost: memory of all weights.
    """
    with torch.device("meta"):
        model = whole_class(config)(config).to(DTYPE)
    model.to_empty(device="cpu")
    model.tie_weights()
    generator = torch.Generator().manual_seed(seed)
    state: Mapping[str, torch.Tensor] = model.state_dict()
    filled: set[int] = set()
    for values in state.values():
        if values.data_ptr() not in filled:  # tied weights are one tensor under two names
            filled.add(values.data_ptr())
            values.normal_(1.0 if values.ndim < 2 else 0.0, STD, generator=generator)
    model.save_pretrained(dst)


if __name__ == "__main__":
    write_checkpoint(configuration(sys.argv[1]), Path(sys.argv[2]))
