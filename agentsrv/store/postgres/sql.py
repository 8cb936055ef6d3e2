"""Loads ``queries.sql`` and ``schema.sql``, and gives statements named parameters.

PostgreSQL numbers parameters (``$1``). The files name them (``:task_id``), and `Query` translates
each name to its number once, when the file is loaded. The text that is sent, and with it asyncpg's
cache of prepared statements, is the same for every call.

``queries(damaged)`` returns all statements of ``queries.sql``, in a form that does not touch the
rows of damaged tasks; the head of that file says how.
"""

# ruff: noqa: S608 - the ranges of ids are integers

from __future__ import annotations

import re
from collections.abc import Awaitable, Mapping, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from agentsrv.store.base import IDEMPOTENCY_TTL
from agentsrv.store.shared import NEWS_WINDOW, USAGE_TTL

CONSTANTS: Final = {
    "idempotency_ttl": IDEMPOTENCY_TTL,
    "max_reclaimed": 1000,  # tasks taken from lost nodes in one statement
    "message_retention": "1 hour",  # the node that posted a message has long withdrawn it
    "news_window": NEWS_WINDOW,
    "node_retention": "1 day",  # how long `nodes` lists a lost node
    "usage_ttl": USAGE_TTL,
}
"""Values that are part of a statement's text, so that the planner knows them."""
BY_ID: Final = "_by_id"
"""Suffix of the condition that replaces another while tasks are damaged."""
_NAME: Final = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_COMMENT: Final = re.compile(r"^ *--.*\n?", re.MULTILINE)
_PARAMETER: Final = re.compile(r"(?<!:):([a-z_]+)")  # a cast has two colons


class Query:
    """A statement with named parameters.

    Each method executes it on a connection, with one keyword argument for each parameter.

    Raises:
        KeyError, TypeError: A parameter is missing, or an argument is not a parameter.
    """

    __slots__ = ("parameters", "text")

    def __init__(self, statement: str) -> None:
        self.parameters = tuple(dict.fromkeys(_PARAMETER.findall(statement)))
        """Names in the order of their numbers."""
        numbers = {name: f"${number}" for number, name in enumerate(self.parameters, 1)}
        self.text = _PARAMETER.sub(lambda found: numbers[found[1]], statement)

    def fetch(self, db: Any, /, **values: Any) -> Awaitable[list[Any]]:
        """Return all rows."""
        return db.fetch(self.text, *self.arguments(values))  # type: ignore[no-any-return]

    def fetch_row(self, db: Any, /, **values: Any) -> Awaitable[Any]:
        """Return the first row, or ``None``."""
        return db.fetchrow(self.text, *self.arguments(values))  # type: ignore[no-any-return]

    def fetch_value(self, db: Any, /, **values: Any) -> Awaitable[Any]:
        """Return the first column of the first row, or ``None``."""
        return db.fetchval(self.text, *self.arguments(values))  # type: ignore[no-any-return]

    def execute(self, db: Any, /, **values: Any) -> Awaitable[Any]:
        """Execute the statement, and discard its rows."""
        return db.execute(self.text, *self.arguments(values))  # type: ignore[no-any-return]

    def arguments(self, values: Mapping[str, Any]) -> list[Any]:
        """The values in the order of the parameters' numbers."""
        if len(values) != len(self.parameters):
            raise TypeError(f"expected the parameters {self.parameters}, got {tuple(values)}")
        return [values[name] for name in self.parameters]


class Queries:
    """The statements of ``queries.sql``: one attribute of type `Query` for each name."""

    def __init__(self, statements: Mapping[str, str]) -> None:
        self.__dict__ = {name: Query(statement) for name, statement in statements.items()}

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Query: ...


@cache
def load(file: str) -> Mapping[str, str]:
    """The statements of a file of this package, by name, without the lines that are comments."""
    text = files(__package__).joinpath(file).read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return {
        name: _COMMENT.sub("", statement).strip()
        for name, statement in zip(parts[::2], parts[1::2], strict=True)
    }


@lru_cache(8)
def queries(damaged: Sequence[int] = ()) -> Queries:
    """All statements; they leave out the tasks with these numbers, which must be in order."""
    found, inserted = dict(load("queries.sql")), dict[str, Any](CONSTANTS)
    inserted["tasks"] = _tasks_without(damaged) if damaged else "task"
    if damaged:
        found |= {name.removesuffix(BY_ID): found[name] for name in found if name.endswith(BY_ID)}
    for name, statement in found.items():  # a fragment comes before the statements that use it
        inserted[name] = found[name] = statement.format_map(inserted)
    return Queries(found)


def _tasks_without(damaged: Sequence[int]) -> str:
    """A subquery that reads the ranges of ids between the damaged tasks by the index of ids."""
    ranges = [
        f"id > {low} AND id < {high}" for low, high in pairwise((0, *damaged)) if high - low > 1
    ]
    ranges.append(f"id > {damaged[-1]}")
    scans = " UNION ALL ".join(f"SELECT * FROM task WHERE {each}" for each in ranges)
    return f"({scans}) AS task"


def columns(fields: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Rows as arrays for ``unnest``: one parameter for each field of a row."""
    values = zip(*rows, strict=True) if rows else [()] * len(fields)
    return dict(zip(fields, values, strict=True))
