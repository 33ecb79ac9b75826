"""Computes attention of one query row per request from KV pages, bit for bit in the summation orders of torch.

    scores[q][t] = bf16(bf16(sum over i of query[q][i] * key[t][i]) * scaling)
    out[q][i]    = bf16(sum over t of bf16(weight[q][t]) * value[t][i])

The caller computes the softmax between the two products. `native/attention/attention.h` defines the orders. No order
depends on the place of a token, on the other requests or on the number of threads. Infinite scores or values give NaNs
with unspecified payloads. `zipmoe.model.attention.row_attention` finds the orders that torch uses.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zipmoe.buffer import Address
from zipmoe.errors import InvalidRequest, ResourceExhausted
from zipmoe.kernels import linear
from zipmoe.kernels.backends import backend_index
from zipmoe.kernels.library import load_library

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BF16_BYTES, _FP32_BYTES = 2, 4


@dataclass(frozen=True)
class ValueOrder:
    """The order of a sum over tokens, made by `fours` or `token_pairs`: its partial sums."""

    number: int
    block: int = 0

    def __str__(self) -> str:
        return f"pairs of tokens in blocks of {self.block}" if self.number else "fours of tokens"


def fours() -> ValueOrder:
    """Returns torch's own order: four partial sums, token t in sum t mod 4."""
    return ValueOrder(0)


def token_pairs(block: int) -> ValueOrder:
    """Returns oneDNN's order on CPUs with avx512_bf16: one partial sum for each block of tokens, pair after pair.

    Args:
        block: tokens of a block, positive and even.

    Raises:
        InvalidRequest: `block` is not positive and even.
    """
    if block <= 0 or block % 2:
        raise InvalidRequest(f"a block has {block} tokens, but has to have a positive even number")
    return ValueOrder(1, block)


@dataclass(frozen=True)
class HeadSizes:
    """Sizes of a block of keys or values, shape (heads, slots, numbers). `groups` query heads share a head."""

    heads: int
    groups: int
    numbers: int
    slots: int


class Contexts:
    """Lists, for each of several requests, the token slots of its context in a block of keys or values."""

    __slots__ = ("_entries", "_runs", "entries", "lengths", "requests", "runs", "tokens")

    def __init__(self, requests: Sequence[Sequence[tuple[int, int]]], slots: int) -> None:
        """Writes the runs to the arrays that the kernels read.

        Args:
            requests: the runs of each request in order, at least one; a run is (first token slot, number of tokens).
            slots: number of token slots of the block.

        Raises:
            InvalidRequest: a run is empty or lies outside the block, or a request has no run.
        """
        self._entries, self._runs = array("q", (0, 0)), array("q")
        count = tokens = 0
        lengths: list[int] = []
        for runs in requests:
            if not runs:
                raise InvalidRequest("a request has no tokens to attend to")
            before = tokens
            for slot, length in runs:
                if slot < 0 or length <= 0 or slot + length > slots:
                    raise InvalidRequest(f"{length} tokens from slot {slot} on are not in a block of {slots} slots")
                self._runs.extend((slot, length))
                tokens += length
            lengths.append(tokens - before)
            count += len(runs)
            self._entries.extend((count, tokens))
        self.lengths = tuple(lengths)
        """Number of tokens of each request."""
        self.requests = len(requests)
        self.tokens = tokens
        """Number of tokens of all requests together."""
        self.entries: int = self._entries.buffer_info()[0]
        """Address of the array of `Entry` of `native/attention/attention.h`."""
        self.runs: int = self._runs.buffer_info()[0]
        """Address of the array of `Run`."""

    @property
    def buffers(self) -> tuple[Buffer, Buffer]:
        """The arrays at the two addresses."""
        return self._entries, self._runs


def _declared() -> ctypes.CDLL:
    library = load_library()
    number, address, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
    library.zipmoe_attention_is_native.argtypes = [number, number]
    library.zipmoe_attention_is_native.restype = number
    library.zipmoe_attention_scores.argtypes = [number, number, *[address] * 5, *[size] * 5, ctypes.c_uint32, size]
    library.zipmoe_attention_scores.restype = number
    library.zipmoe_attention_values.argtypes = [number, number, *[address] * 5, *[size] * 7]
    library.zipmoe_attention_values.restype = number
    return library


_library = _declared()


def is_native(order: ValueOrder, using: str | None = None) -> bool:
    """Whether a backend has a vector kernel for an order of values; otherwise the readable scalar code computes.

    Args:
        order: `fours()` or `token_pairs(...)`.
        using: One of `backends()`; by default `backend()`.
    """
    return bool(_library.zipmoe_attention_is_native(backend_index(using), order.number))


