"""`zipmoe expert-store | decoder | router | gateway`: one service, in this process, with the service's own flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

import typer

from zipmoe.cli.python_command import python_command

SERVICE_MODULES: Final = {
    "expert-store": "zipmoe.services.expert_store",
    "decoder": "zipmoe.services.decoder",
    "router": "zipmoe.services.router",
}
"""The services in starting order, and the modules that run them."""

GATEWAY: Final = "gateway"
GATEWAY_MODULE: Final = "zipmoe.services.gateway"
"""The HTTP front, which is optional and holds no part of the model."""

PASS_THROUGH: Final = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
"""click settings under which every argument, `--help` included, is the service's."""


def service_verb(name: str) -> Callable[[typer.Context], None]:
    """Makes the verb of one service."""

    def run(context: typer.Context) -> None:
        module = GATEWAY_MODULE if name == GATEWAY else SERVICE_MODULES[name]
        command = python_command("-m", module, *context.args)
        sys.stdout.flush()
        # The service takes this process over: signals, exit code and process id are its own.
        os.execv(sys.executable, command)

    run.__doc__ = f"Runs one service, the {name.replace('-', ' ')}. Its flags: `zipmoe {name} --help`."
    return run
