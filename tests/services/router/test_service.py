"""The public service over a real socket: what a client gets before its answer starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest
from transformers import GenerationConfig

from tests.model.conftest import TwinOf
from tests.model.tiny import VOCABULARY
from tests.services.router.engine.test_intake import FakeTokenizer
from tests.services.router.serving import ServingEngine
from zipmoe.client import AsyncGenerationClient, Finished, Output, PromptProgress, Started, Stopping
from zipmoe.errors import InvalidRequest, ResourceExhausted
from zipmoe.model.conversation.conversation_renderer import ConversationRenderer
from zipmoe.rpc.testing import served
from zipmoe.services.router.engine.grammars import Grammars
from zipmoe.services.router.engine.intake import Intake, TokenLimits
from zipmoe.services.router.service import Backend, GenerationService
from zipmoe.v1 import generation_pb2 as pb
from zipmoe.v1 import generation_pb2_grpc

PROMPT = list(range(3, 23))
TOLD = Output(progress=True)
SHORT = Stopping(max_new_tokens=2)


@asynccontextmanager
async def client_of(serving: ServingEngine) -> AsyncIterator[AsyncGenerationClient]:
    """A client of a router around an engine, which a test starts or does not."""
    limits = TokenLimits(prompt=128, context=256, vocabulary=VOCABULARY, encoder_decoder=False)
    tokenizer: Any = FakeTokenizer()
    renderer = ConversationRenderer(tokenizer)
    intake = Intake(tokenizer, limits, GenerationConfig(eos_token_id=None), renderer)
    service = GenerationService()
    add = generation_pb2_grpc.add_GenerationServiceServicer_to_server
    with ThreadPoolExecutor(1) as tokenizing:
        grammars = Grammars(intake.grammar_vocabulary, tokenizing, 1.0)
        service.open(Backend(serving.engine, intake, pb.GetModelResponse(), tokenizing, grammars))
        async with (
            served(lambda server: add(service, server)) as test,
            AsyncGenerationClient(f"unix:{test.path}") as client,
        ):
            yield client


async def test_the_queue_is_told_before_the_first_step_and_refusals_come_before_that(twin_of: TwinOf) -> None:
    serving = ServingEngine(twin_of("qwen2_moe"), max_running=16, max_waiting=17)
    async with client_of(serving) as client:
        streams = [client.generate(PROMPT, stopping=SHORT, output=TOLD) for _ in range(17)]
        assert [await anext(stream) for stream in streams] == [PromptProgress(place, 0, 20) for place in range(1, 18)]
        with pytest.raises(InvalidRequest, match="not in the vocabulary"):
            await anext(client.generate([VOCABULARY], output=TOLD))
        with pytest.raises(ResourceExhausted, match="17 requests are waiting"):
            await anext(client.generate(PROMPT, output=TOLD))
        with serving:
            for stream in streams:
                kinds = [type(event) async for event in stream]
                assert kinds.count(Started) == 1 and kinds[-1] is Finished
                assert PromptProgress not in kinds[kinds.index(Started) :]


async def test_without_asking_the_first_event_is_the_start(twin_of: TwinOf) -> None:
    serving = ServingEngine(twin_of("qwen2_moe"))
    async with client_of(serving) as client:
        with serving:
            events = [event async for event in client.generate(PROMPT, stopping=SHORT)]
    assert isinstance(events[0], Started)
