"""Controls how many layers ahead experts are prefetched.

The depth is fixed by the setting, or with `auto` it is 1 while enough prefetches come true and 0 otherwise.
"""

from __future__ import annotations

from typing import Final

from zipmoe.errors import InvalidRequest

TRIAL_STEPS: Final = 8
ENOUGH_GUESSES: Final = 24
"""Guesses are judged after `TRIAL_STEPS` steps, or as soon as `ENOUGH_GUESSES` guesses are settled."""

REST_STEPS: Final = 64
"""Steps without guesses after a failed trial. The number doubles with each further failed trial in a row."""

MOST_REST_STEPS: Final = 4096

LEAST_TRUE_SHARE: Final = 1 / 3
"""Least share of right guesses among the fetched ones. A right guess hides a read. A wrong guess delays other reads by
about half a read, because needed reads overtake it and a read that has not begun is cancelled."""

AUTO: Final = "auto"
MOST_AHEAD: Final = 4


class GuessControl:
    """Decides the depth of guesses, which are speculative prefetches for later layers.

    Attributes:
        depth: layers ahead for which experts are prefetched now; 0 for none.

    Thread: not thread safe; the model's thread owns it.
    """

    def __init__(self, setting: str = AUTO) -> None:
        """Starts with a fixed depth, or for `auto` with a trial of depth 1.

        Args:
            setting: `auto`, or a depth from 0 to `MOST_AHEAD`.

        Raises:
            InvalidRequest: the setting is neither.
        """
        if setting != AUTO and not (setting.isascii() and setting.isdigit() and int(setting) <= MOST_AHEAD):
            raise InvalidRequest(f"the prefetch depth is auto or a number from 0 to {MOST_AHEAD}, not {setting!r}")
        self._fixed = setting != AUTO
        self.depth = int(setting) if self._fixed else 1
        self._steps_left = TRIAL_STEPS
        self._rest_steps = REST_STEPS
        self._came_true = self._wasted = 0

    def step(self, came_true: int, wasted: int) -> None:
        """Updates the depth at the beginning of a step.

        Args:
            came_true: guesses since the start that came true, in time or late.
            wasted: guesses since the start that did not.
        """
        if self._fixed:
            return
        self._steps_left -= 1
        true, wrong = came_true - self._came_true, wasted - self._wasted
        if self._steps_left > 0 and (not self.depth or true + wrong < ENOUGH_GUESSES):
            return
        self._came_true, self._wasted = came_true, wasted
        if self.depth and true < LEAST_TRUE_SHARE * (true + wrong):
            self.depth, self._steps_left = 0, self._rest_steps
            self._rest_steps = min(2 * self._rest_steps, MOST_REST_STEPS)
        else:
            if self.depth:
                self._rest_steps = REST_STEPS
            self.depth, self._steps_left = 1, TRIAL_STEPS
