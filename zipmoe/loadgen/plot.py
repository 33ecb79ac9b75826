"""Draws a run: the distribution of the latencies and the course of the requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zipmoe.errors import InvalidRequest
from zipmoe.loadgen.sample import RequestSample


def plot(samples: Sequence[RequestSample], title: str, path: Path) -> None:
    """Draws the cumulative shares of three latencies, and a line over time for each request.

    Args:
        samples: samples of the run.
        title: heading with the model and the load.
        path: the PNG file to write; overwritten.

    Raises:
        InvalidRequest: no request was answered.
    """
    # Not pyplot: a bare figure needs no window system and has no global state.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    complete = [sample for sample in samples if sample.error is None]
    if not complete:
        raise InvalidRequest("a plot needs a complete answer")
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    figure.suptitle(title)
    spread, course = figure.subplots(1, 2)
    curves = {
        "time to first token": [sample.first_token_s for sample in complete if sample.first_token_s is not None],
        "between tokens": [gap for sample in complete for gap in sample.gaps_s],
        "whole answer": [sample.duration_s for sample in complete],
    }
    for name, values in curves.items():
        ordered = sorted(max(value, 1e-6) for value in values)
        if ordered:
            spread.step(ordered, [(rank + 1) / len(ordered) for rank in range(len(ordered))], where="post", label=name)
    spread.set_xscale("log")
    spread.set_xlabel("seconds")
    spread.set_ylabel("share of all that are not longer")
    spread.set_ylim(0, 1)
    spread.grid(alpha=0.3)
    spread.legend(loc="upper left")
    for sample in samples:
        colour = "C3" if sample.error is not None else "C0"
        first_s = sample.token_times_s[0] if sample.token_times_s else sample.end_s
        course.plot([sample.due_s, first_s], [sample.index] * 2, color="C7", linewidth=1)
        course.plot([first_s, sample.end_s], [sample.index] * 2, color=colour, linewidth=1.5)
    for label, colour in (("waits for its first token", "C7"), ("is answered", "C0"), ("fails", "C3")):
        course.plot([], [], color=colour, label=label)
    course.set_xlabel("seconds since the run began")
    course.set_ylabel("request")
    course.yaxis.set_major_locator(MaxNLocator(integer=True))
    course.legend(loc="upper left")
    figure.savefig(path, dpi=120)
