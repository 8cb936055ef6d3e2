"""P11: a question is asked once, and an answer that was acknowledged is the one that counts."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.faults.asking_app import QUESTIONS, TRACE
from tests.faults.checker import Violations, check_log, read_store
from tests.faults.conftest import Ledger
from tests.faults.load import NO_SERVER
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.faults
TASKS = 8
ENDS_WITHIN = 60.0  # seconds
Data = dict[str, Any]


class People:
    """Who answers every question that is told, with another number each time it is tried."""

    def __init__(self, chance: random.Random) -> None:
        self.acknowledged: dict[str, int] = {}
        """The answers to which there was a reply, by input id."""
        self.in_doubt = 0
        """Answers whose reply was lost, or another one of which had been taken."""
        self.worked: set[str] = set()
        """Tasks of which the first step was told to be completed."""
        self.wrong = Violations()
        self.asked: Counter[str] = Counter()
        self.answering = asyncio.Event()
        """Set when an answer is sent."""
        self._chance = chance
        self._seen: dict[str, int] = {}
        self._open: dict[str, None] = {}
        self._tried: dict[int, tuple[str, int]] = {}
        self._number = 0
        self._left = TASKS

    async def live(self, url: str) -> None:
        """Follow the tasks and answer, until the connection is lost or all have ended."""
        try:
            async with connect(url) as socket, asyncio.TaskGroup() as group:
                await self._begin(socket)
                early = list(self._open)
                for input_id in early:  # as soon as somebody listens, also before the step asks
                    group.create_task(self._answer(socket, input_id))
                while self._left:
                    frame = json.loads(await socket.recv())
                    if (asked := self._take(frame)) is not None:
                        group.create_task(self._answer(socket, asked))
        except NO_SERVER:
            pass
        except BaseExceptionGroup as errors:
            if errors.split(ConnectionClosed)[1] is not None:
                raise

    async def _begin(self, socket: ClientConnection) -> None:
        for number in range(TASKS):
            command = {"command": "create", "task_description": "x", "execute": True,
                       "idempotency_key": str(number), "subscribe": False}  # fmt: skip
            await socket.send(json.dumps(command))
        known = 0
        while known < TASKS:
            frame = json.loads(await socket.recv())
            if frame["type"] == "reply":
                known += 1
                after = self._seen.setdefault(frame["task_id"], 0)
                command = {"command": "subscribe", "task_id": frame["task_id"], "after_seq": after}
                await socket.send(json.dumps(command | {"id": "follow"}))

    async def _answer(self, socket: ClientConnection, input_id: str) -> None:
        await asyncio.sleep(self._chance.choice([0, 0, 0.02, 0.1]))
        if input_id in self._open:
            self._number += 1
            self._tried[self._number] = input_id, self._number
            command = {"command": "respond", "id": self._number, "input_id": input_id,
                       "value": self._number}  # fmt: skip
            await socket.send(json.dumps(command))
            self.answering.set()

    def _take(self, frame: Data) -> str | None:
        """Take a frame; return the question that it asks."""
        if frame["type"] == "event":
            return self._take_event(frame)
        if frame.get("command") == "respond":
            input_id, value = self._tried.pop(frame["id"])
            if frame["type"] == "reply":
                self.wrong.expect(input_id not in self.acknowledged, f"{input_id}: twice")
                self.acknowledged[input_id] = value
            else:  # an earlier try was taken, and its reply was lost
                self.wrong.expect(frame["code"] == "conflict", f"{input_id}: {frame}")
                self.in_doubt += 1
            self._open.pop(input_id, None)
        return None

    def _take_event(self, frame: Data) -> str | None:
        task_id, data = frame["task_id"], frame["data"]
        self.wrong.expect(frame["seq"] == self._seen[task_id] + 1, f"a hole before {frame}")
        self._seen[task_id] = frame["seq"]
        match frame["event_type"]:
            case "step_completed" if data["step_id"] == "a":
                self.worked.add(task_id)
            case "input_required":
                self.asked[data["input_id"]] += 1
                self._open[data["input_id"]] = None
                return str(data["input_id"])
            case "input_received":
                self._open.pop(data["input_id"], None)
            case "task_completed" | "task_failed" | "task_cancelled":
                self._left -= 1
        return None


@pytest.mark.parametrize(
    "kills", [6, pytest.param(60, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]
)
async def test_questions_outlive_kill_9(tmp_path: Path, ledger: Ledger, kills: int) -> None:
    """Killed before, while and after it is answered: the steps go on with the answers told."""
    chance = random.Random(kills)
    wrong = Violations()
    rounds = tasks = asked = acknowledged = in_doubt = acted = done = 0
    while done < kills:
        folder = tmp_path / str(rounds)
        folder.mkdir()
        rounds += 1
        trace = folder / "trace"
        server = ServerProcess(
            folder, "tests.faults.asking_app:app", environment={TRACE: str(trace)}
        )
        people = People(chance)
        worked: list[str] = []
        try:
            for _ in range(3):  # a task that loses its worker more often than that is given up
                await asyncio.to_thread(server.start)
                living = asyncio.create_task(people.live(server.url))
                await moment(people, chance)
                worked = [line for line in lines(trace) if line.partition("/")[0] in people.worked]
                await asyncio.to_thread(server.kill)
                done += 1
                await living
            await asyncio.to_thread(server.start)
            try:
                async with asyncio.timeout(ENDS_WITHIN):
                    await people.live(server.url)
            except TimeoutError:
                wrong.append("stuck: an answer was acknowledged and lost, or is not asked for")
        finally:
            wrong.expect(await asyncio.to_thread(server.stop) == 0, "the last server failed")
        wrong += people.wrong
        stores = read_store(folder / "agentsrv.db")
        for stored in stores.values():
            wrong += check_log(stored, output="done\n\ndone")
        answers = dict(settled(stores.values()))
        wrong.expect(len(answers) == TASKS * 2 * QUESTIONS, f"{len(answers)} answers in the logs")
        wrong.expect(set(people.asked.values()) == {1}, f"asked again: {people.asked}")
        for input_id, value in people.acknowledged.items():
            wrong.expect(answers.get(input_id) == value, f"{input_id}: {value} was acknowledged")
        for line in lines(trace):
            what, _, told = line.partition(" ")
            if told != "worked":
                acted += 1
                wrong.expect(answers.get(what) == int(told), f"{line}: {answers.get(what)}")
        again = Counter(line for line in lines(trace) if line.endswith(" worked"))
        before = Counter(line for line in worked if line.endswith(" worked"))
        for line, count in before.items():
            wrong.expect(again[line] == count, f"{line}: again, behind its completion")
        tasks += len(stores)
        asked += len(people.asked)
        acknowledged += len(people.acknowledged)
        in_doubt += people.in_doubt
    print(wrong)
    ledger.record(
        "P11",
        faults={"kills": done},
        checked={
            "tasks": tasks,
            "questions": asked,
            "answers acknowledged": acknowledged,
            "in doubt": in_doubt,
            "acts": acted,
        },
        violations=len(wrong),
    )


async def moment(people: People, chance: random.Random) -> None:
    """Wait until the plug is to be pulled: at random, or as an answer is on its way."""
    await asyncio.sleep(chance.uniform(0.05, 0.3))
    if chance.random() < 0.7:
        people.answering.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await people.answering.wait()
        await asyncio.sleep(chance.uniform(0.0, 0.004))


def lines(trace: Path) -> list[str]:
    """What was left outside."""
    return trace.read_text().splitlines() if trace.exists() else []


def settled(stores: Iterable[Any]) -> Iterable[tuple[str, int]]:
    """The answers in the logs, by input id."""
    for stored in stores:
        for body in stored.log:
            event = json.loads(body)
            if event["event_type"] == "input_received":
                yield event["data"]["input_id"], event["data"]["value"]
