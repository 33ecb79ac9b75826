"""Splits one memory budget over the expert store, the decoder and the router.

The split is a pure function of the store and the settings, so each process computes the same split by itself. The
budget does not include the device memory of a discrete GPU. On integrated devices (Jetson), host and device share one
memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from zipmoe.arena.tensor_form import BF16, TensorForm, recovered_bytes
from zipmoe.errors import BudgetInfeasible
from zipmoe.planning.kv_bytes import KvForm, kv_bytes_per_token, measured_sizes, request_bytes
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.planning.workspace import copied_expert_bytes, workspace_bytes
from zipmoe.store.format.entries import LayerEntry

_MIB = 1 << 20

#: Memory of each process beside arenas, dense weights and KV cache: interpreter, libraries, stacks, heaps.
#: Measured as VmRSS of the idle processes minus their arenas, rounded up (benchmarks/NOTES.md, "Idle memory").
STORE_PROCESS_BYTES = 96 * _MIB
DECODER_PROCESS_BYTES = 96 * _MIB
ROUTER_PROCESS_BYTES = {"cpu": 640 * _MIB, "cuda": 1536 * _MIB}

#: Scratch of one recover worker: the exponents of one E-chunk, and the codec's own state.
WORKER_BYTES = 8 * _MIB

_TOP_K = (
    "num_experts_per_tok",
    "moe_topk",
    "num_selected_experts",
    "num_experts_per_token",
    "moe_k",
    "moe_top_k",
    "top_k_experts",
)

STATE_SHARE = 16
"""The recurrent states of all requests take at most this part of a budget, or the state of one request."""

MOST_STATES = 16
"""Most requests with recurrent states that run at once under a budget."""


class StoreFigures(Protocol):
    """Sizes of a store that the split needs, implemented by `zipmoe.store.format.manifest.Manifest`."""

    @property
    def codec_name(self) -> str:
        """Name of the codec of the exponents."""

    @property
    def max_e_bytes(self) -> int:
        """Largest number of bytes of an expert's E-chunks: the size of an E slot before alignment."""

    @property
    def max_sm_bytes(self) -> int:
        """Largest number of bytes of an expert's SM-chunks: the size of an SM slot before alignment."""

    @property
    def max_tensor_bytes(self) -> int:
        """Bytes of the largest recovered expert: the size of a tensor slot before alignment."""

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense weights, uncompressed."""

    @property
    def expert_count(self) -> int:
        """Routed experts over all layers."""

    @property
    def layers(self) -> Sequence[LayerEntry]:
        """The MoE layers, with the shapes of their experts' matrices."""


@dataclass(frozen=True)
class BudgetRequest:
    """Memory settings of an operator; the same in all three processes.

    Attributes:
        budget_bytes: the ceiling over all three processes.
        kv_tokens: tokens of KV cache over all running requests.
        prompt_tokens: length of the longest prompt that is prefilled.
        worker_count: recover workers of the decoder.
        device: `cpu` or `cuda`.
        slots: slots of each pool, as planned for this machine; None leaves the slots to `rule_slots`.
        kv_cache: form of the KV cache of latent attention on the CPU; a GPU always caches latents.
        dense_bytes: bytes of the dense weights in memory, as planned for this machine; None for those of the store.
        tensor_form: form of recovered experts.
    """

    budget_bytes: int
    kv_tokens: int = 4096
    prompt_tokens: int = 2048
    worker_count: int = 2
    device: str = "cpu"
    slots: PoolSizes | None = None
    kv_cache: KvForm = "expanded"
    dense_bytes: int | None = None
    tensor_form: TensorForm = BF16

    def dense(self, store: StoreFigures) -> int:
        """Returns the bytes of the dense weights in the router's memory."""
        return store.dense_bytes if self.dense_bytes is None else self.dense_bytes

    def kv_bytes(self, config: Mapping[str, Any]) -> int:
        """Returns the bytes of the KV cache of a model, from its config.json."""
        return self.kv_tokens * kv_bytes_per_token(config, self.kv_cache if self.device == "cpu" else "latent")


