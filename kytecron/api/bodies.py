"""Reading a request: JSON more strictly than `json.loads` does, and query parameters; both into a model."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Container
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin
from urllib.parse import unquote_to_bytes

from flask import request
from pydantic import BaseModel

from ..core import jobspec
from ..core.errors import Invalid
from ..core.jobspec import Model
from ..core.untrusted import first_repeated, unstorable
from ..services import transfer
from . import errors
from .errors import Malformed, UnsupportedMediaType

YAML = "application/yaml"
MAX_DEPTH = 32


def read_body(model: type[Model], yaml_too: bool = False) -> Model:
    """The request's JSON object as a model; with `yaml_too` it may be YAML.

    Raises Malformed, UnsupportedMediaType, and Invalid with a message for each wrong field.
    """
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedMediaType(
            "Send the body as it is, without Content-Encoding: nothing is unpacked here"
        )
    data = request.get_data(cache=False)
    if not data and not any(field.is_required() for field in model.model_fields.values()):
        return model()
    if yaml_too and request.mimetype == YAML:
        return validated(model, _parse_yaml(data))
    if request.mimetype != "application/json":
        raise UnsupportedMediaType(errors.HTTP_ERRORS[415][1])
    return validated(model, _parse(data))


def read_query(model: type[Model]) -> Model:
    """The request's query parameters as a model.

    Raises Malformed, and Invalid with a message for each wrong parameter; an unknown one is wrong.
    """
    try:
        unquote_to_bytes(request.query_string).decode()
    except UnicodeDecodeError:
        raise Malformed("The query is not UTF-8") from None
    lists = {field.alias or name for name, field in model.model_fields.items() if _is_list(field.annotation)}
    given: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for name, values in request.args.lists():
        if name in lists:
            given[name] = [part for value in values for part in value.split(",")]
        elif len(values) > 1:
            wrong[name] = f"{name} is given more than once"
        else:
            given[name] = values[0]
    _refuse_unstorable(given)
    if wrong:
        raise Invalid(wrong)
    return validated(model, given)


class Judged(BaseModel):
    """A body whose fields are not judged by their types alone."""

    @classmethod
    def further_problems(cls, given: dict[str, Any]) -> dict[str, str]:
        """What is wrong with those fields whose types are right."""
        raise NotImplementedError


def validated(model: type[Model], given: dict[str, Any]) -> Model:
    """`given` as a model. Raises Invalid with a message for each wrong field."""
    return jobspec.validated(model, given, lambda wrong: _further(model, given, wrong))


def _further(model: type[BaseModel], given: dict[str, Any], wrong: Container[str]) -> dict[str, str]:
    """What else is wrong, so that all of it is told at once."""
    rest = {name: value for name, value in given.items() if name in model.model_fields and name not in wrong}
    return model.further_problems(rest) if issubclass(model, Judged) else {}


def _is_list(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return any(_is_list(one) for one in get_args(annotation) if one is not NoneType)
    return get_origin(annotation) is list


def _parse(data: bytes) -> dict[str, Any]:
    if data.startswith(BOM_UTF8):
        raise Malformed("The body begins with a byte order mark: leave it out")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_without_doubles, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise Malformed(f"The body is not UTF-8: byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise Malformed(
            f"The body is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except RecursionError:
        raise Malformed(f"The body is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError:  # Python refuses to read numbers of thousands of digits
        raise Malformed("The body holds a number that is too large") from None
    if not isinstance(value, dict):
        raise Malformed('The body must be a JSON object, such as {"name": "nightly"}')
    _refuse_depth(value)
    value = {name: _whole(part) for name, part in value.items()}
    # Of code it is told where in it.
    _refuse_unstorable({name: part for name, part in value.items() if name != "code"})
    return value


def _parse_yaml(data: bytes) -> dict[str, Any]:
    try:
        value = transfer.from_yaml(data)
    except Invalid as invalid:
        raise Malformed(invalid.message) from None
    if not isinstance(value, dict):
        raise Malformed("The body must be a mapping, such as an export writes")
    named = {str(name): part for name, part in value.items()}
    _refuse_unstorable(named)
    return named


def _whole(value: Any) -> Any:
    """5.0 is a whole number in JSON, and no field here is a fraction; what is inside objects is left as it is."""
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        double = first_repeated([name for name, _ in pairs])
        raise Malformed(f"The body has the key {pairs[double or 0][0][:100]!r} twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise Malformed(f"The body is not JSON: {name} is no JSON number")


def _refuse_depth(value: Any, depth: int = 1) -> None:
    if depth > MAX_DEPTH:
        raise Malformed(f"The body is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            _refuse_depth(part, depth + 1)


def _refuse_unstorable(fields: dict[str, Any]) -> None:
    """Raises Invalid for what JSON can write and no database here can keep."""
    wrong = {}
    for name, value in fields.items():
        if problem := unstorable(name) or unstorable(value):
            shown = name.encode("ascii", "replace").decode()[:100]
            wrong[shown] = f"{shown} holds {problem}, which cannot be stored"
    if wrong:
        raise Invalid(wrong)
