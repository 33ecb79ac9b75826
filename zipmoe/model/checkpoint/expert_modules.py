"""Finds the modules of a model that hold routed experts, and the parameters that hold the experts' matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from zipmoe.errors import UnsupportedModel
from zipmoe.model.checkpoint.skeleton import COMPARE_CONFIG, MAX_EXPERTS, Skeleton
from zipmoe.model.stock.experts_module import StackedMatrix, expert_children, stacked_matrices
from zipmoe.store.format.layout import TensorSpec


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

    `zipmoe.model.stock.experts_module` says which forms of modules there are.

    Raises:
        UnsupportedModel: no such module exists, or a module has matrices without weights or too many experts.
    """
    modules = []
    for path, module in skeleton.model.named_modules():
        if matrices := stacked_matrices(module):
            modules.append(_stacked(path, matrices))
        elif experts := expert_children(module):
            modules.append(_module_dict(path, experts))
    modules = [module for module in modules if module.experts]
    for module in modules:
        for matrix in module.experts[0]:
            if matrix.spec.weight_count == 0:
                raise UnsupportedModel(
                    f"{matrix.parameter} is {matrix.spec.rows} x {matrix.spec.cols}: a matrix has no weights",
                    next_step=COMPARE_CONFIG,
                )
    if not modules:
        raise UnsupportedModel(
            f"this {skeleton.family} configuration has no Mixture-of-Experts layer",
            next_step="serve a dense model with a dense server: ZipMoE gains nothing there",
        )
    return tuple(modules)


def _stacked(path: str, matrices: tuple[StackedMatrix, ...]) -> ExpertsModule:
    # Of several counts the smallest is that of the experts with all their matrices: longcat_flash has rows for experts
    # that return their input, which no code reads.
    count = min(matrix.experts for matrix in matrices)
    if count > MAX_EXPERTS:
        raise UnsupportedModel(
            f"{path} has {count} experts, at most {MAX_EXPERTS} are served", next_step=COMPARE_CONFIG
        )
    specs = {matrix.parameter: TensorSpec(matrix.parameter, matrix.rows, matrix.cols) for matrix in matrices}
    return ExpertsModule(
        path,
        tuple(
            tuple(ExpertMatrix(spec, f"{path}.{name}", index) for name, spec in specs.items()) for index in range(count)
        ),
    )


def _module_dict(path: str, children: Mapping[str, nn.Module]) -> ExpertsModule:
    experts = []
    for name, child in children.items():
        parameters = {name: each for name, each in child.named_parameters() if each.ndim == 2}
        experts.append(
            tuple(
                ExpertMatrix(TensorSpec(matrix, *parameter.shape), f"{path}.{name}.{matrix}", None)
                for matrix, parameter in parameters.items()
            )
        )
    if len({tuple(matrix.spec for matrix in expert) for expert in experts}) > 1:
        raise UnsupportedModel(f"the experts of {path} do not all have the same matrices")
    return ExpertsModule(path, tuple(experts))
