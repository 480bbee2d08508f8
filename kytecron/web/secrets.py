"""Secrets for jobs, for administrators: their names and who may read them. A value goes in and never comes out."""

from __future__ import annotations

from typing import Any

from flask import render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from ..core.choices import Role
from ..core.errors import Invalid, NotFound
from ..services import secrets
from ..services.jobs import find
from ..views import secrets as views
from . import access
from .access import needs
from .bounds import LONG, takes
from .render import done

area = access.area("secrets", __name__, "/secrets")


@area.get("")
@needs(Role.ADMIN)
def index() -> str:
    """The names, and the jobs that each is granted to."""
    return _page()


def _page(errors: dict[str, str] | None = None, typed: str = "") -> str:
    session = access.database()
    context: dict[str, Any] = {
        "secrets": views.secrets(secrets.list_secrets(session), secrets.granted_jobs(session)),
        "errors": errors or {},
        "typed": typed,
    }
    return render_template("secrets/page.html", **context)


@area.post("")
@needs(Role.ADMIN)
@takes(LONG)
def store() -> AnyResponse | tuple[str, int]:
    """Store a value under a name, or replace the one that it has. What was typed is not shown again."""
    name = request.form.get("name", "").strip()
    value = request.form.get("value", "").replace("\r\n", "\n")
    try:
        secrets.set_secret(access.database(), name, value, access.actor(), access.settings())
    except Invalid as invalid:
        return _page(invalid.fields, name), 422
    return _shown(f"{name} is stored. Runs that start from now on get this value.")


@area.post("/<name>/delete")
@needs(Role.ADMIN)
def delete(name: str) -> AnyResponse:
    """Remove a secret and its grants."""
    secrets.delete_secret(access.database(), name, access.actor())
    return _shown(f"{name} is deleted.")


@area.post("/<name>/grant")
@needs(Role.ADMIN)
def grant(name: str) -> AnyResponse:
    """Let a job, given by its name, read a secret."""
    session, wanted = access.database(), request.form.get("job", "").strip()
    job = find(session, wanted)
    if job.name != wanted:  # found by its number, which another job could have taken for its name
        raise NotFound(f"No job has the name {wanted!r}")
    secrets.grant(session, job.id, name, access.actor())
    return _shown(f"{job.name} may read {name}.")


@area.post("/<name>/revoke/<int:job_id>")
@needs(Role.ADMIN)
def revoke(name: str, job_id: int) -> AnyResponse:
    """Take a secret from a job."""
    secrets.revoke(access.database(), job_id, name, access.actor())
    return _shown(f"{name} is taken from the job. A run that goes on keeps what it was given.")


def _shown(message: str) -> AnyResponse:
    return done(message, url_for("secrets.index"), leave=True)
