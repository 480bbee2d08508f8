"""A form that is sent twice, as by a double click, starts one run: each copy of a form has a key of its own."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable

from flask import request, session

from ..services import idempotency
from ..services.idempotency import Answer, Asked
from . import access

FIELD = "once"
"""Written into every form beside its CSRF token: see the macro `csrf`."""


COUNT = "made"
"""Where the session's cookie counts what its forms have made."""


def key() -> str:
    """A key for one copy of a form: another one in the next second, and after whatever was made in this session.

    Not drawn by lot, so that a part of a page fetched alone is the one that stands in the page.
    """
    seen = f"{session.get(access.TOKEN)}\n{session.get(COUNT, 0)}\n{int(time.time())}"
    return hashlib.sha256(seen.encode()).hexdigest()[:20]


def once(make: Callable[[], int]) -> int:
    """What `make`, one transaction, returns: at the second time that the same form comes, what it returned first.

    A form that was filled in anew is another one, and one without a key is carried out each time.
    """
    given = request.form.get(FIELD, "")
    if not given:
        return make()
    # The fields belong to the key: who goes back and changes some asks for something else.
    sent = repr([request.path, given, *_sent()])
    asked = Asked(f"user:{access.user().id}", sent, sent)
    answer, before = idempotency.once(
        access.database(), access.settings(), asked, lambda: Answer(201, str(make()))
    )
    if not before:
        session[COUNT] = session.get(COUNT, 0) + 1
    return int(answer.body)


def _sent() -> Iterable[tuple[str, str]]:
    return sorted(pair for pair in request.form.items(multi=True) if pair[0] not in (FIELD, "csrf_token"))
