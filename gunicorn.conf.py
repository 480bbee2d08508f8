"""What gunicorn reads where it is started: it logs as kytecron does (KYTECRON_LOG_FORMAT, KYTECRON_LOG_LEVEL)."""

from __future__ import annotations

from typing import Any

from gunicorn.glogging import Logger

from kytecron.config import Settings
from kytecron.core.errors import Invalid
from kytecron.logs import configure_logging


class logger_class(Logger):  # noqa: N801
    """gunicorn's own messages among those of the application, in its format; its access log is left to that."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        try:
            configure_logging(Settings.load())
        except Invalid:
            pass  # the application says it, and does not start
