"""Statements that run for every execution, compiled once for each database.

Executing a statement, SQLAlchemy finds it in a cache, expands its lists, orders its parameters and describes its
result, anew each time. For the short statements on the way of a run that costs more than the database does. Here
it is done once, and what is left is the driver's work. Values are converted by the columns' own types, errors are
SQLAlchemy's: whoever calls sees no difference.

For statements that run less often it is enough to build them once: SQLAlchemy finds those quickly.
"""

from __future__ import annotations

import re
import sys
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.orm import Session

from . import db, dialects

Row = Any
Convert = Callable[[Any], Any]

_NAMED = re.compile(r"%\((\w+)\)s")
FORMS = 32
"""How many forms of one statement are kept: there is one for each length of its list."""
LIST = "ids"
"""The one parameter that may be a list: `column.in_(sa.bindparam("ids", expanding=True))`, of whole numbers."""


def values_of(table: Any, columns: Iterable[str]) -> dict[str, Any]:
    """For `.values()`: each column is given by a parameter of its name."""
    return {name: sa.bindparam(name, type_=table.c[name].type) for name in columns}


class Prepared:
    """A statement with bound parameters, which are passed by name each time it is executed."""

    def __init__(self, statement: Any, row: type[Any] | None = None) -> None:
        """What a SELECT finds are named tuples: of the type `row`, whose fields are its columns, or of its own type."""
        self._form = lru_cache(maxsize=FORMS)(partial(_Form, statement, row))

    def rows(self, at: db.At, parameters: Mapping[str, Any] | None = None) -> list[Row]:
        """What a SELECT finds."""
        connection, given = db.connection(at), parameters or {}
        form = self._form(dialects.driver(connection), _length(given))
        records, _ = db.execute(connection, form.text, form.arguments(given))
        return form.read(records)

    def run_many(self, session: Session, several: Sequence[Mapping[str, Any]]) -> int:
        """Execute with each of `several` parameters, which have the same names; returns how many rows matched."""
        connection = db.connection(session)
        form = self._form(dialects.driver(connection), _length(several[0]))
        arguments = [form.arguments(one) for one in several]
        _, matched = db.execute(connection, form.text, arguments, many=True)
        return matched


def _length(parameters: Mapping[str, Any]) -> int:
    return len(parameters.get(LIST, ()))


class _Form:
    """A statement as one database gets it, its list as long as it is."""

    def __init__(self, statement: Any, row: type[Any] | None, dialect: sa.Dialect, length: int) -> None:
        compiled = statement.compile(dialect=dialect)
        unknown: dict[str, Any] = {name: None for name, bind in compiled.binds.items() if bind.required}
        state = compiled.construct_expanded_state(
            unknown | ({LIST: [0] * length} if LIST in unknown else {}), escape_names=False
        )
        self.text: str = state.statement
        order = state.positiontup
        if order is None:
            order = _NAMED.findall(self.text)
            self.text = _NAMED.sub("%s", self.text)
        parts = {part: name for name, expanded in state.parameter_expansion.items() for part in expanded}
        places = {part: number for number, part in enumerate(state.parameter_expansion.get(LIST, ()))}
        self._values: list[Any] = [None] * len(order)
        """With everything in its place that is always the same."""
        self._listed: list[tuple[int, int]] = []
        self._named: list[tuple[int, str, Convert | None]] = []
        for position, name in enumerate(order):
            if name in places:
                self._listed.append((position, places[name]))
                continue
            convert = _writer(compiled.binds[parts.get(name, name)].type, dialect)
            if name in unknown:
                self._named.append((position, name, convert))
            else:
                value = state.parameters[name]
                self._values[position] = convert(value) if convert else value
        self._row, self._converts = _described(statement, row, dialect)

    def arguments(self, parameters: Mapping[str, Any]) -> list[Any]:
        """The parameters in the order of the text, as the driver takes them."""
        values = self._values.copy()
        for position, name, convert in self._named:
            values[position] = convert(parameters[name]) if convert else parameters[name]
        if self._listed:
            listed = parameters[LIST]
            for position, number in self._listed:
                values[position] = listed[number]
        return values

    def read(self, records: Sequence[Sequence[Any]]) -> list[Row]:
        """Rows with their values as Python has them."""
        rows = []
        for record in records:
            values = list(record)
            for position, convert in self._converts:
                if values[position] is not None:
                    values[position] = convert(values[position])
            rows.append(self._row(values))
        return rows


