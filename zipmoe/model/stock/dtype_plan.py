"""Knows which parameters `from_pretrained(dtype=torch.bfloat16)` keeps in another dtype."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import build_glob_alternation

from zipmoe.model.stock.model_class import DTYPE


class DtypePlan:
    """The parameters and buffers of a model whose dtype the class of the model prescribes."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Reads the plan of a model's class for bfloat16."""
        plan = model._get_dtype_plan(DTYPE)
        pattern, glob_of_group, _ = build_glob_alternation(list(plan))
        self._pattern = pattern if plan else None
        self._dtypes: dict[str, torch.dtype] = {group: plan[glob] for group, glob in glob_of_group.items()}

    def dtype_of(self, name: str) -> torch.dtype | None:
        """Returns the dtype of a parameter or buffer; None if it has the dtype that the constructed model has."""
        match = self._pattern.search(name) if self._pattern is not None else None
        return None if match is None or match.lastgroup is None else self._dtypes[match.lastgroup]
