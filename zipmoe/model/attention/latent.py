"""Latent attention whose latents are cached: every step expands those of the whole context, as stock does.

That is the form that takes least memory, and the only one that is exact where torch sums an expansion in an order that
depends on how many rows there are. Else keys and values are kept as they are expanded, like any other family's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zipmoe.model.attention.ragged_attention import RaggedPass
from zipmoe.model.linear.native_linear import Linears, NativeLinear

EXPANSION = "kv_b_proj"
"""What stock calls the linear that makes keys and values of latents."""


def expands_rows_alike(model: nn.Module, linears: Linears) -> bool:
    """Whether every latent is known to be expanded to the same bits, however many others are expanded with it.

    Then a token's keys and values may be kept from the step that computes them.
    """
    found = [module for name, module in model.named_modules() if name.rpartition(".")[2] == EXPANSION]
    return bool(found) and all(
        isinstance(module, NativeLinear)
        and linears.same_in_any_company(module.out_features, module.in_features, bias=module.bias is not None)
        for module in found
    )


class LatentPass(RaggedPass):
    """The cache that one pass sees where latents are kept."""

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores new latents and rotary keys; gives those of all contexts, one after the other, to be expanded."""
        self.pool.write(layer_idx, self.slots, keys, values)
        return self._joined(self.pool.keys[layer_idx]), self._joined(self.pool.values[layer_idx])

    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Cuts what each request attends to from the expanded contexts; stock's values are a view as well."""
        sizes = [span.tokens for span in self.spans]
        cut = zip(torch.split(key, sizes, dim=2), torch.split(value, sizes, dim=2), strict=True)
        return self.attend_by_stock(module, query, [(keys.contiguous(), values) for keys, values in cut], **kwargs)

    def _joined(self, block: torch.Tensor) -> torch.Tensor:
        each = [span.place.read(block) for span in self.spans]
        return each[0] if len(each) == 1 else torch.cat(each, dim=2)
