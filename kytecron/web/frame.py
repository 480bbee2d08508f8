"""What every page shows around its content, and what every template may call."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from flask import Flask, g, request, url_for

from ..core.choices import Role
from ..core.untrusted import visible
from ..store import figures
from . import access, once, words

NAV = (
    ("home.index", "Dashboard", "house", Role.VIEWER, ""),
    ("jobs.index", "Jobs", "calendar-clock", Role.VIEWER, ""),
    ("executions.index", "Executions", "activity", Role.VIEWER, ""),
    ("system.dead_letters", "Dead letters", "inbox", Role.VIEWER, ""),
    ("system.workers", "Workers", "server", Role.VIEWER, "System"),
    ("system.storage", "Storage", "database", Role.VIEWER, ""),
    ("people.index", "Users and tokens", "users", Role.ADMIN, ""),
    ("secrets.index", "Secrets", "lock", Role.ADMIN, ""),
    ("system.audit", "Audit log", "history", Role.ADMIN, ""),
    ("settings.index", "Settings", "settings", Role.ADMIN, ""),
    ("docs.index", "Documentation", "circle-help", Role.VIEWER, ""),
)
"""Endpoint, label, icon, the role it needs, and the heading above it, if any."""
KEYS = {"system.dead_letters": "g l", "system.workers": "g w"}
HOME_OF = {
    "jobform": "jobs.index",
    "versions": "jobs.index",
    "docs": "docs.index",
    "jobs": "jobs.index",
    "executions.of_job": "jobs.index",
}
"""Which entry is the present one for areas and pages that have none of their own."""


def register(app: Flask) -> None:
    """Add the frame's data to every template."""
    app.jinja_env.globals.update(
        asset_version=_asset_version(Path(app.static_folder or "")),
        url_for=_url_for,
        may=access.may,
        once_key=once.key,
        seen=_seen,
        words=words,
    )
    app.jinja_env.finalize = _seen
    app.context_processor(_frame)


def _seen(value: Any) -> Any:
    """What templates print: text in which every character shows. What is HTML already (`|e` of a field's) stays."""
    return visible(value) if type(value) is str and not value.isascii() else value


def _url_for(endpoint: str, **values: Any) -> str:
    """As Flask's, remembered: a list of jobs names 500 addresses, and making one takes 30 microseconds."""
    return _address(request.script_root, endpoint, **values)


@lru_cache(maxsize=10_000)
def _address(script_root: str, endpoint: str, **values: Any) -> str:
    return url_for(endpoint, **values)


def _asset_version(folder: Path) -> str:
    """Changes when any static file does: browsers keep these for a year."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _frame() -> dict[str, Any]:
    person = g.get("user")
    if person is None:
        return {}
    here = request.endpoint or ""
    active = HOME_OF.get(here) or HOME_OF.get(request.blueprint or "") or here
    return {
        "nav": [
            {
                "endpoint": endpoint,
                "label": label,
                "icon": icon,
                "section": section,
                "active": endpoint == active,
                "key": KEYS.get(endpoint),
                "count": figures.dead_letters(access.database())
                if endpoint == "system.dead_letters"
                else None,
            }
            for endpoint, label, icon, role, section in NAV
            if access.may(role)
        ],
        "user_name": person.username,
        "user_role": person.role,
        "account_url": url_for("auth.account"),
        "sign_out_url": url_for("auth.sign_out"),
        "search_url": url_for("jobs.index"),
    }
