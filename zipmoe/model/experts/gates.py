"""Makes stock's gates compute linears by the kernels, the rows of each request with the bits of the request alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear as stock_linear
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.linear.native_linear import Linears


class _ByLinears(TorchFunctionMode):
    """Mode that redirects `torch.nn.functional.linear` to `Linears`, which knows the request of each row."""

    def __init__(self, linears: Linears) -> None:
        super().__init__()
        self._linears = linears

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return (self._linears if func is stock_linear else func)(*args, **(kwargs or {}))


def replace_gate_linears(model: PreTrainedModel, linears: Linears) -> list[tuple[int, int, bool]]:
    """Makes stock's gates compute by `linears`.

    A gate is a module that owns a matrix and does the multiplication itself, often in fp32, where the bits of a row
    depend on the number of rows. Everything else in a gate is computed row by row.

    Returns:
        (n, k, whether there is a bias) of each gate's linear that the kernels may compute, for `Linears.self_test`.
    """
    shapes = []
    for module in model.modules():
        own = [parameter for parameter in module.parameters(recurse=False) if parameter.dim() == 2]
        if not own or type(module).forward is nn.Embedding.forward or _by_linears(module):
            continue
        in_bf16 = all(parameter.dtype is torch.bfloat16 for parameter in own)
        module.forward = _redirected(module.forward, linears, alone_too=in_bf16)
        shapes += [(*parameter.shape, False) for parameter in own if in_bf16]
    return shapes


def _by_linears(module: nn.Module) -> bool:
    return isinstance(module, RoutedExperts) or hasattr(module, "linears")


def _redirected(forward: Callable[..., Any], linears: Linears, *, alone_too: bool) -> Callable[..., Any]:
    """Wraps a gate's forward. For a single request stock's forward runs, unless `alone_too` (bf16)."""

    def compute(*args: Any, **kwargs: Any) -> Any:
        if linears.shared is None and not alone_too:
            return forward(*args, **kwargs)
        with _ByLinears(linears):
            return forward(*args, **kwargs)

    return compute
