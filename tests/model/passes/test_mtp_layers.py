"""The layers for multi-token prediction draft what stock's own generator drafts, whatever the number of layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers.generation.candidate_generator import MTPCandidateGenerator

from tests.model.mtp_checkpoint import FAMILIES, mtp_twin, stock_with_mtp, write_mtp_checkpoint
from zipmoe.model.passes.mtp_layers import ROWS_APART, MtpRows
from zipmoe.model.passes.ragged import BatchRow, RaggedModel
from zipmoe.serving.pages import PAGE_TOKENS

PROMPT = torch.randint(0, 512, (21,), generator=torch.Generator().manual_seed(3)).tolist()
TOKENS = 40
PAGES = [2, 5, 1, 0]


class Drafted(NamedTuple):
    """What stock drafted, and how many tokens there were then."""

    tokens: int
    drafts: list[int]


def stock_drafts(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[Drafted]]:
    """The tokens of a greedy answer, and all drafts on the way."""
    stock = stock_with_mtp(path, monkeypatch)
    seen: list[Drafted] = []
    real = MTPCandidateGenerator.get_candidates

    def watch(self: Any, input_ids: torch.Tensor, *args: Any, is_first_iteration: bool, **kwargs: Any) -> Any:
        result = real(self, input_ids, *args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration:
            seen.append(Drafted(input_ids.shape[1], result[0][0, input_ids.shape[1] :].tolist()))
        return result

    monkeypatch.setattr(MTPCandidateGenerator, "get_candidates", watch)
    found = stock.generate(torch.tensor([PROMPT]), max_new_tokens=TOKENS, do_sample=False, use_mtp=True)
    return found[0].tolist(), seen


FORMS = [*((family, "expanded") for family in FAMILIES), ("deepseek_v3", "latent")]


@pytest.mark.parametrize("mtp_layers", [1, 2, 3])
@pytest.mark.parametrize(("family", "form"), FORMS)
def test_drafts_and_answers_of_a_greedy_run_are_those_of_stock(
    family: str, mtp_layers: int, form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_mtp_checkpoint(family, tmp_path, mtp_layers=mtp_layers)
    wanted, drafted = stock_drafts(path, monkeypatch)
    twin = mtp_twin(path)
    ragged = RaggedModel(twin.built, twin.linears, 8, form)
    assert ragged.pool.layout.latent == (form == "latent")
    assert ragged.mtp is not None and ragged.mtp.layer_count == mtp_layers
    tokens = [*PROMPT]
    prompt = ragged.prompt(tokens, 0, PAGES)
    ragged.advance([prompt], ragged.layer_count)
    result = prompt.finish()
    tokens.append(int(result.logits.argmax()))
    begin, hidden = 0, result.hidden_states
    assert hidden is not None
    accepted = 0
    for each in drafted:
        assert each.tokens == len(tokens)
        [drafts] = ragged.mtp.draft([MtpRows(begin, hidden, tokens[begin + 1 :], PAGES)], mtp_layers)
        assert list(drafts) == each.drafts
        first, states = len(tokens) - 1, list[torch.Tensor]()
        rows = [BatchRow(token, first + place, PAGES) for place, token in enumerate([tokens[-1], *drafts])]
        for logits, draft in zip(ragged.compute(rows, states), [*drafts, None], strict=True):
            assert logits is not None
            tokens.append(int(logits.argmax()))
            if tokens[-1] != draft:
                break
            accepted += 1
        again = hidden[len(hidden) - (mtp_layers - 1) :]  # deeper layers saw drafts there
        hidden = torch.cat([again, torch.stack(states[: len(tokens) - 1 - first])])
        begin = first - len(again)
    assert tokens[: len(wanted)] == wanted
    assert accepted > 5


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> RaggedModel:
    twin = mtp_twin(write_mtp_checkpoint("glm4_moe", tmp_path_factory.mktemp("glm")))
    return RaggedModel(twin.built, twin.linears, 8)


def rows_of(ragged: RaggedModel, count: int, pages: list[int], seed: int) -> MtpRows:
    tokens = torch.randint(0, 512, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    prompt = ragged.prompt(tokens, 0, pages)
    ragged.advance([prompt], ragged.layer_count)
    result = prompt.finish()
    assert result.hidden_states is not None
    return MtpRows(0, result.hidden_states, [*tokens[1:], int(result.logits.argmax())], pages)


def test_requests_draft_together_what_each_drafts_alone(ragged: RaggedModel) -> None:
    assert ragged.mtp is not None
    requests = [rows_of(ragged, count, [number], number) for number, count in enumerate((ROWS_APART, 3, 9))]
    alone = [ragged.mtp.draft([each], 5)[0] for each in requests]
    assert ragged.mtp.draft(requests, 5) == alone
    assert [len(each) for each in alone] == [5, 5, 5]


def test_a_prompt_drafts_what_its_rows_draft_one_after_the_other(ragged: RaggedModel) -> None:
    assert ragged.mtp is not None
    whole = rows_of(ragged, 24, [3], 7)
    drafts = ragged.mtp.draft([whole], 4)
    for begin in range(0, 24, 8):
        part = slice(begin, begin + 8)
        again = ragged.mtp.draft([MtpRows(begin, whole.hidden_states[part], whole.token_ids[part], [3])], 4)
    assert again == drafts


def test_drafts_end_with_the_pages_of_the_request(ragged: RaggedModel) -> None:
    assert ragged.mtp is not None
    requests = [rows_of(ragged, PAGE_TOKENS - left, [number], number) for number, left in enumerate((0, 2))]
    assert [len(each) for each in ragged.mtp.draft(requests, 5)] == [1, 3]


def test_a_layer_leaves_the_keys_and_values_of_the_model_alone(ragged: RaggedModel) -> None:
    assert ragged.mtp is not None
    request = rows_of(ragged, 5, [6], 1)
    before = [block.clone() for block in (*ragged.pool.keys, *ragged.pool.values)]
    ragged.mtp.draft([request], 3)
    changed = [not torch.equal(*pair) for pair in zip(before, (*ragged.pool.keys, *ragged.pool.values), strict=True)]
    assert changed == ([False] * ragged.layer_count + [True]) * 2
