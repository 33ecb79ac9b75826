"""Computes latent attention from cached latents: every step expands the latents of the whole context, as stock does.

Cached latents take less memory than expanded keys and values. Latents are also the only exact form where torch's
summation order for an expansion depends on the number of rows. Elsewhere the expanded keys and values may be cached
instead, as in any other family.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zipmoe.model.attention.ragged_attention import RaggedPass
from zipmoe.model.linear.linear_module import NativeLinear
from zipmoe.model.linear.native_linear import Linears

EXPANSION = "kv_b_proj"
"""Stock's name of the linear that expands latents to keys and values."""


def expands_rows_alike(model: nn.Module, linears: Linears) -> bool:
    """Whether every latent is known to expand to the same bits in an expansion of any number of rows.

    Then the keys and values of a token may be cached by the step that computes them.
    """
    found = [module for name, module in model.named_modules() if name.rpartition(".")[2] == EXPANSION]
    return bool(found) and all(
        isinstance(module, NativeLinear)
        and linears.row_invariant(module.out_features, module.in_features, bias=module.bias is not None)
        for module in found
    )


class LatentPass(RaggedPass):
    """The cache of one pass in a model with cached latents."""

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores new latents and rotary keys; returns the entries of all contexts, joined, for the layer to expand."""
        self.pool.write(layer_idx, self.slots, keys, values)
        return self._joined(self.pool.keys[layer_idx]), self._joined(self.pool.values[layer_idx])

    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Cuts the expanded contexts by request and attends for each; values stay views, as in stock."""
        sizes = [span.tokens for span in self.spans]
        cut = zip(torch.split(key, sizes, dim=2), torch.split(value, sizes, dim=2), strict=True)
        return self.attend_by_stock(module, query, [(keys.contiguous(), values) for keys, values in cut], **kwargs)

    def _joined(self, block: torch.Tensor) -> torch.Tensor:
        each = [span.place.read(block) for span in self.spans]
        return each[0] if len(each) == 1 else torch.cat(each, dim=2)
