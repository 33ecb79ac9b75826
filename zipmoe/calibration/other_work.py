"""Measures the share of the cores that other processes take during a measurement."""

from __future__ import annotations

import os
import time
from pathlib import Path

BUSY_RATIO = 0.2
"""Share of the cores for other processes above which a measurement is not trusted."""

_IDLE_FIELDS = (3, 4)  # idle and iowait
_COUNTED_FIELDS = 8  # user nice system idle iowait irq softirq steal; guests are in user already


class OtherWork:
    """Watches the cores that this process may run on, from construction on."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._cores = os.sched_getaffinity(0)
        self._begin_s = time.perf_counter()
        self._begin_own_s = time.process_time()
        self._begin_busy_s = self._busy_s()

    def ratio(self) -> float:
        """Returns the share of the cores' time that other processes took, 0 to 1; 0 where the kernel does not tell."""
        seconds = (time.perf_counter() - self._begin_s) * len(self._cores)
        own_s = time.process_time() - self._begin_own_s
        others_s = self._busy_s() - self._begin_busy_s - own_s
        return min(1.0, max(0.0, others_s / seconds)) if seconds > 0 else 0.0

    def _busy_s(self) -> float:
        try:
            lines = self._stat.read_text().splitlines()
        except OSError:
            return 0.0
        ticks = 0
        for line in lines:
            name, *fields = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in self._cores:
                counted = [int(field) for field in fields[:_COUNTED_FIELDS]]
                ticks += sum(counted) - sum(counted[index] for index in _IDLE_FIELDS)
        return ticks / os.sysconf("SC_CLK_TCK")
