"""Plans and forecasts of `zipmoe plan` for a range of budgets, as tables, as JSON and as a chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from zipmoe.cli.chart import chart, charts
from zipmoe.cli.console import facts, out, table
from zipmoe.cli.size import format_size
from zipmoe.planning.cache_plan import CachePlan
from zipmoe.planning.forecast import Forecast, forecast
from zipmoe.planning.plan import Planner, PlanRequest, transient_window

if TYPE_CHECKING:
    from rich.table import Table

    from zipmoe.planning.kv_tokens import KvOption

BUDGET_STEPS = 7
GIB = 1 << 30


@dataclass(frozen=True)
class BudgetRow:
    """A memory budget with its cache plan and speed forecast."""

    budget_bytes: int
    plan: CachePlan
    forecast: Forecast

    def to_json(self) -> dict[str, Any]:
        """Returns the row as JSON-ready data, with residency states by name."""
        plan = self.plan
        return {
            "memory_budget_bytes": self.budget_bytes,
            "slots": plan.slots._asdict(),
            "slot_bytes": plan.slot_bytes._asdict(),
            "experts": {state.value: count for state, count in plan.expert_counts.items()},
            "hit_rates": {state.value: rate for state, rate in plan.hit_rates.items()},
            **asdict(self.forecast),
        }


def plan_budgets(
    request: PlanRequest, arena_bytes: Callable[[int], int], budgets: Sequence[int], prompt_tokens: int
) -> list[BudgetRow]:
    """Plans the cache for each budget and forecasts the speed.

    Args:
        request: inclusion probabilities, costs and sizes to plan with.
        arena_bytes: computes the bytes that a budget leaves for experts.
        budgets: bytes over all processes.
        prompt_tokens: length of the prompt that TTFT is forecast for.

    Returns:
        A row for each budget that is large enough for the transient slots.
    """
    planner = Planner(request)
    rows = []
    for budget_bytes in budgets:
        nbytes = arena_bytes(budget_bytes)
        window = transient_window(request, nbytes)
        if window.nbytes(request.slot_bytes) <= nbytes:
            plan = planner.plan(nbytes, window)
            rows.append(BudgetRow(budget_bytes, plan, forecast(plan, request, prompt_tokens)))
    return rows


def budget_range(smallest_bytes: int, asked_bytes: int, largest_bytes: int) -> list[int]:
    """Spreads budgets evenly from the smallest to the largest and adds the asked budget."""
    step = (largest_bytes - smallest_bytes) / BUDGET_STEPS
    return sorted({asked_bytes, *(smallest_bytes + round(index * step) for index in range(BUDGET_STEPS + 1))})


def print_forecasts(rows: Sequence[BudgetRow], asked_bytes: int, based_on: dict[str, str]) -> None:
    """Prints the residency and speed of the asked budget, and a table of all budgets."""
    asked = next((row for row in rows if row.budget_bytes == asked_bytes), None)
    out().print(facts("forecast based on", based_on))
    if asked is not None:
        out().print()
        out().print(_residents(asked))
        out().print()
        out().print(facts("expected", _expected(asked)))
    out().print()
    out().print(_budget_table(rows, asked_bytes))


def kv_table(options: Sequence[KvOption], chosen: int | None) -> Table:
    """Returns a table of the sizes of the KV cache, with the speed that each leaves; a star marks the chosen size."""
    lines = [
        (
            f"{option.tokens}{' *' if option.tokens == chosen else ''}",
            format_size(option.nbytes),
            *(
                ("does not fit", "")
                if option.tpot_s is None or option.loss_ratio is None
                else (f"{option.tpot_s * 1e3:.1f}", f"{option.loss_ratio:.1%}")
            ),
        )
        for option in options
    ]
    return table("tokens of KV cache within this budget", ("--kv-tokens", "bytes", "TPOT ms", "slower by"), lines)


def draw_forecasts(rows: Sequence[BudgetRow]) -> str:
    """Draws TPOT, TTFT and bytes per token over the budget, and returns the content of an SVG file."""

    def line(value: Callable[[BudgetRow], float]) -> list[tuple[float, float]]:
        return [(row.budget_bytes / GIB, value(row)) for row in rows]

    tpot = {"TPOT": line(lambda row: row.forecast.tpot_s * 1e3), "of it stalls": line(_stall_ms)}
    ttft = {
        "warm": line(lambda row: row.forecast.ttft_s),
        "right after the start": line(lambda row: row.forecast.cold_ttft_s),
    }
    read = {"read": line(lambda row: row.forecast.bytes_per_token / 1e6)}
    tokens = rows[0].forecast.prompt_tokens
    return charts(
        [
            chart("Time per token", "memory budget, GiB", "ms", tpot),
            chart(f"Time to the first token, prompt of {tokens} tokens", "memory budget, GiB", "s", ttft),
            chart("Read from disk per token", "memory budget, GiB", "MB", read),
        ]
    )


def _stall_ms(row: BudgetRow) -> float:
    return row.forecast.stall_s * 1e3


def _residents(row: BudgetRow) -> Table:
    plan = row.plan
    total = sum(plan.expert_counts.values())
    states = [
        (state.value, count, f"{count / total:.0%}", f"{plan.hit_rates[state]:.1%}")
        for state, count in plan.expert_counts.items()
    ]
    return table(
        f"expected residency with {format_size(row.budget_bytes)}", ("state", "experts", "of all", "of uses"), states
    )


def _expected(row: BudgetRow) -> dict[str, str]:
    plan, made = row.plan, row.forecast
    slots = ", ".join(
        f"{count} {pool} of {format_size(size)}"
        for pool, count, size in zip(("E", "SM", "tensor"), plan.slots, plan.slot_bytes, strict=True)
    )
    return {
        "slots": slots,
        "read per token": f"{made.bytes_per_token / 1e6:.1f} MB",
        "TPOT": f"{made.tpot_s * 1e3:.1f} ms, {1 / made.tpot_s:.1f} tokens/s; {made.stall_s * 1e3:.1f} ms are stalls",
        "TTFT": f"{made.ttft_s:.2f} s for {made.prompt_tokens} tokens, {made.cold_ttft_s:.2f} s right after the start",
    }


def _budget_table(rows: Sequence[BudgetRow], asked_bytes: int) -> Table:
    lines = [
        (
            format_size(row.budget_bytes) + (" *" if row.budget_bytes == asked_bytes else ""),
            *(f"{count}" for count in row.plan.slots),
            *(f"{rate:.0%}" for rate in row.plan.hit_rates.values()),
            f"{row.forecast.bytes_per_token / 1e6:.1f}",
            f"{row.forecast.tpot_s * 1e3:.1f}",
            f"{row.forecast.ttft_s:.2f}",
        )
        for row in rows
    ]
    states = [f"{state.value} %" for state in rows[0].plan.hit_rates] if rows else []
    columns = ("budget", "E slots", "SM slots", "tensor slots", *states, "MB a token", "TPOT ms", "TTFT s")
    return table("budgets, and where a token's experts are expected", columns, lines)