class UpdateEach:
    """UPDATE of rows of `table`, each with values of its own for `columns`, where `keys` (expressions by name) match.

    And where `guard` holds, a condition that is the same for all of them. The first key is the table's primary key.
    Where the driver would send a statement for each row, there is one for all, with a list of the values; or a few,
    where the values are long.
    """

    def __init__(
        self, table: Any, keys: Mapping[str, Any], columns: Sequence[str], guard: Any | None = None
    ) -> None:
        self._table, self._keys, self._columns, self._guard = table, keys, columns, guard
        guards = [key == sa.bindparam(name, type_=key.type) for name, key in keys.items()]
        guards += [] if guard is None else [guard]
        self._one = Prepared(sa.update(table).where(*guards).values(values_of(table, columns)))
        self._forms: WeakKeyDictionary[sa.Dialect, _Listed] = WeakKeyDictionary()

    def run(self, session: Session, rows: Sequence[Mapping[str, Any]]) -> int:
        """Write `rows`, which have the keys and the columns by their names; returns how many matched."""
        connection = db.connection(session)
        on = dialects.of(connection)
        listed = on.listed_update
        if len(rows) == 1 or listed is None:
            return self._one.run_many(session, rows)
        spoken = dialects.driver(connection)
        if spoken not in self._forms:
            self._forms[spoken] = _Listed(self._table, self._keys, self._columns, self._guard, spoken, listed)
        form = self._forms[spoken]
        matched = 0
        for part in form.parts(rows, on.most_bytes):
            text, arguments = form.text(len(part)), [value for values in part for value in values]
            matched += db.execute(connection, text, arguments)[1]
        return matched


class _Listed:
    """UPDATE of a table by a list of values, as one database has it."""

    def __init__(
        self,
        table: Any,
        keys: Mapping[str, Any],
        columns: Sequence[str],
        guard: Any | None,
        dialect: sa.Dialect,
        listed: dialects.ListsUpdates,
    ) -> None:
        name = dialect.identifier_preparer.format_table(table)
        quote, literal = dialect.identifier_preparer.quote, {"literal_binds": True}
        matches = [
            f"{key.compile(dialect=dialect, compile_kwargs=literal)} = v{number}"
            for number, key in enumerate(keys.values())
        ]
        if guard is not None:  # beside the last of them: each stands for a value of the list
            matches[-1] += f" AND {guard.compile(dialect=dialect, compile_kwargs=literal)}"
        values = [f"{name}.{quote(column)} = v{number}" for number, column in enumerate(columns, len(keys))]
        self._text = listed(name, matches, values)
        kinds = {name: key.type for name, key in keys.items()} | {
            name: table.c[name].type for name in columns
        }
        self._converts = [(name, _writer(kind, dialect)) for name, kind in kinds.items()]

    def text(self, count: int) -> str:
        return self._text.begin + self._text.more * (count - 1) + self._text.end

    def parts(self, rows: Sequence[Mapping[str, Any]], most_bytes: int | None) -> Iterator[list[list[Any]]]:
        """The values of `rows` as the driver takes them, as many rows together as one statement may hold; one at least.

        None is written with its length in bytes: that costs more than one statement too many.
        """
        most = (most_bytes or sys.maxsize) - len(self._text.begin) - len(self._text.end)
        part: list[list[Any]] = []
        size = 0
        for row in rows:
            values = [convert(row[name]) if convert else row[name] for name, convert in self._converts]
            added = len(self._text.more) + sum(map(_most_bytes, values))
            if part and size + added > most:
                yield part
                part, size = [], 0
            part.append(values)
            size += added
        yield part


def _most_bytes(value: Any) -> int:
    """How many bytes a value may take in a statement: UTF-8 has four for a character, escaping takes two for one."""
    return 4 * len(value) + 16 if isinstance(value, str | bytes) else 64


def _described(
    statement: Any, row: type[Any] | None, dialect: sa.Dialect
) -> tuple[Callable[[list[Any]], Row], list[tuple[int, Convert]]]:
    """What makes a row of a SELECT, and which of its values are to be converted."""
    if not isinstance(statement, sa.Select):
        return tuple, []
    columns = list(statement.selected_columns)
    found = [(place, _reader(column.type, dialect)) for place, column in enumerate(columns)]
    names = [str(column.key) for column in columns]
    kind: Any = row or namedtuple("Row", names)
    if list(kind._fields) != names:
        raise TypeError(f"{kind.__name__} has the fields {kind._fields}, the statement the columns {names}")
    return kind._make, [(place, convert) for place, convert in found if convert is not None]


def _writer(kind: Any, dialect: sa.Dialect) -> Convert | None:
    convert: Convert | None = kind.dialect_impl(dialect).bind_processor(dialect)
    return convert


def _reader(kind: Any, dialect: sa.Dialect) -> Convert | None:
    convert: Convert | None = kind.dialect_impl(dialect).result_processor(dialect, None)
    return convert
