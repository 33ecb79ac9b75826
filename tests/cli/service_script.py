"""Stands in for a service: makes its socket when it serves, notes what happens to it, and ends as it is told.

python -m tests.cli.service_script DIRECTORY NAME BEHAVIOUR, with a BEHAVIOUR of

    serve        ends at SIGTERM
    stubborn     ignores SIGTERM
    refuse       complains, and ends with exit code 2 before it serves
    silent       never serves, ends at SIGTERM
    fork         serves, beside a process of its own
    die          serves, and ends with exit code 3 when somebody writes into the FIFO DIRECTORY/NAME.die
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path


def main() -> None:
    directory, name, behaviour = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

    def note(event: str) -> None:
        with (directory / "events").open("a") as events:
            events.write(f"{name} {event}\n")

    def on_terminate(*_: object) -> None:
        note("terminated")
        if behaviour != "stubborn":
            sys.exit(0)

    signal.signal(signal.SIGTERM, on_terminate)
    if behaviour == "refuse":
        print("error: --slots is 0, want at least 1", flush=True)
        sys.exit(2)
    print(f"{name} has pid {os.getpid()}", flush=True)
    if behaviour != "silent":
        # Opening a FIFO for both ends never blocks, and reading from it waits for whoever writes.
        os.mkfifo(directory / f"{name}.die")
        waiting = os.open(directory / f"{name}.die", os.O_RDWR)
        if behaviour == "fork":
            note(f"started {subprocess.Popen(['sleep', '1000']).pid}")
        (directory / f"{name}.sock").touch()
        if behaviour == "die":
            select.select([waiting], [], [])
            print("something terrible", flush=True)
            sys.exit(3)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
