"""The OpenAPI 3.1 document and the page made of it: both are written from the declared routes and their models."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from markupsafe import Markup, escape
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..core.choices import PUBLIC
from ..core.untrusted import LARGEST
from ..services import idempotency
from . import shapes
from .bodies import YAML
from .conditions import REPLAYED
from .errors import HTTP_ERRORS
from .routing import PREFIX, ROUTES, Route, summary

REF = "#/components/schemas/"

INTRODUCTION = """\
Each request carries a token: `Authorization: Bearer <token>`. A token has a role (viewer, operator, editor, admin), and
each of these may do what those before it may. Times are ISO 8601 in UTC. Lists come in parts: send the `next_cursor` of
an answer as `cursor` for the next part. Unknown fields and parameters are refused. What changes something takes an
`Idempotency-Key`: sent again with the same key, the same request is not carried out twice."""

AREAS = {
    "jobs": "Jobs",
    "executions": "Executions",
    "versions": "Versions and contents",
    "people": "People, tokens, secrets, settings",
    "system": "Workers, locks, audit",
}

PROBLEMS = {
    **{status: text for status, (_, text) in HTTP_ERRORS.items()},
    403: "The token's role does not allow this",
    404: "Nothing has that id",
    409: "The present state forbids it",
    412: "If-Match names another state than the present one; `details` shows both sides",
    422: "Invalid; `fields` says what and where",
    429: "Too many requests; see the Retry-After header",
    503: "As much of this is under way as may be at once, or the database does not answer; see the Retry-After header",
}

LINKED = {
    "JobDetail": {"job_id": "/id", "version": "/current_version"},
    "ExecutionDetail": {"execution_id": "/id"},
    "User": {"user_id": "/id"},
    "NewToken": {"token_id": "/id"},
    "Secret": {"secret_id": "/id"},
}
"""By which field of an answer one goes on to which parameter of other operations."""


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    described = [one for one in ROUTES if one.role != PUBLIC]
    references, schemas = _schemas(described)
    paths: dict[str, dict[str, Any]] = {}
    for one in described:
        operation = _operation(one, references, schemas)
        paths.setdefault(PREFIX + one.path, {})[one.method.lower()] = operation
    for one in described:
        if one.query is not None:
            schemas.pop(one.query.__name__, None)
    return {
        "openapi": "3.1.0",
        "info": {"title": "kytecron", "version": "1", "description": INTRODUCTION},
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "tags": [{"name": name} for name in AREAS.values()],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
        },
    }


def _schemas(described: list[Route]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """For each model and use a reference to its schema, and the schemas by name."""
    used: list[tuple[type[BaseModel], Any]] = [(shapes.Error, "serialization")]
    for one in described:
        used += [(model, "validation") for model in (one.query, one.body) if model is not None]
        if _is_model(one.result):
            used.append((one.result, "serialization"))
    references, found = models_json_schema(list(dict.fromkeys(used)), ref_template=REF + "{model}")
    return references, found["$defs"]


def _is_model(result: Any) -> bool:
    return isinstance(result, type) and issubclass(result, BaseModel)


# -- one operation -------------------------------------------------------------------------------------------


def _operation(one: Route, references: dict[Any, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    title, text = summary(one)
    operation: dict[str, Any] = {
        "operationId": one.name,
        "summary": title,
        "description": f"{text}\n\nRole: {one.role}.".strip(),
        "tags": [AREAS[one.area]],
        "parameters": [
            *map(_path_parameter, one.numbers),
            *_query_parameters(one, schemas),
            *_header_parameters(one),
        ],
        "responses": _responses(one, references),
        "x-role": one.role,
    }
    if one.body is not None:
        needed = any(field.is_required() for field in one.body.model_fields.values())
        schema = references[one.body, "validation"]
        kinds = ["application/json", *([YAML] if one.yaml_too else [])]
        operation["requestBody"] = {
            "required": needed,
            "content": {kind: {"schema": schema} for kind in kinds},
        }
    return operation


def _path_parameter(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "integer", "minimum": 0, "maximum": LARGEST},
    }


def _query_parameters(one: Route, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    if one.query is None:
        return []
    schema = schemas[one.query.__name__]
    return [
        _query_parameter(name, _without_null(dict(described)), name in schema.get("required", ()))
        for name, described in schema["properties"].items()
    ]


def _query_parameter(name: str, schema: dict[str, Any], required: bool) -> dict[str, Any]:
    schema.pop("title", None)
    text = schema.pop("description", None)
    parameter = {"name": name, "in": "query", "required": required, "schema": schema}
    return parameter | {"description": text} if text else parameter


def _header_parameters(one: Route) -> Iterator[dict[str, Any]]:
    if one.stateful:
        yield _header(
            "If-Match",
            r'^(\*|"[0-9]{1,9}-[0-9]{1,9}")$',
            "`ETag` of the job that this started from; else 412",
        )
    if not (one.reads or one.tells_secret):
        yield _header(
            idempotency.FIELD,
            r"^[!-~]{1,255}$",
            "A name for this request, such as a UUID: sent again within a day it gets the same answer, with "
            f"`{REPLAYED}: true`, and nothing is done twice",
        )


def _header(name: str, pattern: str, text: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": pattern, "minLength": 1}
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": text}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query parameter is there or not there; null is for JSON."""
    rest = [part for part in schema.get("anyOf", ()) if part != {"type": "null"}]
    if len(rest) == 1:
        del schema["anyOf"]
        schema |= rest[0]
    if schema.get("default", "") is None:
        del schema["default"]
    return schema


