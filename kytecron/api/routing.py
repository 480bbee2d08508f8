"""A route of the API is declared once: its address, its role, and a function whose signature says the rest.

    @route("GET /jobs/{job_id}/stats", role=Role.VIEWER)
    def job_stats(call: Call, job_id: int, query: DaysQuery) -> JobStats:
        \"\"\"Runs of a job by day.\"\"\"

Numbers in the address are the parameters of these names; `query` and `body` are read into their models; what is
returned is written from its model. The first line of the docstring is the summary in the OpenAPI document, which
is made from the same declarations.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from flask import Blueprint, Response, current_app, g, request
from pydantic import BaseModel
from sqlalchemy.orm import Session

from ..config import Settings
from ..core.choices import PUBLIC, Needed, Role, Source
from ..core.errors import Forbidden, Invalid, NotFound
from ..core.untrusted import LARGEST
from ..requestdb import db
from ..services import accounts, idempotency, jobs, throttle
from ..services.audit import Actor
from ..services.seats import Seat, Seats
from ..store import db as database
from ..store.db import transactional
from . import conditions, errors
from .bodies import read_body, read_query
from .inputs import JobInput
from .shapes import JobDetail

ROOT = "/api"
"""Whoever asks for something below here is a program, whatever it takes for the version."""
PREFIX = f"{ROOT}/v1"

View = TypeVar("View", bound=Callable[..., Any])
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls, and what a view needs to answer."""

    session: Session
    settings: Settings
    now: datetime
    """By the database's clock."""
    token_id: int
    role: str
    actor: Actor
    held: list[Seat] = field(default_factory=list)
    """Seats that are left when the request has been answered."""

    def require(self, role: Role) -> None:
        """Raises Forbidden where what was asked for needs more than the route does."""
        if not accounts.allows(self.role, role):
            raise Forbidden(f"This needs the role {role}; the token has the role {self.role}")

    def throttle_triggers(self) -> None:
        """Count a run that the caller asks for. Raises TooManyRequests."""
        throttle.allow_trigger(self.session, f"token:{self.token_id}")

    def seat(self) -> Seat:
        """A seat for an answer that waits or streams, to be left when it has ended. Raises Busy."""
        seats: Seats = current_app.extensions["kytecron.seats"]
        return seats.take(f"token:{self.token_id}")

    def hold_seat(self) -> None:
        """A seat until the request has been answered, however often its transaction is repeated. Raises Busy."""
        if not self.held:
            self.held.append(self.seat())


@dataclass(frozen=True, slots=True)
class Answer(Generic[Result]):
    """A result with a status of its own, or with headers."""

    value: Result
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    later: Callable[[], Answer[Result]] | None = None
    """What takes time, such as waiting for a run's end: its answer counts. No transaction is open meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A declared route: all that dispatching and describing it need."""

    method: str
    path: str
    """Below PREFIX, with its parameters in braces."""
    role: Needed
    view: Callable[..., Any]
    numbers: tuple[str, ...]
    """Parameters in the path."""
    query: type[BaseModel] | None
    body: type[BaseModel] | None
    result: Any
    """A model, `str` for plain text, `Response` for anything else, None for no content."""
    statuses: tuple[int, ...]
    """How it may answer when all is well, the usual one first."""
    problems: tuple[int, ...]
    """Statuses of errors besides those that every route has."""
    text_too: str
    """Another media type that it may come in; empty for JSON alone."""
    yaml_too: bool
    """The body may be YAML, too."""
    area: str
    """The module of the view."""
    beforehand: Callable[[Call, Any], None] | None
    """Given the body before any transaction begins: what takes too long inside one."""
    reads: bool
    """Changes nothing, whatever its method."""
    steps: bool
    """Takes several transactions."""
    tells_secret: bool
    """Its request or its answer holds a secret, so that no Idempotency-Key may keep it."""

    @property
    def stateful(self) -> bool:
        """It is about one job, whose ETag If-Match may name."""
        about_a_job = self.path.startswith("/jobs/{job_id}")
        return about_a_job and (not self.reads or self.path == "/jobs/{job_id}")

    @property
    def name(self) -> str:
        """The view's name, which is the operation's id."""
        return self.view.__name__


ROUTES: list[Route] = []


def route(
    rule: str,
    *,
    role: Needed,
    status: int = 200,
    also: tuple[int, ...] = (),
    problems: tuple[int, ...] = (),
    text_too: str = "",
    yaml_too: bool = False,
    beforehand: Callable[[Call, Any], None] | None = None,
    reads: bool = False,
    steps: bool = False,
    tells_secret: bool = False,
) -> Callable[[View], View]:
    """Declare a view as the answer to `rule`: a method and a path below PREFIX, for a Role or for PUBLIC."""
    method, path = rule.split()

    def declare(view: View) -> View:
        hints = get_type_hints(view)
        ROUTES.append(
            Route(
                method=method,
                path=path,
                role=role,
                view=view,
                numbers=tuple(re.findall(r"{(\w+)}", path)),
                query=hints.get("query"),
                body=hints.get("body"),
                result=_result(hints["return"]),
                statuses=(status, *also),
                problems=problems,
                text_too=text_too,
                yaml_too=yaml_too,
                area=view.__module__.rpartition(".")[2],
                beforehand=beforehand,
                reads=reads or method == "GET",
                steps=steps,
                tells_secret=tells_secret,
            )
        )
        return view

    return declare


def _result(hint: Any) -> Any:
    """What is returned at heart: `Shape` of `Answer[Shape]` and of `Shape | Response`, None of no content."""
    if get_origin(hint) is Answer or isinstance(hint, UnionType):
        return get_args(hint)[0]
    return None if hint is type(None) else hint


