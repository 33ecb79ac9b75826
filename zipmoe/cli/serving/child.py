"""Runs a module as a child process that cannot outlive its parent.

    python -m zipmoe.cli.serving.child PARENT_PID MODULE ARGUMENT...

The module asks the kernel to kill this process when the parent dies, whatever the cause. A hook between fork and exec
(`preexec_fn`) could do the same, but is unsafe in a parent with threads.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Asks the kernel to kill this process when the parent ends.

    Args:
        parent_pid: id of the intended parent. If the parent has another id, the intended parent has died and this
            process exits.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(1)


def main() -> None:
    """Ties this process to the parent, then runs the module as `__main__`."""
    die_with_parent(int(sys.argv[1]))
    module = sys.argv[2]
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