def _responses(one: Route, references: dict[Any, Any]) -> dict[str, Any]:
    good = _good_response(one, references)
    problems = {401, 403, 422, *one.problems}
    if one.numbers:
        problems.add(404)
    if one.stateful:
        problems.add(412)
    if not (one.reads or one.tells_secret):
        problems |= {400, 409, 429}
    if one.body is not None:
        problems |= {400, 413, 415}
    answers = {str(status): good for status in one.statuses}
    answers |= {str(status): _error(references, PROBLEMS[status]) for status in sorted(problems)}
    return answers | {"default": _error(references, "The server or its database failed")}


def _good_response(one: Route, references: dict[Any, Any]) -> dict[str, Any]:
    if one.result is None:
        return {"description": "Done"}
    if one.result is str:
        return {"description": "Text", "content": {"text/plain": {"schema": {"type": "string"}}}}
    schema = references[one.result, "serialization"]
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if one.text_too:
        content[one.text_too] = {"schema": schema if one.text_too == YAML else {"type": "string"}}
    answer: dict[str, Any] = {
        "description": (inspect.getdoc(one.result) or "").partition("\n")[0],
        "content": content,
    }
    if one.result is shapes.JobDetail:
        answer["headers"] = {"ETag": {"schema": {"type": "string"}, "description": "For If-Match"}}
    links = _links(one)
    return answer | {"links": links} if links else answer


def _links(one: Route) -> dict[str, Any]:
    """Where to go on from something that was just made."""
    found = LINKED.get(one.result.__name__, {})
    if one.method != "POST":
        return {}
    return {
        other.name: {
            "operationId": other.name,
            "parameters": {name: f"$response.body#{found[name]}" for name in other.numbers},
        }
        for other in ROUTES
        if other.numbers and found.keys() >= set(other.numbers)
    }


def _error(references: dict[Any, Any], text: str) -> dict[str, Any]:
    schema = references[shapes.Error, "serialization"]
    return {"description": text, "content": {"application/json": {"schema": schema}}}


# -- for people ----------------------------------------------------------------------------------------------


@cache
def page() -> dict[str, Any]:
    """What the template of the documentation page shows."""
    described = document()
    schemas = described["components"]["schemas"]
    operations = [
        {"method": method.upper(), "path": path, **operation, "body": _body_of(operation, schemas)}
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    return {
        "introduction": INTRODUCTION,
        "areas": [(area, [one for one in operations if one["tags"] == [area]]) for area in AREAS.values()],
        "schemas": {
            name: _fields(schema) for name, schema in sorted(schemas.items()) if "properties" in schema
        },
        "words": words,
        "prose": prose,
    }


def _body_of(operation: dict[str, Any], schemas: dict[str, Any]) -> list[dict[str, Any]]:
    body = operation.get("requestBody")
    if body is None:
        return []
    name = body["content"]["application/json"]["schema"]["$ref"].removeprefix(REF)
    return _fields(schemas[name])


def _fields(schema: dict[str, Any]) -> list[dict[str, Any]]:
    required = schema.get("required", ())
    return [
        {"name": name, "required": name in required, "description": one.get("description", ""), "schema": one}
        for name, one in schema["properties"].items()
    ]


def words(schema: dict[str, Any]) -> str:
    """A schema's type for people: `integer 1..200, default 50`, `list of Job`, `string or null`."""
    kind, default = _kind(schema), schema.get("default")
    return kind if default in (None, "", [], {}) else f"{kind}, default {json.dumps(default)}"


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix(REF)
        # The words to choose from have no panel of their own.
        choices = document()["components"]["schemas"][name].get("enum")
        return ", ".join(choices) if choices else name
    if "anyOf" in schema:
        return " or ".join(words(part) for part in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {words(schema.get('items', {}))}"
    if kind == "string" and "format" in schema:
        return str(schema["format"])
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None and high < LARGEST:
        return f"{kind} {low}..{high}"
    if low is not None:
        return f"{kind} from {low}"
    longest = schema.get("maxLength")
    return f"{kind}, at most {longest} characters" if longest else str(kind)


def prose(text: str) -> Markup:
    """A text with `code` in it as HTML."""
    return Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(text))))
