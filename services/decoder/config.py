"""Settings of the decoder process."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from zipmoe.process.budgeted import BudgetedConfig


class DecoderConfig(BudgetedConfig):
    """Recovers experts from chunks in shared memory."""

    model_config = SettingsConfigDict(cli_prog_name="zipmoe decoder")

    verify_recovered: bool = Field(
        False, description="compare every recovered tensor with the checkpoint's checksum (chunks are always checked)"
    )
    lock_memory: bool = Field(True, description="keep the arena from being swapped out, where that is allowed")
    metrics_port: int = Field(9102, ge=0, le=65535, description="port of the Prometheus metrics; 0 takes any free one")
