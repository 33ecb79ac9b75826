"""What is asked, and when: decided by the seed alone."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from zipmoe.errors import InvalidRequest, NotFound
from zipmoe.loadgen.jobs import poisson_arrivals_s, random_jobs
from zipmoe.loadgen.lengths import Fixed, LogNormal, Uniform, parse_lengths
from zipmoe.loadgen.recorded import recorded_jobs
from zipmoe.loadgen.sharegpt import Dialogue, read_dialogues


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("128", Fixed(128)),
        ("uniform:16:256", Uniform(16, 256)),
        ("lognormal:200:0.8", LogNormal(200, 0.8, 3200)),
        ("lognormal:200:0.8:500", LogNormal(200, 0.8, 500)),
    ],
)
def test_a_distribution_is_one_word(text: str, expected: object) -> None:
    assert parse_lengths("--x", text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "x", "uniform:5", "uniform:9:5", "uniform:0:5", "lognormal:0:1", "lognormal:9:nan", "normal:1:2"],
)
def test_what_is_no_distribution_is_refused_under_its_option(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--answer-tokens has to be"):
        parse_lengths("--answer-tokens", text)


@pytest.mark.parametrize("lengths", [Fixed(5), Uniform(2, 9), LogNormal(5, 2.0, 9)])
def test_lengths_stay_within_their_limits(lengths: Fixed | Uniform | LogNormal) -> None:
    source = random.Random(1)
    drawn = {lengths.draw(source) for _ in range(500)}
    assert min(drawn) >= 1 and max(drawn) <= 9
    assert len(drawn) == 1 if isinstance(lengths, Fixed) else len(drawn) > 5


def test_half_of_the_lognormal_lengths_are_below_the_median() -> None:
    source = random.Random(1)
    below = sum(LogNormal(100, 1.0, 10_000).draw(source) <= 100 for _ in range(2000))
    assert 900 < below < 1100


def test_the_same_seed_makes_the_same_requests() -> None:
    def made(seed: int) -> object:
        return random_jobs(5, Uniform(2, 9), Uniform(1, 4), 50, seed)

    assert made(7) == made(7)
    assert made(7) != made(8)
    jobs = random_jobs(5, Uniform(2, 9), Uniform(1, 4), 50, 7)
    assert [job.index for job in jobs] == [0, 1, 2, 3, 4]
    assert all(0 <= token_id < 50 for job in jobs for token_id in job.prompt if isinstance(token_id, int))


def test_arrivals_are_a_poisson_process() -> None:
    times = poisson_arrivals_s(4000, 5.0, 3)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert times[0] == 0.0 and times == sorted(times)
    assert mean == pytest.approx(0.2, rel=0.05)
    assert deviation == pytest.approx(mean, rel=0.05), "as of an exponential distribution"
    assert poisson_arrivals_s(4000, 10.0, 3) == pytest.approx([time / 2 for time in times])


def write(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def turns(*said: tuple[str, object]) -> dict[str, object]:
    return {"id": "x", "conversations": [{"from": who, "value": text} for who, text in said]}


def test_the_first_question_and_answer_of_each_dialogue_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "dialogues.json",
        [
            turns(("human", "Hi"), ("gpt", "Hello"), ("human", "more"), ("gpt", "no")),
            turns(("system", "Be kind"), ("user", "Who?"), ("assistant", "Me")),
            turns(("gpt", "begins itself"), ("human", "x")),
            turns(("human", "alone")),
            turns(("human", " "), ("gpt", "x")),
            turns(("human", 5), ("gpt", "x")),
            {"conversations": None},
            "no object",
        ],
    )
    assert read_dialogues(path) == [("Hi", "Hello"), ("Who?", "Me")]


def test_what_is_not_in_this_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_dialogues(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"{")
    with pytest.raises(InvalidRequest, match="no JSON file"):
        read_dialogues(tmp_path / "bad")
    with pytest.raises(InvalidRequest, match="a list of conversations"):
        read_dialogues(write(tmp_path / "object", {}))
    with pytest.raises(InvalidRequest, match="none of the 1 entries"):
        read_dialogues(write(tmp_path / "empty", [{}]))


DIALOGUES = [Dialogue("p" * size, "a" * size) for size in (1, 2, 3, 40)]


async def count(text: str) -> int:
    return len(text)


async def test_dialogues_that_fit_are_drawn_in_the_order_of_the_seed_and_again_when_all_have_been() -> None:
    jobs = await recorded_jobs(DIALOGUES, 7, None, 50, count, 1)
    assert [job.index for job in jobs] == list(range(7))
    assert all(len(job.prompt) == job.answer_tokens for job in jobs), "as long as recorded"
    assert [sorted(len(job.prompt) for job in jobs[start : start + 3]) for start in (0, 3)] == [[1, 2, 3]] * 2
    assert jobs == await recorded_jobs(DIALOGUES, 7, None, 50, count, 1)
    assert jobs != await recorded_jobs(DIALOGUES, 7, None, 50, count, 2)


async def test_lengths_of_answers_can_be_given() -> None:
    jobs = await recorded_jobs(DIALOGUES, 4, Fixed(9), 50, count, 1)
    assert {job.answer_tokens for job in jobs} == {9}


async def test_dialogues_of_which_none_fits_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="none of the 4 dialogues fits a context of 1 tokens"):
        await recorded_jobs(DIALOGUES, 1, None, 1, count, 1)
