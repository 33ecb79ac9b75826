"""Torch keeps dtype, shape and device of a tensor without memory, and hands its operations over."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zipmoe.model.stock.tensor_without_memory import TensorWithoutMemory


class _Ones(TensorWithoutMemory):
    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls.of_shape(args[0].shape, args[0].dtype)
        return func(*(torch.ones(each.shape, dtype=each.dtype) if isinstance(each, cls) else each for each in args))


def test_it_stands_for_a_parameter_of_a_module_that_is_loaded() -> None:
    module = nn.Linear(4, 3, bias=False, device="meta")
    module.load_state_dict({"weight": _Ones.of_shape((3, 4), torch.float32)}, assign=True)
    weight = module.weight
    assert isinstance(weight, _Ones) and isinstance(weight, nn.Parameter)
    assert (weight.shape, weight.dtype, weight.device.type) == ((3, 4), torch.float32, "cpu")
    assert weight.requires_grad and not weight.is_meta and weight.is_contiguous()
    assert weight.data_ptr() == 0


def test_its_operations_are_those_of_the_subclass_and_give_plain_tensors() -> None:
    made = _Ones.of_shape((3, 4), torch.float32)
    with torch.inference_mode():
        found = nn.functional.linear(torch.ones(2, 4), made)
    assert type(found) is torch.Tensor
    assert found.tolist() == [[4.0] * 3] * 2
