"""Two principals: what is another's is answered like what does not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from agentsrv import Step, StepContext
from agentsrv.models.commands import COMMANDS, MIN_PREFIX
from agentsrv.wiring import Server
from tests.support.principals import ADA_KEY, BOB_KEY, BOTH, bearer
from tests.support.talk import Talk, make_app, serving, talking
from tests.support.targets import GHOST, Target

Frame = dict[str, Any] | str
ATTEMPTS: Final[dict[str, Callable[[Target], Frame]]] = {
    "execute": lambda t: {"command": "execute", "task_id": t.task_id},
    "execute quietly": lambda t: {"command": "execute", "task_id": t.task_id, "subscribe": False},
    "status": lambda t: {"command": "status", "task_id": t.task_id},
    "list": lambda t: {"command": "list"},
    "list a status": lambda t: {"command": "list", "status": "completed"},
    "list behind a cursor": lambda t: {"command": "list", "cursor": t.cursor},
    "cancel": lambda t: {"command": "cancel", "task_id": t.task_id},
    "cancel at once": lambda t: {"command": "cancel", "task_id": t.task_id, "grace": 0},
    "cancel by key": lambda t: {"command": "cancel", "idempotency_key": t.key},
    "subscribe": lambda t: {"command": "subscribe", "task_id": t.task_id},
    "subscribe behind": lambda t: {"command": "subscribe", "task_id": t.task_id, "after_seq": 1},
    "subscribe ahead": lambda t: {"command": "subscribe", "task_id": t.task_id, "after_seq": 999},
    "subscribe all": lambda t: {"command": "subscribe", "all": True},
    "unsubscribe": lambda t: {"command": "unsubscribe", "task_id": t.task_id},
    "respond": lambda t: {"command": "respond", "input_id": t.input_id, "value": True},
    "respond wrongly": lambda t: {"command": "respond", "input_id": t.input_id, "value": "?"},
    "decline": lambda t: {"command": "respond", "input_id": t.input_id, "action": "decline"},
    "send": lambda t: {"command": "send", "task_id": t.task_id, "message": "x"},
    "resume": lambda t: create(resume_from=t.task_id, agent=None),
    "resume and execute": lambda t: create(resume_from=t.task_id, agent=None, execute=True),
    "resume with an agent": lambda t: create(resume_from=t.task_id),
    "status by a prefix": lambda t: {"command": "status", "task_id": t.task_id[:8]},
    "cancel by a prefix": lambda t: {"command": "cancel", "task_id": t.task_id[:8]},
    "subscribe by a prefix": lambda t: {"command": "subscribe", "task_id": t.task_id[:8]},
    "type execute": lambda t: f"execute {t.cut}",
    "type status": lambda t: f"status {t.cut}",
    "type status in full": lambda t: f"status {t.task_id}",
    "type status of the latest": lambda t: "status",
    "type cancel": lambda t: f"cancel {t.cut} no longer needed",
    "type subscribe": lambda t: f"subscribe {t.cut} 1",
    "type unsubscribe": lambda t: f"unsubscribe {t.cut}",
    "type respond": lambda t: f"respond {t.input_id} yes",
    "type a wrong answer": lambda t: f"respond {t.input_id} perhaps",
    "type decline": lambda t: f"respond {t.input_id} decline",
    "type send": lambda t: f"send {t.cut} Hello",
    "type list": lambda t: "list",
}  # fmt: skip
NAMES_A_TASK: Final = {"task_id", "input_id", "idempotency_key", "resume_from", "cursor"}
ABOUT_NO_TASK: Final = {"agents", "auth", "ping", "help"}


def create(**fields: Any) -> dict[str, Any]:
    """A task as the other principal has made it, but for ``fields``."""
    frame = {"command": "create", "task_description": "x", "agent": "echo"} | fields
    return {name: value for name, value in frame.items() if value is not None}


async def make_targets(talk: Talk) -> dict[str, Target]:
    """A task in each state that makes a difference."""
    made: dict[str, Target] = {}
    for state, agent, until in (
        ("pending", "echo", None),
        ("running", "waiter", "step_started"),
        ("input_required", "asker", "input_required"),
        ("completed", "echo", "task_completed"),
        ("cancelled", "waiter", "step_started"),
    ):
        key = f"key-of-{state}"
        frame = create(agent=agent, idempotency_key=key, execute=until is not None)
        task_id = (await talk.ask(frame))["task_id"]
        found = await talk.until(until) if until is not None else {"data": {}}
        input_id = found["data"].get("input_id", f"{task_id}/step_001/1")
        made[state] = Target(task_id, input_id, key, None)
        if state == "cancelled":
            await talk.ask({"command": "cancel", "task_id": task_id})
            await talk.until("task_cancelled")
    cursor = (await talk.ask({"command": "list", "limit": 1}))["next_cursor"]
    return {state: Target(t.task_id, t.input_id, t.key, cursor) for state, t in made.items()}


async def attempt(server: Server, token: str, frame: Frame) -> dict[str, Any]:
    """The answer to one frame on a connection of its own."""
    async with talking(server, additional_headers=bearer(token)) as talk:
        return await talk.ask(frame)


async def snapshot(talk: Talk, target: Target) -> dict[str, Any]:
    """All about a task, as its owner sees it."""
    return await talk.ask({"command": "status", "task_id": target.task_id})


def test_every_command_about_tasks_is_attempted():
    """In JSON, and by each command line."""
    target = Target(GHOST, "x", "x", "x")
    frames = [make(target) for make in ATTEMPTS.values()]
    asked = {frame["command"] for frame in frames if isinstance(frame, dict)}
    typed = {frame.split()[0] for frame in frames if isinstance(frame, str)}
    assert asked == set(COMMANDS) - ABOUT_NO_TASK
    assert typed == asked - {"create"}


def test_every_field_that_names_a_task_is_attempted():
    """In each command that has it."""
    target = Target(GHOST, "x", "x", "x")
    frames = [make(target) for make in ATTEMPTS.values()]
    tried = {
        (frame["command"], field) for frame in frames if isinstance(frame, dict) for field in frame
    }
    naming = {
        (name, field)
        for name, command in COMMANDS.items()
        for field in NAMES_A_TASK & set(command.model_fields)
    }
    assert naming - tried == {("create", "idempotency_key")}  # a test of its own, below


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize(
    ("owner", "other"), [(ADA_KEY, BOB_KEY), (BOB_KEY, ADA_KEY)], ids=["ada's", "bob's"]
)
async def test_another_principals_task_is_answered_like_none(kind, owner, other, tmp_path):
    """Every command, every state: the same fields with the same values, and no effect."""
    store = "memory:" if kind == "memory" else f"sqlite:///{tmp_path}/t.db"
    attempts, leaks = 0, []
    async with (
        serving(api_keys=BOTH, store=store) as server,
        talking(server, additional_headers=bearer(owner)) as talk,
    ):
        targets = await make_targets(talk)
        before = [await snapshot(talk, target) for target in targets.values()]
        for state, target in targets.items():
            ghost = Target(GHOST, f"{GHOST}/step_001/1", "key-of-none", target.cursor)
            for name, make in ATTEMPTS.items():
                attempts += 1
                real = await attempt(server, other, make(target))
                unreal = await attempt(server, other, make(ghost))
                is_told = real.get("tasks") or real.get("total")
                if is_told or target.unnamed(real) != ghost.unnamed(unreal):
                    leaks.append((state, name, real, unreal))
        after = [await snapshot(talk, target) for target in targets.values()]
        for target in targets.values():  # what was compared is not that nothing works
            assert (await attempt(server, owner, f"status {target.cut}"))["type"] == "reply"
    print(f"{attempts} attempts on {len(targets)} tasks, leaks = {len(leaks)}")
    assert leaks == []
    assert after == before


async def test_nothing_is_heard_of_another_principals_tasks():
    """Not by those who follow all of their own, nor by those who have tried to follow that one."""
    async with (
        serving(api_keys=BOTH) as server,
        talking(server, additional_headers=bearer(ADA_KEY)) as ada,
        talking(server, additional_headers=bearer(BOB_KEY)) as bob,
    ):
        pending = await ada.ask(create(agent="talker"))
        await bob.ask({"command": "subscribe", "all": True})
        for frame in ("subscribe", "execute", "status", "cancel"):
            await bob.ask({"command": frame, "task_id": pending["task_id"]})
        await bob.ask(create(resume_from=pending["task_id"], agent=None, execute=True))
        await ada.ask({"command": "execute", "task_id": pending["task_id"]})
        assert len(await ada.log(pending["task_id"])) > 5
        await bob.send("ping")
        assert (await bob.next())["command"] == "ping"
        own = await bob.ask(create(execute=True))
        assert {event["task_id"] for event in await bob.log(own["task_id"])} == {own["task_id"]}


async def test_idempotency_keys_are_each_principals_own():
    """The same key stands for a task of each, and what the other has asked is no conflict."""
    async with (
        serving(api_keys=BOTH) as server,
        talking(server, additional_headers=bearer(ADA_KEY)) as ada,
        talking(server, additional_headers=bearer(BOB_KEY)) as bob,
    ):
        for key, fields in (("same", {}), ("other", {"params": {"times": 2}})):
            first = await ada.ask(create(idempotency_key=key))
            second = await bob.ask(create(idempotency_key=key, **fields))
            assert second["type"] == "reply"
            assert (second["replayed"], second["seq"]) == (False, 1)
            assert second["task_id"] != first["task_id"]
            await bob.ask({"command": "cancel", "idempotency_key": key})
            status = await ada.ask({"command": "status", "task_id": first["task_id"]})
            assert status["status"] == "pending"


async def test_cached_results_are_each_principals_own():
    """What an agent has found for one is found anew for the other."""
    app, calls = make_app(), list[str]()

    @app.agent(cache=3600)
    async def finder(step: Step, ctx: StepContext) -> str:
        """Find something."""
        calls.append(ctx.principal)
        return ctx.principal

    async with serving(app, api_keys=BOTH) as server:
        for token, name in ((ADA_KEY, "ada"), (ADA_KEY, "ada"), (BOB_KEY, "bob"), (ADA_KEY, "ada")):
            async with talking(server, additional_headers=bearer(token)) as talk:
                await talk.ask(create(agent="finder", execute=True))
                completed = await talk.until("task_completed")
                assert completed["data"]["final_output"] == name
    assert calls == ["ada", "bob"]


async def test_the_beginning_of_an_id_is_each_principals_own():
    """Whatever it begins of another's tasks, it is not ambiguous for that."""
    async with (
        serving(api_keys=BOTH) as server,
        talking(server, additional_headers=bearer(ADA_KEY)) as ada,
        talking(server, additional_headers=bearer(BOB_KEY)) as bob,
    ):
        adas = {(await ada.ask(create()))["task_id"][:MIN_PREFIX] for _ in range(500)}
        own = ""
        while own[:MIN_PREFIX] not in adas:  # until random ids of both begin alike
            own = (await bob.ask(create()))["task_id"]
        begun = own[:MIN_PREFIX]
        assert (await bob.ask(f"status {begun}"))["task_id"] == own
        assert (await ada.ask(f"status {begun}"))["task_id"].startswith(begun)
        assert own not in str(await ada.ask(f"status {begun}"))
