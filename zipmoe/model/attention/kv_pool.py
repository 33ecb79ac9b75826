"""Memory of the keys and values of all requests: a block of each per layer, divided into pages of fixed size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig

from zipmoe.errors import UnsupportedModel
from zipmoe.model.raw_tensor import lasting_bytes
from zipmoe.model.stock.caches import cached_windows
from zipmoe.planning.kv_bytes import BYTES_A_NUMBER, KvForm
from zipmoe.serving.pages import PAGE_TOKENS, pages_of


@dataclass(frozen=True)
class KvLayout:
    """Shape of the cache entry of a token in each layer.

    Attributes:
        windows: number of tokens that a query of each layer sees, the query's own included; None for the whole context.
        heads: heads of keys and values.
        key_numbers: numbers of one head's key; of a latent where latents are kept.
        value_numbers: numbers of one head's value; of the rotary key that heads share where latents are kept.
        latent: whether latents are kept, which the layer expands to keys and values in every step.
    """

    windows: tuple[int | None, ...]
    heads: int
    key_numbers: int
    value_numbers: int
    latent: bool

    @classmethod
    def of(cls, config: PreTrainedConfig, form: KvForm) -> KvLayout:
        """Derives the layout from the configuration of a decoder-only model.

        Args:
            config: configuration of the model.
            form: cached form of latent attention; without effect on other models.

        Raises:
            UnsupportedModel: a layer caches something other than keys and values.
        """
        windows = cached_windows(config)
        try:
            query_heads, head_dim = int(config.num_attention_heads), getattr(config, "head_dim", None)
        except (TypeError, RuntimeError):  # the latter is transformers' error for a value that layers do not share
            raise UnsupportedModel("layers have heads of different numbers or sizes") from None
        if rank := getattr(config, "kv_lora_rank", None):
            rotary = int(config.qk_rope_head_dim)
            if form == "latent":
                return cls(windows, 1, int(rank), rotary, latent=True)
            return cls(
                windows, query_heads, int(config.qk_nope_head_dim) + rotary, int(config.v_head_dim), latent=False
            )
        numbers = int(head_dim or int(config.hidden_size) // query_heads)
        heads = int(getattr(config, "num_key_value_heads", None) or query_heads)
        if (getattr(config, "v_head_dim", None) or numbers) != numbers:
            raise UnsupportedModel("values have other sizes than keys")
        return cls(windows, heads, numbers, numbers, latent=False)

    def joined(self, other: KvLayout) -> KvLayout:
        """Returns the layout with the layers of another one behind its own.

        Raises:
            UnsupportedModel: the entries of a token have other shapes there.
        """
        if replace(other, windows=self.windows) != self:
            raise UnsupportedModel("the layers for multi-token prediction cache other keys and values than the model")
        return replace(self, windows=self.windows + other.windows)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's entries in all layers."""
        return len(self.windows) * self.heads * (self.key_numbers + self.value_numbers) * BYTES_A_NUMBER


class KvPlace:
    """Place of the first tokens of a sequence in the pool; adjacent pages are read as a view, other pages as a copy."""

    def __init__(self, pages: Sequence[int], tokens: int, device: torch.device) -> None:
        """Locates the first `tokens` tokens of a page table."""
        used = pages[: pages_of(tokens)]
        first = used[0]
        self._first = first * PAGE_TOKENS
        self._tokens = tokens
        self._used = used
        self._pages = None
        if any(page != first + index for index, page in enumerate(used)):
            self._pages = torch.tensor(used, device=device)

    def runs(self, begin: int = 0) -> list[tuple[int, int]]:
        """Returns the tokens from `begin` on as runs of adjacent token slots: (first token slot, number of tokens)."""
        if self._pages is None:
            return [(self._first + begin, self._tokens - begin)]
        runs: list[tuple[int, int]] = []
        for index in range(begin // PAGE_TOKENS, len(self._used)):
            skipped = max(0, begin - index * PAGE_TOKENS)
            slot = self._used[index] * PAGE_TOKENS + skipped
            tokens = min(self._tokens - index * PAGE_TOKENS, PAGE_TOKENS) - skipped
            if runs and sum(runs[-1]) == slot:
                runs[-1] = (runs[-1][0], runs[-1][1] + tokens)
            else:
                runs.append((slot, tokens))
        return runs

    def read(self, block: torch.Tensor, begin: int = 0) -> torch.Tensor:
        """Reads the tokens from `begin` on in a block (heads, token slots, numbers).

        Returns:
            Shape (1, heads, tokens, numbers).
        """
        if self._pages is None:
            return block.narrow(1, self._first + begin, self._tokens - begin)[None]
        heads, slots, numbers = block.shape
        paged = block.view(heads, slots // PAGE_TOKENS, PAGE_TOKENS, numbers)
        gathered = paged.index_select(1, self._pages).view(1, heads, -1, numbers)
        return gathered[:, :, begin : self._tokens]


class KvPool:
    """Keys and values of every layer, bf16, shape (heads, pages x tokens of a page, numbers) each.

    A token slot is the place of one token in a block; the slots of experts are something else. All memory is allocated
    and touched at the start, so that no request fails later for lack of memory.
    """

    def __init__(self, layout: KvLayout, page_count: int, device: torch.device) -> None:
        """Allocates `page_count` pages."""
        self.layout = layout
        self.page_count = page_count
        self.device = device
        slots = page_count * PAGE_TOKENS

        def block(numbers: int) -> torch.Tensor:
            shape = (layout.heads, slots, numbers)
            if device.type != "cpu":
                return torch.full(shape, 0, dtype=torch.bfloat16, device=device)
            storage, _ = lasting_bytes(layout.heads * slots * numbers * BYTES_A_NUMBER)
            return storage.fill_(0).view(torch.bfloat16).view(shape)

        self.keys = tuple(block(layout.key_numbers) for _ in layout.windows)
        self.values = tuple(block(layout.value_numbers) for _ in layout.windows)

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(block.nbytes for block in (*self.keys, *self.values))

    def slot(self, pages: Sequence[int], position: int) -> int:
        """Returns the token slot at a position of a page table."""
        return pages[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS

    def copy_page(self, source: int, target: int) -> None:
        """Copies the keys and values of a page, of all layers, into another page."""
        for block in (*self.keys, *self.values):
            begin, end = source * PAGE_TOKENS, target * PAGE_TOKENS
            block[:, end : end + PAGE_TOKENS] = block[:, begin : begin + PAGE_TOKENS]

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Stores new tokens of a layer.

        Args:
            layer: index of the layer.
            slots: token slot of each token, int64, shape (tokens,).
            keys: shape (1, heads, tokens, numbers).
            values: likewise.
        """
        self.keys[layer].index_copy_(1, slots, keys[0])
        self.values[layer].index_copy_(1, slots, values[0])
