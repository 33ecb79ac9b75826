"""Switches a model from stock's eager attention to a function of ours, and finds stock's function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from zipmoe.errors import InternalError


def eager_attention(module: nn.Module) -> Callable[..., tuple[Any, Any]]:
    """Returns stock's own eager attention function for an attention module."""
    function: Callable[..., tuple[Any, Any]] = sys.modules[type(module).__module__].eager_attention_forward
    return function


@contextmanager
def attending_by(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Makes a model attend by a function of `AttentionInterface`, inside the context.

    The model's attention modules look the function up at each call. They hand down the keyword arguments of the model's
    call. Stock builds no mask for a name that it does not know.

    Args:
        model: a model that attends by stock's eager code.
        name: the name of the function.

    Raises:
        InternalError: the model attends by something else.
    """
    config = model.config
    before = config._attn_implementation
    if before != "eager":
        raise InternalError(f"the model attends by {before}")
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
