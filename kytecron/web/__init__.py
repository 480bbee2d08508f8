"""The pages: server-rendered, refreshed in parts by htmx."""

from __future__ import annotations

from flask import Flask

from . import (
    auth,
    bounds,
    docs,
    errors,
    executions,
    frame,
    home,
    jobform,
    jobs,
    people,
    secrets,
    settings,
    system,
    versions,
)


def bound(app: Flask) -> None:
    """Limit what requests may carry: before anything else that looks at them."""
    bounds.register(app)


def register(app: Flask) -> None:
    """Add the pages, what every one of them shows around its content, and the answers to errors."""
    for part in (auth, home, jobs, jobform, executions, versions, system, people, secrets, settings, docs):
        app.register_blueprint(part.area)
    frame.register(app)
    errors.register(app)
