"""Settings of the expert store process."""

from __future__ import annotations

from pydantic import ByteSize, Field
from pydantic_settings import SettingsConfigDict

from zipmoe.process.budgeted import BudgetedConfig
from zipmoe.store.read.read_defaults import IO_THREADS, REQUEST_BYTES


class StoreConfig(BudgetedConfig):
    """Reads chunks of experts from disk into shared memory."""

    model_config = SettingsConfigDict(cli_prog_name="zipmoe expert-store")

    io_threads: int = Field(IO_THREADS, ge=1, le=64, description="requests at the disk at the same time")
    request_bytes: ByteSize = Field(
        ByteSize(REQUEST_BYTES), ge=4096, le=64 << 20, description="size of one request to the disk"
    )
    lock_memory: bool = Field(True, description="keep the arenas from being swapped out, where that is allowed")
    metrics_port: int = Field(9101, ge=0, le=65535, description="port of the Prometheus metrics; 0 takes any free one")
