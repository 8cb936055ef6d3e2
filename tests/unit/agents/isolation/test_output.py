"""Lines of processes in the log: whole, bounded, counted where they are dropped."""

from __future__ import annotations

import asyncio
import logging
import os
import random

import pytest

from agentsrv.agents.isolation.output import MAX_LINE_BYTES, LogBudget, OutputReader


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The messages so far."""
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\n\nb", ["a", "", "b"]),
        ("ä\n".encode(), ["ä"]),
        (b"\xff\n", ["\\xff"]),
        (b"\0\n", ["\0"]),
        (b"x" * MAX_LINE_BYTES + b"\n", ["x" * MAX_LINE_BYTES]),
        (b"x" * (MAX_LINE_BYTES + 1) + b"\ny\n", [f"{'x' * MAX_LINE_BYTES}… (1 more bytes)", "y"]),
        (b"x" * 50_000, [f"{'x' * MAX_LINE_BYTES}… ({50_000 - MAX_LINE_BYTES} more bytes)"]),
    ],
)
@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("ends", [True, False])
async def test_lines_are_logged(written, lines, pieces, ends, caplog) -> None:
    """Whatever pieces they come in, and whether the pipe ends or is held by somebody."""
    caplog.set_level(logging.INFO)
    ours, theirs = os.pipe()
    reader = OutputReader(ours, "stdout", LogBudget(lambda: 0.0))
    size = len(written) // pieces + 1
    for start in range(0, len(written), size):
        os.write(theirs, written[start : start + size])
        await asyncio.sleep(0)
    if ends:
        os.close(theirs)
        await asyncio.sleep(0)
    reader.close()
    assert logged(caplog) == [f"stdout: {line}" for line in lines]
    if not ends:
        os.close(theirs)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ours)


@pytest.mark.parametrize("seed", range(20))
async def test_what_is_dropped_is_counted(seed: int, caplog) -> None:
    """Lines in the log and dropped ones are all that was written."""
    caplog.set_level(logging.INFO)
    chance = random.Random(seed)
    budget = LogBudget(lambda: 0.0, at_once=chance.randrange(1, 50), per_second=0)
    ours, theirs = os.pipe()
    reader = OutputReader(ours, "stdout", budget)
    written = b"".join(b"x" * chance.randrange(100) + b"\n" for _ in range(chance.randrange(300)))
    while written:
        cut = chance.randrange(1, 5000)
        os.write(theirs, written[:cut])
        written = written[cut:]
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    os.close(theirs)
    count = sum(1 for _ in logged(caplog))
    reader.close()
    lines = logged(caplog)
    sizes = sum(len(line.removeprefix("stdout: ")) + 1 for line in lines)
    assert count <= len(lines) <= budget._at_once
    random_again = random.Random(seed)
    random_again.randrange(1, 50)
    expected = [random_again.randrange(100) + 1 for _ in range(random_again.randrange(300))]
    assert len(lines) + budget.dropped_lines == len(expected)
    assert sizes + budget.dropped_bytes == sum(expected)


def test_a_budget_is_filled_by_time_and_shared() -> None:
    """A line is refused when the attempt's budget, or that of all attempts, is spent."""
    now = 0.0
    shared = LogBudget(lambda: now, at_once=3, per_second=1)
    first, second = (LogBudget(lambda: now, 2, 1, shared) for _ in range(2))
    assert [first.take() for _ in range(3)] == [True, True, False]
    assert [second.take() for _ in range(3)] == [True, False, False]
    now = 1.0
    assert [first.take(), second.take()] == [True, False]
    now = 100.0
    assert [second.take() for _ in range(3)] == [True, True, False]
