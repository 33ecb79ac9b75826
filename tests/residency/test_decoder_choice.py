from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scenarios.script import check_scenario, scenario_files
from zipmoe.errors import InvalidRequest, Unavailable
from zipmoe.residency.decoder_choice import DecoderAffinity
from zipmoe.types import ExpertKey


def key(word: str) -> ExpertKey:
    layer, expert = word.split(".")
    return ExpertKey(int(layer), int(expert))


def tell(affinity: DecoderAffinity, words: list[str]) -> Iterator[str]:
    match words:
        case ["join", name, workers, slots]:
            counts = [int(word.partition("=")[2]) for word in (workers, slots)]
            affinity.join(name, worker_count=counts[0], expert_slots=counts[1])
        case ["lost", name]:
            affinity.lost(name)
        case ["assign", expert, work]:
            try:
                yield affinity.assign(key(expert), float(work))
            except Unavailable as refusal:
                yield f"Unavailable: {refusal.message}"
        case ["ended", name, work]:
            affinity.remove_load(name, float(work))
        case ["dropped", expert]:
            affinity.dropped(key(expert))
        case _:
            raise AssertionError(f"no such event: {words}")
    yield repr(affinity)


@pytest.mark.parametrize("path", scenario_files("affinity"), ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    affinity = DecoderAffinity()
    check_scenario(path, lambda words: tell(affinity, words))


@given(
    events=st.lists(
        st.tuples(st.sampled_from(["assign", "dropped", "lost", "join"]), st.integers(0, 12), st.integers(0, 9))
    )
)
def test_an_expert_has_one_home_and_keeps_it_until_it_is_dropped_or_the_home_is_lost(
    events: list[tuple[str, int, int]],
) -> None:
    affinity = DecoderAffinity()
    attached: list[str] = []
    homes: dict[ExpertKey, str] = {}
    for event, number, work in events:
        expert, name = ExpertKey(0, number), "abc"[number % 3]
        if event == "join" and name not in attached:
            affinity.join(name, worker_count=1 + number % 2, expert_slots=4)
            attached.append(name)
        elif event == "lost":
            affinity.lost(name)
            attached = [each for each in attached if each != name]
            homes = {each: home for each, home in homes.items() if home != name}
        elif event == "dropped":
            affinity.dropped(expert)
            homes.pop(expert, None)
        elif event == "assign" and attached:
            home = affinity.assign(expert, float(work))
            assert homes.setdefault(expert, home) == home
        held = {name: [f"0.{each.expert}" for each in sorted(homes) if homes[each] == name] for name in attached}
        assert [text.split(" queued")[0] for text in repr(affinity).split("; ") if attached] == [
            f"{name}[{' '.join(experts)}]" for name, experts in held.items()
        ]


def test_a_decoder_joins_once_and_with_something_to_offer() -> None:
    affinity = DecoderAffinity()
    affinity.join("a", worker_count=1, expert_slots=1)
    with pytest.raises(InvalidRequest, match="decoder a is attached already"):
        affinity.join("a", worker_count=1, expert_slots=1)
    with pytest.raises(InvalidRequest, match="decoder b has 0 workers and 1 slots"):
        affinity.join("b", worker_count=0, expert_slots=1)
