"""The tests behind the reuse of KV pages find sums whose order depends on rows or lengths, and accept others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.model.conftest import TwinOf
from zipmoe.model.attention.attention_draws import Heads
from zipmoe.model.passes import page_reuse as module
from zipmoe.model.passes.page_reuse import MOST_ROWS, attention_reuse, fewest_rows, page_reuse
from zipmoe.serving.ticket import PageReuse

HEADS = Heads(2, 2, 16, 16)
Attend = Callable[..., torch.Tensor]


def alike(rows: torch.Tensor) -> torch.Tensor:
    """Sums numbers one after the other, whatever the number of rows."""
    result = torch.zeros(len(rows))
    for column in rows.float().unbind(1):
        result = result + column
    return result


def backwards(rows: torch.Tensor) -> torch.Tensor:
    return alike(rows.flip(1))


@pytest.mark.parametrize(
    ("differs", "fewest"),
    [
        (lambda rows: False, 1),
        (lambda rows: rows == 1, 4),
        (lambda rows: rows <= 3, 4),
        (lambda rows: rows == 4, None),
        (lambda rows: rows == 512, None),
    ],
)
def test_fewest_rows_with_the_bits_of_many(differs: Callable[[int], bool], fewest: int | None) -> None:
    rows = torch.randn(MOST_ROWS, 32, generator=torch.Generator().manual_seed(1))
    assert fewest_rows(lambda given: (backwards if differs(len(given)) else alike)(given), rows) == fewest


def attend_in_order(order: Callable[[int, int], bool]) -> Attend:
    """Makes an attention that sums tokens one after the other, backwards where `order(rows, length)` is true."""

    def attend(
        _: nn.Module, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, **kwargs: float
    ) -> torch.Tensor:
        rows, length = query.shape[2], keys.shape[2]
        keys, values = (each.repeat_interleave(HEADS.groups, 1).float() for each in (keys, values))
        scores = (query.float()[..., None, :] * keys[:, :, None]).double().sum(-1) * kwargs["scaling"]
        weights = torch.softmax((scores + mask).double(), -1).bfloat16().float()
        total = torch.zeros(*query.shape[:3], values.shape[-1])
        places = range(length)
        for place in reversed(places) if order(rows, length) else places:
            total = total + weights[..., place, None] * values[:, :, None, place]
        return total.bfloat16().transpose(1, 2)

    return attend


@pytest.mark.parametrize(
    ("backwards_if", "found"),
    [
        (lambda rows, length: False, PageReuse.ALL),
        (lambda rows, length: rows == 1, PageReuse.PROMPTS),
        (lambda rows, length: length % 4 == 3, PageReuse.NOTHING),
        (lambda rows, length: rows % 4 == 2, PageReuse.NOTHING),
        (lambda rows, length: length > 450, PageReuse.NOTHING),
    ],
)
def test_attention_that_depends_on_rows_or_lengths_is_found(
    backwards_if: Callable[[int, int], bool], found: PageReuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "attend_by_heads", attend_in_order(backwards_if))
    assert attention_reuse(nn.Module(), HEADS, 600) is found


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v2", "gpt_oss"])
def test_every_operation_of_a_model_is_tested(family: str, twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch) -> None:
    built = twin_of(family).built
    monkeypatch.setattr(module, "attention_reuse", lambda *_: PageReuse.ALL)
    tested = []
    monkeypatch.setattr(module, "fewest_rows", lambda function, rows: tested.append(tuple(rows.shape)) or 1)
    windows = family == "gpt_oss"
    assert page_reuse(built, 128) is (PageReuse.PROMPTS if windows else PageReuse.ALL)
    widths = {width for _, width in tested}
    config = built.config
    assert {config.hidden_size, getattr(config, "moe_intermediate_size", config.intermediate_size)} <= widths
    matrices = {
        tuple(each.shape)
        for name, each in built.model.named_parameters()
        if each.dim() == 2 and "embed" not in name and "lm_head" not in name
    }
    assert len(tested) >= len(matrices)


@pytest.mark.parametrize(
    ("answers", "found"), [([1], PageReuse.ALL), ([1, 1, 1, 4], PageReuse.PROMPTS), ([4], PageReuse.NOTHING)]
)
def test_one_operation_decides(
    answers: list[int], found: PageReuse, twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(answers)
    monkeypatch.setattr(module, "attention_reuse", lambda *_: PageReuse.ALL)
    monkeypatch.setattr(module, "fewest_rows", lambda *_: left.pop(0) if len(left) > 1 else left[0])
    assert page_reuse(twin_of("qwen2_moe").built, 128) is found
