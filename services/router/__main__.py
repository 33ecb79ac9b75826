"""Boots the router: `python -m zipmoe.services.router --store DIR ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from zipmoe.model.numerics import prepare_environment
from zipmoe.model.torch_version import check_torch
from zipmoe.process import logging
from zipmoe.process.boot import run_to_exit_code
from zipmoe.process.config import load_config
from zipmoe.process.heap import keep_freed_memory
from zipmoe.services.router.config import RouterConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a router; returns the exit code, 2 if it could not start."""
    config = load_config(RouterConfig, sys.argv[1:] if argv is None else argv)
    logging.configure("router", config.log_level, config.log_format)
    return run_to_exit_code(_serve(config))


async def _serve(config: RouterConfig) -> None:
    """Imports torch and transformers only after the flags and the installation have been checked."""
    check_torch()
    keep_freed_memory()
    prepare_environment()  # before torch is imported: the environment decides how MKL computes
    from zipmoe.services.router.boot import serve

    await serve(config)


if __name__ == "__main__":
    sys.exit(main())
