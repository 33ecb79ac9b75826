"""Finds out which pages of the KV cache give a prompt the bits that it has if it is computed at once.

Keys and values of a token can depend on the way in which the token was computed. On many machines torch sums a product
of matrices in an order that depends on the number of rows. So a token can get other bits in a longer prompt, in the
rest of a prompt whose beginning was adopted, or as the only row of an answer.

The tests compare torch with itself. Sums that cancel exactly leave rounding errors alone, so that a different order
gives different bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from zipmoe.errors import InternalError
from zipmoe.kernels.linear import LinearShape
from zipmoe.model.attention.attention_draws import DRAWS, Draw, Heads, ordinary
from zipmoe.model.attention.kv_pool import KvLayout
from zipmoe.model.attention.ragged_attention import attend_by_heads
from zipmoe.model.build.build import BuiltModel
from zipmoe.model.experts.ffn import DirectFfn
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.linear.linear_order import MOST_OUTPUTS, MOST_OUTPUTS_OF_MANY_ROWS
from zipmoe.model.linear.linear_order import cancelling as cancelling_linear
from zipmoe.serving.pages import PAGE_TOKENS, pages_of
from zipmoe.serving.ticket import FEWEST_ROWS, PageReuse

ATTENTION_ROWS = (4, 5, 6, 7, 17)
"""Rows of a prompt that attend in one call, with different remainders of a division by 4 or 8."""

ATTENTION_TOKENS = (1, 3, 17, 33, 64, 100, 333, 1000)
"""Numbers of tokens that the tested rows see; the longest context is tested as well."""

FURTHER_TOKENS = (0, 1, 2, 3, 400)
"""Tokens of a prompt behind the full pages that hold the tested row."""

ALL_DRAWS_UP_TO, FEW_CALLS_ABOVE = 100, 500
"""Tokens up to which all draws are tested, and above which few rows and lengths are: attention over long contexts takes
tens of milliseconds on a processor without bf16 instructions."""

ROW_COUNTS = (1, 2, 3, 4, 5, 16, 17, 64, 333, 512)
MOST_ROWS = 1024

ACTIVATION_WIDTH = 1408
"""Numbers of a row in the test of an activation; with many rows torch divides the numbers among its threads."""

Rows = Callable[[torch.Tensor], torch.Tensor]
"""A function that computes each row of its input by itself, as far as mathematics goes."""


def page_reuse(built: BuiltModel, most_tokens: int) -> PageReuse:
    """Tests the operations of a model in host memory with torch's present number of threads.

    Args:
        built: a decoder-only model with experts that `RoutedExperts` computes by `DirectFfn`.
        most_tokens: longest context.

    Cost: the first difference ends the test. Where all bits are equal, some seconds, and half a minute on a processor
    without bf16 instructions that others use too.
    """
    with torch.inference_mode():
        # Of a prompt's rows, any number may go to an expert.
        if any(fewest_rows(function, rows) != 1 for function, rows in _expert_parts(built)):
            return PageReuse.NOTHING
        found = [attention_reuse(module, heads, most_tokens) for module, heads in _attentions(built)]
        if PageReuse.NOTHING in found:
            return PageReuse.NOTHING
        fewest = [fewest_rows(function, rows) for function, rows in _dense_parts(built.model)]
    if None in fewest:
        return PageReuse.NOTHING
    windows = any(KvLayout.of(built.config.get_text_config(decoder=True), "latent").windows)
    if windows or PageReuse.PROMPTS in found or FEWEST_ROWS in fewest:
        return PageReuse.PROMPTS
    return PageReuse.ALL


def fewest_rows(function: Rows, rows: torch.Tensor) -> int | None:
    """Returns the fewest rows among which a row has the bits that it has among all rows: 1 or `FEWEST_ROWS`.

    Args:
        function: computes each row by itself.
        rows: shape (`MOST_ROWS`, inputs).

    Returns:
        None if even `FEWEST_ROWS` rows or more give a row different bits.
    """
    whole = function(rows)
    differing = [
        count
        for count in ROW_COUNTS
        if not (_equal(function(rows[:count]), whole[:count]) and _equal(function(rows[-count:]), whole[-count:]))
    ]
    if not differing:
        return 1
    return FEWEST_ROWS if max(differing) < FEWEST_ROWS else None


def attention_reuse(module: nn.Module, heads: Heads, most_tokens: int) -> PageReuse:
    """Tests whether stock's attention of a token depends on the length of the prompt or on the rows beside it.

    Args:
        module: stock's attention module.
        heads: its heads.
        most_tokens: longest context.
    """
    seen = sorted({min(tokens, most_tokens) for tokens in (*ATTENTION_TOKENS, most_tokens)})
    if not all(_alike_in_prompts(module, heads, tokens, most_tokens) for tokens in seen):
        return PageReuse.NOTHING
    alone = all(_alike_alone(module, heads, tokens) for tokens in seen)
    return PageReuse.ALL if alone else PageReuse.PROMPTS


def _alike_in_prompts(module: nn.Module, heads: Heads, tokens: int, longest: int) -> bool:
    """Compares the attention of a token that sees `tokens` tokens, in prompts of several lengths and among rows.

    The token is in a full page. Tokens behind the full pages of a prompt are never adopted.
    """
    full = pages_of(tokens) * PAGE_TOKENS
    few = tokens > FEW_CALLS_ABOVE
    lengths = sorted({min(full + further, max(full, longest)) for further in FURTHER_TOKENS})
    rows = ATTENTION_ROWS[::2] if few else ATTENTION_ROWS
    return all(
        _equal(_attended(module, heads, draw, tokens, length, count), wanted[:count])
        for draw in (DRAWS if tokens <= ALL_DRAWS_UP_TO else DRAWS[:1])
        for wanted in [_attended(module, heads, draw, tokens, lengths[-1], rows[-1])]
        for length in (lengths[::2] if few else lengths)
        for count in rows
    )


def _alike_alone(module: nn.Module, heads: Heads, tokens: int) -> bool:
    """Compares the attention of a token that sees `tokens` tokens, as the only row and in a prompt."""
    full = pages_of(tokens) * PAGE_TOKENS
    return all(
        _equal(
            _attended(module, heads, draw, tokens, tokens, 1),
            _attended(module, heads, draw, tokens, full, FEWEST_ROWS)[:1],
        )
        for draw in (DRAWS if tokens <= ALL_DRAWS_UP_TO else DRAWS[:1])
    )


def _attended(module: nn.Module, heads: Heads, draw: Draw, tokens: int, length: int, rows: int) -> torch.Tensor:
    """Attends for equal rows that see the first `tokens` of `length` tokens; shape (rows, query heads, numbers)."""
    query, keys, values = draw(heads, tokens)
    _, more_keys, more_values = ordinary(heads, length - tokens or 1)
    mask = torch.zeros(1, 1, rows, length, dtype=torch.bfloat16)
    mask[..., tokens:] = torch.finfo(torch.bfloat16).min
    return attend_by_heads(
        module,
        query.expand(-1, -1, rows, -1).contiguous(),
        torch.cat([keys, more_keys[:, : length - tokens]], dim=1)[None],
        torch.cat([values, more_values[:, : length - tokens]], dim=1)[None],
        mask,
        scaling=float(getattr(module, "scaling", heads.key_numbers**-0.5)),
        dropout=0.0,
    )[0]


def _expert_parts(built: BuiltModel) -> Iterator[tuple[Rows, torch.Tensor]]:
    """Yields the linears and activations of routed experts, each with rows to test."""
    seen: set[tuple[int, int]] = set()
    for module, layer in zip(built.experts, built.layers, strict=True):
        if not isinstance(module, RoutedExperts) or not isinstance(module.ffn, DirectFfn):
            raise InternalError(f"{layer.module} is computed by stock's code")
        matrices = layer.spec.tensors[:2]
        for place, matrix in enumerate(matrices):
            n, k = (matrix.cols, matrix.rows) if module.ffn.transposed else (matrix.rows, matrix.cols)
            if (n, k) in seen:
                continue
            seen.add((n, k))
            yield _linear(n, k, transposed=module.ffn.transposed)
            if place == 0:
                yield module.ffn.activation, _ordinary_rows(n)


def _dense_parts(model: PreTrainedModel) -> Iterator[tuple[Rows, torch.Tensor]]:
    """Yields the linears, gates, norms and activations that compute all tokens, each with rows to test."""
    seen: set[tuple[object, ...]] = set()
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for module in model.modules():
        if module is head or isinstance(module, nn.Embedding | RoutedExperts):
            continue
        biased = getattr(module, "bias", None) is not None
        for matrix in (each for each in module.parameters(recurse=False) if each.dim() == 2):
            if (matrix.shape, matrix.dtype, biased) not in seen:
                seen.add((matrix.shape, matrix.dtype, biased))
                yield _linear(*matrix.shape, dtype=matrix.dtype, biased=biased)
        rows = _row_function(module)
        if rows is not None and (type(module), rows.shape) not in seen:
            seen.add((type(module), rows.shape))
            yield module, rows


def _row_function(module: nn.Module) -> torch.Tensor | None:
    """Returns rows for a norm or an activation module; None for other modules."""
    if list(module.children()):
        return None
    own = list(module.parameters(recurse=False))
    if len(own) == 1 and own[0].dim() == 1 and "norm" in type(module).__name__.lower():
        return _ordinary_rows(len(own[0]))
    if not own and "activation" in type(module).__module__:
        return _ordinary_rows(ACTIVATION_WIDTH)
    return None


def _linear(
    n: int, k: int, *, dtype: torch.dtype = torch.bfloat16, transposed: bool = False, biased: bool = False
) -> tuple[Rows, torch.Tensor]:
    few = min(n, MOST_OUTPUTS if k * n <= 1 << 20 else MOST_OUTPUTS_OF_MANY_ROWS)
    rows, weight = cancelling_linear(LinearShape(MOST_ROWS, few, k))
    rows, weight = rows.to(dtype), weight.to(dtype)
    if transposed:
        matrix = weight.T.contiguous()
        return lambda given: given @ matrix, rows
    bias = torch.full((few,), 2.0**-20, dtype=dtype) if biased else None
    return lambda given: linear(given, weight, bias), rows


def _ordinary_rows(width: int) -> torch.Tensor:
    return (torch.randn(MOST_ROWS, width, generator=torch.Generator().manual_seed(width)) * 3).bfloat16()


def _attentions(built: BuiltModel) -> Iterator[tuple[nn.Module, Heads]]:
    """Yields one attention module of each class, with its heads."""
    config = built.config.get_text_config(decoder=True)
    layout = KvLayout.of(config, "expanded")
    heads = Heads(
        layout.heads, int(config.num_attention_heads) // layout.heads, layout.key_numbers, layout.value_numbers
    )
    kinds: dict[type[nn.Module], nn.Module] = {}
    for module in built.model.modules():
        if hasattr(module, "layer_idx") and type(module).__name__.endswith("Attention"):
            kinds.setdefault(type(module), module)
    for module in kinds.values():
        yield module, heads


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Compares values bit for bit, but takes zeros of different sign for equal."""
    return torch.equal(a, b)
