from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentsrv.adapters.ag_ui.events import AguiRun
from agentsrv.adapters.ag_ui.messages import RunAgentInput
from agentsrv.models import events as e
from tests.support.agui_front import Front
from tests.unit.models.samples import AT

TASK = "3f2a9c0d1b7e4a65"
STEPS: list[dict[str, Any]] = [
    {"step_id": name, "agent": "writer", "description": "Write", "depends_on": [], "max_retries": 3}
    for name in ("one", "two")
]
BEGUN: list[e.Event] = [
    e.TaskCreated("Say hello.", None, {}, {}),
    e.TaskQueued(1),
    e.TaskStarted("node"),
    e.PlanCreated(STEPS),
]
ASKED = e.InputRequired(f"{TASK}/one/1", "one", 1, "May I?", {"type": "boolean"}, None, False, AT)
COMPLETED = e.TaskCompleted("completed", "done", degraded=False, missing_steps=[], duration=0.1)
CANCELLED = e.TaskCancelled("cancelled", None, "ada", stopped=True, partial_output="")


def started(step_id, attempt=1):
    """An attempt begins."""
    return e.StepStarted(step_id, attempt, "writer", "Write")


def written(step_id, text, attempt=1):
    """An attempt writes its first piece."""
    return e.PartialOutput(step_id, attempt, 0, text)


def completed(step_id, attempt=1, result: Any = None):
    """A step is done."""
    return e.StepCompleted(step_id, attempt, "completed", result, cached=False, duration=0.1)


def retrying(step_id, attempt=1):
    """An attempt has failed."""
    return e.StepRetrying(step_id, attempt, attempt + 1, 0.1, "no route", 1, "error")


def encoded(events):
    """Events as the log has them."""
    return [e.encode(event, TASK, seq, AT) for seq, event in enumerate(events, start=1)]


def follow(front, events, *, run_id="r", live=0):
    """Show a log to a front end, the last ``live`` events of it as they happen."""
    run = AguiRun(RunAgentInput.model_validate(front.run_input(run_id)), TASK)
    front.take(run.start())
    bodies = encoded(events)
    logged = len(bodies) - live
    front.take(run.events(bodies[:logged]))
    front.take(run.caught_up())
    for body in bodies[logged:]:
        front.take(run.events([body]))
    assert run.is_over == front.is_over
    return front


def test_a_task_is_a_run():
    """Its steps are steps, its text is a message, its output is the result."""
    log = [*BEGUN, started("one"), written("one", "Hel"), written("one", "lo."),
           completed("one", result={"n": 1}), COMPLETED]  # fmt: skip
    front = follow(Front(state={"mine": 1}), log, live=5)
    assert [event["stepName"] for event in front.of("STEP_STARTED")] == ["one"]
    assert front.messages[1:] == [
        {"id": f"{TASK}/one/1", "role": "assistant", "name": "writer", "content": "Hello."}
    ]
    assert front.last["result"] == "done"
    assert front.last["outcome"] == {"type": "success"}
    assert front.state["mine"] == 1
    ours = front.state["agentsrv"]
    assert (ours["task_id"], ours["status"], ours["degraded"]) == (TASK, "completed", False)
    assert ours["steps"]["one"] == {
        "agent": "writer", "description": "Write", "depends_on": [],
        "status": "completed", "attempt": 1, "result": {"n": 1},
    }  # fmt: skip
    assert ours["steps"]["two"]["status"] == "pending"
    assert {event["timestamp"] for event in front.events[2:]} == {1_767_323_045_678}


def test_the_text_of_a_failed_attempt_does_not_stay():
    """The other steps' text does, also that of one that is still writing."""
    log = [*BEGUN, started("one"), written("one", "wro"), started("two"), written("two", "Good "),
           retrying("one"), written("two", "day."), started("one", 2), written("one", "right", 2),
           completed("one", 2), completed("two"), COMPLETED]  # fmt: skip
    front = follow(Front(), log, live=7)
    assert front.texts == ["Good day.", "right"]
    assert [event["stepName"] for event in front.of("STEP_STARTED")] == ["one", "two"]
    (told,) = front.of("agentsrv.step_retrying")
    assert told["value"]["error_message"] == "no route"
    assert front.state["agentsrv"]["steps"]["one"]["attempt"] == 2


