from __future__ import annotations

import math

import pytest

from agentsrv.bench import capacity, load
from agentsrv.bench.figures import Report
from tests.bench import peers, ratios
from tests.bench.sizes import TINY


@pytest.mark.slow
async def test_the_yardstick_measures_every_server(monkeypatch, dsn):
    """Ratios beside the bare server for each; a peer that is not installed is named."""
    monkeypatch.setattr(capacity, "SETTLE", 0.01)
    report = Report(lambda _: None)
    stores = {**ratios.OWN, ratios.POSTGRES: dsn}
    await ratios.measure(report, TINY, stores=stores)
    keys = {figure.key for figure in report.figures}
    for name in ratios.NAMES:
        assert (f"yardstick.ratio.50.{name}" in keys) != any(name in note for note in report.notes)
    for name in ("tasks", *stores):
        assert {f"yardstick.cancel.3.{name}.ratio50", f"yardstick.cancel.3.{name}.p99"} <= keys
    assert {"yardstick.idle.5.bare", "yardstick.idle.5.memory"} <= keys
    bare = next(figure for figure in report.figures if figure.key == "yardstick.ratio.1.bare")
    assert set(bare.values) == {1.0}
    assert all(math.isfinite(value) for figure in report.figures for value in figure.values)


async def test_a_peer_that_is_not_installed_is_left_out(monkeypatch):
    """With a line that says what is missing."""
    monkeypatch.setattr(peers, "missing", lambda name: ["a-package"])
    monkeypatch.setattr(ratios, "throughput", nothing)
    monkeypatch.setattr(ratios, "cancel", nothing)
    monkeypatch.setattr(ratios, "idle", nothing)
    report = Report(lambda _: None)
    await ratios.measure(report, TINY)
    assert report.notes == [
        f"{name} is left out: a-package are not installed" for name in peers.NEEDS
    ]


async def nothing(*_: object) -> None:
    """In place of what takes seconds."""


@pytest.mark.parametrize("name", ["bare", "corked"])
async def test_a_bare_server_answers_with_as_many_events(name):
    """Of about the same length; else the ratio would be one of different things."""
    async with ratios.server(name) as target, ratios.server("memory") as own:
        bare, ours = await load.run(target, 2, 10), await load.run(own, 2, 10)
        assert bare.events == ours.events == 140
        sizes = [await bytes_of_a_task(each) for each in (target, own)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.25)


async def bytes_of_a_task(target) -> int:
    """What the client is sent of one task."""
    from agentsrv.bench.wire import EventCounter, create

    client = await EventCounter().open(target)
    before = client.bytes
    client.send(create())
    await client.until(14)
    client.close()
    return client.bytes - before


async def test_the_works_take_turns():
    """A B A B, so that a machine that drifts favours none."""
    order: list[str] = []

    def work(name: str):
        async def done() -> int:
            order.append(name)
            return len(order)

        return done

    found = await ratios.take_turns(2, {"a": work("a"), "b": work("b")})
    assert order == ["a", "b", "a", "b"]
    assert found == {"a": [1, 3], "b": [2, 4]}
