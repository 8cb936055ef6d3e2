"""The texts of a task's steps, beside what the server says that they are."""

from __future__ import annotations

import pytest

from agentsrv import App, Step, StepContext
from agentsrv.client.step_outputs import StepOutputs
from agentsrv.models.events import Record
from agentsrv.testing import Script, serving


def piece(step_id: str, attempt: int, offset: int, output: str) -> Record:
    """A piece of text."""
    data = {"step_id": step_id, "attempt": attempt, "offset": offset, "output": output}
    return Record("partial_output", "t1", 1, "", data)


async def test_a_failed_attempt_leaves_no_text():
    """At each event the texts are those of the attempts that run, at the end the server's."""
    app = App()
    script = Script(["half ", "of it", ValueError("no")], ["all ", 0.01, "of it"])
    app.agent(name="moody", retry_base=0)(script.run)

    @app.agent
    async def steady(step: Step, ctx: StepContext) -> str:
        """Answer at once."""
        return "and more"

    plan = {"steps": [{"step_id": "a", "agent": "moody"}, {"step_id": "b", "agent": "steady"}]}
    texts, dropped = StepOutputs(), []
    async with serving(app) as client:
        task = await client.start("x", plan=plan)
        async for record in task.events():
            before = texts.get("a")
            changed = texts.see(record)
            if record.event_type == "step_retrying":
                dropped.append((before, texts.get("a"), changed))
        snapshot = await task.status()
    assert dropped == [("half of it", None, True)]
    assert dict(texts) == {step.step_id: step.output for step in snapshot.steps}
    assert len(texts) == 2


@pytest.mark.parametrize("kind", ["step_started", "step_progress", "task_queued"])
def test_other_events_change_no_text(kind):
    """Only pieces and retries do."""
    texts = StepOutputs()
    texts.see(piece("a", 1, 0, "x"))
    assert not texts.see(Record(kind, "t1", 2, "", {"step_id": "a", "attempt": 1}))
    assert not texts.see(Record("step_retrying", "t1", 3, "", {"step_id": "b", "attempt": 1}))
    assert texts["a"] == "x"


def test_a_new_attempt_begins_anew_without_a_word():
    """As where the retry itself was not seen, by who came later."""
    texts = StepOutputs()
    for record in (piece("a", 1, 0, "old"), piece("a", 2, 0, "new"), piece("a", 2, 3, "er")):
        assert texts.see(record)
    assert texts["a"] == "newer"
    with pytest.raises(KeyError):
        texts["b"]
