from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipmoe.errors import InvalidRequest
from zipmoe.residency.pools import Grid, Phase
from zipmoe.simulation.trace import RoutedPass, grid_of, read_trace, selections_per_token, trace_line

GOOD = {"step": 3, "layer": 1, "phase": "decode", "experts": [0, 5], "tokens": 1}


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(Phase),
            st.integers(1, 2000),
            st.lists(st.lists(st.integers(0, 99), min_size=1, unique=True), min_size=1, max_size=4),
        ),
        max_size=6,
    )
)
def test_what_is_written_is_read_again(steps: list[tuple[Phase, int, list[list[int]]]]) -> None:
    passes = [
        RoutedPass(step, layer, phase, tuple(sorted(experts)), tokens)
        for step, (phase, tokens, layers) in enumerate(steps)
        for layer, experts in enumerate(layers)
    ]
    assert list(read_trace(trace_line(routed) + "\n" for routed in passes)) == passes


def test_a_line_has_exactly_the_fields_of_the_format() -> None:
    line = trace_line(RoutedPass(0, 2, Phase.PREFILL, (1, 4), 12))
    assert line == '{"step":0,"layer":2,"phase":"prefill","experts":[1,4],"tokens":12}'


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"extra": 1}, "fields step, layer, phase, experts, tokens"),
        ({"tokens": None}, "tokens is None, expected a whole number of at least 1"),
        ({"tokens": 0}, "tokens is 0"),
        ({"tokens": True}, "tokens is True"),
        ({"tokens": 1.0}, "tokens is 1.0"),
        ({"step": -1}, "step is -1"),
        ({"layer": 5000}, "layer is 5000, expected a whole number from 0 to 1023"),
        ({"phase": "warmup"}, "phase is 'warmup', expected prefill or decode"),
        ({"phase": ["decode"]}, "phase is"),
        ({"experts": []}, "experts are not a list of at least one"),
        ({"experts": "0"}, "experts are not a list"),
        ({"experts": [3, 1]}, r"experts do not ascend: \[3, 1\]"),
        ({"experts": [1, 1]}, "do not ascend"),
        ({"experts": [1, "2"]}, "an expert is '2'"),
        ({"experts": [10**9]}, "an expert is 1000000000"),
    ],
)
def test_a_wrong_field_is_refused_with_its_line(changes: dict[str, object], says: str) -> None:
    lines = [json.dumps({**GOOD, "layer": 0}), json.dumps({**GOOD, **changes})]
    with pytest.raises(InvalidRequest, match=f"^log.jsonl, line 2: .*{says}"):
        list(read_trace(lines, "log.jsonl"))


@pytest.mark.parametrize("line", ["", "nonsense", "[1, 2]", '{"step": 0}', "[" * 100_000])
def test_what_is_no_object_is_refused(line: str) -> None:
    with pytest.raises(InvalidRequest, match="line 1"):
        list(read_trace([line]))


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({**GOOD, "layer": 1}, "step 3, layer 1 does not come after step 3, layer 1"),
        ({**GOOD, "layer": 0}, "does not come after"),
        ({**GOOD, "step": 2, "layer": 2}, "does not come after"),
        ({**GOOD, "layer": 2, "phase": "prefill"}, "step 3 is a decode of 1 tokens in one layer, a prefill of 1"),
        ({**GOOD, "layer": 2, "tokens": 2}, "a decode of 2 in another"),
    ],
)
def test_lines_out_of_order_are_refused(second: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidRequest, match=f"line 2: .*{says}"):
        list(read_trace([json.dumps(GOOD), json.dumps(second)]))


def test_a_trace_tells_the_size_of_the_model_and_how_many_experts_a_token_uses() -> None:
    passes = [
        RoutedPass(0, 0, Phase.PREFILL, tuple(range(16)), 32),
        RoutedPass(0, 5, Phase.PREFILL, (15,), 32),
        RoutedPass(1, 0, Phase.DECODE, (1, 2, 3), 1),
    ]
    assert grid_of(passes) == Grid(6, 16)
    assert selections_per_token(passes) == 3
    with pytest.raises(InvalidRequest, match="empty"):
        grid_of([])
