"""One router over two decoders, each with an expert store of its own: more memory, and one may go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.integration.stacks.stack import GREEDY, PackedModel, StockModel, generate
from tests.services.processes import Service, Services, metric, running_services
from zipmoe.client import GenerationClient, Stopping, Token

PROMPT = [17, 3, 99, 250, 31, 8, 41]
#: A third of the experts in each, and no tensors: an expert that is begun is complete.
FLAGS = ("--cache-slots", "8:8:0", "--workers", "1")


@dataclass(frozen=True)
class Twins:
    """Two pairs of store and decoder, and the router over both."""

    pairs: tuple[Services, Services]
    router: Service
    target: str
    model: PackedModel

    def reads(self, pair: Services) -> float:
        """Experts and parts of them that a pair's store has read."""
        name = 'zipmoe_store_reads_total{{outcome="ok",part="{}"}}'
        return sum(metric(pair.started("expert_store"), name.format(part)) for part in ("all", "e", "sm"))

    def connected(self) -> float:
        """Decoders that the router has."""
        return metric(self.router, "zipmoe_decoders_connected")


@pytest.fixture(scope="module")
def twins(packed: Callable[[str], PackedModel]) -> Iterator[Twins]:
    model = packed("qwen2_moe")
    with running_services() as first, running_services() as second:
        for pair in (first, second):
            pair.store(model.store, *FLAGS)
            pair.decoder(model.store, *FLAGS)
        for pair in (first, second):
            pair.wait_for_decoder()
        decoders = ("--decoder", first.decoder_target, "--decoder", second.decoder_target)
        router = first.router(model.store, *decoders, *FLAGS)
        first.wait_for_router()
        yield Twins((first, second), router, first.router_target, model)


def test_experts_of_two_decoders_give_stocks_tokens(
    twins: Twins, stock_of: Callable[[PackedModel], StockModel]
) -> None:
    with GenerationClient(twins.target) as client:
        while twins.connected() < 2:  # it serves from the first one on
            generate(client, PROMPT, 1)
        assert generate(client, PROMPT, 16) == stock_of(twins.model).generate(PROMPT, 16)
    assert all(twins.reads(pair) > 0 for pair in twins.pairs)
    assert metric(twins.router, "zipmoe_decoder_connected") == 1


def test_a_generation_survives_a_killed_decoder_which_is_taken_back(
    twins: Twins, stock_of: Callable[[PackedModel], StockModel]
) -> None:
    tokens = 150
    wanted = stock_of(twins.model).generate(PROMPT, tokens).token_ids
    stopping = Stopping(max_new_tokens=tokens, ignore_eos=True)
    with GenerationClient(twins.target) as client:
        for pair in twins.pairs:  # the one that the other one has stood in for, and then the other one
            while twins.connected() < 2:
                generate(client, PROMPT, 1)
            events = client.generate(PROMPT, sampling=GREEDY, stopping=stopping)
            token_ids = [next(event.token_id for event in events if isinstance(event, Token))]
            pair.started("decoder").kill()
            token_ids += [event.token_id for event in events if isinstance(event, Token)]
            assert tuple(token_ids) == wanted
            assert (twins.connected(), metric(twins.router, "zipmoe_decoder_connected")) == (1, 1)
            read = twins.reads(pair)
            pair.decoder(twins.model.store, *FLAGS)
            pair.wait_for_decoder()
            while twins.connected() < 2:
                generate(client, PROMPT, 1)
            assert generate(client, PROMPT, 16).token_ids == wanted[:16]
            assert twins.reads(pair) > read