def test_many_failed_attempts_are_taken_back_at_once():
    """A replay does not tell the messages anew for each of them, also where the task has ended."""
    log = list(BEGUN)
    for attempt in range(1, 30):
        log += [started("one", attempt), written("one", "wro", attempt), retrying("one", attempt)]
    log += [started("one", 30), written("one", "right", 30)]
    front = follow(Front(), log)
    assert (front.texts, len(front.of("MESSAGES_SNAPSHOT"))) == (["right"], 1)
    front = follow(Front(), [*log, completed("one", 30), COMPLETED])
    assert (front.texts, len(front.of("MESSAGES_SNAPSHOT"))) == (["right"], 1)


def test_an_attempt_that_wrote_nothing_takes_nothing_back():
    """The messages are not told anew for it."""
    log = [*BEGUN, started("one"), retrying("one"), started("one", 2), completed("one", 2),
           COMPLETED]  # fmt: skip
    front = follow(Front(), log, live=3)
    assert not front.of("MESSAGES_SNAPSHOT")


def test_steps_that_write_at_the_same_time_have_a_message_each():
    """Pieces of one go into its own."""
    log = [*BEGUN, started("one"), started("two"), written("one", "a"), written("two", "x"),
           written("one", "b"), written("two", "y"), completed("two"), completed("one"),
           COMPLETED]  # fmt: skip
    front = follow(Front(), log, live=9)
    assert front.texts == ["ab", "xy"]


def test_a_question_ends_the_run_and_its_answer_begins_another():
    """The second shows the whole task again, and nothing twice."""
    asked = [*BEGUN, started("one"), written("one", "Well, "), started("two"), ASKED]
    front = follow(Front(), asked, live=1)
    (interrupt,) = front.last["outcome"]["interrupts"]
    assert (interrupt["id"], interrupt["message"]) == (ASKED.input_id, "May I?")
    assert (interrupt["responseSchema"], interrupt["expiresAt"]) == ({"type": "boolean"}, AT)
    assert interrupt["metadata"]["agentsrv"]["default"] is False
    assert front.state["agentsrv"]["status"] == "input_required"
    answered = e.InputReceived(ASKED.input_id, "one", "accept", value=True, by="ada")
    rest = [*asked, answered, written("one", "yes."), completed("one"), completed("two"), COMPLETED]
    front = follow(front, rest, run_id="r2", live=4)
    assert front.texts == ["Well, yes."]
    assert [each["role"] for each in front.messages] == ["user", "assistant"]
    assert front.last["runId"] == "r2"
    assert front.state["agentsrv"]["status"] == "completed"


def test_a_replayed_question_ends_the_run_only_where_it_is_open():
    """At the end of what is logged, not where it was asked."""
    asked = [*BEGUN, started("one"), ASKED, started("two"), written("two", "x")]
    assert follow(Front(), asked).last["outcome"]["type"] == "interrupt"
    assert follow(Front(), asked).texts == ["x"]
    received = e.InputReceived(ASKED.input_id, "one", "expire", value=False, by="server")
    assert not follow(Front(), [*asked, received]).is_over
    for end in (
        completed("one"),
        e.StepFailed("one", 1, "no", 0, "", degraded=True),
        e.StepCancelled("one", 1, ""),
    ):
        assert not follow(Front(), [*asked, end]).is_over


def test_questions_of_one_commit_come_together():
    """The front end is asked both at once."""
    other = e.InputRequired(f"{TASK}/two/1", "two", 1, "And I?", {}, ["a"], None, None)
    run = AguiRun(RunAgentInput.model_validate(Front().run_input("r")), TASK)
    front = Front()
    front.take(run.start())
    front.take(run.caught_up())
    front.take(run.events(encoded([*BEGUN, started("one"), started("two"), ASKED, other])))
    assert len(front.last["outcome"]["interrupts"]) == 2
    assert "expiresAt" not in front.last["outcome"]["interrupts"][1]


