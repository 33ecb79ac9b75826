"""Runs a module as a child process that cannot outlive its parent.

    python -m zipmoe.cli.serving.child PARENT_PID MODULE ARGUMENT...

The kernel is asked to kill this process when its parent dies, however that dies. A hook between fork and exec
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
    """Has this process killed as soon as its parent is gone.

    Args:
        parent_pid: the parent that was meant; where it is no longer the parent, it died first, and the process exits.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(1)


def main() -> None:
    """Ties this process to its parent, then becomes the module."""
    die_with_parent(int(sys.argv[1]))
    module = sys.argv[2]
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
