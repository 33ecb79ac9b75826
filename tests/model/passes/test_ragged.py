from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.model.conftest import Twin, TwinOf
from tests.model.known_orders import kernels_have_torchs_bits
from tests.model.tiny import FAMILIES, VOCABULARY
from zipmoe.errors import UnsupportedModel
from zipmoe.model.attention import ragged_attention
from zipmoe.model.linear.linear_order import OrderTable
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.passes.ragged import BatchRow, RaggedModel
from zipmoe.planning import workspace
from zipmoe.planning.kv_bytes import KvForm, kv_bytes_per_token
from zipmoe.planning.workspace import UNDIVIDED_FAMILIES, workspace_bytes
from zipmoe.serving.pages import PAGE_TOKENS, pages_of

DECODERS = [family for family in FAMILIES if family != "switch_transformers"]
LATENT = ("deepseek_v2", "deepseek_v3")
FORMS: list[tuple[str, KvForm]] = [
    *((family, "expanded") for family in DECODERS),
    *((each, "latent") for each in LATENT),
]


def prompt(length: int, seed: int = 1) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(3, VOCABULARY) for _ in range(length)]


class StockPasses:
    """Stock continuing its own cache: one call a prompt, one call a token."""

    def __init__(self, twin: Twin) -> None:
        self._model = twin.stock
        self.cache = DynamicCache(config=twin.stock.config)

    def __call__(self, token_ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            begin = self.cache.get_seq_length()
            positions = torch.arange(begin, begin + len(token_ids))[None]
            output = self._model(
                input_ids=torch.tensor([token_ids]),
                position_ids=positions,
                past_key_values=self.cache,
                logits_to_keep=1,
            )
        return output.logits[0, -1]


class Ours:
    """Requests over one pool; of those from `m` on no two pages are adjacent."""

    def __init__(self, twin: Twin, form: KvForm = "expanded", pages: int = 24) -> None:
        self.model = RaggedModel(twin.built, twin.linears, pages, form)
        self.tables: dict[str, list[int]] = {}
        self.lengths: dict[str, int] = {}
        self._free = list(range(pages))

    def room(self, name: str, tokens: int) -> tuple[int, list[int]]:
        """Where the next tokens of a request begin, and its page table with room for them."""
        table = self.tables.setdefault(name, [])
        begin = self.lengths.get(name, 0)
        self.lengths[name] = begin + tokens
        while len(table) < pages_of(self.lengths[name]):
            table.append(self._free.pop(0) if name < "m" else self._free.pop())
        return begin, table

    def prompt(self, name: str, token_ids: list[int]) -> torch.Tensor:
        prompt = self.model.prompt(token_ids, *self.room(name, len(token_ids)))
        while prompt.layers_left:
            prompt.advance(2)
        return prompt.finish().logits

    def rows(self, **tokens: int) -> dict[str, torch.Tensor]:
        rows = [BatchRow(token, *self.room(name, 1)) for name, token in tokens.items()]
        logits = self.model.compute(rows)
        return {name: each for name, each in zip(tokens, logits, strict=True) if each is not None}


@pytest.mark.parametrize(("family", "form"), FORMS)
def test_requests_that_share_passes_answer_as_stock_does_for_each_alone(
    family: str, form: KvForm, twin_of: TwinOf
) -> None:
    twin = twin_of(family)
    ours = Ours(twin, form)
    prompts = {"a": prompt(37, 1), "b": prompt(3, 2), "z": prompt(50, 3), "c": prompt(1, 4), "y": prompt(26, 5)}
    joins = {"a": 0, "b": 2, "z": 3, "c": 3, "y": 5}
    stock = {name: StockPasses(twin) for name in prompts}
    chance = random.Random(7)
    for step in range(16):
        running = [name for name, first in joins.items() if first < step and not (name == "b" and step > 9)]
        tokens = {name: chance.randrange(3, VOCABULARY) for name in running}
        for name, logits in (ours.rows(**tokens) if tokens else {}).items():
            assert torch.equal(logits, stock[name]([tokens[name]])), (step, name)
        for name in [name for name, first in joins.items() if first == step]:
            assert torch.equal(ours.prompt(name, prompts[name]), stock[name](prompts[name])), (step, name)


@pytest.mark.parametrize(("family", "form"), FORMS)
def test_a_second_turn_is_what_stock_gives_when_it_continues_its_own_cache(
    family: str, form: KvForm, twin_of: TwinOf
) -> None:
    twin = twin_of(family)
    ours, stock = Ours(twin, form), StockPasses(twin)
    for turn, name in enumerate(("x", "x", "x")):
        question = prompt(21, 10 + turn)
        assert torch.equal(ours.prompt(name, question), stock(question)), turn
        for token in prompt(11, 20 + turn):
            assert torch.equal(ours.rows(x=token)["x"], stock([token])), turn


@pytest.mark.parametrize(
    ("family", "form"),
    [("qwen2_moe", "expanded"), ("deepseek_v2", "expanded"), ("deepseek_v2", "latent"), ("gpt_oss", "expanded")],
)
def test_an_answer_that_is_replayed_has_the_bits_it_had(family: str, form: KvForm, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    ours, stock = Ours(twin, form), StockPasses(twin)
    question, answer = prompt(30, 1), prompt(9, 2)
    ours.prompt("a", question)
    ours.prompt("b", prompt(12, 3))
    stock(question)
    wanted = [stock([token]) for token in answer]
    begin, table = ours.room("a", len(answer))
    rows = [BatchRow(token, begin + index, table, index > 6) for index, token in enumerate(answer)]
    got = ours.model.compute([*rows[:4], BatchRow(5, *ours.room("b", 1)), *rows[4:]])
    assert [each is not None for each in got] == [False] * 4 + [True] + [False] * 3 + [True] * 2
    assert torch.equal(got[-2], wanted[-2])
    assert torch.equal(got[-1], wanted[-1])


def expands_alike(twin: Twin) -> bool:
    """Whether an expansion of latents has one order for all numbers of rows, so that expanded keys may be kept."""
    expansion = twin.stock.get_submodule("model.layers.0.self_attn.kv_b_proj")
    return twin.linears.row_invariant(expansion.out_features, expansion.in_features, bias=expansion.bias is not None)


@pytest.mark.parametrize(("family", "form"), FORMS)
def test_the_pool_takes_what_the_budget_says(family: str, form: KvForm, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    pool = RaggedModel(twin.built, twin.linears, 3, form).pool
    kept = form
    if family in LATENT and not expands_alike(twin):
        assert not kernels_have_torchs_bits()
        kept = "latent"
    assert pool.layout.latent == (kept == "latent")
    assert pool.nbytes == 3 * PAGE_TOKENS * kv_bytes_per_token(twin.built.config.to_dict(), kept)
    assert pool.nbytes == 3 * PAGE_TOKENS * pool.layout.token_bytes


def test_latents_are_kept_where_the_order_of_an_expansion_is_not_known(twin_of: TwinOf) -> None:
    unknowing = Linears(OrderTable(orders=()))
    assert RaggedModel(twin_of("deepseek_v2").built, unknowing, 3).pool.layout.latent


@pytest.mark.parametrize("family", LATENT)
def test_an_expansion_of_one_row_is_that_row_of_an_expansion_of_all(family: str, twin_of: TwinOf) -> None:
    """What keeping expanded keys and values rests on, of torch itself."""
    twin = twin_of(family)
    expansion = twin.stock.get_submodule("model.layers.0.self_attn.kv_b_proj")
    with torch.inference_mode():
        latents = torch.randn(70, expansion.in_features).bfloat16()
        one = torch.cat([expansion(row) for row in latents.split(1)])
        for rows in (2, 3, 7, 16, 33, 70):
            assert torch.equal(expansion(latents[:rows]), one[:rows]), rows


def test_an_expert_is_asked_for_once_by_all_rows_of_a_step(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    ours = Ours(twin)
    for name in "abcdef":
        ours.prompt(name, prompt(9, ord(name)))
    twin.provider.requests.clear()
    ours.rows(**{name: 3 + index for index, name in enumerate("abcdef")})
    assert [layer for layer, _ in twin.provider.requests] == list(range(len(twin.layers)))
    assert max(len(ids) for _, ids in twin.provider.requests) > 4


@pytest.mark.parametrize("family", DECODERS)
def test_heads_that_take_turns_give_the_bits_of_all_at_once(
    family: str, twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family in UNDIVIDED_FAMILIES:
        pytest.skip("its heads have sinks")
    twin = twin_of(family)
    ids = prompt(75)
    calls: list[int] = []
    eager = ragged_attention.eager_attention

    def counted(module: torch.nn.Module) -> Any:
        function = eager(module)

        def attend(*arguments: Any, **settings: Any) -> Any:
            calls.append(arguments[1].shape[1])
            return function(*arguments, **settings)

        return attend

    monkeypatch.setattr(ragged_attention, "eager_attention", counted)
    whole = Ours(twin).prompt("a", ids)
    heads = max(calls)
    calls.clear()
    monkeypatch.setattr(workspace, "SCORE_BLOCK_BYTES", 1)
    divided = Ours(twin).prompt("a", ids)
    assert max(calls) < heads
    assert torch.equal(whole, divided)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_budget_knows_whose_heads_attend_all_at_once(family: str, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    config = twin.built.config.to_dict()
    divided = workspace_bytes(config, 4096) < workspace_bytes({**config, "model_type": "gpt_oss"}, 4096)
    try:
        RaggedModel(twin.built, twin.linears, 4)
    except UnsupportedModel:
        assert not divided
    else:
        assert divided == (family not in UNDIVIDED_FAMILIES)
