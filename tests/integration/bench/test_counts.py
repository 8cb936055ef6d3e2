from __future__ import annotations

from tests.bench import counts


async def test_no_work_was_added():
    """Calls, bytes, statements and commits are those that were accepted, or fewer."""
    found = await counts.count()
    expected = counts.expected()
    assert found.keys() == expected.keys()
    assert counts.complaints(found, expected) == []


def test_a_raised_count_is_told_with_what_to_do_about_it():
    """Which, what was found, what was expected, and how to accept it."""
    expected = {"calls_per_task": 700.0, "commits": 200.0}
    assert counts.complaints({"calls_per_task": 769.9, "commits": 150.0}, expected) == []
    (told,) = counts.complaints({"calls_per_task": 771.0, "commits": 150.0}, expected)
    for part in ("calls_per_task", "771", "700", "make counts"):
        assert part in told


async def test_a_statement_and_a_call_more_are_counted(tmp_path):
    """The counters see what the server does: twice the tasks are twice the work."""
    async with counts.counting(f"sqlite:///{tmp_path / 'counts.db'}") as server:
        await server.run(1, counts.WARM)
        once, twice = await server.run(1, 20), await server.run(1, 40)
    for name in ("calls", "statements", "commits"):
        assert 1.9 < twice[name] / once[name] < 2.1
