"""One memory budget, split over three processes: a pure function that each of them computes alike.

Device memory of a discrete GPU is not part of the budget; on integrated devices (Jetson) it is the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from zipmoe.errors import BudgetInfeasible
from zipmoe.planning.kv_bytes import KvForm, kv_bytes_per_token
from zipmoe.planning.pool_sizes import PoolSizes

_MIB = 1 << 20

#: What the processes occupy beside arenas, dense weights and KV cache: interpreter, libraries, stacks, heaps.
#: Measured as VmRSS of the idle processes minus their arenas, rounded up (benchmarks/NOTES.md, "Idle memory").
STORE_PROCESS_BYTES = 96 * _MIB
DECODER_PROCESS_BYTES = 96 * _MIB
ROUTER_PROCESS_BYTES = {"cpu": 640 * _MIB, "cuda": 1536 * _MIB}

#: Scratch of one recover worker: the exponents of one E-chunk, and the codec's own state.
WORKER_BYTES = 8 * _MIB

#: Bytes of one attention score while it is computed: bf16 as a product, fp32 in the softmax, bf16 again.
SCORE_BYTES = 8

#: Scores of so many bytes are computed at once; a prompt's heads take turns.
SCORE_BLOCK_BYTES = 64 * _MIB

#: Families whose attention is computed for all heads at once: sinks belong to heads.
UNDIVIDED_FAMILIES = frozenset({"gpt_oss"})


class StoreFigures(Protocol):
    """What the split needs to know of a store; `zipmoe.store.format.manifest.Manifest` has it."""

    @property
    def codec_name(self) -> str:
        """How exponents are coded."""
        ...

    @property
    def max_e_bytes(self) -> int:
        """Bytes of the E-chunks of the expert with most, which is an E slot."""
        ...

    @property
    def max_sm_bytes(self) -> int:
        """Bytes of the SM-chunks of the largest expert, which is an SM slot."""
        ...

    @property
    def max_tensor_bytes(self) -> int:
        """Bytes of the largest recovered expert, which is a tensor slot."""
        ...

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense weights."""
        ...

    @property
    def expert_count(self) -> int:
        """Routed experts over all layers."""
        ...


@dataclass(frozen=True)
class BudgetRequest:
    """What an operator asks for; the same in all three processes.

    Attributes:
        budget_bytes: the ceiling over all three processes.
        kv_tokens: tokens of KV cache over all running requests.
        prompt_tokens: the longest prompt that is prefilled.
        worker_count: recover workers of the decoder.
        device: `cpu` or `cuda`.
        slots: of each pool, as planned for this machine; None leaves them to a rule.
        kv_cache: what is cached of latent attention on the CPU; a GPU always keeps latents.
    """

    budget_bytes: int
    kv_tokens: int = 4096
    prompt_tokens: int = 2048
    worker_count: int = 2
    device: str = "cpu"
    slots: PoolSizes | None = None
    kv_cache: KvForm = "expanded"

    def kv_bytes(self, config: Mapping[str, Any]) -> int:
        """Bytes of the KV cache of a model, from its config.json."""
        return self.kv_tokens * kv_bytes_per_token(config, self.kv_cache if self.device == "cpu" else "latent")


@dataclass(frozen=True)
class MemorySplit:
    """How a budget is spent, in bytes; the three processes' shares add up to the budget exactly."""

    store_bytes: int
    decoder_bytes: int
    router_bytes: int
    slots: PoolSizes
    kv_bytes: int
    workspace_bytes: int