def test_a_cancelled_task_is_a_cancelled_run():
    """What is open is closed before."""
    log = [*BEGUN, started("one"), started("two"), written("two", "x"),
           e.TaskCancelling("too slow", "ada", 5.0), e.StepCancelled("one", 1, ""),
           e.StepCancelled("two", 1, "x"), CANCELLED]  # fmt: skip
    front = follow(Front(), log, live=4)
    assert front.last["outcome"] == {"type": "cancelled"}
    assert front.of("agentsrv.task_cancelling")[0]["value"]["reason"] == "too slow"
    assert front.texts == ["x"]
    assert {step["status"] for step in front.state["agentsrv"]["steps"].values()} == {"cancelled"}


def test_a_failed_task_is_a_run_error():
    """The text that there is stays, as it does in the log."""
    log = [*BEGUN, started("one"), written("one", "x"),
           e.StepFailed("one", 1, "no route", 0, "x", degraded=False),
           e.TaskFailed("failed", "no route", "one", 0, "x")]  # fmt: skip
    front = follow(Front(), log, live=2)
    assert (front.last["type"], front.last["message"]) == ("RUN_ERROR", "no route")
    assert front.last["code"] == "task_failed"
    assert front.texts == ["x"]


def test_what_ag_ui_has_no_word_for_comes_as_custom_events():
    """Also events of a server that knows more than this one."""
    strange = encoded([CANCELLED])[0].replace(b"task_cancelled", b"task_painted")
    run = AguiRun(RunAgentInput.model_validate(Front().run_input("r")), TASK)
    front = Front()
    front.take(run.start())
    front.take(run.events([strange]))
    assert front.last["name"] == "agentsrv.task_painted"
    front.take(run.events(encoded([e.StepSkipped("one", "not needed")])))
    assert front.last["name"] == "agentsrv.step_skipped"
    assert not run.is_over


def test_nothing_follows_the_end():
    """Whatever the log says behind it."""
    front = follow(Front(), [*BEGUN, CANCELLED])
    run = AguiRun(RunAgentInput.model_validate(front.run_input("r")), TASK)
    run.events(encoded([*BEGUN, CANCELLED]))
    assert run.events(encoded([COMPLETED])) == []
    assert run.caught_up() == []


def test_a_state_that_is_no_object_is_replaced():
    """There is no place in it for ours."""
    front = follow(Front(state=[1]), [*BEGUN, CANCELLED])
    assert list(front.state) == ["agentsrv"]


WHOLE: list[e.Event] = [
    *BEGUN, started("one"), written("one", "wro"), started("two"), written("two", "Good "),
    e.StepProgress("two", 1, 1, None, "half"), retrying("one"), e.TaskRecovered("other", []),
    retrying("two"), started("two", 2), written("two", "Good day.", 2), started("one", 2), ASKED,
    e.InputReceived(ASKED.input_id, "one", "accept", value=True, by="ada"),
    e.MessageReceived("hurry", "ada"), written("one", "right", 2), completed("one", 2),
    e.StepFailed("two", 2, "no", 1, "Good day.", degraded=True), COMPLETED,
]  # fmt: skip


@given(st.integers(0, len(WHOLE) - 1))
def test_wherever_a_connection_is_lost_another_shows_the_same(lost):
    """The same run begins again with what the front end has, and ends as if nothing had been."""
    cut = Front(state={"mine": 1})
    run = AguiRun(RunAgentInput.model_validate(cut.run_input("r")), TASK)
    cut.take(run.start())
    cut.take(run.events(encoded(WHOLE)[:lost]))
    back = Front(state=cut.state)
    back.messages = cut.messages
    follow(back, WHOLE)
    assert back.texts == ["Good day.", "right"]
    once = follow(Front(state={"mine": 1}), WHOLE)
    assert (back.messages, back.state) == (once.messages, once.state)


def test_an_open_question_is_shown_after_a_restart():
    """The task and its step ask as before, also while another attempt of the step begins."""
    log = [*BEGUN, started("one"), ASKED, e.TaskRecovered("other", []), retrying("one"),
           started("one", 2)]  # fmt: skip
    front = follow(Front(), log)
    assert front.last["outcome"]["type"] == "interrupt"
    ours = front.state["agentsrv"]
    assert (ours["status"], ours["steps"]["one"]["status"]) == ("input_required",) * 2
