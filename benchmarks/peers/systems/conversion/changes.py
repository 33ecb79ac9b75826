"""Rearrangements of tensors on their way into llama.cpp's form."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.systems.conversion.architecture import Change, Config, Values


def one_row(values: Values, _: Config) -> Values:
    """Turns a matrix of one row into a vector."""
    return values.reshape(values.shape[-1])


def one_channel(values: Values, _: Config) -> Values:
    """Drops the middle dimension of a convolution by channels: (channels, 1, taps) becomes (channels, taps)."""
    return values.reshape(values.shape[0], values.shape[2])


def plus_one(values: Values, _: Config) -> Values:
    """Adds the one that stock adds to a norm's weight in each pass, in fp32 as stock does."""
    return values + np.float32(1)


def decay(values: Values, _: Config) -> Values:
    """Computes the rate of decay from its logarithm, in fp32 as stock does in each pass."""
    rates: Values = -np.exp(values)
    return rates


def expanded_keys(values: Values, config: Config) -> Values:
    """Takes the rows that expand latents to keys, (heads, rank, key dim): llama.cpp multiplies queries by them."""
    return np.ascontiguousarray(_expansion(values, config)[:, : config["qk_nope_head_dim"]].transpose(0, 2, 1))


def expanded_values(values: Values, config: Config) -> Values:
    """Takes the rows that expand latents to values, (heads, value dim, rank)."""
    return np.ascontiguousarray(_expansion(values, config)[:, config["qk_nope_head_dim"] :])


def value_heads_tiled(axis: int, head_dim: str | None = None, keys_before: bool = False) -> Change:
    """Makes a change of order of the value heads of linear attention.

    Stock keeps the value heads of one key head together. llama.cpp repeats the key heads as a whole, so that value head
    i belongs to key head (i modulo key heads).

    Args:
        axis: the dimension of value heads.
        head_dim: the field of the configuration with the size of a head; None for one value a head.
        keys_before: whether queries and keys stand before the values in this dimension. They stay where they are.
    """

    def change(values: Values, config: Config) -> Values:
        key_heads, value_heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
        size = config[head_dim] if head_dim else 1
        before = 2 * key_heads * config["linear_key_head_dim"] if keys_before else 0
        tiled = np.arange(value_heads * size).reshape(key_heads, value_heads // key_heads, size).transpose(1, 0, 2)
        order = np.concatenate([np.arange(before), before + tiled.ravel()])
        return np.take(values, order, axis)

    return change


def both(first: Change, second: Change) -> Change:
    """Makes one change of two."""
    return lambda values, config: second(first(values, config), config)


def _expansion(values: Values, config: Config) -> Values:
    rows = config["qk_nope_head_dim"] + config["v_head_dim"]
    return values.reshape(config["num_attention_heads"], rows, config["kv_lora_rank"])
