"""Drafts by layers for multi-token prediction (MTP) change the number of passes, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.model.conftest import Twin
from tests.model.mtp_checkpoint import FAMILIES, mtp_twin, write_mtp_checkpoint
from tests.services.router.engine.test_engine import prompt, stock_answer
from tests.services.router.engine.test_speculation import finished
from tests.services.router.serving import Experts, ServingEngine
from zipmoe.errors import CorruptData
from zipmoe.model.linear.matrices import Matrices
from zipmoe.model.text.sampling import SamplingParams
from zipmoe.services.router.engine.request import RequestToken
from zipmoe.serving.drafts import Draft, Drafts, MatchDrafts

MtpTwinOf = Callable[..., Twin]


@pytest.fixture(scope="module")
def mtp_twin_of(tmp_path_factory: pytest.TempPathFactory) -> MtpTwinOf:
    """The twins of checkpoints with MTP layers, each made once."""
    twins: dict[tuple[str, int], Twin] = {}

    def get(family: str, mtp_layers: int = 1) -> Twin:
        if (family, mtp_layers) not in twins:
            path = tmp_path_factory.mktemp(family)
            twins[family, mtp_layers] = mtp_twin(write_mtp_checkpoint(family, path, mtp_layers=mtp_layers))
        return twins[family, mtp_layers]

    return get


@pytest.fixture
def _no_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves all drafts to the MTP layers."""
    monkeypatch.setattr(MatchDrafts, "draft", lambda self, tickets, most: Drafts([Draft()] * len(tickets)))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Counts the passes through each MoE layer."""
    counts = Counter[int]()
    real = Experts.experts

    def count(self: Experts, layer: int, rows: Mapping[int, int]) -> Iterator[tuple[int, Matrices]]:
        counts[layer] += 1
        return real(self, layer, rows)

    monkeypatch.setattr(Experts, "experts", count)
    return counts


MTP_LAYER = 2
"""Ordinal of the first MTP layer among the MoE layers."""


@pytest.mark.parametrize("drafts", ["auto", 1, 3, 15])
@pytest.mark.parametrize(("family", "mtp_layers"), [*((family, 1) for family in FAMILIES), ("deepseek_v3", 2)])
def test_greedy_answers_are_those_of_stock(
    family: str, mtp_layers: int, drafts: object, mtp_twin_of: MtpTwinOf
) -> None:
    twin = mtp_twin_of(family, mtp_layers)
    prompts = [prompt(40, 40), prompt(33, 4), prompt(5, 3)]
    with ServingEngine(twin, speculate=drafts) as serving:
        clients = [serving.ask(each, 40) for each in prompts]
        for client, ids in zip(clients, prompts, strict=True):
            assert client.answer() == stock_answer(twin.stock, ids, 40)
        if drafts != "auto":
            drafted = serving.metric("zipmoe_drafted_tokens_total", source="mtp")
            assert 0 < serving.metric("zipmoe_drafted_tokens_accepted_total", source="mtp") < drafted
            told = sum(finished(client).drafted_tokens for client in clients)
            assert told == drafted + serving.metric("zipmoe_drafted_tokens_total", source="match")


@pytest.mark.usefixtures("_no_matches")
@pytest.mark.parametrize("seed", range(3))
def test_seeded_answers_are_those_without_drafts(seed: int, mtp_twin_of: MtpTwinOf) -> None:
    twin = mtp_twin_of("glm4_moe")
    sampling = SamplingParams(temperature=0.05 + 0.3 * seed, top_k=3, repetition_penalty=1.05, seed=seed)
    answers = []
    for drafts in ("off", 1, 4):
        with ServingEngine(twin, speculate=drafts) as serving:
            clients = [serving.ask(prompt(20, number), 48, sampling=sampling) for number in range(2)]
            answers.append([client.answer() for client in clients])
            assert bool(finished(clients[0]).drafted_tokens) == (drafts != "off")
    assert answers[1:] == answers[:1] * 2


@pytest.mark.usefixtures("_no_matches")
def test_single_rows_are_replayed_and_draft_from_the_replayed_state(mtp_twin_of: MtpTwinOf) -> None:
    twin = mtp_twin_of("glm4_moe")
    accepted = []
    for row_pass in ("auto", "eager"):
        with ServingEngine(twin, speculate=1, row_pass=row_pass) as serving:
            client = serving.ask(prompt(5, 3), 20)
            assert client.answer() == stock_answer(twin.stock, prompt(5, 3), 20)
            accepted.append(finished(client).accepted_tokens)
            programs = serving.ragged.row_programs
            assert (1 in programs) == (row_pass == "auto")
            assert not programs or serving.setup.recorded.layers == serving.ragged.layer_count
            if programs:  # the hidden state of a pass of one row
                states: list[object] = []
                serving.ragged.compute([_row(7)], states)  # type: ignore[arg-type]
                eager: list[object] = []
                serving.ragged.compute_eagerly([_row(7)], eager)  # type: ignore[arg-type]
                assert states[0].equal(eager[0])  # type: ignore[attr-defined]
    assert accepted[0] == accepted[1] > 0


def _row(token: int) -> object:
    from zipmoe.model.passes.ragged import BatchRow

    return BatchRow(token, 0, [0])


@pytest.mark.usefixtures("_no_matches")
def test_requests_are_preempted_and_cancelled_amid_drafts(mtp_twin_of: MtpTwinOf) -> None:
    twin = mtp_twin_of("deepseek_v3")
    prompts = [prompt(20, seed) for seed in (1, 2, 3)]
    with ServingEngine(twin, speculate="off") as serving:
        wanted = [serving.ask(each, 60).answer() for each in prompts]
    with ServingEngine(twin, speculate=3, kv_tokens=128, max_prompt_tokens=64) as serving:
        gone = serving.ask(prompt(20, 9), 60)
        clients = [serving.ask(each, 60) for each in prompts]
        gone.token()
        serving.engine.cancel(gone.request)
        assert [client.answer() for client in clients] == wanted
        assert serving.metric("zipmoe_preemptions_total") > 0
        assert serving.metric("zipmoe_drafted_tokens_accepted_total", source="mtp") > 0


@pytest.mark.usefixtures("_no_matches")
def test_a_later_request_goes_on_from_adopted_pages(mtp_twin_of: MtpTwinOf) -> None:
    twin = mtp_twin_of("glm4_moe")
    second = []
    for drafts in ("off", 3):
        with ServingEngine(twin, speculate=drafts, reuse_answers=True) as serving:
            first = serving.ask(prompt(40, 1), 40)
            first.answer()
            told = [event.choice.token_id for event in first.seen if isinstance(event, RequestToken)]
            client = serving.ask([*prompt(40, 1), *told, 5, 6, 7, 5, 6], 20)
            second.append(client.answer())
            assert finished(client).reused_tokens > 40
    assert second[0] == second[1]
    assert finished(client).accepted_tokens > 0


def test_without_speculation_no_layer_for_drafts_is_computed(mtp_twin_of: MtpTwinOf, asked: Counter[int]) -> None:
    with ServingEngine(mtp_twin_of("glm4_moe"), speculate="off") as serving:
        serving.ask(prompt(20, 1), 10).answer()
    assert asked[MTP_LAYER - 1] > 0
    assert asked[MTP_LAYER] == 0


@pytest.mark.usefixtures("_no_matches")
def test_experts_of_the_layer_that_fail_cost_drafts_and_no_request(mtp_twin_of: MtpTwinOf, asked: Counter[int]) -> None:
    twin = mtp_twin_of("glm4_moe")
    with ServingEngine(twin, speculate=3) as serving:
        serving.experts.broken = {(MTP_LAYER, expert) for expert in range(8)}
        client = serving.ask(prompt(20, 1), 20)
        assert client.answer() == stock_answer(twin.stock, prompt(20, 1), 20)
        assert finished(client).drafted_tokens == 0
        assert asked[MTP_LAYER] == 1
        serving.experts.broken = {(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (0, 7)}
        assert isinstance(serving.ask(prompt(20, 2), 20).error(), CorruptData)
        serving.experts.broken = set()
        client = serving.ask(prompt(20, 3), 20)
        client.answer()
        assert finished(client).accepted_tokens > 0


@pytest.mark.usefixtures("_no_matches")
def test_accepted_drafts_save_passes(mtp_twin_of: MtpTwinOf) -> None:
    with ServingEngine(mtp_twin_of("deepseek_v3"), speculate=4) as serving:
        client = serving.ask(prompt(40, 40), 64)
        client.answer()
        usage = finished(client)
        passes = sum(1 for phase, _ in serving.experts.passes if phase.value == "decode")
        assert 0 < usage.accepted_tokens < usage.drafted_tokens
        assert passes == 63 - usage.accepted_tokens


def test_the_checks_at_the_start_pass_with_the_layers(
    mtp_twin_of: MtpTwinOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ServingEngine(mtp_twin_of("deepseek_v3"), speculate="auto") as serving:
        assert serving.setup.path.value == "shared"
        assert serving.setup.reason == ""
