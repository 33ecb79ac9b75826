"""Boots the gateway: `python -m zipmoe.services.gateway ...`."""

from __future__ import annotations

import logging as standard_logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import structlog

from zipmoe.process import logging
from zipmoe.process.boot import run_to_exit_code
from zipmoe.process.config import load_config
from zipmoe.services.gateway.config import GatewayConfig

_LOG = structlog.get_logger(__name__)
_NEEDED = ("starlette", "uvicorn")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a gateway; returns the exit code, 2 if it could not start."""
    config = load_config(GatewayConfig, sys.argv[1:] if argv is None else argv)
    logging.configure("gateway", config.log_level, config.log_format)
    # The gateway itself logs the start and the end of the server.
    standard_logging.getLogger("uvicorn").setLevel(standard_logging.WARNING)
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        _LOG.error(
            "cannot_run", reason=f"{' and '.join(missing)} not installed", next_step="pip install 'zipmoe[gateway]'"
        )
        return 2
    from zipmoe.services.gateway.boot import serve

    return run_to_exit_code(serve(config))


if __name__ == "__main__":
    sys.exit(main())
