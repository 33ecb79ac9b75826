"""Builds and runs a router: store and dense weights, model, engine, gRPC and metrics servers."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog
import torch
from prometheus_client import CollectorRegistry
from transformers import GenerationConfig

from zipmoe import __version__
from zipmoe.arena.headroom import memory_headroom
from zipmoe.calibration.saved_probe import ProbeRun
from zipmoe.model.build.build import BuiltModel, build_from_store
from zipmoe.model.conversation.conversation_renderer import ConversationRenderer
from zipmoe.model.experts.device import resolve_device
from zipmoe.model.linear.linear_order import OrderTable
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.numerics import check_row_invariance
from zipmoe.model.probe.result import ProbeResult
from zipmoe.model.stock.generation_settings import IGNORED_EFFECT, ignored_settings
from zipmoe.model.text.token_ids_only import AnyTokenizer, TokenIdsOnly, load_tokenizer
from zipmoe.process.metrics import service_registry, start_metrics_server
from zipmoe.process.secret_file import read_secret
from zipmoe.rpc.listener import tls_credentials
from zipmoe.rpc.server import ServiceHost
from zipmoe.services.router.config import RouterConfig
from zipmoe.services.router.dense_setup import compresses_dense, tell_dense
from zipmoe.services.router.engine.engine import Engine
from zipmoe.services.router.engine.grammars import THREADS, Grammars
from zipmoe.services.router.engine.intake import Intake, TokenLimits
from zipmoe.services.router.engine.step_setup import StepSetup, cache_tokens
from zipmoe.services.router.experts.arena_placement import ArenaPlacement
from zipmoe.services.router.experts.brain_metrics import BrainMetrics
from zipmoe.services.router.experts.decoders import Decoders
from zipmoe.services.router.experts.expert_form import check_tensor_form
from zipmoe.services.router.experts.expert_setup import ExpertSetup
from zipmoe.services.router.metrics import RouterMetrics
from zipmoe.services.router.service import Backend, GenerationService
from zipmoe.store.format.manifest import Manifest, read_manifest
from zipmoe.v1 import generation_pb2 as pb
from zipmoe.v1 import generation_pb2_grpc

SERVICE_NAME = "zipmoe.v1.GenerationService"
_LOG = structlog.get_logger(__name__)


def _limits(config: RouterConfig, model: BuiltModel) -> TokenLimits:
    context = min(model.context_tokens, cache_tokens(config, model))
    return TokenLimits(
        prompt=min(context, config.max_prompt_tokens),
        context=context,
        vocabulary=model.vocabulary_size,
        encoder_decoder=model.encoder_decoder,
    )


def _describe(
    config: RouterConfig, manifest: Manifest, model: BuiltModel, intake: Intake, setup: StepSetup, probe: ProbeResult
) -> pb.GetModelResponse:
    return pb.GetModelResponse(
        name=config.store.resolve().name,
        family=manifest.family,
        store_digest=manifest.digest,
        context_tokens=intake.limits.context,
        vocabulary_size=intake.limits.vocabulary,
        has_chat_template=intake.tokenizer.has_chat_template,
        moe_layers=len(manifest.layers),
        experts_per_layer=max(layer.expert_count for layer in manifest.layers),
        encoder_decoder=model.encoder_decoder,
        version=__version__,
        compute_path=setup.path.value,
        compute_path_reason=setup.reason,
        lazy_experts_reason=probe.lazy,
        recorded_layers=setup.recorded.recorded_layers,
        eager_pass_reason=setup.recorded.why_eager,
        prompt_limit_tokens=intake.limits.prompt,
        reasoning_format=intake.conversations.formats.reasoning_name,
        tool_call_format=intake.conversations.formats.calls_name,
        template_names=intake.conversations.template_names,
    )


async def serve(config: RouterConfig) -> None:
    """Runs the router until a signal.

    Raises:
        ZipMoeError: the router cannot start, a decoder can never be attached (another store, another memory budget), or
            the model thread has failed.
    """
    sockets = config.sockets()
    registry = service_registry("router")
    token = read_secret(config.token_file) if config.token_file else None
    async with ServiceHost("router", registry, [SERVICE_NAME], token=token, grace_s=config.drain_timeout_s) as host:
        host.listen(sockets.router)
        if config.listen:
            credentials = None
            if config.tls_certificate is not None and config.tls_key is not None:
                credentials = tls_credentials(config.tls_certificate, config.tls_key)
            host.listen(config.listen, credentials, insecure_listen=config.insecure_listen)
        metrics_server = start_metrics_server(config.metrics_port, registry, address=config.metrics_address)
        host.exit_stack.callback(metrics_server.stop)
        _LOG.info("starting", **{**config.resolved(), "metrics_port": metrics_server.port})
        service = GenerationService()
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(service, host.server)
        await host.start()
        engine = await _start_engine(config, host, registry, service)
        try:
            await host.run_until_signal()
        finally:
            stopped = await asyncio.to_thread(engine.stop, config.drain_timeout_s)
            if not stopped:
                _LOG.warning("engine_abandoned", after_s=config.drain_timeout_s)
        if engine.fatal is not None:
            raise engine.fatal


async def _start_engine(
    config: RouterConfig, host: ServiceHost, registry: CollectorRegistry, service: GenerationService
) -> Engine:
    loop = asyncio.get_running_loop()
    metrics = RouterMetrics(registry)
    manifest = read_manifest(config.store)
    device = resolve_device(config.device)
    split = config.split_here(manifest, device.type)
    if device.type == "cpu":
        memory_headroom().require(config.budget_request(0, device.type).dense(manifest), "the dense weights")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    placement = ArenaPlacement(device, manifest.max_tensor_bytes)
    planning = ThreadPoolExecutor(1, thread_name_prefix="plan")
    host.exit_stack.callback(planning.shutdown, wait=False)
    compresses = compresses_dense(config, manifest, device.type)
    experts = ExpertSetup(config, manifest, device.type, metrics, planning, compresses).make(placement)
    registry.register(BrainMetrics([layer.expert_count for layer in manifest.layers], experts))
    probe = ProbeRun(config.store, config.threads)
    host.exit_stack.callback(probe.stop)
    linears = Linears() if config.linear == "auto" else Linears(OrderTable(orders=()))
    build = partial(build_from_store, config.store, manifest, experts, placement, linears, compress_dense=compresses)
    model = await asyncio.to_thread(build)
    tell_dense(config, manifest, model, metrics)
    await asyncio.to_thread(check_tensor_form, config.tensor_form, manifest, device.type, linears)
    if model.linears is not None and config.linear == "auto":
        log = _LOG.info if model.linears.matched else _LOG.warning
        log("linears_tested", result=str(model.linears))
    report = await asyncio.to_thread(check_row_invariance)
    metrics.exact.set(int(report.row_invariant))
    _LOG.info("model_built", device=str(device), threads=torch.get_num_threads(), **_facts(model, report.row_invariant))
    found = await asyncio.to_thread(probe.result)
    tokenizer = await asyncio.to_thread(load_tokenizer, config.store)
    _complete(model.generation_config, tokenizer)
    intake = Intake(
        tokenizer,
        _limits(config, model),
        model.generation_config,
        ConversationRenderer(tokenizer, trust_control_tokens=config.trust_control_tokens),
    )
    setup = StepSetup(
        config, metrics, tokenizer, manifest.digest, found, split.state_requests if split is not None else None
    )
    stepper = await asyncio.to_thread(setup.make, model, linears if device.type == "cpu" else None, experts)
    tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
    host.exit_stack.callback(tokenizing.shutdown, wait=False)
    compiling = ThreadPoolExecutor(THREADS, thread_name_prefix="grammar")
    host.exit_stack.callback(compiling.shutdown, wait=False, cancel_futures=True)
    grammars = Grammars(intake.grammar_vocabulary, compiling, config.constraint_timeout_s)
    check = partial(setup.check, model, stepper, experts)

    def open_service() -> None:
        described = _describe(config, manifest, model, intake, setup, found)
        service.open(Backend(engine, intake, described, tokenizing, grammars))
        host.set_serving(SERVICE_NAME, engine.ready and decoders.connected)

    def checked() -> None:  # the check may have changed the path
        loop.call_soon_threadsafe(open_service)

    def changed(count: int) -> None:
        metrics.decoder_connected.set(int(count > 0))
        metrics.decoders.set(count)
        loop.call_soon_threadsafe(host.set_serving, SERVICE_NAME, count > 0 and engine.ready)
        engine.wake()

    def failed() -> None:
        loop.call_soon_threadsafe(host.draining.set)

    targets = config.decoder or [f"unix:{config.sockets().decoder}"]
    decoders = Decoders(targets, manifest, split.slots if split else None, config.tensor_form, experts, changed)
    engine = Engine(stepper, decoders, check, checked=checked, failed=failed)
    open_service()
    engine.start()
    return engine


def _complete(defaults: GenerationConfig, tokenizer: AnyTokenizer) -> None:
    """Gives a generation_config.json without an end token the tokenizer's, and logs the settings that are ignored."""
    if defaults.eos_token_id is None and tokenizer.eos_id is not None:
        defaults.eos_token_id = tokenizer.eos_id
        _LOG.info("end_token_from_tokenizer", token_id=tokenizer.eos_id)
    if isinstance(tokenizer, TokenIdsOnly):
        _LOG.warning(
            "tokenizer_missing",
            reason=tokenizer.reason.message,
            effect="token ids are served; text, conversations and stop strings are refused",
            next_step=tokenizer.reason.next_step,
        )
        if defaults.stop_strings is not None:
            effect = "stop strings need a tokenizer"
            _LOG.warning(
                "generation_setting_ignored", setting="stop_strings", value=defaults.stop_strings, effect=effect
            )
    for name, value in ignored_settings(defaults).items():
        _LOG.warning("generation_setting_ignored", setting=name, value=value, effect=IGNORED_EFFECT)


def _facts(model: BuiltModel, row_invariant: bool) -> dict[str, object]:
    return {
        "dense_bytes": model.dense.nbytes,
        "dense_locked": model.dense.locked,
        "dense_huge_page_bytes": model.dense.huge_page_bytes,
        "row_invariant": row_invariant,
        "context_tokens": model.context_tokens,
    }
