"""kytecron: jobs written as Python classes, run on time on one of many servers.

The public names load on first use: a job process imports this package and must not pay for the database.
"""

from __future__ import annotations

import importlib

VERSION = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kytecron.engine.worker import CronWorker
    from kytecron.job import CronJobBase, PermanentFailure, SkipRun
    from kytecron.services.jobs import CronJobManager
    from kytecron.services.versions import CronVersionControl

__all__ = [
    "CronJobBase",
    "CronJobManager",
    "CronVersionControl",
    "CronWorker",
    "PermanentFailure",
    "SkipRun",
]

_HOMES = {
    "CronJobBase": "kytecron.job",
    "CronJobManager": "kytecron.services.jobs",
    "CronVersionControl": "kytecron.services.versions",
    "CronWorker": "kytecron.engine.worker",
    "PermanentFailure": "kytecron.job",
    "SkipRun": "kytecron.job",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
