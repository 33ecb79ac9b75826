"""`zipmoe expert-store | decoder | router | gateway`: runs one service in this process, with the service's flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

import typer

from zipmoe.process.python_command import python_command

SERVICE_MODULES: Final = {
    "expert-store": "zipmoe.services.expert_store",
    "decoder": "zipmoe.services.decoder",
    "router": "zipmoe.services.router",
}
"""Modules of the services, by name of the service in starting order."""

GATEWAY: Final = "gateway"
GATEWAY_MODULE: Final = "zipmoe.services.gateway"
"""The optional HTTP front, which holds no part of the model."""

PASS_THROUGH: Final = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
"""click settings that pass every argument, `--help` included, to the service."""


def service_verb(name: str) -> Callable[[typer.Context], None]:
    """Creates the verb of a service."""

    def run(context: typer.Context) -> None:
        module = GATEWAY_MODULE if name == GATEWAY else SERVICE_MODULES[name]
        command = python_command("-m", module, *context.args)
        sys.stdout.flush()
        # The service replaces this process, so that signals, exit code and process id are the service's.
        os.execv(sys.executable, command)

    run.__doc__ = f"Runs one service, the {name.replace('-', ' ')}. Its flags: `zipmoe {name} --help`."
    return run
