"""What this installation is set to, and whether its ways of telling people work. Settings come from outside."""

from __future__ import annotations

from typing import Any

from flask import render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from ..core.choices import Channel, Role
from ..core.errors import Invalid
from ..core.fields import LABELS, TARGETS
from ..services import notify, throttle
from ..services.showing import shown
from . import access
from .access import needs
from .render import done

area = access.area("settings", __name__, "/settings")

CHANNELS = [(channel, LABELS[name]) for channel, name in TARGETS.items()]
MAX_TARGET = 500
TESTS_PER_MINUTE = 10


@area.get("")
@needs(Role.ADMIN)
def index() -> str:
    """Every setting, with what is secret left out."""
    return _page()


def _page(**more: Any) -> str:
    context: dict[str, Any] = {
        "settings": shown(access.settings()),
        "channels": CHANNELS,
        "errors": {},
        "channel": Channel.SLACK,
        "target": "",
    }
    return render_template("settings/page.html", **context | more)


@area.post("/test-message")
@needs(Role.ADMIN)
def test_message() -> AnyResponse | tuple[str, int]:
    """Send a message by a channel now, and tell how it went."""
    typed = {name: request.form.get(name, "").strip() for name in ("channel", "target")}
    try:
        _check(**typed)
    except Invalid as invalid:
        return _page(errors=invalid.fields, **typed), 422
    session, actor = access.database(), access.actor()
    throttle.allow(session, f"test-message:{access.user().id}", TESTS_PER_MINUTE, 60)
    with access.seat():  # a slow host is waited for
        notify.note_test(session, typed["channel"], typed["target"], actor)
        problem = notify.test_channel(access.settings(), typed["channel"], typed["target"])
    if problem:
        return _page(errors={"target": f"Not sent: {problem}"}, **typed), 422
    return done(
        "The test message is on its way: look whether it came.", url_for("settings.index"), leave=True
    )


def _check(channel: str, target: str) -> None:
    wrong = {}
    if channel not in set(Channel):
        wrong["channel"] = "Invalid channel. Must be one of: " + ", ".join(Channel)
    if not 1 <= len(target) <= MAX_TARGET:
        wrong["target"] = f"target must be an address of 1 to {MAX_TARGET} characters"
    if wrong:
        raise Invalid(wrong)
