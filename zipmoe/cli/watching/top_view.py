"""Draws `zipmoe top`: a table of rates and a bar for each layer, coloured by residency state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zipmoe.cli.console import table
from zipmoe.cli.size import format_size
from zipmoe.cli.watching.readings import GUESSES, STATES, Rates, Readings

#: Character and colour of each state. The characters make the picture readable without colours.
CELLS: Final = {
    "full": ("█", "green"),
    "packed": ("▓", "cyan"),
    "sm_only": ("▒", "yellow"),
    "e_only": ("░", "magenta"),
    "absent": ("·", "bright_black"),
}
_BAR_MOST, _BAR_LEAST = 60, 8
#: Lines other than the bars: table, gauges, legend.
_OTHER_LINES: Final = 22


def view(readings: Readings, width: int, height: int) -> RenderableType:
    """Draws the whole picture.

    Args:
        readings: the readings to draw.
        width: columns of the terminal.
        height: lines of the terminal; the bars are in several columns if one column does not fit.
    """
    parts: list[RenderableType] = [
        _rates(readings.now, readings.since_start),
        Text(),
        _gauges(readings.gauges, readings.free_slots),
    ]
    parts += [Text(f"{name} is down: {why}", style="red") for name, why in readings.down.items()]
    if readings.layers:
        parts += [Text(), _legend(readings.layers), *_layers(readings.layers, width, max(4, height - _OTHER_LINES))]
    return Group(*parts)


def cells(layer: Mapping[str, int], width: int) -> dict[str, int]:
    """Divides a bar over the states in proportion to their experts, by largest remainders."""
    experts = sum(layer.values())
    if not experts:
        return dict.fromkeys(STATES, 0)
    exact = {state: layer[state] * width / experts for state in STATES}
    counts = {state: int(exact[state]) for state in STATES}
    most_left = sorted(STATES, key=lambda state: counts[state] - exact[state])
    for state in most_left[: width - sum(counts.values())]:
        counts[state] += 1
    return counts


def _rates(now: Rates, since_start: Rates) -> Table:
    both = (now, since_start)
    rows: list[tuple[str, list[str]]] = [
        ("generated tokens/s", [f"{rates.generated_tokens_per_s:.2f}" for rates in both]),
        ("prompt tokens/s", [f"{rates.prompt_tokens_per_s:.2f}" for rates in both]),
        ("drafted tokens accepted", [_percent(rates.accepted_share) for rates in both]),
        ("found recovered", [_percent(rates.full_hit_share) for rates in both]),
        ("found packed", [_percent(rates.packed_hit_share) for rates in both]),
        ("missed", [_percent(rates.miss_share) for rates in both]),
        ("read from disk", [f"{format_size(rates.read_bytes_per_s)}/s" for rates in both]),
        ("  for each token", [_size(rates.read_bytes_per_token) for rates in both]),
        ("recovered", [f"{format_size(rates.recovered_bytes_per_s)}/s" for rates in both]),
        ("waiting for experts", [_percent(rates.stall_share) for rates in both]),
        (f"guesses {', '.join(GUESSES)}/s", [_guesses(rates) for rates in both]),
    ]
    title = f"last {now.seconds:.1f} s"
    return table("zipmoe top", ("", title, "since the start"), [(name, *values) for name, values in rows])


def _guesses(rates: Rates) -> str:
    return "  ".join(f"{rates.guesses_per_s[outcome]:.1f}" for outcome in GUESSES)


def _gauges(gauges: Mapping[str, float], free_slots: Mapping[str, int]) -> Text:
    free = ", ".join(f"{count} {pool}" for pool, count in free_slots.items())
    return Text(
        f"requests {gauges['requests_running']:.0f} running, {gauges['requests_waiting']:.0f} waiting   "
        f"reads {gauges['reads_queued']:.0f}   recoveries {gauges['recoveries_queued']:.0f}   "
        f"workers {gauges['workers_busy']:.0f} of {gauges['workers']:.0f} busy\n"
        f"decoders {gauges['decoders']:.0f}   guessing {gauges['prefetch_depth']:.0f} layers ahead   free slots {free}"
    )


def _legend(layers: Sequence[Mapping[str, int]]) -> Text:
    experts = sum(sum(layer.values()) for layer in layers)
    legend = Text("experts  ")
    for state in STATES:
        count = sum(layer[state] for layer in layers)
        letter, colour = CELLS[state]
        legend.append(f"{letter} ", style=colour)
        legend.append(f"{state} {count} ({_percent(count / experts if experts else None)})  ")
    return legend


def _layers(layers: Sequence[Mapping[str, int]], width: int, height: int) -> list[Text]:
    """Draws the bars in as many columns as the height requires."""
    columns = -(-len(layers) // height)
    rows = -(-len(layers) // columns)
    label = len(str(len(layers) - 1))
    bar = max(_BAR_LEAST, min(_BAR_MOST, width // columns - label - 3))
    lines = []
    for row in range(rows):
        line = Text(no_wrap=True)
        for index in range(row, len(layers), rows):
            line.append(f"{index:>{label}} ", style="dim")
            for state, count in cells(layers[index], bar).items():
                letter, colour = CELLS[state]
                line.append(letter * count, style=colour)
            line.append("  ")
        lines.append(line)
    return lines


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _size(nbytes: float | None) -> str:
    return "-" if nbytes is None else format_size(nbytes)
