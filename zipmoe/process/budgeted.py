"""Settings that expert store, decoder and router share, since a single memory budget covers all three."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

from pydantic import ByteSize, Field, field_validator

from zipmoe.arena.headroom import memory_headroom
from zipmoe.arena.tensor_form import BF16, TensorForm
from zipmoe.errors import BudgetInfeasible, CorruptData, InvalidRequest, NotFound
from zipmoe.planning.kv_bytes import KvForm, text_part
from zipmoe.planning.memory_split import BudgetRequest, MemorySplit, rule_slots, split_budget
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.process.config import ServiceConfig
from zipmoe.store.format.manifest import Manifest
from zipmoe.system_error import reason_of

DenseMode = Literal["auto", "bf16", "compressed"]
"""How the router keeps dense weights in memory."""


def usable_cores() -> int:
    """Counts the cores that this process may run on."""
    return len(os.sched_getaffinity(0))


class BudgetedConfig(ServiceConfig):
    """Base of the configurations of expert store, decoder and router.

    Each of the three processes computes the split of the budget from these settings and the store alone. The router
    compares its own split with the slots that a decoder reports.
    """

    store: Path = Field(..., description="the packed store")
    memory_budget: ByteSize | None = Field(
        None, description="ceiling over all three processes, such as 4GiB; the same on each, like the next ten"
    )
    cache_slots: str | None = Field(
        None, description="slots for E-chunks, SM-chunks and recovered experts, as in 120:120:8; see `zipmoe plan`"
    )
    expert_memory: ByteSize = Field(
        ByteSize(1 << 30), ge=1, description="without the two above: memory for experts over all processes"
    )
    kv_tokens: int = Field(4096, ge=32, description="tokens of KV cache over all running requests")
    kv_cache: KvForm = Field(
        "expanded",
        description="of latent attention: keys and values (expanded), or less memory for slower steps (latent)",
    )
    dense: DenseMode = Field(
        "auto",
        description="the router's dense weights on the CPU: as the checkpoint has them (bf16), losslessly compressed "
        "in memory where that leaves every bit (compressed), or the faster one by measured costs (auto)",
    )
    dense_bytes: ByteSize | None = Field(
        None, ge=0, description="bytes of the dense weights in memory, as planned; see `zipmoe plan`"
    )
    tensor_form: TensorForm = Field(
        BF16,
        description="form of recovered experts: bf16, or one from which the CPU multiplies (tile, nibble), as planned; "
        "see `zipmoe plan`",
    )
    max_prompt_tokens: int = Field(2048, ge=1, description="the longest prompt that is accepted, in tokens")
    workers: int = Field(
        default_factory=usable_cores, ge=1, le=1024, description="the decoder's threads that recover tensors"
    )
    device: str = Field("auto", description="where the router computes: cpu, cuda, cuda:N or auto")

    @field_validator("memory_budget")
    @classmethod
    def _positive(cls, budget: ByteSize | None) -> ByteSize | None:
        if budget is not None and budget < 1:
            raise ValueError("has to be more than 0 bytes")
        return budget

    @field_validator("cache_slots")
    @classmethod
    def _three_numbers(cls, slots: str | None) -> str | None:
        if slots is not None:
            try:
                PoolSizes.parse(slots)
            except InvalidRequest as error:
                raise ValueError(error.message) from None
        return slots

    def slots(self, manifest: Manifest, device: str | None = None) -> PoolSizes:
        """Works out the slots of each pool.

        Raises:
            BudgetInfeasible: the memory budget cannot hold the model, or is more than this machine's memory.
            NotFound, CorruptData: the store's config.json cannot be read.
        """
        if (split := self.split_here(manifest, device)) is not None:
            return split.slots
        if self.cache_slots is not None:
            return PoolSizes.parse(self.cache_slots)
        kind = self.budget_request(0, device).device
        return rule_slots(manifest, read_model_config(self.store, manifest), kind, int(self.expert_memory))

    def split(self, manifest: Manifest, device: str | None = None) -> MemorySplit | None:
        """Splits the memory budget; returns None without a budget.

        Args:
            manifest: the store's manifest.
            device: the resolved device; None takes the configured `device`, and the CPU for `auto`.

        Raises:
            BudgetInfeasible: the budget is too small for this store.
            NotFound, CorruptData: the store's config.json cannot be read.
        """
        if self.memory_budget is None:
            return None
        return split_budget(
            manifest, read_model_config(self.store, manifest), self.budget_request(int(self.memory_budget), device)
        )

    def budget_request(self, budget_bytes: int, device: str | None) -> BudgetRequest:
        """Describes the memory that has to fit into `budget_bytes`; `device` as in `split`."""
        return BudgetRequest(
            budget_bytes=budget_bytes,
            kv_tokens=self.kv_tokens,
            prompt_tokens=self.max_prompt_tokens,
            worker_count=self.workers,
            device="cuda" if (device or self.device).startswith("cuda") else "cpu",
            slots=None if self.cache_slots is None else PoolSizes.parse(self.cache_slots),
            kv_cache=self.kv_cache,
            tensor_form=self.tensor_form,
            dense_bytes=None if self.dense_bytes is None or self.dense == "bf16" else int(self.dense_bytes),
        )

    def split_here(self, manifest: Manifest, device: str | None = None) -> MemorySplit | None:
        """Splits the memory budget as `split` does, but refuses a budget that exceeds this machine's memory."""
        total_bytes = memory_headroom().total_bytes
        if self.memory_budget is not None and self.memory_budget > total_bytes:
            raise BudgetInfeasible(
                f"a memory budget of {int(self.memory_budget)} bytes is more than this machine's {total_bytes} bytes",
                next_step=f"give a --memory-budget below {total_bytes}, or use a machine with more memory",
            )
        return self.split(manifest, device)


def read_model_config(store: Path, manifest: Manifest) -> dict[str, object]:
    """Reads the configuration of a store's text model: config.json, and the sizes that were measured for the manifest.

    Raises:
        NotFound: the file cannot be read.
        CorruptData: the file is not a JSON object.
    """
    path = store / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise NotFound(f"cannot read {path}: {reason_of(error)}") from error
    except ValueError as error:
        raise CorruptData(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CorruptData(f"{path} is not a JSON object")
    return text_part(config, manifest.measured, manifest.mtp_layers)
