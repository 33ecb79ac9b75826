"""Another provider in front of a built model's own one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from zipmoe.model.build.build import BuiltModel
from zipmoe.model.experts.provider import ExpertProvider


def take_experts_from(provider: ExpertProvider, built: BuiltModel, patch: pytest.MonkeyPatch) -> None:
    """Makes all layers of a model ask this provider until the patches are undone."""
    for experts in built.experts:
        patch.setattr(experts, "_supply", replace(experts._supply, provider=provider))
