"""Gates of requests that share a pass: their linears are computed as if each request were alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.nn.functional import linear as stock_linear
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from zipmoe.model.experts import RoutedExperts
from zipmoe.model.linear import Linears


class _ByLinears(TorchFunctionMode):
    """Inside, `torch.nn.functional.linear` is computed by `Linears`, which knows whose rows they are."""

    def __init__(self, linears: Linears) -> None:
        super().__init__()
        self._linears = linears

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return (self._linears if func is stock_linear else func)(*args, **(kwargs or {}))


def share_gates(model: PreTrainedModel, linears: Linears) -> tuple[str, ...]:
    """Makes stock's gates fit for passes that several requests share.

    They are modules that own a matrix and multiply with it themselves, often in fp32, where a row's bits depend on
    how many rows there are. All else that they do is by row. Passes of one request are not touched.

    Returns:
        The gates' names.
    """
    names = []
    for name, module in model.named_modules():
        own = [parameter for parameter in module.parameters(recurse=False) if parameter.dim() == 2]
        if own and type(module).forward is not nn.Embedding.forward and not _by_linears(module):
            module.forward = _shared(module.forward, linears)
            names.append(name)
    return tuple(names)


def _by_linears(module: nn.Module) -> bool:
    return isinstance(module, RoutedExperts) or hasattr(module, "linears")


def _shared(forward: Callable[..., Any], linears: Linears) -> Callable[..., Any]:
    def compute(*args: Any, **kwargs: Any) -> Any:
        if linears.shared is None:
            return forward(*args, **kwargs)
        with _ByLinears(linears):
            return forward(*args, **kwargs)

    return compute
