"""The application `zipmoe`: registers every verb of the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from zipmoe import __version__
from zipmoe.cli.benching.bench import bench
from zipmoe.cli.group import VerbGroup
from zipmoe.cli.planning.calibrate import calibrate
from zipmoe.cli.planning.plan import plan
from zipmoe.cli.planning.simulate import simulate
from zipmoe.cli.serving.service_verb import GATEWAY, PASS_THROUGH, SERVICE_MODULES, service_verb
from zipmoe.cli.serving.up import up
from zipmoe.cli.showing.demo import demo
from zipmoe.cli.showing.families import families
from zipmoe.cli.stores.inspect import inspect
from zipmoe.cli.stores.pack import pack
from zipmoe.cli.stores.synth import synth
from zipmoe.cli.stores.verify import verify
from zipmoe.cli.talking.chat import chat
from zipmoe.cli.talking.generate import generate
from zipmoe.cli.watching.doctor import doctor
from zipmoe.cli.watching.health import health
from zipmoe.cli.watching.top import top

app = typer.Typer(
    name="zipmoe",
    cls=VerbGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Lossless serving of Mixture-of-Experts models that are larger than the device's memory.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zipmoe {__version__}")
        raise typer.Exit


@app.callback()
def zipmoe(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Defines the options that precede a verb."""


_STORES, _SERVING, _CLIENTS = "Stores", "Serving", "Using a running router"

app.command(rich_help_panel=_STORES)(pack)
app.command(rich_help_panel=_STORES)(verify)
app.command(rich_help_panel=_STORES)(inspect)
app.command(rich_help_panel=_STORES)(synth)
app.command(rich_help_panel=_STORES)(families)
app.command(rich_help_panel=_STORES)(plan)
app.add_typer(bench, rich_help_panel=_STORES)
app.command(rich_help_panel=_STORES)(simulate)
app.command(rich_help_panel=_STORES)(calibrate)
app.command(rich_help_panel=_STORES)(doctor)
app.command(rich_help_panel=_SERVING)(up)
for _name in (*SERVICE_MODULES, GATEWAY):
    app.command(_name, rich_help_panel=_SERVING, context_settings=PASS_THROUGH, add_help_option=False)(
        service_verb(_name)
    )
app.command(rich_help_panel=_SERVING)(health)
app.command(rich_help_panel=_SERVING)(top)
app.command(rich_help_panel=_SERVING)(demo)
app.command(rich_help_panel=_CLIENTS)(generate)
app.command(rich_help_panel=_CLIENTS)(chat)

if __name__ == "__main__":
    app(prog_name="zipmoe")