def attention_scores(
    queries: Buffer,
    keys: Buffer,
    contexts: Contexts,
    scores: Buffer,
    sizes: HeadSizes,
    order: linear.Order,
    *,
    scaling: float,
    threads: int = 1,
    using: str | None = None,
) -> None:
    """Multiplies the query of every request by its keys.

    Args:
        queries: bf16, shape (requests, heads * groups, numbers).
        keys: bf16, shape (heads, slots, numbers).
        contexts: token slots of each request's keys.
        scores: fp32, writable, overlapping nothing: for each request (heads * groups, its tokens). Overwritten.
        sizes: sizes of the keys.
        order: summation order of the numbers of a head: `lanes()`, or `pairs(...)`, here always with one block.
        scaling: factor of the scores; rounded to fp32.
        threads: most threads that compute, the calling thread included; the result does not depend on this number.
        using: One of `backends()`; by default `backend()`.

    Raises:
        InvalidRequest: a buffer's size, layout or access differs from the above. `scores` is untouched.
        ResourceExhausted: there is no memory for the scores of a head.

    Cost: one read of the keys.
    Thread: releases the GIL; safe from any thread. A second call at the same time runs on its calling thread alone.
    """
    heads = sizes.heads * sizes.groups
    with ExitStack() as stack:
        of_queries = _address(stack, "queries", queries, contexts.requests * heads * sizes.numbers * _BF16_BYTES)
        of_keys = _address(stack, "keys", keys, sizes.heads * sizes.slots * sizes.numbers * _BF16_BYTES)
        out = _address(stack, "scores", scores, contexts.tokens * heads * _FP32_BYTES, writable=True)
        _hold(stack, contexts)
        _check_apart(out, of_queries, of_keys)
        run_scores(
            of_queries.start, of_keys.start, contexts, out.start, sizes, order, scaling, threads, backend_index(using)
        )


def attention_values(
    weights: Buffer,
    values: Buffer,
    contexts: Contexts,
    out: Buffer,
    sizes: HeadSizes,
    order: ValueOrder,
    *,
    threads: int = 1,
    using: str | None = None,
) -> None:
    """Computes the weighted sum of the values of every request.

    Args:
        weights: fp32, for each request (heads * groups, its tokens); this function rounds them to bf16.
        values: bf16, shape (heads, slots, numbers).
        contexts: token slots of each request's values.
        out: bf16, shape (requests, heads * groups, numbers), writable, overlapping nothing. Overwritten.
        sizes: sizes of the values.
        order: summation order of the tokens.
        threads: most threads that compute, the calling thread included; the result does not depend on this number.
        using: One of `backends()`; by default `backend()`.

    Raises:
        InvalidRequest: a buffer's size, layout or access differs from the above. `out` is untouched.
        ResourceExhausted: there is no memory for the weights of a head.

    Cost: one read of the values from memory; with more than 4 groups, further reads from the caches.
    Thread: as `attention_scores`.
    """
    heads = sizes.heads * sizes.groups
    with ExitStack() as stack:
        of_weights = _address(stack, "weights", weights, contexts.tokens * heads * _FP32_BYTES)
        of_values = _address(stack, "values", values, sizes.heads * sizes.slots * sizes.numbers * _BF16_BYTES)
        outputs = _address(stack, "out", out, contexts.requests * heads * sizes.numbers * _BF16_BYTES, writable=True)
        _hold(stack, contexts)
        _check_apart(outputs, of_weights, of_values)
        run_values(
            of_weights.start, of_values.start, contexts, outputs.start, sizes, order, threads, backend_index(using)
        )


def run_scores(
    queries: int,
    keys: int,
    contexts: Contexts,
    scores: int,
    sizes: HeadSizes,
    order: linear.Order,
    scaling: float,
    threads: int,
    backend: int | None = None,
) -> None:
    """Computes `attention_scores` on addresses without any check, by default on `backend()`.

    Raises:
        ResourceExhausted: as `attention_scores`.
    """
    result = _library.zipmoe_attention_scores(
        *(backend_index(None) if backend is None else backend, order.number),
        *(queries, keys, contexts.entries, contexts.runs, scores),
        *(contexts.requests, sizes.heads, sizes.groups, sizes.numbers, sizes.slots),
        *(scaling_bits(scaling), threads),
    )
    _check(result, contexts)


def run_values(
    weights: int,
    values: int,
    contexts: Contexts,
    out: int,
    sizes: HeadSizes,
    order: ValueOrder,
    threads: int,
    backend: int | None = None,
) -> None:
    """Computes `attention_values` on addresses without any check, by default on `backend()`.

    Raises:
        ResourceExhausted: as `attention_values`.
    """
    result = _library.zipmoe_attention_values(
        *(backend_index(None) if backend is None else backend, order.number),
        *(weights, values, contexts.entries, contexts.runs, out),
        *(contexts.requests, sizes.heads, sizes.groups, sizes.numbers, sizes.slots),
        *(order.block, threads),
    )
    _check(result, contexts)


@functools.lru_cache(maxsize=64)
def scaling_bits(scaling: float) -> int:
    """Returns the bits of a scaling as fp32."""
    bits: int = struct.unpack("<I", struct.pack("<f", scaling))[0]
    return bits


def _check(result: int, contexts: Contexts) -> None:
    if result != 0:
        raise ResourceExhausted(f"no memory to attend to {contexts.tokens} tokens of {contexts.requests} requests")


def _address(stack: ExitStack, name: str, buffer: Buffer, nbytes: int, *, writable: bool = False) -> Address:
    address = stack.enter_context(Address(name, buffer, writable=writable))
    if address.nbytes != nbytes:
        raise InvalidRequest(f"{name} has {address.nbytes} bytes, expected {nbytes}")
    return address


def _hold(stack: ExitStack, contexts: Contexts) -> None:
    for name, buffer in zip(("entries", "runs"), contexts.buffers, strict=True):
        stack.enter_context(Address(name, buffer))


def _check_apart(out: Address, *inputs: Address) -> None:
    if any(out.overlaps(each) for each in inputs):
        raise InvalidRequest("the result overlaps an input")
