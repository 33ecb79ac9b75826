"""What breaks takes down nothing but what needed it, and heals by itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.conftest import TIGHT
from tests.integration.stacks.stack import GREEDY, PackedModel, Stack, StockModel, generate, run_python, stack
from zipmoe.client import Finished, GenerationClient, Message, Stopping, Token
from zipmoe.errors import CorruptData, InvalidRequest, ResourceExhausted, Unavailable
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.rpc.client import channel, wait_until_serving
from zipmoe.store.format.manifest import read_manifest
from zipmoe.store.pack.writer import pack_store
from zipmoe.types import ExpertKey

PROMPT = [17, 3, 99, 250, 31, 8, 41]
GENERATION = "zipmoe.v1.GenerationService"


@pytest.mark.parametrize("victim", ["decoder", "expert-store"])
def test_a_killed_service_fails_the_running_request_and_a_restarted_one_serves_the_next(
    victim: str,
    packed: Callable[[str], PackedModel],
    stock_of: Callable[[PackedModel], StockModel],
    short_folder: Path,
) -> None:
    model = packed("qwen2_moe")
    wanted = stock_of(model).generate(PROMPT, 8)
    with stack(model, short_folder, TIGHT) as running, GenerationClient(running.target) as client:
        events = client.generate(PROMPT, sampling=GREEDY, stopping=Stopping(max_new_tokens=400, ignore_eos=True))
        assert isinstance(next(event for event in events if isinstance(event, Token)), Token)
        running.kill(victim)
        with pytest.raises(Unavailable):
            list(events)
        with running.restarted(victim):
            wait_until_serving(running.target, GENERATION, 60.0)
            assert generate(client, PROMPT, 8) == wanted


def test_a_killed_router_leaves_nothing_leased_and_a_restarted_one_serves(
    packed: Callable[[str], PackedModel], stock_of: Callable[[PackedModel], StockModel], short_folder: Path
) -> None:
    model = packed("qwen2_moe")
    with stack(model, short_folder, TIGHT) as running:
        with GenerationClient(running.target) as client:
            events = client.generate(PROMPT, sampling=GREEDY, stopping=Stopping(max_new_tokens=400, ignore_eos=True))
            next(event for event in events if isinstance(event, Token))
            running.kill("router")
            with pytest.raises(Unavailable):
                list(events)
        with running.restarted("router"), GenerationClient(running.target) as client:
            wait_until_serving(running.target, GENERATION, 60.0)
            assert generate(client, PROMPT, 8) == stock_of(model).generate(PROMPT, 8)
            assert running.metric("decoder", "zipmoe_sessions") == 1


CLIENT = """
import sys
from zipmoe.client import Finished, GenerationClient, Message, Stopping, Token
with GenerationClient(sys.argv[1]) as client:
    for event in client.generate([5, 6, 7], stopping=Stopping(max_new_tokens=480, ignore_eos=True)):
        if isinstance(event, Token):
            print(event.token_id, flush=True)
