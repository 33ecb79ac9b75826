"""How a decoder is set up."""

from __future__ import annotations

from pydantic import ByteSize, Field, model_validator
from pydantic_settings import SettingsConfigDict

from zipmoe.errors import BudgetInfeasible
from zipmoe.rpc.budgeted import BudgetedConfig
from zipmoe.store.manifest import Manifest

_DEFAULT_ARENA_BYTES = 1 << 30


class DecoderConfig(BudgetedConfig):
    """Recovers experts from chunks in shared memory."""

    model_config = SettingsConfigDict(cli_prog_name="zipmoe decoder")

    tensor_slots: int | None = Field(
        None, ge=1, description="slots of the tensor arena; each holds one recovered expert"
    )
    tensor_arena: ByteSize | None = Field(
        None, description="or: the tensor arena's size; without any, 1GiB, at most as many slots as there are experts"
    )
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
        if (split := self.split_here(manifest)) is not None:
            return split.tensor_slots
        slot_bytes = manifest.max_tensor_bytes
        if self.tensor_arena is None:
            return max(1, min(manifest.expert_count, _DEFAULT_ARENA_BYTES // slot_bytes))
        if self.tensor_arena < slot_bytes:
            raise BudgetInfeasible(
                f"--tensor-arena of {int(self.tensor_arena)} bytes cannot hold one expert of {slot_bytes} bytes",
                smallest_bytes=slot_bytes,
            )
        return self.tensor_arena // slot_bytes
