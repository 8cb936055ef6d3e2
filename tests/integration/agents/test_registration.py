"""Registration beyond the lines of tests/hostile: options, descriptions, the missing model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentsrv import App, Step, StepContext
from agentsrv.agents.agent import Agent
from agentsrv.agents.registry import Registry
from agentsrv.errors import InvalidCommandError
from agentsrv.models.plan import ExecutionPlan
from agentsrv.testing import serving
from tests.support.clients import run_task

OPTIMISED = '''
from agentsrv import App

app = App()

@app.agent
async def described(step, ctx):
    """Say what it does.

    And more.
    """

class Called:
    """Be called."""

    async def __call__(self, step, ctx):
        """Not this."""

app.agent("object")(Called())
assert described.__doc__ is None, "python -OO keeps docstrings?"
print([agent["description"] for agent in app.registry.described()])
'''


def test_descriptions_survive_an_interpreter_that_drops_docstrings(tmp_path: Path):
    """They are read from the source."""
    file = tmp_path / "optimised.py"
    file.write_text(OPTIMISED)
    run = subprocess.run([sys.executable, "-OO", file], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['Say what it does.', 'Be called.']"


async def test_a_model_that_is_not_there_fails_the_step_at_its_first_use():
    """In one attempt, with what to set; an agent may look before."""
    app = App()

    @app.agent
    async def eager(step: Step, ctx: StepContext) -> str:
        return await ctx.llm.complete([])

    @app.agent
    async def careful(step: Step, ctx: StepContext) -> str:
        return await ctx.llm.complete([]) if ctx.llm else "without"

    async with serving(app) as client:
        task = await client.start("x", agent="eager")
        records = [record async for record in task.events()]
        assert [r.event_type for r in records].count("step_started") == 1
        message = records[-1].data["error_message"]
        assert message.startswith("PermanentError: found a use of ctx.llm.complete without")
        assert "llm_url and llm_model" in message
        assert (await run_task(client, "x", agent="careful")).final_output == "without"


async def test_an_option_lets_programming_errors_be_retried():
    """For agents whose types depend on what a service answers."""
    app = App()

    @app.agent(retries=1, retry_base=0, retry_on=[TypeError])
    async def mender(step: Step, ctx: StepContext) -> str:
        answer = None if ctx.attempt == 1 else "fine"
        return answer + "!"  # type: ignore[operator]

    async with serving(app) as client:
        assert (await run_task(client, "x", agent="mender")).final_output == "fine!"


async def test_tracebacks_can_be_left_out_of_events(caplog):
    """The log has them all the same."""
    app = App()

    @app.agent(retries=1, retry_base=0)
    async def failing(step: Step, ctx: StepContext) -> None:
        raise ValueError("Bearer abcdef123456")

    for wanted in (True, False):
        caplog.clear()
        async with serving(app, tracebacks="on" if wanted else "off") as client:
            task = await client.start("x", agent="failing")
            found = [
                record.data["traceback"]
                async for record in task.events()
                if record.event_type in {"step_failed", "step_retrying"}
            ]
        assert len(found) == 2
        assert all((frames is not None) is wanted for frames in found)
        if wanted:
            (frame,) = found[0]
            assert frame["file"] == "tests/integration/agents/test_registration.py"
            assert frame["code"] == 'raise ValueError("Bearer ***")'
            assert (frame["function"].endswith("failing"), frame["own"]) == (True, True)
        errors = [record for record in caplog.records if record.levelname == "ERROR"]
        assert len(errors) == 2
        assert all("Traceback" in str(record.exc_text) for record in errors)


async def work(step: Step, ctx: StepContext, language: str = "en") -> None:
    """Take a language."""


async def other(step: Step, ctx: StepContext, size: int = 1) -> None:
    """Take a size."""


@pytest.mark.parametrize(
    ("plan", "params", "message"),
    [
        (["work"], {"language": "de"}, None),
        (["work", "other"], {"language": "de", "size": 2}, None),
        (None, {"size": 2}, None),
        (["work"], {"langage": "de"}, "params.langage: unknown; did you mean language?"),
        (["work"], {"size": 2}, "params.size: unknown; the params are language"),
        (None, {"sizes": 2}, "params.sizes: unknown; did you mean size?"),
        (None, {"a": 1, "b": 2}, "params.a: unknown; the params are language, size"),
    ],
)
def test_params_that_no_agent_takes_are_refused(plan, params, message):
    """The nearest one is named; without a plan all agents count."""
    registry = Registry()
    registry.add(Agent.of(work))
    registry.add(Agent.of(other))
    given = plan and ExecutionPlan(
        steps=tuple(Step(step_id=f"s{n}", agent=name) for n, name in enumerate(plan))
    )
    if message is None:
        registry.check_names(params, given)
        return
    with pytest.raises(InvalidCommandError) as refusal:
        registry.check_names(params, given)
    assert refusal.value.message == message
    assert len(refusal.value.details or ()) == len(params)


def test_a_plan_beyond_a_frame_is_refused():
    """The message names the limit."""
    registry = Registry()
    registry.add(Agent.of(work))
    plan = ExecutionPlan(steps=(Step(step_id="a", agent="work", input="x" * 500_001),))
    with pytest.raises(InvalidCommandError, match="expected at most 500000"):
        registry.check_plan(plan)
