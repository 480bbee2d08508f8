"""Logs: one line an event on standard error, for people or as JSON.

What an event is about is in fields of its own (`execution`, `job`, `worker`, `request` ...), given as `extra` where it
is logged, so that JSON logs can be searched by them.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from .config import Settings
from .core.untrusted import storable

_always: dict[str, Any] = {}
"""What every line of this process carries."""
_OURS = ("gunicorn.error", "gunicorn.access", "werkzeug")
"""Loggers of libraries that bring handlers of their own."""


def configure_logging(settings: Settings, **always: Any) -> None:
    """Send everything that is logged, by kytecron and by libraries, to standard error in the chosen format.

    Each line carries what is given as `always`.
    """
    always_log(**always)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.ExtraAdder(),
        _add_always,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    last = (
        structlog.processors.JSONRenderer(default=str)
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(settings.log_level.upper())  # some libraries' loggers have a level of their own
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last, _encodable],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _OURS:
        theirs = logging.getLogger(name)
        theirs.handlers, theirs.propagate = [], True
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every look at the schema
    pool = logging.getLogger("sqlalchemy.pool")
    pool.filters = [_connection_lost]


def always_log(**fields: Any) -> None:
    """Have every line of this process carry these fields from now on."""
    _always.update(fields)


def _add_always(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    return _always | event


def _encodable(_logger: Any, _method: str, line: Any) -> str:
    return storable(line)


def _connection_lost(record: logging.LogRecord) -> bool:
    """The pool tells of a connection that ended by itself in a traceback; whoever used it tells it, too."""
    if record.exc_info and record.exc_info[1] is not None:
        record.msg, record.args = f"{record.getMessage()}: {record.exc_info[1]}".splitlines()[0], ()
        record.exc_info, record.exc_text = None, None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True
