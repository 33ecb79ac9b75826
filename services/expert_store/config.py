"""How an expert store is set up."""

from __future__ import annotations

from pydantic import ByteSize, Field, model_validator
from pydantic_settings import SettingsConfigDict

from zipmoe.errors import BudgetInfeasible
from zipmoe.rpc.budgeted import BudgetedConfig
from zipmoe.store.manifest import Manifest

_DEFAULT_ARENA_BYTES = 256 << 20


class StoreConfig(BudgetedConfig):
    """Reads chunks of experts from disk into shared memory."""

    model_config = SettingsConfigDict(cli_prog_name="zipmoe expert-store")

    chunk_slots: int | None = Field(None, ge=1, description="slots of the chunk arena; each holds one packed expert")
    chunk_arena: ByteSize | None = Field(
        None, description="or: the chunk arena's size; without any, 256MiB, at most as many slots as there are experts"
    )
    io_threads: int = Field(4, ge=1, le=64, description="requests at the disk at the same time")
    request_bytes: ByteSize = Field(
        ByteSize(2 << 20), ge=4096, le=64 << 20, description="size of one request to the disk"
    )
    lock_memory: bool = Field(True, description="keep the arena from being swapped out, where that is allowed")
    metrics_port: int = Field(9101, ge=0, le=65535, description="port of the Prometheus metrics; 0 takes any free one")

    @model_validator(mode="after")
    def _one_size(self) -> StoreConfig:
        if sum(value is not None for value in (self.chunk_slots, self.chunk_arena, self.memory_budget)) > 1:
            raise ValueError("give only one of --chunk-slots, --chunk-arena and --memory-budget")
        return self

    def slot_count(self, manifest: Manifest) -> int:
        """Works out the slots of the chunk arena.

        Raises:
            BudgetInfeasible: the arena cannot hold one expert, or the memory budget not the model.
        """
        if self.chunk_slots is not None:
            return self.chunk_slots
        if (split := self.split_here(manifest)) is not None:
            return split.chunk_slots
        slot_bytes = manifest.max_record_bytes
        if self.chunk_arena is None:
            return max(1, min(manifest.expert_count, _DEFAULT_ARENA_BYTES // slot_bytes))
        if self.chunk_arena < slot_bytes:
            raise BudgetInfeasible(
                f"--chunk-arena of {int(self.chunk_arena)} bytes cannot hold one expert of {slot_bytes} bytes",
                smallest_bytes=slot_bytes,
            )
        return self.chunk_arena // slot_bytes