@dataclass(frozen=True)
class MemorySplit:
    """A memory budget, divided over the three processes.

    Attributes:
        store_bytes: share of the expert store. The three shares add up to the budget exactly.
        decoder_bytes: share of the decoder.
        router_bytes: share of the router.
        slots: number of slots of each pool.
        kv_bytes: bytes of the KV cache, a part of the router's share.
        dense_bytes: bytes of the dense weights, a part of the router's share.
        workspace_bytes: bytes of a prefill's largest activations and of experts that are copied, a part of the router's
            share.
        state_bytes: bytes of the states of all running requests that do not grow, a part of the router's share.
        state_requests: most requests that run at once, for the sake of these states; None without such states.
    """

    store_bytes: int
    decoder_bytes: int
    router_bytes: int
    slots: PoolSizes
    kv_bytes: int
    dense_bytes: int
    workspace_bytes: int
    state_bytes: int = 0
    state_requests: int | None = None


def align_slot(nbytes: int) -> int:
    """Rounds the bytes of a slot up to whole pages."""
    return -(-nbytes // 4096) * 4096


def experts_per_token(config: Mapping[str, Any]) -> int:
    """Returns the routed experts that a token uses in a layer, from config.json; 1 if none are named (switch gates)."""
    if (measured := measured_sizes(config)) is not None:
        return measured.experts_per_token
    for name in _TOP_K:
        if isinstance(config.get(name), int):
            return int(config[name])
    return 1


def slot_bytes(store: StoreFigures, tensor_form: TensorForm = BF16) -> PoolSizes:
    """Returns the bytes of a slot of each pool, rounded up to whole pages; recovered experts have `tensor_form`."""
    tensor = store.max_tensor_bytes
    if tensor_form != BF16:
        tensor = max(recovered_bytes(layer.spec, tensor_form) for layer in store.layers)
    return PoolSizes(*map(align_slot, (store.max_e_bytes, store.max_sm_bytes, tensor)))


def computes_packed(store: StoreFigures, device: str) -> bool:
    """Tells whether experts are computed straight from their chunks: on the CPU, with the codec cascade."""
    return store.codec_name == "cascade" and device == "cpu"


def least_slots(store: StoreFigures, config: Mapping[str, Any], device: str) -> PoolSizes:
    """Returns the fewest slots with which a step can be computed: the experts of a token in a layer, at least 2."""
    count = min(store.expert_count, max(2, experts_per_token(config)))
    return PoolSizes(count, count, 0 if computes_packed(store, device) else count)


def rule_slots(store: StoreFigures, config: Mapping[str, Any], device: str, nbytes: int) -> PoolSizes:
    """Divides memory over the pools by a rule that needs no measurement.

    `zipmoe plan` divides the memory better, from measurements. Where experts can be computed from their chunks, all
    memory holds chunks, which makes room for half as many experts again. Otherwise most memory holds recovered tensors.
    Chunk slots then hold the misses of one token in two layers, and take at most a quarter of the memory.

    Args:
        store: sizes of the packed store.
        config: the model's config.json.
        device: `cpu` or `cuda`.
        nbytes: bytes of all slots together. If `least_slots` take more, the result is `least_slots`.
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

    Fixed costs come first. The pools then get the requested slots, or else the slots of `rule_slots`, which gives no
    pool more slots than there are experts. The router gets the remaining bytes.

    Args:
        store: sizes of the packed store.
        config: the model's config.json.
        request: the ceiling, and the settings that determine the fixed costs and the slots.

    Returns:
        The split. The three shares add up to `request.budget_bytes`.

    Raises:
        BudgetInfeasible: the budget is smaller than the smallest feasible budget, which the error names.
    """
    size = slot_bytes(store, request.tensor_form)
    kv_bytes = request.kv_bytes(config)
    workspace = _workspace(store, config, request)
    state = request_bytes(config)
    fixed = _fixed_bytes(store, config, request)
    least = request.slots or least_slots(store, config, request.device)
    smallest = fixed + least.nbytes(size)
    if request.budget_bytes < smallest:
        processes = fixed - request.dense(store) - kv_bytes - workspace - state
        raise BudgetInfeasible(
            f"a memory budget of {_gib(request.budget_bytes)} cannot hold this model; the smallest feasible one is "
            f"{_gib_up(smallest)}: processes {_gib(processes)}, dense weights "
            f"{_gib(request.dense(store))}, KV cache of {request.kv_tokens} tokens {_gib(kv_bytes)}, "
            + (f"recurrent state of one request {_gib(state)}, " if state else "")
            + f"workspace for prompts of {request.prompt_tokens} tokens {_gib(workspace)}, "
            f"slots for experts {_gib(smallest - fixed)} ({least.e} for E-chunks, {least.sm} for SM-chunks, "
            f"{least.tensor} for tensors)",
            smallest_bytes=smallest,
            next_step=_with_latents(config, request, smallest - kv_bytes),
        )
    states = _state_requests(config, request.budget_bytes, smallest)
    fixed += max(0, states - 1) * state
    slots = request.slots or rule_slots(store, config, request.device, request.budget_bytes - fixed)
    store_bytes = STORE_PROCESS_BYTES + slots.e * size.e + slots.sm * size.sm
    decoder_bytes = DECODER_PROCESS_BYTES + request.worker_count * WORKER_BYTES + slots.tensor * size.tensor
    return MemorySplit(
        store_bytes=store_bytes,
        decoder_bytes=decoder_bytes,
        router_bytes=request.budget_bytes - store_bytes - decoder_bytes,
        slots=slots,
        kv_bytes=kv_bytes,
        dense_bytes=request.dense(store),
        workspace_bytes=workspace,
        state_bytes=states * state,
        state_requests=states or None,
    )


def _state_requests(config: Mapping[str, Any], budget_bytes: int, smallest_bytes: int) -> int:
    """Returns the requests whose recurrent states a budget holds, at least one; 0 for a model without such states.

    Args:
        config: configuration of the text model.
        budget_bytes: the budget.
        smallest_bytes: the smallest feasible budget, which holds the state of one request.
    """
    if not (each := request_bytes(config)):
        return 0
    return min(MOST_STATES, max(1, budget_bytes // STATE_SHARE // each), 1 + (budget_bytes - smallest_bytes) // each)


def arena_bytes(store: StoreFigures, config: Mapping[str, Any], request: BudgetRequest) -> int:
    """Returns the bytes that a budget leaves for all slots; below 0 if the budget is less than the fixed costs."""
    fixed = _fixed_bytes(store, config, request)
    least = request.slots or least_slots(store, config, request.device)
    states = _state_requests(config, request.budget_bytes, fixed + least.nbytes(slot_bytes(store, request.tensor_form)))
    return request.budget_bytes - fixed - max(0, states - 1) * request_bytes(config)


def _fixed_bytes(store: StoreFigures, config: Mapping[str, Any], request: BudgetRequest) -> int:
    """Returns the bytes that do not depend on the number of slots."""
    router_bytes = (
        ROUTER_PROCESS_BYTES[request.device]
        + request.dense(store)
        + request.kv_bytes(config)
        + _workspace(store, config, request)
        + request_bytes(config)
    )
    decoder_bytes = DECODER_PROCESS_BYTES + request.worker_count * WORKER_BYTES
    return STORE_PROCESS_BYTES + decoder_bytes + router_bytes


def _workspace(store: StoreFigures, config: Mapping[str, Any], request: BudgetRequest) -> int:
    return workspace_bytes(config, request.prompt_tokens) + copied_expert_bytes(config, store.max_tensor_bytes)


def _with_latents(config: Mapping[str, Any], request: BudgetRequest, rest_bytes: int) -> str | None:
    """Returns the advice to cache latents if they take less memory; None keeps the error's own advice.

    `rest_bytes` are the bytes of the smallest budget without the KV cache.
    """
    kv_bytes = replace(request, kv_cache="latent").kv_bytes(config)
    if kv_bytes == request.kv_bytes(config):
        return None
    return f"use that budget, or --kv-cache latent on all three, with which {_gib_up(rest_bytes + kv_bytes)} are enough"


def _gib(nbytes: int) -> str:
    return f"{nbytes / (1 << 30):.2f} GiB"


def _gib_up(nbytes: int) -> str:
    """Rounds up, so that the size as it is printed is enough."""
    return f"{math.ceil(nbytes * 100 / (1 << 30)) / 100:.2f} GiB"
