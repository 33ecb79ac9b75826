"""Refuses checkpoints that lack a tensor of the model. Stock's `from_pretrained` would fill the tensor at random."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from transformers import MergeModulelist

from zipmoe.errors import NotFound
from zipmoe.model.checkpoint.conversion import meta_results
from zipmoe.model.checkpoint.expert_modules import ExpertsModule
from zipmoe.model.checkpoint.key_plan import ConversionGroup, KeyPlan
from zipmoe.model.checkpoint.skeleton import Skeleton

_NAMED_AT_MOST = 8


def routed_groups(plan: KeyPlan, modules: Sequence[ExpertsModule], skeleton: Skeleton) -> dict[str, ConversionGroup]:
    """Finds the conversion of each parameter that holds matrices of routed experts; one may give several parameters.

    Args:
        plan: the assignment of checkpoint tensors to parameters.
        modules: the modules of routed experts.
        skeleton: the model.

    Returns:
        The conversions by name of the parameter. A parameter that no checkpoint tensor fills is missing.

    Raises:
        UnsupportedModel: an operation fails on the shapes of its tensors.
    """
    names = {name for module in modules for name in module.parameters}
    groups: dict[str, ConversionGroup] = {}
    for group in plan.groups.values():
        if group.target in names:
            one = group.converter is None or len(group.converter.target_patterns) == 1
            results = {group.target} if one else names.intersection(meta_results(group, skeleton))
            groups.update(dict.fromkeys(results, group))
    return groups


def check_coverage(
    skeleton: Skeleton,
    routed: Mapping[str, ConversionGroup],
    modules: Sequence[ExpertsModule],
    dense_names: Collection[str],
) -> None:
    """Raises if any parameter or persistent buffer of the model gets no value.

    Args:
        skeleton: the model.
        routed: the result of `routed_groups`.
        modules: the modules of routed experts.
        dense_names: the parameters outside these modules that the plan fills.

    Raises:
        NotFound: tensors are missing. The message has their number and the first names; for single missing experts
            these are checkpoint keys.
    """
    covered = {*dense_names, *routed}
    # One value is enough for a set of tied parameters.
    for names in tied_names(skeleton):
        if not covered.isdisjoint(names):
            covered.update(names)
        else:
            covered.update(names[1:])  # so that a missing value is reported once
    missing = [name for name in skeleton.state if name not in covered]
    for name, group in sorted(routed.items()):
        missing.extend(_missing_experts(group, skeleton.state[name].shape[0]))
    if missing:
        named = ", ".join(missing[:_NAMED_AT_MOST])
        raise NotFound(
            f"the checkpoint lacks {len(missing)} tensors of the model: {named}"
            + (", ..." if len(missing) > _NAMED_AT_MOST else ""),
            next_step="download the checkpoint again, or compare config.json with its shards: "
            "missing weights are never filled at random",
        )


def tied_names(skeleton: Skeleton) -> Iterator[list[str]]:
    """Yields the sets of tied parameters of a model. The first name of each set is the source of the value."""
    sharing: dict[str, list[str]] = {}
    for target, source in skeleton.model.all_tied_weights_keys.items():
        sharing.setdefault(source, [source]).append(target)
    yield from sharing.values()


def _missing_experts(group: ConversionGroup, expert_count: int) -> Iterable[str]:
    """Names the per-expert tensors that a merge over all experts lacks."""
    if group.converter is None or not isinstance(group.converter.operations[0], MergeModulelist):
        return
    keys = {entry.name for _, entry in group.sources}
    sample = group.sources[0][1].name
    for pattern in group.converter.source_patterns:
        head, star, tail = pattern.replace("\\", "").partition("*")
        match = re.search(rf"^(.*?){re.escape(head)}\d+\.", sample)
        if not star or match is None:
            continue
        for index in range(expert_count):
            if (key := f"{match.group(1)}{head}{index}{tail}") not in keys:
                yield key
