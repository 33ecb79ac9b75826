"""Logs: one event, one line, on stderr; configured once, in a service's `__main__`."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal, TextIO

import structlog

LogFormat = Literal["logfmt", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

# Control characters, and three others that some programs take for the end of a line.
_CONTROLS = (*range(0x20), 0x7F, 0x85, 0x2028, 0x2029)
_ESCAPES = {code: repr(chr(code))[1:-1] for code in _CONTROLS}


def configure(service: str, level: str = "info", format: str = "logfmt", *, stream: TextIO | None = None) -> None:  # noqa: A002
    """Sends structlog's and the standard library's records to stderr, in one form.

    Args:
        service: name of the service, part of every line.
        level: `debug`, `info`, `warning` or `error`; less important events are dropped.
        format: `logfmt` (key=value) or `json`. In both an event is one line, tracebacks included.
        stream: destination instead of stderr.
    """

    def add_service(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event.setdefault("service", service)
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(format), _one_line],
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _one_line(_logger: Any, _method: str, text: Any) -> str:
    """Escapes line ends and control characters: values come from clients, file names and tracebacks."""
    return str(text).translate(_ESCAPES)


def _renderer(format_name: str) -> structlog.typing.Processor:
    if format_name == "json":
        return structlog.processors.JSONRenderer()
    first = ["timestamp", "level", "service", "event"]
    return structlog.processors.LogfmtRenderer(key_order=first, bool_as_flag=False)
