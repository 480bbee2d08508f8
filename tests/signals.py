"""Signals as the processes that tests start should find them, however the tests themselves were started."""

from __future__ import annotations

import signal

ASKED_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def take_no_ignored_signals() -> None:
    """Let every process that this one starts have the default disposition for what asks it to end.

    A shell has what it starts in the background ignore SIGINT and SIGQUIT, and `nohup` SIGHUP. A process keeps that
    across exec, but a handler becomes the default there: so one that does nothing is put in its place.
    """
    for number in ASKED_TO_END:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _nothing)
    # Whoever starts the tests may have blocked them as well, and that is inherited, too.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKED_TO_END)


def _nothing(*_: object) -> None:
    pass
