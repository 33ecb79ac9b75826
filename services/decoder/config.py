"""How a decoder is set up."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

from pydantic import ByteSize, Field, model_validator
from pydantic_settings import SettingsConfigDict

from zipmoe.errors import BudgetInfeasible
from zipmoe.residency.budget import BudgetRequest, split_budget
from zipmoe.rpc.config import ServiceConfig
from zipmoe.store.manifest import Manifest

_DEFAULT_ARENA_BYTES = 1 << 30


class DecoderConfig(ServiceConfig):
    """Recovers experts from chunks in shared memory."""

    model_config = SettingsConfigDict(cli_prog_name="decoder")

    store: Path = Field(description="directory of the packed store, the same as the expert store's")
    tensor_slots: int | None = Field(
        None, ge=1, description="slots of the tensor arena; each holds one recovered expert"
    )
    tensor_arena: ByteSize | None = Field(
        None, description="or: the tensor arena's size; without any, 1GiB, at most as many slots as there are experts"
    )
    memory_budget: ByteSize | None = Field(
        None, description="or: one budget for all three services, split alike by each (with the next four settings)"
    )
    kv_tokens: int = Field(4096, ge=1, description="the budget's share for the KV cache, in tokens")
    max_prompt_tokens: int = Field(2048, ge=1, description="the budget's share for a prefill, in tokens")
    workers: int = Field(
        max(1, (os.cpu_count() or 2) - 1), ge=1, le=256, description="threads that recover tensors, one processor each"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the router computes")
    verify_recovered: bool = Field(
        False, description="compare every recovered tensor with the checkpoint's checksum (chunks are always checked)"
    )
    lock_memory: bool = Field(True, description="keep the arena from being swapped out, where that is allowed")
    metrics_port: int = Field(9102, ge=0, le=65535, description="port of the Prometheus metrics; 0 takes any free one")

    @model_validator(mode="after")
    def _one_size(self) -> DecoderConfig:
        if sum(value is not None for value in (self.tensor_slots, self.tensor_arena, self.memory_budget)) > 1:
            raise ValueError("give only one of --tensor-slots, --tensor-arena and --memory-budget")
        return self

    def slot_count(self, manifest: Manifest) -> int:
        """Works out the slots of the tensor arena.

        Raises:
            BudgetInfeasible: the arena cannot hold one expert, or the memory budget not the model.
        """
        if self.tensor_slots is not None:
            return self.tensor_slots
        if self.memory_budget is not None:
            request = BudgetRequest(
                self.memory_budget, self.kv_tokens, self.max_prompt_tokens, self.workers, self.device
            )
            model = json.loads((self.store / "config.json").read_text())
            return split_budget(manifest, model, request).tensor_slots
        slot_bytes = manifest.max_tensor_bytes
        if self.tensor_arena is None:
            return max(1, min(manifest.expert_count, _DEFAULT_ARENA_BYTES // slot_bytes))
        if self.tensor_arena < slot_bytes:
            raise BudgetInfeasible(
                f"--tensor-arena of {int(self.tensor_arena)} bytes cannot hold one expert of {slot_bytes} bytes",
                smallest_bytes=slot_bytes,
            )
        return self.tensor_arena // slot_bytes
