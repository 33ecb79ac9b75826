"""An expert is computed with while its last tensor is under way; what if that never comes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.stacks.stack import PackedModel, StockModel, generate
from tests.integration.stacks.telling_router import BEGUN
from tests.services.processes import running_services
from zipmoe.client import GenerationClient
from zipmoe.errors import Unavailable

FLAGS = ("--cache-slots", "8:8:0", "--workers", "1")
SMALL_REQUESTS = ("--request-bytes", "4096", "--io-threads", "8")


def test_a_store_that_is_killed_while_an_expert_is_begun_fails_the_request_and_the_next_one_works(
    packed: Callable[[str], PackedModel], stock_of: Callable[[PackedModel], StockModel]
) -> None:
    model = packed("qwen2_moe")
    with running_services() as services, ThreadPoolExecutor(1) as threads:
        half = services.start("tests.integration.stacks.half_store", model.store, *FLAGS, *SMALL_REQUESTS)
        services.decoder(model.store, *FLAGS)
        only_needed = ("--prefetch", "0", "--fill", "off")
        router = services.router(model.store, *FLAGS, *only_needed, module="tests.integration.stacks.telling_router")
        services.wait_for_router()
        with GenerationClient(services.router_target) as client:
            answer = threads.submit(generate, client, [5], 2)
            while BEGUN not in router.log():
                assert not answer.done(), answer.result()
            half.kill()
            with pytest.raises(Unavailable):
                answer.result()
            services.store(model.store, *FLAGS)
            services.wait_for_router()
            assert generate(client, [5], 8) == stock_of(model).generate([5], 8)