def add_to(blueprint: Blueprint) -> None:
    """Give the blueprint every declared route."""
    for declared in ROUTES:
        blueprint.add_url_rule(
            re.sub(r"{(\w+)}", r"<int:\1>", declared.path),
            declared.name,
            _answering(declared),
            methods=[declared.method],
            provide_automatic_options=False,
        )


def _answering(declared: Route) -> Callable[..., Response]:
    def answer(**numbers: int) -> Response:
        call = caller(declared.role)
        if any(number > LARGEST for number in numbers.values()):
            raise NotFound("Nothing has an id of more than 64 bits")
        arguments: dict[str, Any] = dict(numbers)
        if declared.query is not None:
            arguments["query"] = read_query(declared.query)
        elif request.args:
            read_query(Nothing)
        if declared.body is not None:
            arguments["body"] = read_body(declared.body, declared.yaml_too)
        try:
            return _carried_out(declared, call, arguments)
        finally:
            for seat in call.held:
                seat.leave()

    return answer


def _carried_out(declared: Route, call: Call, arguments: dict[str, Any]) -> Response:
    """The answer of a view under the request's conditions: If-Match holds, and its Idempotency-Key is new."""
    key, tags = conditions.key(), conditions.wanted_tags()
    if declared.method != "GET":
        conditions.refuse_other_conditions()
    if not declared.stateful:
        conditions.refuse_tags_without_state()
    if key is not None and declared.tells_secret:
        raise Invalid({idempotency.FIELD: f"{idempotency.FIELD}: not here, where it would keep a secret"})

    def act() -> Response:
        if tags is not None:
            body = arguments.get("body")
            jobs.require_state(
                call.session, arguments["job_id"], tags, body.given() if isinstance(body, JobInput) else {}
            )
        return _response(declared, declared.view(call, **arguments), later)

    later: list[Callable[[], Any]] = []
    if declared.reads or (key is None and tags is None):
        response = act()
    else:
        if declared.beforehand is not None:
            declared.beforehand(call, arguments["body"])
        response = _once(declared, call, arguments, key, act)
    for wait in later:
        response = _response(declared, wait(), [])
        if key is not None:
            asked = _asked(declared, call, arguments, key)
            idempotency.keep(call.session, call.settings, asked, conditions.packed(response))
    return response


def _once(
    declared: Route, call: Call, arguments: dict[str, Any], key: str | None, act: Callable[[], Response]
) -> Response:
    if key is None:
        return transactional(lambda _: act())(call.session)
    carry_out = idempotency.stepwise if declared.steps else idempotency.once
    asked = _asked(declared, call, arguments, key)
    given = carry_out(call.session, call.settings, asked, lambda: conditions.packed(act()))
    return conditions.unpacked(given.answer, given.replayed)


def _asked(declared: Route, call: Call, arguments: dict[str, Any], key: str) -> idempotency.Asked:
    told = [
        value.model_dump_json(exclude_unset=True) if isinstance(value, BaseModel) else str(value)
        for value in arguments.values()
    ]
    wanted = request.headers.get("If-Match", "")
    request_text = "\n".join([f"{declared.method} {declared.path}", wanted, *told])
    return idempotency.Asked(f"token:{call.token_id}", key, request_text)


def address(path: str) -> str:
    """Where a path below PREFIX is for the caller: a proxy may have put all of this under a path of its own."""
    return f"{request.script_root}{PREFIX}{path}"


class Nothing(BaseModel, extra="forbid"):
    """The query of a route that takes none."""


def caller(role: Needed) -> Call:
    """Who calls, if they have `role`. Raises Unauthorized and Forbidden."""
    session = db.session()
    settings: Settings = current_app.extensions["kytecron.settings"]
    ip = request.remote_addr or ""
    if role == PUBLIC:
        return Call(session, settings, database.now(session), 0, PUBLIC, Actor("anonymous", Source.API, ip))
    scheme, _, plain = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not plain.strip():
        raise errors.Unauthorized('Bearer realm="kytecron"')
    now = database.now(session)
    token = accounts.find_token(session, plain.strip(), now)
    if token is None:
        raise errors.Unauthorized('Bearer realm="kytecron", error="invalid_token"')
    # A writing transaction forgets what was read before it, so the plain values are taken here.
    g.actor = Actor(f"token:{token.name}"[:100], Source.API, ip)
    call = Call(session, settings, now, token.id, token.role, g.actor)
    call.require(role)
    return call


def _response(declared: Route, result: Any, later: list[Callable[[], Any]]) -> Response:
    """What a view returned as a response; what it wants to do `later` is added there."""
    status, headers = declared.statuses[0], {}
    if isinstance(result, Answer):
        later[:] = [result.later] if result.later is not None else []
        result, status, headers = result.value, result.status, dict(result.headers)
    if isinstance(result, JobDetail):
        headers["ETag"] = f'"{jobs.state_tag(result)}"'
    if isinstance(result, Response):
        return result
    if isinstance(result, BaseModel):
        text, mimetype = result.model_dump_json(by_alias=True, warnings=False), "application/json"
    elif isinstance(result, str):
        text, mimetype = result, "text/plain"
    else:
        text, mimetype = "", "application/json"
    return Response(text, status, headers, mimetype=mimetype)


def summary(declared: Route) -> tuple[str, str]:
    """A route's docstring: its first line without the full stop, and the rest."""
    first, _, rest = inspect.cleandoc(declared.view.__doc__ or "").partition("\n")
    return first.rstrip("."), rest.strip()
