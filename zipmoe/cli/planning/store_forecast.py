"""Forecasts of `zipmoe plan`, from the store, the calibration of this machine and the popularity of experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from zipmoe.cli.console import out, waiting
from zipmoe.cli.planning.calibrate import describe_others
from zipmoe.cli.planning.dense_choice import BF16, BF16_UNMEASURED, DenseChoice, choose_dense
from zipmoe.errors import BudgetInfeasible, InvalidRequest, ZipMoeError

if TYPE_CHECKING:
    from zipmoe.arena.tensor_form import TensorForm
    from zipmoe.calibration.calibration import Calibration
    from zipmoe.cli.planning.budget_table import BudgetRow
    from zipmoe.planning.kv_tokens import KvOption
    from zipmoe.planning.memory_split import BudgetRequest
    from zipmoe.planning.plan import Planner, PlanRequest
    from zipmoe.planning.popularity import Popularity
    from zipmoe.process.budgeted import BudgetedConfig
    from zipmoe.store.format.manifest import Manifest


@dataclass(frozen=True)
class StoreForecast:
    """Forecasts for a range of budgets, or the reason why there are none.

    Attributes:
        rows: forecasts by ascending budget.
        based_on: sources of the forecasts, as names and values for people.
        problem: reason why there are no forecasts; empty if there are forecasts.
        kv_options: sizes of the KV cache and the speed with each; empty if the operator has chosen a size.
        dense: the form of the dense weights.
        tensor_form: the form of recovered experts.
    """

    rows: Sequence[BudgetRow] = ()
    based_on: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    kv_options: Sequence[KvOption] = ()
    dense: DenseChoice = BF16_UNMEASURED
    tensor_form: TensorForm = "bf16"

    @property
    def kv_tokens(self) -> int | None:
        """The chosen size of the KV cache, in tokens; None if the operator has chosen one, or without forecasts."""
        from zipmoe.planning.kv_tokens import affordable_tokens

        return affordable_tokens(self.kv_options) if self.kv_options else None

    def row(self, asked_bytes: int) -> BudgetRow | None:
        """Returns the forecast for a budget; None if there is none."""
        return next((row for row in self.rows if row.budget_bytes == asked_bytes), None)

    def to_json(self, asked_bytes: int) -> dict[str, Any]:
        """Returns the forecast for the asked budget and all forecasts, as JSON-ready data."""
        row = self.row(asked_bytes)
        return {
            "forecast": None if row is None else row.to_json(),
            "budgets": [row.to_json() for row in self.rows],
            "kv_options": [asdict(option) for option in self.kv_options],
            "dense_weights": asdict(self.dense),
            "based_on": self.based_on,
            "no_forecast_because": self.problem or None,
        }

    def print(self, asked_bytes: int) -> None:
        """Prints the forecasts as tables, or the reason why there are none."""
        if self.problem:
            out().print(f"no forecast: {self.problem}", markup=False)
            return
        from zipmoe.cli.planning.budget_table import kv_table, print_forecasts

        print_forecasts(self.rows, asked_bytes, self.based_on)
        if self.kv_options:
            out().print()
            out().print(kv_table(self.kv_options, self.kv_tokens))


def forecast_store(
    config: BudgetedConfig,
    manifest: Manifest,
    device: str,
    io_threads: int,
    prompt_tokens: int,
    trace: Path | None,
    *,
    quiet: bool,
) -> StoreForecast:
    """Forecasts residency and speed for a range of budgets and for the configured budget.

    Measures this machine first if its figures are missing. Where the operator has not said how many tokens the KV cache
    holds, and no slots, it is the model's context as far as the forecast speed allows.

    Raises:
        NotFound, InvalidRequest: the trace cannot be read.
    """
    from zipmoe.calibration.measure import ensure_calibration
    from zipmoe.calibration.plan_request import plan_request
    from zipmoe.cli.planning.budget_table import budget_range, plan_budgets
    from zipmoe.planning.kv_tokens import affordable_tokens
    from zipmoe.planning.memory_split import arena_bytes, computes_packed, split_budget
    from zipmoe.planning.plan import transient_window
    from zipmoe.process.budgeted import read_model_config
    from zipmoe.store.read.read_defaults import REQUEST_BYTES

    popularity, origin = _popularity(manifest, trace)
    try:
        with waiting("measuring this machine", quiet=quiet) as show:
            calibration = ensure_calibration(config.store, manifest, device, lambda what: show(f"measuring: {what}"))
        costs_of = partial(
            calibration.costs,
            manifest.digest,
            device=device,
            worker_count=config.workers,
            io_threads=io_threads,
            request_bytes=REQUEST_BYTES,
        )
        costs_of()  # raises if the store has not been measured
    except ZipMoeError as error:  # the split is shown without forecasts
        return StoreForecast(problem=error.message)
    except OSError as error:
        return StoreForecast(problem=f"cannot keep what is measured: {error}")
    model = read_model_config(config.store, manifest)
    budget = config.budget_request(int(config.memory_budget or 0), device)
    measured = calibration.stores[manifest.digest].models[device]

    def request_of(form: TensorForm, *, compressed: bool) -> PlanRequest:
        costs = costs_of(compressed=compressed, tensor_form=form)
        return plan_request(manifest, model, costs, popularity, form)

    def tpot_of(form: TensorForm) -> float:
        seconds = _tpot_s(
            manifest, model, replace(budget, tensor_form=form), request_of(form, compressed=False), prompt_tokens
        )
        return math.inf if seconds is None else seconds

    form = config.tensor_form
    if (
        "tensor_form" not in config.model_fields_set
        and measured.form_ffn is not None
        and computes_packed(manifest, device)
    ):
        form = min(("bf16", cast("TensorForm", measured.form_ffn.form)), key=tpot_of)
    budget = replace(budget, tensor_form=form)
    requests = {compressed: request_of(form, compressed=compressed) for compressed in (False, True)}

    def tpot_s(compressed: bool, dense_bytes: int) -> float | None:
        with_dense = replace(budget, dense_bytes=dense_bytes)
        return _tpot_s(manifest, model, with_dense, requests[compressed], prompt_tokens)

    dense = choose_dense(config.dense, manifest.dense_bytes, measured.compressed, tpot_s)
    request = requests[dense.form != BF16]
    budget = replace(budget, dense_bytes=dense.dense_bytes)
    options = []
    if "kv_tokens" not in config.model_fields_set and budget.slots is None:
        options = _kv_options(manifest, model, budget, request, prompt_tokens)
        budget = replace(budget, kv_tokens=affordable_tokens(options))
    fixed_bytes = budget.budget_bytes - arena_bytes(manifest, model, budget)
    smallest_bytes = budget.budget_bytes
    try:
        split_budget(manifest, model, replace(budget, budget_bytes=1))
    except BudgetInfeasible as error:
        smallest_bytes = error.smallest_bytes
    everything = manifest.expert_count * request.slot_bytes.tensor
    window_bytes = transient_window(request, everything).nbytes(request.slot_bytes)
    budgets = budget_range(smallest_bytes, budget.budget_bytes, fixed_bytes + everything + window_bytes)
    rows = plan_budgets(request, lambda nbytes: nbytes - fixed_bytes, budgets, prompt_tokens)
    based_on = {"popularity": origin, **_describe(calibration, manifest, device)}
    return StoreForecast(rows, based_on, kv_options=options, dense=dense, tensor_form=form)


def _kv_options(
    manifest: Manifest, model: dict[str, object], budget: BudgetRequest, request: PlanRequest, prompt_tokens: int
) -> list[KvOption]:
    """Forecasts the speed within the budget for several sizes of the KV cache."""
    from zipmoe.planning.kv_tokens import context_of, kv_options
    from zipmoe.planning.plan import Planner

    planner = Planner(request)

    def tpot_s(tokens: int) -> float | None:
        return _tpot_s(manifest, model, replace(budget, kv_tokens=tokens), request, prompt_tokens, planner)

    return kv_options(context_of(model), lambda tokens: replace(budget, kv_tokens=tokens).kv_bytes(model), tpot_s)


def _tpot_s(
    manifest: Manifest,
    model: dict[str, object],
    budget: BudgetRequest,
    request: PlanRequest,
    prompt_tokens: int,
    planner: Planner | None = None,
) -> float | None:
    """Forecasts the time per token within a budget; None if the budget is too small."""
    from zipmoe.planning.forecast import forecast
    from zipmoe.planning.memory_split import arena_bytes
    from zipmoe.planning.plan import Planner, transient_window

    nbytes = arena_bytes(manifest, model, budget)
    window = transient_window(request, nbytes)
    if window.nbytes(request.slot_bytes) > nbytes:
        return None
    plan = (planner or Planner(request)).plan(nbytes, window)
    return forecast(plan, request, prompt_tokens).tpot_s


def write_plot(path: Path, forecasts: StoreForecast) -> None:
    """Draws the forecasts into an SVG file.

    Raises:
        InvalidRequest: the name of the file does not end in .svg, or there is no forecast.
        OSError: the file cannot be written.
    """
    from zipmoe.cli.chart import check_svg_name
    from zipmoe.cli.planning.budget_table import draw_forecasts

    check_svg_name(path)
    if not forecasts.rows:
        raise InvalidRequest(
            f"there is no forecast to draw: {forecasts.problem or 'no budget of the range is feasible'}",
            next_step="leave out --plot, or run `zipmoe calibrate STORE` and do what it says",
        )
    path.write_text(draw_forecasts(forecasts.rows), encoding="utf-8")


def _popularity(manifest: Manifest, trace: Path | None) -> tuple[Popularity, str]:
    from zipmoe.calibration.plan_request import uniform_popularity
    from zipmoe.calibration.saved_popularity import load_popularity, popularity_of_trace

    if trace is not None:
        return popularity_of_trace(trace, manifest), f"the trace {trace}"
    if (known := load_popularity(manifest)) is not None:
        return known, f"what earlier runs used, worth {known.steps_seen(0):.0f} steps"
    return uniform_popularity(manifest), "none known, all experts alike: real use is less even and does better"


def _describe(calibration: Calibration, manifest: Manifest, device: str) -> dict[str, str]:
    speed = calibration.stores[manifest.digest]
    model = speed.models[device]
    best = max(point.bytes_per_s for point in calibration.disk.points)
    recover = max(point.bytes_per_s * point.worker_count for point in speed.recover)
    packed = (
        f"{model.packed_ffn.first_s * 1e3:.2f} ms" if model.packed_ffn else "no kernel: experts are recovered first"
    )
    formed = ""
    if model.form_ffn is not None:
        formed = f" (in {model.form_ffn.form} form {model.form_ffn.ffn.first_s * 1e3:.2f} ms)"
    return {
        "disk": f"{best / 1e9:.2f} GB/s at best ({calibration.effort} measurement)",
        "recovery": f"{recover / 1e9:.2f} GB/s at best with {speed.codec}",
        "FFN of an expert": f"FULL {model.full_ffn.first_s * 1e3:.2f} ms{formed}, PACKED {packed}",
        "dense part": f"{model.dense.first_s * 1e3:.2f} ms a layer"
        if model.dense
        else f"not in the forecast: {model.why_no_dense}",
        "others took": describe_others(max(calibration.others_ratio, speed.others_ratio)),
    }
