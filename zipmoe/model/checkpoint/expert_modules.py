"""Finds the modules of a model that hold routed experts, and the parameters that hold the experts' matrices."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from zipmoe.errors import UnsupportedModel
from zipmoe.model.checkpoint.skeleton import Skeleton
from zipmoe.store.format.layout import TensorSpec

PACKED_MATRICES = ("gate_up_proj", "down_proj")
MODULE_DICT_MATRICES = ("wi.weight", "wo.weight")
MAX_EXPERTS = 1 << 16


@dataclass(frozen=True)
class ExpertMatrix:
    """A matrix of an expert: a whole parameter, or the slice `index` of a parameter along the first dimension."""

    spec: TensorSpec
    parameter: str
    index: int | None


@dataclass(frozen=True)
class ExpertsModule:
    """The routed experts of a layer. `experts[i]` has the matrices of expert i, in the order of the store."""

    path: str
    experts: tuple[tuple[ExpertMatrix, ...], ...]

    @property
    def parameters(self) -> set[str]:
        """The names of all parameters that hold matrices of experts."""
        return {matrix.parameter for expert in self.experts for matrix in expert}


def find_experts(skeleton: Skeleton) -> tuple[ExpertsModule, ...]:
    """Finds the modules of routed experts, in forward order. In an encoder-decoder the encoder's modules come first.

    Two forms exist in transformers 5.23. Packed form: parameters `gate_up_proj` and `down_proj` of rank 3, the expert
    in the first dimension. Switch: a ModuleDict of `expert_N`, each with linears `wi` and `wo`.

    Raises:
        UnsupportedModel: no such module exists, or a module has further matrices or matrices without weights.
    """
    modules = []
    for path, module in skeleton.model.named_modules():
        if _is_packed(module):
            modules.append(_packed(path, module))
        elif isinstance(module, nn.ModuleDict) and set(module) == {f"expert_{i}" for i in range(len(module))}:
            modules.append(_module_dict(path, module))
    modules = [module for module in modules if module.experts]
    for module in modules:
        for matrix in module.experts[0]:
            if matrix.spec.weight_count == 0:
                raise UnsupportedModel(f"{matrix.parameter} is {matrix.spec.rows} x {matrix.spec.cols}")
    if not modules:
        raise UnsupportedModel(
            f"this {skeleton.family} configuration has no Mixture-of-Experts layer",
            next_step="serve a dense model with a dense server: ZipMoE gains nothing there",
        )
    return tuple(modules)


def _is_packed(module: nn.Module) -> bool:
    return all(getattr(getattr(module, name, None), "ndim", 0) == 3 for name in PACKED_MATRICES)


def _packed(path: str, module: nn.Module) -> ExpertsModule:
    matrices = {name: parameter for name, parameter in module.named_parameters() if parameter.ndim == 3}
    if extra := sorted(set(matrices) - set(PACKED_MATRICES)):
        raise UnsupportedModel(f"{path} has expert matrices beside {', '.join(PACKED_MATRICES)}: {', '.join(extra)}")
    counts = {parameter.shape[0] for parameter in matrices.values()}
    if len(counts) != 1 or max(counts) > MAX_EXPERTS:
        raise UnsupportedModel(
            f"the matrices of {path} are for {sorted(counts)} experts, at most {MAX_EXPERTS} are served"
        )
    specs = {name: TensorSpec(name, matrices[name].shape[1], matrices[name].shape[2]) for name in PACKED_MATRICES}
    return ExpertsModule(
        path,
        tuple(
            tuple(ExpertMatrix(spec, f"{path}.{name}", index) for name, spec in specs.items())
            for index in range(counts.pop())
        ),
    )


def _module_dict(path: str, module: nn.ModuleDict) -> ExpertsModule:
    experts = []
    for index in range(len(module)):
        name = f"expert_{index}"
        parameters = dict(module[name].named_parameters())
        if set(parameters) != set(MODULE_DICT_MATRICES):
            raise UnsupportedModel(
                f"{path}.{name} has parameters {', '.join(sorted(parameters))}, not {', '.join(MODULE_DICT_MATRICES)}"
            )
        experts.append(
            tuple(
                ExpertMatrix(TensorSpec(matrix, *parameters[matrix].shape), f"{path}.{name}.{matrix}", None)
                for matrix in MODULE_DICT_MATRICES
            )
        )
    return ExpertsModule(path, tuple(experts))
