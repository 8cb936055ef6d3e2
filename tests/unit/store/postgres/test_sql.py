"""The loader of .sql files: names of parameters, fragments, and the form without damaged tasks."""

from __future__ import annotations

import re

import pytest

from agentsrv.store.postgres.sql import Query, columns, load, queries


def test_parameters_are_numbered_in_the_order_of_their_names():
    """A name that occurs twice has one number; casts and texts with a colon are not parameters."""
    query = Query("SELECT :b::text[], :a, x::bigint FROM t WHERE c = :b AND d = '1:2'")
    assert query.text == "SELECT $1::text[], $2, x::bigint FROM t WHERE c = $1 AND d = '1:2'"
    assert query.parameters == ("b", "a")
    assert query.arguments({"a": 1, "b": 2}) == [2, 1]


@pytest.mark.parametrize("values", [{}, {"a": 1}, {"a": 1, "c": 2}, {"a": 1, "b": 2, "c": 3}])
def test_other_arguments_than_the_parameters_are_refused(values):
    """One that is missing, one that is misspelt, one too many."""
    with pytest.raises((TypeError, KeyError)):
        Query("SELECT :a, :b").arguments(values)


def test_columns_have_the_names_of_the_fields():
    """Also without rows. A row of another length is refused."""
    assert columns(("a", "b"), [(1, 2), (3, 4)]) == {"a": (1, 3), "b": (2, 4)}
    assert columns(("a", "b"), []) == {"a": (), "b": ()}
    with pytest.raises(ValueError, match="zip"):
        columns(("a", "b"), [(1, 2, 3)])


def test_statements_are_complete():
    """No placeholder, comment or name of a parameter is left in a text that is sent."""
    for damaged in ((), (1,), (2, 3, 9)):
        for name in load("queries.sql"):
            text = getattr(queries(damaged), name).text
            assert not re.search(r"[{}]|--|(?<!:):[a-z]", text), name


def test_damaged_tasks_are_left_out():
    """Scans read the ranges of ids between the damaged tasks."""
    assert "FROM task WHERE ready > 0" in queries().queue.text
    text = queries((1, 2, 5)).queue.text
    assert re.findall(r"task WHERE (id [^)]*?)(?: UNION|\))", text) == [
        "id > 2 AND id < 5",
        "id > 5",
    ]
    assert queries((1, 2, 5)) is queries((1, 2, 5))
