"""The JSON API under /api/v1: routes declared in jobs, executions, versions, people and system; see `routing`.

Beside it `/metrics`, for machines that watch.
"""

from __future__ import annotations

from flask import Blueprint, Flask

from . import errors, executions, jobs, metrics, people, routing, system, versions

__all__ = ["executions", "jobs", "people", "register", "system", "versions"]


def register(app: Flask) -> Blueprint:
    """Add the API and `/metrics` to `app`; returns the API's blueprint."""
    blueprint = Blueprint("api", __name__, url_prefix=routing.PREFIX)
    routing.add_to(blueprint)
    errors.register(blueprint, routing.ROOT)
    app.register_blueprint(blueprint)
    metrics.register(app)
    return blueprint
