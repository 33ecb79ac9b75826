from __future__ import annotations

import pytest

from tests.calibration.measurement_time import TINY
from zipmoe.calibration.messages import MessageSpeed, measure_messages
from zipmoe.errors import InvalidRequest


def test_messages_are_measured() -> None:
    assert measure_messages(TINY).round_trip_s > 0


@pytest.mark.parametrize("times", [(0.0, 0.0), (-1.0, 0.0), (1e-3, -1e-3), (float("nan"), 0.0)])
def test_times_that_no_message_takes_are_refused(times: tuple[float, float]) -> None:
    with pytest.raises(InvalidRequest, match="no message takes"):
        MessageSpeed(*times)