"""


def test_a_client_that_is_killed_ends_its_request(qwen: Stack) -> None:
    client = run_python(CLIENT, qwen.target)
    assert client.stdout is not None
    assert client.stdout.readline().strip().isdigit()
    client.kill()
    client.wait()
    client.stdout.close()
    with GenerationClient(qwen.target) as other:
        while qwen.metric("router", "zipmoe_requests_running"):
            generate(other, PROMPT, 1)  # a round through the engine: the other request has had its turn to end
        generated = qwen.metric("router", "zipmoe_generated_tokens_total")
        generate(other, PROMPT, 3)
        assert qwen.metric("router", "zipmoe_generated_tokens_total") == generated + 3


def test_a_cancelled_request_ends_before_its_next_step(qwen: Stack) -> None:
    cancelled = qwen.metric("router", "zipmoe_requests_total")
    with GenerationClient(qwen.target) as client:
        events = client.generate(PROMPT, stopping=Stopping(max_new_tokens=480, ignore_eos=True))
        next(event for event in events if isinstance(event, Token))
        events.close()  # type: ignore[attr-defined]
        generate(client, PROMPT, 2)
        assert qwen.metric("router", "zipmoe_requests_running") == 0
        assert qwen.metric("router", "zipmoe_requests_total") == cancelled + 2


def test_a_damaged_expert_is_data_loss_for_who_needs_it_and_nobody_else(
    packed: Callable[[str], PackedModel],
    stock_of: Callable[[PackedModel], StockModel],
    short_folder: Path,
    tmp_path: Path,
) -> None:
    model = packed("switch_transformers")  # top-1: prompts that avoid an expert are easy to find
    stock = stock_of(model)
    store = tmp_path / "store"
    shutil.copytree(model.store, store)
    manifest = read_manifest(store)
    key = ExpertKey(0, 3)
    record = manifest.record(key)
    with (store / manifest.files[record.file].name).open("r+b") as file:
        file.seek(record.offset + record.e_bytes + 10)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    outcomes = set()
    with (
        stack(PackedModel(model.checkpoint, store), short_folder, TIGHT) as running,
        GenerationClient(running.target) as client,
    ):
        for token in range(20, 60):
            try:
                assert generate(client, [token, 1], 2) == stock.generate([token, 1], 2)
                outcomes.add("answered")
            except CorruptData as error:
                assert str(key) in error.message
                outcomes.add("data loss")
        assert running.metric("expert-store", "zipmoe_store_checksum_failures_total") > 0
    assert outcomes == {"answered", "data loss"}


def test_bad_requests_are_refused_by_name_and_cost_nothing(qwen: Stack) -> None:
    with GenerationClient(qwen.target) as client:
        context = client.model().context_tokens
        for prompt, message in (
            ([], "empty"),
            ("", "empty"),
            ([999_999], "999999 is not in the vocabulary"),
            ([5] * (context + 1), f"{context + 1} tokens"),
        ):
            with pytest.raises(InvalidRequest, match=message):
                list(client.generate(prompt))
        with pytest.raises(InvalidRequest, match=f"the prompt of {context} leaves no room"):
            list(client.generate([5] * context))
        assert generate(client, PROMPT, 1)


def test_more_waiting_requests_than_allowed_are_told_to_come_back(
    packed: Callable[[str], PackedModel], short_folder: Path
) -> None:
    stopping = Stopping(max_new_tokens=450, ignore_eos=True)
    one_each = {"max_running": 1, "max_waiting": 1}
    with (
        stack(packed("qwen2_moe"), short_folder, TIGHT, **one_each) as running,
        GenerationClient(running.target) as client,
    ):
        first = client.generate(PROMPT, sampling=GREEDY, stopping=stopping)
        next(event for event in first if isinstance(event, Token))
        with ThreadPoolExecutor(1) as threads:
            second = threads.submit(list, client.generate(PROMPT, sampling=GREEDY, stopping=stopping))
            while not running.metric("router", "zipmoe_requests_waiting"):
                assert not second.done()
            with pytest.raises(ResourceExhausted, match="1 requests are waiting") as refusal:
                list(client.generate(PROMPT, sampling=GREEDY, stopping=stopping))
            assert refusal.value.retry_after_s > 0
            first.close()  # type: ignore[attr-defined]
            assert sum(isinstance(event, Token) for event in second.result()) == 450


def test_health_and_reflection_answer_for_every_service(qwen: Stack) -> None:
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    services = {
        "router": GENERATION,
        "decoder": "zipmoe.internal.v1.DecoderService",
        "expert-store": "zipmoe.internal.v1.ExpertStoreService",
    }
    for process, service in services.items():
        with channel(f"unix:{qwen.runtime / process}.sock") as opened:
            for name in ("", service):
                request = health_pb2.HealthCheckRequest(service=name)
                answer = health_pb2_grpc.HealthStub(opened).Check(request, timeout=5)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            database = ProtoReflectionDescriptorDatabase(opened)
            assert service in database.get_services()
            assert DescriptorPool(database).FindServiceByName(service).methods


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "has no tokenizer"), (b"\n\x0e\n\x05<unk>", "needs the package sentencepiece")],
    ids=["none", "sentencepiece"],
)
def test_token_ids_are_served_and_text_is_refused_with_the_reason(
    packed: Callable[[str], PackedModel],
    short_folder: Path,
    tmp_path: Path,
    content: bytes | None,
    reason: str,
) -> None:
    original = packed("qwen2_moe").checkpoint
    checkpoint = shutil.copytree(original, tmp_path / "checkpoint")
    for path in checkpoint.glob("tokenizer*"):
        path.unlink()
    if content is not None:
        (checkpoint / "tokenizer.model").write_bytes(content)
    pack_store(catalogue(checkpoint), tmp_path / "store")
    wanted = StockModel(original).generate(PROMPT, 6)
    with (
        stack(PackedModel(checkpoint, tmp_path / "store"), short_folder, TIGHT) as running,
        GenerationClient(running.target) as client,
    ):
        assert not client.model().has_chat_template
        assert generate(client, PROMPT, 6).token_ids == wanted.token_ids
        events = list(client.generate(PROMPT, stopping=Stopping(max_new_tokens=6, ignore_eos=True)))
        assert [event.text for event in events if isinstance(event, Token | Finished)] == [""] * 7
        for refuse in (
            lambda: list(client.generate("hello")),
            lambda: client.tokenize("hello"),
            lambda: client.tokenize([Message("user", "hello")]),
            lambda: client.detokenize([1, 2]),
            lambda: list(client.generate(PROMPT, stopping=Stopping(max_new_tokens=2, stop_strings=("x",)))),
        ):
            with pytest.raises(InvalidRequest, match=reason) as raised:
                refuse()
            assert "send the prompt as token ids" in raised.value.diagnostics()
        log = running.process("router").log_path.read_text()
        assert log.count("tokenizer_missing") == 1
