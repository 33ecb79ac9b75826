"""Recognises the modules of transformers that hold routed experts, by what they hold and not by the family's name.

Three forms exist in transformers 5.23:

    stacked       parameters of rank 3, the expert in the first dimension (`gate_up_proj`, `down_proj` in most families;
                  `weight` in jetmoe). Nearly all such modules carry `use_experts_implementation` and its flags.
    module dict   a ModuleDict of `expert_0`, `expert_1`, ..., each a module with linears (Switch, NLLB-MoE)
    flattened     parameters of rank 2 that are the experts' matrices one below the other (DBRX)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

_COUNTS = ("num_experts", "total_experts", "num_local_experts", "moe_num_experts", "num_routed_experts")
_EXPERT = "expert_"


@dataclass(frozen=True)
class StackedMatrix:
    """A parameter that holds one matrix of each expert.

    Attributes:
        parameter: the name in the experts module.
        experts: number of experts that have such a matrix.
        rows: rows of one matrix.
        cols: columns of one matrix.
    """

    parameter: str
    experts: int
    rows: int
    cols: int


@dataclass(frozen=True)
class ExpertsFlags:
    """Flags of `use_experts_implementation`; those of a module without flags are derived.

    Attributes:
        has_gate: whether `_apply_gate` follows the first matrix; otherwise `act_fn` does.
        has_bias: whether each matrix has a bias.
        is_transposed: whether matrices have shape (inputs, outputs).
        has_post_expert_norm: whether the output of each expert is normalised.
    """

    has_gate: bool
    has_bias: bool
    is_transposed: bool
    has_post_expert_norm: bool


def flags_of(module: nn.Module) -> ExpertsFlags:
    """Reads the flags of an experts module."""
    return ExpertsFlags(
        has_gate=bool(getattr(module, "has_gate", hasattr(module, "_apply_gate"))),
        has_bias=bool(getattr(module, "has_bias", False)),
        is_transposed=bool(getattr(module, "is_transposed", False)),
        has_post_expert_norm=bool(getattr(module, "has_post_expert_norm", False)),
    )


def activation_of(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Returns the function between the first matrix of an expert and the last; None where a module has no such one."""
    function: Callable[[torch.Tensor], torch.Tensor] | None
    function = getattr(module, "_apply_gate" if flags_of(module).has_gate else "act_fn", None)
    return function


def stacked_matrices(module: nn.Module) -> tuple[StackedMatrix, ...]:
    """Returns the matrices of a module of stacked or flattened experts, in the order of use; none for other modules."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return ()
    counts = {value for name in _COUNTS if isinstance(value := getattr(module, name, None), int)}
    stacked = tuple(
        StackedMatrix(name, *parameter.shape)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and parameter.shape[0] in counts
    )
    return stacked or _flattened(module)


def _flattened(module: nn.Module) -> tuple[StackedMatrix, ...]:
    count = getattr(module, "num_experts", None)
    rows = getattr(module, "ffn_hidden_size", None)
    if not isinstance(count, int) or not isinstance(rows, int):
        return ()
    return tuple(
        StackedMatrix(name, count, rows, parameter.shape[1])
        for name, parameter in module.named_parameters()
        if parameter.ndim == 2 and not isinstance(module.get_submodule(name.rpartition(".")[0]), nn.Linear)
        and parameter.shape[0] == count * rows
    )  # fmt: skip


def whole_layer_reason(module: nn.Module) -> str:
    """Says which part of an experts module's structure keeps its experts from being computed one by one.

    The answer is that of the code, and so the same on every machine. An empty text means that nothing is known against
    it: `zipmoe.model.experts.proof` then compares.
    """
    kind = type(module).__name__
    matrices = stacked_matrices(module)
    if matrices and module.get_parameter(matrices[0].parameter).ndim == 2:
        return f"{kind} has its matrices one below the other"
    if len({matrix.experts for matrix in matrices}) > 1:
        return f"{kind} has experts without matrices"
    child = next(iter(expert_children(module).values()), None)
    if child is not None and any(parameter.ndim != 2 for parameter in child.parameters()):
        return f"{kind} has experts with parameters beside their matrices"
    if len(matrices) == 1:
        return f"{kind} is one linear of the experts, not the whole of them"
    if flags_of(module).has_post_expert_norm:
        return f"{kind} normalises the output of each expert"
    return ""


def expert_children(module: nn.Module) -> Mapping[str, nn.Module]:
    """Returns the experts of a module dict, by name and in order; none for other modules.

    Children of other names are no experts: NLLB-MoE keeps its dropout in the same module dict.
    """
    if not isinstance(module, nn.ModuleDict):
        return {}
    count = sum(name.startswith(_EXPERT) for name in module)
    names = [f"{_EXPERT}{index}" for index in range(count)]
    return {name: module[name] for name in names} if all(name in module for name in names) else {}
