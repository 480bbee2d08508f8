"""A worker's side threads: one sends notifications, one removes old rows. Nothing here may delay a job."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy.engine import Engine

from ..config import Settings
from ..services import notify, recount, retention
from ..store import db
from .telling import Rarely

log = logging.getLogger(__name__)

DELIVERY_SECONDS = 15.0
"""How often messages are sent even where nobody has said that there are any."""
PAUSE_SECONDS = 1.0
"""After a failure; doubled each time, up to a minute."""
RETENTION_SECONDS = 3600.0
FIRST_PAUSE_SECONDS = 60.0
"""A worker that starts has more urgent things to do than to clean up."""
LAST_MESSAGE_SECONDS = 30.0


class Upkeep:
    """Two threads with sessions of their own on the worker's engine, so that a long clean-up holds up no message."""

    def __init__(self, engine: Engine, settings: Settings, worker_id: str) -> None:
        self._sessions = db.make_sessions(engine)
        self._settings = settings
        self._worker_id = worker_id
        self._stopping = threading.Event()
        self._unsent, self._old = threading.Event(), threading.Event()
        self._threads = [
            self._thread("deliver", self.deliver, DELIVERY_SECONDS, self._unsent),
            self._thread("clean", self.clean, RETENTION_SECONDS, self._old),
        ]

    def _thread(self, name: str, *arguments: object) -> threading.Thread:
        return threading.Thread(target=self._repeat, args=arguments, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the messages that are being sent; a clean-up is left where it is, each batch being complete."""
        self._stopping.set()
        self._unsent.set()
        self._old.set()
        if self._threads[0].is_alive():
            self._threads[0].join(LAST_MESSAGE_SECONDS)

    def send(self) -> None:
        """Messages are due: do not wait."""
        self._unsent.set()

    def _repeat(self, step: Callable[[], bool], pause: float, called: threading.Event) -> None:
        """`step` again and again, `pause` apart or when `called`."""
        wait, failed, told = min(pause, FIRST_PAUSE_SECONDS), 0.0, Rarely()
        while not self._stopping.wait(failed):
            called.wait(wait)
            if self._stopping.is_set():
                return
            called.clear()
            try:
                wait, failed = 0 if step() else pause, 0.0
                told.over(step.__name__, time.monotonic())
            except Exception as error:  # the database may be away, a row may be bad: try again later
                # That the database is away is told by the loop, once.
                if (
                    not db.is_outage(error)
                    and (added := told.due(step.__name__, time.monotonic())) is not None
                ):
                    log.warning("upkeep (%s): %s%s", step.__name__, db.cause(error), added)
                wait, failed = 0, min(60, max(PAUSE_SECONDS, failed * 2))

    def deliver(self) -> bool:
        """Send messages that are due; returns whether there were any."""
        return notify.deliver(self._sessions, self._settings, self._worker_id, 20) > 0

    def clean(self) -> bool:
        """Remove rows that are older than the settings keep, once they are counted as this release counts.

        Returns whether there are more.
        """
        if counted := recount.recount(self._sessions):
            log.info("the kept runs of %d jobs were counted into chains", counted)
        removed = {
            what: count
            for what, count in retention.prune(self._sessions, self._settings, batch=retention.BATCH).items()
            if count
        }
        if removed:
            log.info("retention removed %s", removed)
        return retention.is_cut_short(removed, retention.BATCH)
