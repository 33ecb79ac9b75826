"""Another provider in front of a built model's own one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from zipmoe.model.build.build import BuiltModel
from zipmoe.model.experts.provider import ExpertProvider


def take_experts_from(
    provider: ExpertProvider, built: BuiltModel, set_attribute: Callable[[object, str, object], None] = setattr
) -> None:
    """Makes all layers of a model ask this provider; `set_attribute` may be a monkeypatch's, which undoes it."""
    for experts in built.experts:
        set_attribute(experts, "_supply", replace(experts._supply, provider=provider))
