"""Base of each service's configuration, read in this precedence: flag > environment > file > default."""

from __future__ import annotations

import difflib
import sys
from argparse import Action, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from zipmoe.errors import InvalidRequest
from zipmoe.process.logging import LogFormat, LogLevel
from zipmoe.process.runtime import SocketPaths, runtime_directory
from zipmoe.system_error import reason_of

_BAD_USAGE = 2
_SIMILAR = 0.75  # similarity from which an unknown flag is taken for a misspelt one


class ServiceConfig(BaseSettings):
    """Base of each service's configuration.

    A subclass adds fields with a `description` (the flag's help) and may set `cli_prog_name` in its `model_config`. The
    field `cache_slots` is the flag `--cache-slots`, the variable `ZIPMOE_CACHE_SLOTS` and the key `cache_slots` of the
    file. Sizes are `pydantic.ByteSize`: `1.5GiB`, `512MB`, `4096`.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="ZIPMOE_", env_ignore_empty=True, validate_default=True
    )

    config: Path | None = Field(None, description="TOML file with settings; flags and environment win over it")
    runtime_dir: Path | None = Field(
        None,
        description="directory of the services' sockets (without it: XDG_RUNTIME_DIR/zipmoe, else /tmp/zipmoe-UID)",
    )
    metrics_address: str = Field("127.0.0.1", description="address of the Prometheus metrics")
    metrics_port: int = Field(0, ge=0, le=65535, description="port of the Prometheus metrics; 0 takes any free one")
    log_level: LogLevel = Field("info", description="the least important events that are logged")
    log_format: LogFormat = Field("logfmt", description="form of a log line: key=value pairs or JSON")

    def sockets(self) -> SocketPaths:
        """Returns the socket paths; makes the run directory if there is none.

        Raises:
            InvalidRequest: the run directory cannot be used.
        """
        return SocketPaths(runtime_directory(self.runtime_dir))

    def resolved(self) -> dict[str, object]:
        """Returns every setting that is not None, in a form for the log, with secrets hidden."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value is not None}


Config = TypeVar("Config", bound=ServiceConfig)


def load_config(config_class: type[Config], argv: Sequence[str]) -> Config:
    """Reads a configuration, or ends the process with status 2 and one message that names every problem.

    Args:
        config_class: class of the configuration.
        argv: the arguments after the program's name. `--help` prints the flags and exits with status 0.
    """
    try:
        return parse_config(config_class, argv)
    except InvalidRequest as error:
        print(f"error: {error.message}\nnext step: {error.diagnostics()}", file=sys.stderr)
        raise SystemExit(_BAD_USAGE) from None


def parse_config(config_class: type[Config], argv: Sequence[str]) -> Config:
    """Reads a configuration.

    Raises:
        InvalidRequest: with one line for each problem, named by the flag, variable or key that causes it.
    """
    problems: list[str] = []
    parser = _Parser(config_class, problems)
    flags = parser.read(config_class, argv)
    environment: dict[str, Any] = {}
    with suppress(SettingsError):  # a list that is not JSON; reading it again below tells of it
        environment = EnvSettingsSource(config_class)()
    file_path = flags.get("config", environment.get("config"))
    file = _read_file(config_class, Path(file_path), problems) if file_path else {}
    # The origin of each value, for the message about a wrong value.
    origins = {name: f"{file_path}: {name}" for name in file}
    origins |= {name: f"{config_class.model_config['env_prefix']}{name.upper()}" for name in environment}
    origins |= {name: _flag(name) for name in flags}
    try:
        made = config_class(**{**file, **environment, **flags})
    except ValidationError as error:
        problems += [_describe(each, origins, config_class) for each in error.errors()]
    except SettingsError as error:
        problems.append(f'{str(error).lower()}; a list is JSON, such as ["a", "b"]')
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise InvalidRequest(f"{count} in the configuration{lines}", next_step=f"see {parser.prog} --help")
    return made


class _Parser(ArgumentParser):
    """An argument parser that collects problems instead of exiting at the first; pydantic validates the values."""

    def __init__(self, config_class: type[ServiceConfig], problems: list[str]) -> None:
        super().__init__(
            prog=config_class.model_config.get("cli_prog_name"),
            description=(config_class.__doc__ or "").partition("\n")[0],
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._problems = problems

    def read(self, config_class: type[ServiceConfig], argv: Sequence[str]) -> dict[str, Any]:
        """Returns the settings that were given as flags, as text, by field name."""
        source: CliSettingsSource[_Parser] = CliSettingsSource(
            config_class,
            cli_kebab_case=True,
            cli_implicit_flags=True,
            cli_hide_none_type=True,
            root_parser=self,
            parse_args_method=_Parser.parse_args,
        )
        source.env_ignore_empty = False  # an empty variable counts as unset, but an empty flag as given
        given: dict[str, Any] = source(args=list(argv))()
        return given

    def add_argument(self, *names: Any, **settings: Any) -> Action:
        """Shows choices in the help without a check of values: argparse would exit at the first wrong value."""
        choices = settings.pop("choices", None)
        if choices:
            settings["metavar"] = "{" + ",".join(str(choice) for choice in choices) + "}"
        return super().add_argument(*names, **settings)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses the known arguments and notes each unknown argument as a problem."""
        found, rest = self.parse_known_args(args, namespace)
        known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        for before, argument in zip(["", *rest], rest, strict=False):
            flag = argument.partition("=")[0]
            if flag.startswith("-"):
                close = difflib.get_close_matches(flag, known, 1, _SIMILAR)
                self._problems.append(f"{flag}: unknown flag" + (f", did you mean {close[0]}" if close else ""))
            elif not before.startswith("-"):  # otherwise the argument is the value of an unknown flag
                self._problems.append(f"{argument}: unexpected argument")
        return found

    def error(self, message: str) -> NoReturn:
        """Raises InvalidRequest for an error of argparse itself, such as a flag without a value."""
        raise InvalidRequest(f"1 problem in the configuration\n  {message}", next_step=f"see {self.prog} --help")


def _read_file(config_class: type[ServiceConfig], path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        path.open("rb").close()  # the source below takes a missing file for an empty one
        return TomlConfigSettingsSource(config_class, path)()
    except OSError as error:
        problems.append(f"{path}: {reason_of(error)}")
    except ValueError as error:  # malformed TOML or UTF-8
        problems.append(f"{path}: not a TOML file: {str(error).lower()}")
    return {}


def _describe(error: ErrorDetails, origins: dict[str, str], config_class: type[ServiceConfig]) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    origin = origins.get(name, _flag(name) if name else "configuration")
    if error["type"] == "missing":
        return f"{origin}: required"
    if error["type"] == "extra_forbidden":
        return f"{origin}: unknown setting"
    text = error["msg"].removeprefix("Value error, ")
    text = f"{origin}: {text[:1].lower()}{text[1:]}"
    field = config_class.model_fields.get(name)
    # An invalid secret, such as one that is too short, must not reach the terminal or the log.
    return text if field is None or "Secret" in str(field.annotation) else f"{text}, not {error['input']!r}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
