"""One memory budget, split over three processes: a pure function that each of them computes alike.

Device memory of a discrete GPU is not part of the budget; on integrated devices (Jetson) it is the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from zipmoe.errors import BudgetInfeasible, UnsupportedModel

_MIB = 1 << 20

#: What the processes occupy beside arenas, dense weights and KV cache: interpreter, libraries, stacks, heaps.
#: Measured as VmRSS of the idle processes minus their arenas, rounded up (benchmarks/NOTES.md, "Idle memory").
STORE_PROCESS_BYTES = 96 * _MIB
DECODER_PROCESS_BYTES = 96 * _MIB
ROUTER_PROCESS_BYTES = {"cpu": 640 * _MIB, "cuda": 1536 * _MIB}

#: Scratch of one recover worker: the exponents of one E-chunk, and the codec's own state.
WORKER_BYTES = 8 * _MIB


class StoreFigures(Protocol):
    """What the split needs to know of a store; `zipmoe.store.manifest.Manifest` has it."""

    @property
    def max_record_bytes(self) -> int:
        """Bytes of the largest expert record, which is a chunk slot."""
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
    """

    budget_bytes: int
    kv_tokens: int = 4096
    prompt_tokens: int = 2048
    worker_count: int = 2
    device: str = "cpu"


@dataclass(frozen=True)
class MemorySplit:
    """How a budget is spent, in bytes; the three processes' shares add up to the budget exactly."""

    store_bytes: int
    decoder_bytes: int
    router_bytes: int
    chunk_slots: int
    tensor_slots: int
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


def kv_bytes_per_token(config: Mapping[str, Any]) -> int:
    """Bytes of KV cache that one token of context takes over all layers, in bf16, from config.json.

    Multi-head latent attention caches its latent and the shared rotary key; T5-like models cache keys and values of the
    decoder's self-attention and cross-attention.

    Raises:
        UnsupportedModel: config.json does not say how many layers or heads there are.
    """
    try:
        if config.get("kv_lora_rank"):
            return (
                2 * int(config["num_hidden_layers"]) * (int(config["kv_lora_rank"]) + int(config["qk_rope_head_dim"]))
            )
        if config.get("is_encoder_decoder"):
            layers = int(config.get("num_decoder_layers") or config["num_layers"])
            return 2 * layers * 4 * int(config["num_heads"]) * int(config["d_kv"])
        heads = int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
        kv_heads = int(config.get("num_key_value_heads") or heads)
        return 2 * int(config["num_hidden_layers"]) * 2 * kv_heads * head_dim
    except KeyError as error:
        raise UnsupportedModel(f"config.json has no {error.args[0]}, so the KV cache cannot be sized") from error


def workspace_bytes(config: Mapping[str, Any], prompt_tokens: int) -> int:
    """Bytes of the largest activations of one prefill of `prompt_tokens` tokens: eager attention scores, hidden states.

    Scores of one layer are (heads, tokens, tokens): bf16 as computed, fp32 in the softmax, bf16 again.
    """
    heads = int(config.get("num_attention_heads") or config.get("num_heads") or 1)
    hidden = int(config.get("hidden_size") or config.get("d_model") or 1)
    return 8 * heads * prompt_tokens * prompt_tokens + 32 * hidden * prompt_tokens


def split_budget(store: StoreFigures, config: Mapping[str, Any], request: BudgetRequest) -> MemorySplit:
    """Splits a memory budget over the expert store, the decoder and the router.

    Fixed costs come first; what is left goes to the tensor arena, but for as many chunk slots as two layers' misses of
    one token take. Neither arena gets more slots than there are experts.

    Args:
        store: sizes of the packed store.
        config: the model's config.json.
        request: the ceiling and what has to fit below it.

    Returns:
        The split; its three shares add up to `request.budget_bytes`.

    Raises:
        BudgetInfeasible: the budget is smaller than the smallest that works, which is named.
    """
    chunk_slot_bytes, tensor_slot_bytes = align_slot(store.max_record_bytes), align_slot(store.max_tensor_bytes)
    used = experts_per_token(config)
    kv_bytes = request.kv_tokens * kv_bytes_per_token(config)
    workspace = workspace_bytes(config, request.prompt_tokens)
    fixed = _fixed_bytes(store, config, request)
    decoder_fixed = DECODER_PROCESS_BYTES + request.worker_count * WORKER_BYTES
    least_slots = min(store.expert_count, max(2, used))
    smallest = fixed + least_slots * (chunk_slot_bytes + tensor_slot_bytes)
    if request.budget_bytes < smallest:
        raise BudgetInfeasible(
            f"a memory budget of {_gib(request.budget_bytes)} cannot hold this model; the smallest feasible one is "
            f"{_gib(smallest)}: processes {_gib(fixed - store.dense_bytes - kv_bytes - workspace)}, dense weights "
            f"{_gib(store.dense_bytes)}, KV cache of {request.kv_tokens} tokens {_gib(kv_bytes)}, "
            f"workspace for prompts of {request.prompt_tokens} tokens {_gib(workspace)}, "
            f"{least_slots} slots in each arena {_gib(smallest - fixed)}",
            smallest_bytes=smallest,
        )
    spare = request.budget_bytes - fixed
    chunk_slots = min(store.expert_count, 2 * used, max(least_slots, spare // (4 * chunk_slot_bytes)))
    chunk_slots = max(least_slots, min(chunk_slots, (spare - least_slots * tensor_slot_bytes) // chunk_slot_bytes))
    tensor_slots = min(store.expert_count, (spare - chunk_slots * chunk_slot_bytes) // tensor_slot_bytes)
    store_bytes = STORE_PROCESS_BYTES + chunk_slots * chunk_slot_bytes
    decoder_bytes = decoder_fixed + tensor_slots * tensor_slot_bytes
    return MemorySplit(
        store_bytes=store_bytes,
        decoder_bytes=decoder_bytes,
        router_bytes=request.budget_bytes - store_bytes - decoder_bytes,
        chunk_slots=chunk_slots,
        tensor_slots=tensor_slots,
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
        + request.kv_tokens * kv_bytes_per_token(config)
        + workspace_bytes(config, request.prompt_tokens)
    )
    decoder_bytes = DECODER_PROCESS_BYTES + request.worker_count * WORKER_BYTES
    return STORE_PROCESS_BYTES + decoder_bytes + router_bytes


def _gib(nbytes: int) -> str:
    return f"{nbytes / (1 << 30):.2f} GiB"