def align_slot(nbytes: int) -> int:
    """Rounds the bytes of a slot up to whole pages."""
    return -(-nbytes // 4096) * 4096


def experts_per_token(config: Mapping[str, Any]) -> int:
    """Routed experts that one token uses in one layer, from config.json; 1 where the gate is a switch."""
    for name in ("num_experts_per_tok", "moe_topk", "num_selected_experts"):
        if isinstance(config.get(name), int):
            return int(config[name])
    return 1


def heads_together(heads: int, groups: int, rows: int, context: int) -> int:
    """How many query heads attend at once, so that their scores take about `SCORE_BLOCK_BYTES` at most.

    Args:
        heads: query heads.
        groups: query heads that share a head of keys and values; as many stay together.
        rows: queries of one head.
        context: keys of one head.
    """
    affordable = SCORE_BLOCK_BYTES // max(1, SCORE_BYTES * rows * context)
    return min(heads, max(groups, affordable // groups * groups))


def workspace_bytes(config: Mapping[str, Any], prompt_tokens: int) -> int:
    """Bytes of the largest activations of one prefill of `prompt_tokens` tokens: eager attention scores, hidden states.

    Decoder-only models attend for a few heads at a time, those apart whose heads have sinks.
    """
    heads = int(config.get("num_attention_heads") or config.get("num_heads") or 1)
    hidden = int(config.get("hidden_size") or config.get("d_model") or 1)
    together = heads
    if not config.get("is_encoder_decoder") and config.get("model_type") not in UNDIVIDED_FAMILIES:
        kv_heads = int(config.get("num_key_value_heads") or heads)
        together = heads_together(heads, heads // kv_heads, prompt_tokens, prompt_tokens)
    return SCORE_BYTES * together * prompt_tokens * prompt_tokens + 32 * hidden * prompt_tokens


def slot_bytes(store: StoreFigures) -> PoolSizes:
    """Bytes of a slot of each pool, whole pages."""
    return PoolSizes(*map(align_slot, (store.max_e_bytes, store.max_sm_bytes, store.max_tensor_bytes)))


def computes_packed(store: StoreFigures, device: str) -> bool:
    """Whether experts are computed straight from their chunks: on the CPU, from cascade."""
    return store.codec_name == "cascade" and device == "cpu"


def least_slots(store: StoreFigures, config: Mapping[str, Any], device: str) -> PoolSizes:
    """The fewest slots that a step can be computed with, one layer's experts of one token at a time."""
    count = min(store.expert_count, max(2, experts_per_token(config)))
    return PoolSizes(count, count, 0 if computes_packed(store, device) else count)


def rule_slots(store: StoreFigures, config: Mapping[str, Any], device: str, nbytes: int) -> PoolSizes:
    """Divides memory over the pools by a rule that needs no measurement; `zipmoe plan` knows better.

    Where experts can be computed from their chunks, all of it holds chunks: that is half as many experts again. Where
    not, the tensors get it, but for as many chunks as two layers' misses of one token take, at most a quarter.

    Args:
        store: sizes of the packed store.
        config: the model's config.json.
        device: `cpu` or `cuda`.
        nbytes: of all slots together; with less than `least_slots` take, those are returned.
    """
    size, least = slot_bytes(store), least_slots(store, config, device)
    packed_bytes = size.e + size.sm
    if computes_packed(store, device):
        count = min(store.expert_count, max(least.e, nbytes // packed_bytes))
        return PoolSizes(count, count, 0)
    count = min(store.expert_count, 2 * experts_per_token(config), max(least.e, nbytes // (4 * packed_bytes)))
    count = max(least.e, min(count, (nbytes - least.tensor * size.tensor) // packed_bytes))
    tensors = min(store.expert_count, max(least.tensor, (nbytes - count * packed_bytes) // size.tensor))
    return PoolSizes(count, count, tensors)


def split_budget(store: StoreFigures, config: Mapping[str, Any], request: BudgetRequest) -> MemorySplit:
    """Splits a memory budget over the expert store, the decoder and the router.

    Fixed costs come first; what is left is for the pools of slots. No pool gets more slots than there are experts.

    Args:
        store: sizes of the packed store.
        config: the model's config.json.
        request: the ceiling and what has to fit below it.

    Returns:
        The split; its three shares add up to `request.budget_bytes`.

    Raises:
        BudgetInfeasible: the budget is smaller than the smallest that works, which is named.
    """
    size = slot_bytes(store)
    kv_bytes = request.kv_bytes(config)
    workspace = workspace_bytes(config, request.prompt_tokens)
    fixed = _fixed_bytes(store, config, request)
    least = request.slots or least_slots(store, config, request.device)
    smallest = fixed + least.nbytes(size)
    if request.budget_bytes < smallest:
        raise BudgetInfeasible(
            f"a memory budget of {_gib(request.budget_bytes)} cannot hold this model; the smallest feasible one is "
            f"{_gib(smallest)}: processes {_gib(fixed - store.dense_bytes - kv_bytes - workspace)}, dense weights "
            f"{_gib(store.dense_bytes)}, KV cache of {request.kv_tokens} tokens {_gib(kv_bytes)}, "
            f"workspace for prompts of {request.prompt_tokens} tokens {_gib(workspace)}, "
            f"slots for experts {_gib(smallest - fixed)} ({least.e} for E-chunks, {least.sm} for SM-chunks, "
            f"{least.tensor} for tensors)",
            smallest_bytes=smallest,
            next_step=_with_latents(config, request, smallest - kv_bytes),
        )
    slots = request.slots or rule_slots(store, config, request.device, request.budget_bytes - fixed)
    store_bytes = STORE_PROCESS_BYTES + slots.e * size.e + slots.sm * size.sm
    decoder_bytes = DECODER_PROCESS_BYTES + request.worker_count * WORKER_BYTES + slots.tensor * size.tensor
    return MemorySplit(
        store_bytes=store_bytes,
        decoder_bytes=decoder_bytes,
        router_bytes=request.budget_bytes - store_bytes - decoder_bytes,
        slots=slots,
        kv_bytes=kv_bytes,
        workspace_bytes=workspace,
    )


def arena_bytes(store: StoreFigures, config: Mapping[str, Any], request: BudgetRequest) -> int:
    """Bytes that a budget leaves for experts, in all arenas; below 0 where it does not even hold the rest."""
    return request.budget_bytes - _fixed_bytes(store, config, request)


def _fixed_bytes(store: StoreFigures, config: Mapping[str, Any], request: BudgetRequest) -> int:
    """Bytes that do not depend on how many experts are held."""
    router_bytes = (
        ROUTER_PROCESS_BYTES[request.device]
        + store.dense_bytes
        + request.kv_bytes(config)
        + workspace_bytes(config, request.prompt_tokens)
    )
    decoder_bytes = DECODER_PROCESS_BYTES + request.worker_count * WORKER_BYTES
    return STORE_PROCESS_BYTES + decoder_bytes + router_bytes


def _with_latents(config: Mapping[str, Any], request: BudgetRequest, rest_bytes: int) -> str | None:
    """The next step where latents would take less, beside `rest_bytes`; None if it is the error's own."""
    kv_bytes = replace(request, kv_cache="latent").kv_bytes(config)
    if kv_bytes == request.kv_bytes(config):
        return None
    return f"use that budget, or --kv-cache latent on all three, with which {_gib(rest_bytes + kv_bytes)} are enough"


def _gib(nbytes: int) -> str:
    return f"{nbytes / (1 << 30):.2f} GiB"
