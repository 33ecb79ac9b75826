"""Reads and writes routing traces, which record the experts that every layer of every step used.

A trace consists of JSON lines, one for each pass through a layer:

    {"step": 0, "layer": 0, "phase": "prefill", "experts": [1, 4, 5, 7], "tokens": 12}

A line has exactly these five fields, in any order. `step` and `layer` count from 0, and lines ascend by step, then by
layer. `phase` is `prefill` or `decode`. `tokens` is the number of tokens of the step. All layers of a step have the
same `phase` and `tokens`. `experts` are the distinct experts that the tokens use, ascending.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from zipmoe.errors import InvalidRequest, NotFound
from zipmoe.residency.pools import Grid, Phase
from zipmoe.system_error import reason_of

#: Limits above any model. Arrays are allocated for the largest layer and expert of a trace.
MAX_LAYERS, MAX_EXPERTS = 1024, 4096

_FIELDS = ("step", "layer", "phase", "experts", "tokens")
_PHASES = {phase.value: phase for phase in Phase}


class RoutedPass(NamedTuple):
    """Pass of a step through an MoE layer, with the experts that the pass uses."""

    step: int
    layer: int
    phase: Phase
    experts: tuple[int, ...]
    tokens: int


def trace_line(routed: RoutedPass) -> str:
    """Formats a pass as a line of a trace, without the line end."""
    return json.dumps(
        {**routed._asdict(), "phase": routed.phase.value, "experts": list(routed.experts)}, separators=(",", ":")
    )


def read_trace(lines: Iterable[str], name: str = "trace") -> Iterator[RoutedPass]:
    """Reads a trace.

    Args:
        lines: lines of the file. An empty line is an error.
        name: name of the trace in error messages.

    Yields:
        The passes in order.

    Raises:
        InvalidRequest: a line is malformed or out of order. The message names the line.
    """
    before: RoutedPass | None = None
    for number, line in enumerate(lines, 1):
        try:
            routed = _parse(line)
            if before is not None:
                _check_order(before, routed)
        except ValueError as error:
            raise InvalidRequest(f"{name}, line {number}: {error}") from error
        yield routed
        before = routed


def load_trace(path: Path) -> list[RoutedPass]:
    """Reads the trace in a file.

    Raises:
        NotFound: the file cannot be read.
        InvalidRequest: the file is not text, or a line is malformed or out of order.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            return list(read_trace(lines, str(path)))
    except OSError as error:
        raise NotFound(f"cannot read the trace {path}: {reason_of(error)}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is no trace: it is not text") from error


def grid_of(passes: Iterable[RoutedPass]) -> Grid:
    """Computes the smallest grid that holds all experts of a trace.

    Raises:
        InvalidRequest: the trace is empty.
    """
    layers = experts = 0
    for routed in passes:
        layers = max(layers, routed.layer + 1)
        experts = max(experts, routed.experts[-1] + 1)
    if not layers:
        raise InvalidRequest("the trace is empty", next_step="record one with `--trace`, or generate one")
    return Grid(layers, experts)


def selections_per_token(passes: Iterable[RoutedPass]) -> int:
    """Returns the largest number of experts that a pass of a single token uses; 1 where the trace has no such pass."""
    return max((len(routed.experts) for routed in passes if routed.tokens == 1), default=1)


def _parse(line: str) -> RoutedPass:
    try:
        fields: Any = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(fields, dict) or set(fields) != set(_FIELDS):
        raise ValueError(f"expected an object with the fields {', '.join(_FIELDS)}")
    phase = _PHASES.get(fields["phase"]) if isinstance(fields["phase"], str) else None
    if phase is None:
        raise ValueError(f"phase is {fields['phase']!r}, expected prefill or decode")
    experts = fields["experts"]
    if not isinstance(experts, list) or not experts:
        raise ValueError("experts are not a list of at least one")
    ids = tuple(_whole(expert, "an expert", 0, MAX_EXPERTS - 1) for expert in experts)
    if not _ascends(ids):
        raise ValueError(f"experts do not ascend: {list(ids)}")
    return RoutedPass(
        step=_whole(fields["step"], "step", 0),
        layer=_whole(fields["layer"], "layer", 0, MAX_LAYERS - 1),
        phase=phase,
        experts=ids,
        tokens=_whole(fields["tokens"], "tokens", 1),
    )


def _whole(value: object, what: str, least: int, most: int | None = None) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        expected = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
        raise ValueError(f"{what} is {value!r}, expected {expected}")
    return value


def _ascends(ids: Sequence[int]) -> bool:
    return all(first < second for first, second in pairwise(ids))


def _check_order(before: RoutedPass, after: RoutedPass) -> None:
    if (after.step, after.layer) <= (before.step, before.layer):
        raise ValueError(
            f"step {after.step}, layer {after.layer} does not come after step {before.step}, layer {before.layer}"
        )
    if after.step == before.step and (after.phase, after.tokens) != (before.phase, before.tokens):
        raise ValueError(
            f"step {after.step} is a {before.phase.value} of {before.tokens} tokens in one layer, "
            f"a {after.phase.value} of {after.tokens} in another"
        )
