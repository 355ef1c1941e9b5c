"""Structured logs: JSON lines on stderr, or a readable form when stderr is a terminal."""

from __future__ import annotations

import logging
import sys
from typing import cast

import structlog

from lighttts.config import LogConfig

Logger = structlog.typing.FilteringBoundLogger

# Locals would carry users' texts and secrets into the log.
_traceback_without_locals = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def configure(service: str, config: LogConfig) -> None:
    """Sets up logging for this process; every line carries `service`. Libraries' warnings go the same way."""
    console = config.format == "console" or (config.format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.typing.Processor] = (
        [_printable, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [_traceback_without_locals, structlog.processors.JSONRenderer()]
    )
    level = getattr(logging, config.level.upper())
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.captureWarnings(True)
    logging.basicConfig(level=logging.WARNING, handlers=[_ToStructlog()], force=True)


def _printable(_logger: object, _level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escapes what a terminal would obey: names and ids come from whoever is connected. JSON escapes it anyway."""
    return {key: _escaped(value) if isinstance(value, str) else value for key, value in event.items()}


def _escaped(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _ToStructlog(logging.Handler):
    """Hands records of the standard library's logging (used by dependencies) to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        get_logger(source=record.name).log(record.levelno, record.getMessage(), exc_info=record.exc_info)


def get_logger(**bound: object) -> Logger:
    """A logger whose lines carry `bound` (request_id=, stage=, worker=)."""
    return cast(Logger, structlog.get_logger(**bound))
