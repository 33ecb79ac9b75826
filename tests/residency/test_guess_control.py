from __future__ import annotations

import pytest

from zipmoe.errors import InvalidRequest
from zipmoe.residency.guess_control import ENOUGH_GUESSES, REST_STEPS, TRIAL_STEPS, GuessControl

#: Steps of ten guesses until a trial is judged.
TRIAL = -(-ENOUGH_GUESSES // 10)


def run(control: GuessControl, steps: int, share_true: float, came_true: int = 0, wasted: int = 0) -> tuple[int, int]:
    """Steps with ten guesses each, as long as there is somebody to guess."""
    for _ in range(steps):
        if control.depth:
            came_true, wasted = came_true + round(10 * share_true), wasted + 10 - round(10 * share_true)
        control.step(came_true, wasted)
    return came_true, wasted


def test_guesses_stay_on_while_they_come_true() -> None:
    control = GuessControl()
    run(control, 10 * TRIAL_STEPS, 0.7)
    assert control.depth == 1


def test_guesses_that_do_not_pay_are_turned_off_and_tried_again() -> None:
    control = GuessControl()
    counted = run(control, TRIAL, 0.1)
    assert control.depth == 0
    counted = run(control, REST_STEPS, 0.1, *counted)
    assert control.depth == 1
    run(control, TRIAL, 0.9, *counted)
    assert control.depth == 1


def test_each_failed_trial_in_a_row_doubles_the_rest() -> None:
    control = GuessControl()
    counted = run(control, TRIAL + REST_STEPS + TRIAL, 0.0)
    counted = run(control, REST_STEPS, 0.0, *counted)
    assert control.depth == 0
    run(control, REST_STEPS, 0.0, *counted)
    assert control.depth == 1


def test_few_guesses_are_judged_after_a_number_of_steps() -> None:
    control = GuessControl()
    for step in range(1, TRIAL_STEPS + 1):
        assert control.depth == 1
        control.step(0, step)
    assert control.depth == 0


def test_nothing_to_guess_is_no_reason_to_stop() -> None:
    control = GuessControl()
    for _ in range(3 * TRIAL_STEPS):
        control.step(0, 0)
    assert control.depth == 1


@pytest.mark.parametrize("depth", range(5))
def test_a_fixed_depth_stays(depth: int) -> None:
    control = GuessControl(str(depth))
    run(control, 3 * TRIAL_STEPS, 0.0)
    assert control.depth == depth


@pytest.mark.parametrize("setting", ["", "-1", "5", "on", "1.5", "²"])
def test_other_settings_are_refused(setting: str) -> None:
    with pytest.raises(InvalidRequest, match="auto or a number from 0 to 4"):
        GuessControl(setting)
