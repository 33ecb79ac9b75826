from __future__ import annotations

import subprocess
import sys

FAULTS = """
import resource, sys, threading
from zipmoe.process.heap import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()

def show_faults():
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [bytearray(2 << 20) for _ in range(6)]
        del blocks
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

show_faults()
thread = threading.Thread(target=show_faults)
thread.start()
thread.join()
"""


def faults(setting: str) -> list[int]:
    """Page faults of six blocks in the main thread and in another one, at the fourth time."""
    done = subprocess.run([sys.executable, "-c", FAULTS, setting], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


def test_memory_of_freed_blocks_is_not_faulted_in_again() -> None:
    pages = 6 * (2 << 20) // 4096
    assert max(faults("kept")) < pages / 10
    assert min(faults("default")) > pages / 2, "without the setting there would be nothing to gain"
