"""How many layers ahead experts are guessed: as many as one says, or on only while guesses pay."""

from __future__ import annotations

from typing import Final

from zipmoe.errors import InvalidRequest

TRIAL_STEPS: Final = 8
ENOUGH_GUESSES: Final = 24
"""Guesses are judged after so many steps, or as soon as so many have been settled."""

REST_STEPS: Final = 64
"""Steps without guesses before they are tried again; twice as many after each trial in a row that has failed."""

MOST_REST_STEPS: Final = 4096

LEAST_TRUE_SHARE: Final = 1 / 3
"""Share of the fetched guesses that has to come true: a true one hides a read, a wrong one delays others by about half
of one, since what is needed overtakes it and what has not begun is cancelled."""

AUTO: Final = "auto"
MOST_AHEAD: Final = 4


class GuessControl:
    """Says how deep to guess.

    Attributes:
        depth: layers ahead of which experts are guessed now; 0 for none.

    Thread: not thread safe; the model's thread owns it.
    """

    def __init__(self, setting: str = AUTO) -> None:
        """Starts.

        Args:
            setting: `auto`, or a depth from 0 to `MOST_AHEAD`.

        Raises:
            InvalidRequest: it is neither.
        """
        if setting != AUTO and not (setting.isascii() and setting.isdigit() and int(setting) <= MOST_AHEAD):
            raise InvalidRequest(f"the prefetch depth is auto or a number from 0 to {MOST_AHEAD}, not {setting!r}")
        self._fixed = setting != AUTO
        self.depth = int(setting) if self._fixed else 1
        self._steps_left = TRIAL_STEPS
        self._rest_steps = REST_STEPS
        self._came_true = self._wasted = 0

    def step(self, came_true: int, wasted: int) -> None:
        """A step begins.

        Args:
            came_true: fetched guesses that have come true, in time or late, since the start.
            wasted: those that have not.
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
