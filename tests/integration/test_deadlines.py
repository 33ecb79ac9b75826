"""A client's deadline ends its request in all three processes, however long the disk hangs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.integration.stacks.held_store import HOLD
from tests.integration.stacks.stack import GREEDY, PackedModel, StockModel, generate
from tests.services.processes import free_slots, metric, running_services
from zipmoe.client import GenerationClient, Stopping
from zipmoe.errors import DeadlineExceeded

FLAGS = ("--cache-slots", "7:6:0", "--workers", "1")
PROMPT = [17, 3, 99, 250, 31, 8, 41]


def test_a_deadline_that_passes_while_the_disk_hangs_frees_everything_and_the_next_request_is_served(
    packed: Callable[[str], PackedModel], stock_of: Callable[[PackedModel], StockModel]
) -> None:
    model = packed("qwen2_moe")
    with running_services() as services:
        hold = services.runtime_dir / HOLD
        store = services.start("tests.integration.stacks.held_store", model.store, *FLAGS, "--io-threads", "1")
        services.decoder(model.store, *FLAGS)
        router = services.router(model.store, *FLAGS, "--prefetch", "0", "--fill", "off")
        services.wait_for_router()
        with GenerationClient(services.router_target) as client:
            hold.touch()
            with pytest.raises(DeadlineExceeded):
                list(client.generate(PROMPT, sampling=GREEDY, stopping=Stopping(max_new_tokens=4), timeout_s=1.0))
            while metric(router, "zipmoe_requests_running"):
                pass  # the wait for an expert would take two minutes without the deadline
            assert metric(router, 'zipmoe_kv_pages{state="used"}') == 0
            hold.unlink()
            assert generate(client, PROMPT, 8) == stock_of(model).generate(PROMPT, 8)
        assert metric(store, 'zipmoe_store_reads_total{outcome="late",part="all"}') > 0
        assert metric(store, 'zipmoe_store_reads_total{outcome="error",part="all"}') == 0
        assert metric(store, "zipmoe_store_queue_depth") == 0
        router.end()
        assert (free_slots(store, "e"), free_slots(store, "sm")) == (7, 6)
