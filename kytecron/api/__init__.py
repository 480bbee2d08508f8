"""The JSON API under /api/v1: routes declared in jobs, executions, versions and system; see `routing`."""

from __future__ import annotations

from flask import Blueprint, Flask

from . import errors, executions, jobs, routing, system, versions

__all__ = ["executions", "jobs", "register", "system", "versions"]


def register(app: Flask) -> Blueprint:
    """Add the API to `app`; returns its blueprint."""
    blueprint = Blueprint("api", __name__, url_prefix=routing.PREFIX)
    routing.add_to(blueprint)
    errors.register(blueprint, routing.PREFIX)
    app.register_blueprint(blueprint)
    return blueprint
