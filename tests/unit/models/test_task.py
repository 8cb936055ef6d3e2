import copy
from collections import deque

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsrv.errors import ConflictError, InvalidStateError, NotFoundError
from agentsrv.models import events as e
from agentsrv.models.plan import ExecutionPlan, Step
from agentsrv.models.snapshots import MAX_SNAPSHOT
from agentsrv.models.states import StepStatus, TaskStatus
from agentsrv.models.task import Answer, Question, StepState, TaskState
from agentsrv.models.text import MAX_OUTPUT, fitted
from agentsrv.models.transitions import STEP_TRANSITIONS, TRANSITIONS
from tests.unit.models.samples import AT, STEPS, sample

KINDS = pytest.mark.parametrize("kind", e.EVENTS.values(), ids=lambda kind: kind.__name__)
TERMINAL = {TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED}
CREATED = e.TaskCreated("Why?", None, {}, {})
BEGUN = [CREATED, e.TaskQueued(1), e.TaskStarted("node-1"), e.PlanCreated(STEPS)]
QUESTION = e.InputRequired("q1", "look", 1, "Sure?", {"type": "boolean"}, [True], None, None)
OTHER_QUESTION = e.InputRequired("q2", "look", 1, "Really?", {}, None, "no", AT)


def started(step_id: str, attempt: int = 1) -> e.StepStarted:
    """An attempt of a step begins."""
    return e.StepStarted(step_id, attempt, "retriever", "Find texts")


def folded(*events: e.Event) -> TaskState:
    """The state after a log of these events, by way of their bytes."""
    log = [e.encode(event, "t1", seq, AT) for seq, event in enumerate(events, 1)]
    return TaskState.fold("t1", log)


def step_in(status: StepStatus) -> StepState:
    """A fresh step that stands in ``status``."""
    state = folded(*BEGUN).steps["look"]
    state.status = status
    return state


# ---------------------------------------------------------------- the tables


@KINDS
@pytest.mark.parametrize("status", TaskStatus)
def test_every_status_meets_every_event(status, kind):
    """A transition is taken where the table has it, and refused where it has not."""
    state = TaskState("t1") if kind is e.TaskCreated else folded(*BEGUN)
    state.status = status
    if kind in e.STEP_EVENTS:
        state.steps["look"].status = next(s for s in StepStatus if kind in STEP_TRANSITIONS[s])
    if status is TaskStatus.INPUT_REQUIRED and kind not in (e.InputReceived, e.TaskCreated):
        state.steps["write"].questions["q2"] = Question(OTHER_QUESTION)  # why it waits
    before = copy.deepcopy(state)
    if kind in TRANSITIONS[status]:
        state.apply(sample(kind), AT)
        assert state.status is TRANSITIONS[status][kind]
    else:
        with pytest.raises(InvalidStateError, match=f"that is {status} takes.*{kind.event_type}"):
            state.apply(sample(kind), AT)
        assert state == before


@KINDS
@pytest.mark.parametrize("status", StepStatus)
def test_every_status_of_a_step_meets_every_event(status, kind):
    """A step follows its table: what it has not is refused and changes nothing."""
    state, event = step_in(status), sample(kind)
    before = copy.deepcopy(state)
    following = STEP_TRANSITIONS[status].get(kind)
    if following is not None:
        state.apply(event)
        assert state.status is following
    else:
        with pytest.raises(InvalidStateError, match=f"step look is {status}: {kind.event_type}"):
            state.apply(event)
        assert state == before


def test_the_tables_name_every_status_and_no_event_that_there_is_not():
    """Each status has a row, and each column is an event of the protocol."""
    assert set(TRANSITIONS) == set(TaskStatus)
    assert set(STEP_TRANSITIONS) == set(StepStatus)
    for row in TRANSITIONS.values():
        assert set(row) <= set(e.EVENTS.values())
    for line in STEP_TRANSITIONS.values():
        assert set(line) <= set(e.EVENTS.values())


@pytest.mark.parametrize("status", TaskStatus)
def test_a_terminal_status_takes_nothing(status):
    """Completed, failed and cancelled are the ends, and the only ones."""
    assert status.is_terminal is (status in TERMINAL)
    assert (not TRANSITIONS[status]) is (status in TERMINAL)


@pytest.mark.parametrize("status", StepStatus)
def test_an_ended_step_takes_nothing(status):
    """A step ends completed, failed, cancelled or skipped."""
    assert (not STEP_TRANSITIONS[status]) is (
        status.value in {"completed", "failed", "cancelled", "skipped"}
    )


def test_terminal_events_lead_to_terminal_statuses_and_nothing_else_does():
    """A terminal event always ends the task, and only such an event does."""
    for row in TRANSITIONS.values():
        for kind, following in row.items():
            assert (following in TERMINAL) is (kind in e.TERMINAL_EVENTS)
            if following in TERMINAL:
                assert kind.event_type == f"task_{following}"


def test_every_status_can_be_reached_and_left():
    """From creation every status can be reached, and from every one an end."""
    for table, first in ((TRANSITIONS, TaskStatus.PENDING), (STEP_TRANSITIONS, StepStatus.PENDING)):
        assert _reachable(table, first) == set(table)
        for status in table:
            assert any(not table[found] for found in _reachable(table, status))


@pytest.mark.parametrize("status", [status for status in TaskStatus if status not in TERMINAL])
def test_cancelling_works_in_every_state(status):
    """A task that has not ended can be cancelled: at once, or by way of cancelling."""
    assert TaskStatus.CANCELLED in _reachable(TRANSITIONS, status)
    assert e.TaskCancelled in TRANSITIONS[status]
    waits = status in {TaskStatus.PENDING, TaskStatus.QUEUED, TaskStatus.CANCELLING}
    assert (e.TaskCancelling in TRANSITIONS[status]) is not waits


def test_a_task_that_is_being_cancelled_can_only_end_cancelled():
    """After the intent is committed the task neither completes nor fails nor runs on."""
    assert _reachable(TRANSITIONS, TaskStatus.CANCELLING) == {
        TaskStatus.CANCELLING,
        TaskStatus.CANCELLED,
    }


def _reachable(table, first):
    found, left = {first}, deque([first])
    while left:
        for following in table[left.popleft()].values():
            if following not in found:
                found.add(following)
                left.append(following)
    return found


# ------------------------------------------------------------------ the fold


any_sample = st.builds(
    sample, st.sampled_from(list(e.EVENTS.values())), st.sampled_from(["look", "write"])
)
likely = st.sampled_from(
    [
        e.TaskQueued,
        e.TaskStarted,
        e.StepStarted,
        e.PartialOutput,
        e.StepRetrying,
        e.StepCompleted,
        e.InputRequired,
        e.InputReceived,
        e.TaskCancelling,
    ]
)
likely_sample = st.builds(sample, likely, st.sampled_from(["look", "write"]))


@given(
    st.booleans(),
    st.lists(likely_sample | any_sample, max_size=40),
    st.sampled_from(sorted(TERMINAL)),
)
def test_a_log_ends_with_its_one_terminal_event(begun, events, end):
    """Whatever is tried, what the tables accept has at most one terminal event, and it is last."""
    state = folded(*BEGUN) if begun else folded(CREATED)
    accepted = []
    closing = [e.EVENTS[f"task_{status}"] for status in (end, TaskStatus.CANCELLED)]
    for event in [*events, *(sample(kind) for kind in closing), *events]:
        if not begun and getattr(event, "step_id", None):
            continue
        try:
            state.apply(event, AT)
        except InvalidStateError:
            continue
        accepted.append(event)
    ends = [index for index, event in enumerate(accepted) if isinstance(event, e.TERMINAL_EVENTS)]
    assert ends == [len(accepted) - 1]
    assert state.status.is_terminal
    assert not state.inputs or state.status is not TaskStatus.CANCELLED


@given(st.lists(likely_sample | any_sample, max_size=30))
def test_a_refused_event_changes_nothing(events):
    """A state that refuses an event is the state that it was."""
    state = folded(*BEGUN)
    for event in events:
        before = copy.deepcopy(state)
        try:
            state.apply(event, AT)
        except InvalidStateError:
            assert state == before


@given(st.lists(likely_sample, max_size=30))
def test_folding_bytes_is_folding_events(events):
    """A worker that recovers a task from its log has the state of the one that wrote it."""
    live, log = TaskState("t1"), []
    for event in [*BEGUN, *events]:
        attempt = copy.deepcopy(live)
        try:
            attempt.apply(event, AT)
        except InvalidStateError:
            continue
        live = attempt
        log.append(e.encode(event, "t1", live.seq, AT))
    assert TaskState.fold("t1", log).snapshot() == live.snapshot()


def test_an_empty_log_is_a_pending_task_without_events():
    """The fold starts empty."""
    state = TaskState.fold("t1", [])
    assert (state.status, state.seq) == (TaskStatus.PENDING, 0)


@pytest.mark.parametrize("numbers", [(2,), (1, 3), (1, 1), (1, 2, 2), (1, 3, 2)])
def test_a_hole_in_the_log_is_refused(numbers):
    """Numbers count from 1 with no hole and no repetition."""
    events = [CREATED, e.TaskQueued(1), e.TaskStarted("node-1")]
    log = [e.encode(event, "t1", seq, AT) for event, seq in zip(events, numbers, strict=False)]
    with pytest.raises(InvalidStateError, match="a hole"):
        TaskState.fold("t1", log)


def test_a_task_is_created_once():
    """A second task_created is refused, in every state."""
    for events in ([CREATED], BEGUN, [*BEGUN, e.TaskCancelled("cancelled", None, "ann", True, "")]):
        state = folded(*events)
        with pytest.raises(InvalidStateError, match=r"created already|found task_created"):
            state.apply(CREATED, AT)


@pytest.mark.parametrize("events", [BEGUN, BEGUN[:3]], ids=["planned", "unplanned"])
def test_an_event_of_an_unknown_step_is_refused(events):
    """A step that is not in the plan cannot start."""
    state = folded(*events)
    with pytest.raises(InvalidStateError, match="nowhere"):
        state.apply(started("nowhere"), AT)


def test_a_whole_run_is_told_by_its_snapshot():
    """The snapshot of a completed task has exactly the protocol's fields, filled from the log."""
    state = TaskState("t1")
    events = [
        *BEGUN,
        started("look"),
        e.StepProgress("look", 1, 1.0, 2.0, "half"),
        e.StepCompleted("look", 1, "completed", {"passages": 2}, False, 0.5),
        started("write"),
        e.PartialOutput("write", 1, 0, "It "),
        e.PartialOutput("write", 1, 3, "is so."),
        e.StepCompleted("write", 1, "completed", None, False, 0.5),
        e.TaskCompleted("completed", "It is so.", False, [], 1.0),
    ]
    for seq, event in enumerate(events, 1):
        state.apply(event, f"2026-01-01T00:00:{seq:02d}.000Z")
    snapshot = state.snapshot()
    assert snapshot == {
        "task_id": "t1",
        "status": "completed",
        "user_input": "Why?",
        "final_output": "It is so.",
        "partial_output": None,
        "error_message": None,
        "degraded": False,
        "created_at": "2026-01-01T00:00:01.000Z",
        "updated_at": "2026-01-01T00:00:12.000Z",
        "seq": 12,
        "steps": [
            {
                "step_id": "look",
                "agent": "retriever",
                "description": "Find texts",
                "depends_on": [],
                "status": "completed",
                "attempt": 1,
                "output": "",
                "error_message": None,
            },
            {
                "step_id": "write",
                "agent": "writer",
                "description": "Write it up",
                "depends_on": ["look"],
                "status": "completed",
                "attempt": 1,
                "output": "It is so.",
                "error_message": None,
            },
        ],
        "inputs": [],
    }
    assert orjson.loads(orjson.dumps(snapshot)) == snapshot


@pytest.mark.parametrize("events", [[CREATED], BEGUN, [*BEGUN, started("look"), QUESTION]])
def test_a_snapshot_has_the_same_fields_in_every_state(events):
    """Clients find every field of ``status`` at any time."""
    snapshot = folded(*events).snapshot()
    assert " ".join(snapshot) == (
        "task_id status user_input final_output partial_output error_message degraded"
        " created_at updated_at seq steps inputs"
    )
    for step in snapshot["steps"]:
        assert " ".join(step) == (
            "step_id agent description depends_on status attempt output error_message"
        )


def test_a_retry_drops_the_text_of_the_failed_attempt():
    """Only the successful attempt's text is the step's output."""
    state = folded(
        *BEGUN,
        started("look"),
        e.PartialOutput("look", 1, 0, "wrong "),
        e.PartialOutput("look", 1, 6, "start"),
    )
    assert state.steps["look"].output == "wrong start"
    state.apply(e.StepRetrying("look", 1, 2, 0.1, "no route", 1, "error"), AT)
    step = state.steps["look"]
    assert (step.output, step.status, step.attempt) == ("", StepStatus.RETRYING, 1)
    assert (step.failures, step.error_message) == (1, "no route")
    state.apply(started("look", 2), AT)
    state.apply(e.PartialOutput("look", 2, 0, "right"), AT)
    state.apply(e.StepCompleted("look", 2, "completed", None, False, 0.1), AT)
    assert (step.output, step.status, step.attempt) == ("right", StepStatus.COMPLETED, 2)
    assert step.error_message is None


def test_an_attempt_lost_in_a_crash_is_no_failure():
    """A recovered attempt counts as an attempt and not as a failed one."""
    state = folded(
        *BEGUN,
        started("look"),
        e.TaskRecovered("node-2", []),
        e.StepRetrying("look", 1, 2, 0.0, "the server stopped", 0, "recovered"),
        started("look", 2),
    )
    assert state.steps["look"].failures == 0
    assert state.steps["look"].attempt == 2


def test_a_degraded_step_lets_the_plan_go_on():
    """Steps behind a degraded step may start, and the task tells what is missing."""
    state = folded(
        *BEGUN,
        started("look"),
        e.StepFailed("look", 4, "no route", 3, "", True),
        started("write"),
        e.PartialOutput("write", 1, 0, "All the same."),
        e.StepCompleted("write", 1, "completed", None, False, 0.1),
    )
    look = state.steps["look"]
    assert (look.status, look.is_settled, look.failures) == (StepStatus.FAILED, True, 3)
    assert state.missing_steps == ["look"]
    snapshot = state.snapshot()
    assert snapshot["degraded"] is True
    assert snapshot["steps"][0]["error_message"] == "no route"


def test_a_failed_step_settles_nothing():
    """Steps behind a failed step may not start; the task's error is told."""
    state = folded(
        *BEGUN,
        started("look"),
        e.PartialOutput("look", 1, 0, "half a"),
        e.StepFailed("look", 1, "no route", 0, "half a", False),
        e.TaskFailed("failed", "step look failed: no route", "look", 0, ""),
    )
    assert not state.steps["look"].is_settled
    snapshot = state.snapshot()
    assert snapshot["status"] == "failed"
    assert snapshot["error_message"] == "step look failed: no route"
    assert (snapshot["final_output"], snapshot["degraded"]) == (None, False)
    assert snapshot["steps"][0]["output"] == "half a"


def test_a_cancelled_task_keeps_what_was_written():
    """The partial output of a cancelled task is what its sinks had written."""
    state = folded(
        *BEGUN,
        started("look"),
        e.StepCompleted("look", 1, "completed", None, False, 0.1),
        started("write"),
        e.PartialOutput("write", 1, 0, "It is"),
        e.TaskCancelling("enough", "ann", 5.0),
        e.StepCancelled("write", 1, "It is"),
        e.TaskCancelled("cancelled", "enough", "ann", True, "It is"),
    )
    snapshot = state.snapshot()
    assert (snapshot["status"], snapshot["partial_output"]) == ("cancelled", "It is")
    assert snapshot["steps"][1]["status"] == "cancelled"
    assert state.cancelling == e.TaskCancelling("enough", "ann", 5.0)


def test_a_sink_without_text_is_written_as_json():
    """The output is the sinks' texts in the plan's order; a mere result stands there as JSON."""
    steps = [{"step_id": name, "agent": "writer"} for name in ("b", "a", "empty")]
    state = folded(*BEGUN[:3], e.PlanCreated(steps))
    for name in ("a", "b", "empty"):
        state.apply(started(name), AT)
    state.apply(e.PartialOutput("a", 1, 0, "text"), AT)
    state.apply(e.StepCompleted("a", 1, "completed", {"ignored": 1}, False, 0.1), AT)
    state.apply(e.StepCompleted("empty", 1, "completed", None, False, 0.1), AT)
    state.apply(e.StepCompleted("b", 1, "completed", {"n": 1}, False, 0.1), AT)
    assert state.written == '{"n":1}\n\ntext'
    assert state.snapshot()["partial_output"] == '{"n":1}\n\ntext'


# --------------------------------------------------------------- open questions


def received(input_id: str, step_id: str = "look") -> e.InputReceived:
    """An answer to a question."""
    return e.InputReceived(input_id, step_id, "accept", True, "ann")


def test_a_question_stands_in_the_snapshot_until_it_is_answered():
    """An open question is told with everything that was asked; the task waits meanwhile."""
    state = folded(*BEGUN, started("look"), QUESTION)
    snapshot = state.snapshot()
    assert snapshot["status"] == snapshot["steps"][0]["status"] == "input_required"
    assert snapshot["inputs"] == [
        {
            "input_id": "q1",
            "step_id": "look",
            "attempt": 1,
            "prompt": "Sure?",
            "schema": {"type": "boolean"},
            "options": [True],
            "default": None,
            "expires_at": None,
        }
    ]
    state.apply(received("q1"), AT)
    assert (state.status, state.inputs) == (TaskStatus.RUNNING, [])
    assert state.steps["look"].status is StepStatus.RUNNING


@pytest.mark.parametrize("order", [("q1", "q2"), ("q2", "q1")])
def test_two_steps_may_ask_at_the_same_time(order):
    """While one of two steps' questions is open the task waits for input; after both it runs."""
    steps = [{"step_id": name, "agent": "writer"} for name in ("one", "two")]
    state = folded(*BEGUN[:3], e.PlanCreated(steps), started("one"), started("two"))
    asked = {"q1": "one", "q2": "two"}
    for input_id, step_id in asked.items():
        state.apply(e.InputRequired(input_id, step_id, 1, "?", {}, None, None, None), AT)
    state.apply(received(order[0], asked[order[0]]), AT)
    assert state.status is TaskStatus.INPUT_REQUIRED
    assert [asked.input_id for asked in state.inputs] == [order[1]]
    assert state.steps[asked[order[0]]].status is StepStatus.RUNNING
    assert state.steps[asked[order[1]]].status is StepStatus.INPUT_REQUIRED
    state.apply(received(order[1], asked[order[1]]), AT)
    assert (state.status, state.inputs) == (TaskStatus.RUNNING, [])


@pytest.mark.parametrize("order", [("q1", "q2"), ("q2", "q1")])
def test_one_step_may_ask_two_questions_at_the_same_time(order):
    """A step with two open questions waits until both are answered, in whatever order."""
    state = folded(*BEGUN, started("look"), QUESTION, OTHER_QUESTION)
    assert [asked.input_id for asked in state.inputs] == ["q1", "q2"]
    state.apply(received(order[0]), AT)
    assert _statuses(state) == ("input_required", "input_required")
    state.apply(received(order[1]), AT)
    assert _statuses(state) == ("running", "running")


def _statuses(state: TaskState) -> tuple[str, str]:
    return state.status.value, state.steps["look"].status.value


@pytest.mark.parametrize(
    "end",
    [
        e.StepCompleted("look", 1, "completed", None, False, 0.5),
        e.StepFailed("look", 1, "timed out", 0, "", True),
        e.StepCancelled("look", 1, ""),
    ],
    ids=lambda event: event.event_type,
)
def test_a_question_is_closed_with_the_step_that_asked_it(end):
    """When the step has ended nobody waits for its answer: the task runs on."""
    state = folded(*BEGUN, started("look"), QUESTION, end)
    assert (state.status, state.inputs) == (TaskStatus.RUNNING, [])
    with pytest.raises(InvalidStateError, match="question q1 is closed: its step is "):
        state.question("q1", 0.0)


def test_a_question_stays_open_over_the_attempts_of_its_step():
    """It is asked once: the next attempt waits for the same answer, as the statuses tell."""
    retrying = e.StepRetrying("look", 1, 2, 0.1, "timed out", 1, "timeout")
    state = folded(*BEGUN, started("look"), QUESTION, retrying)
    assert (state.inputs, _statuses(state)) == ([QUESTION], ("input_required", "retrying"))
    state.apply(started("look", 2), AT)
    assert (state.inputs, _statuses(state)) == ([QUESTION], ("input_required", "input_required"))
    state.apply(received("q1"), AT)
    assert (state.inputs, _statuses(state)) == ([], ("running", "running"))


def test_an_answer_between_two_attempts_waits_for_the_second():
    """It belongs to the step, not to the attempt that asked."""
    retrying = e.StepRetrying("look", 1, 2, 0.1, "timed out", 1, "timeout")
    state = folded(*BEGUN, started("look"), QUESTION, retrying, received("q1"))
    assert (state.inputs, _statuses(state)) == ([], ("running", "retrying"))
    assert state.steps["look"].questions["q1"].answer == Answer("accept", "ann", b"true")


def test_an_answer_is_kept_as_json():
    """Its objects would take some twenty times as much memory for as long as the task runs."""
    value = [[], {"a": None}]
    state = folded(*BEGUN, started("look"), QUESTION)
    state.apply(e.InputReceived("q1", "look", "accept", value, "ann"), AT)
    answer = state.steps["look"].questions["q1"].answer
    assert answer == Answer("accept", "ann", b'[[],{"a":null}]')


def test_a_question_can_be_answered_once_and_in_time():
    """What cannot be answered is told apart: unknown, settled, too late, closed."""
    expires = e.parse_timestamp(AT)
    state = folded(*BEGUN, started("look"), QUESTION, OTHER_QUESTION)
    assert state.question("q1", 0.0) == QUESTION
    assert state.question("q2", expires - 0.001) == OTHER_QUESTION
    with pytest.raises(ConflictError, match=f"question q2 could be answered until {AT}"):
        state.question("q2", expires)
    with pytest.raises(NotFoundError, match="no question 'q3'"):
        state.question("q3", 0.0)
    state.apply(received("q1"), AT)
    with pytest.raises(ConflictError, match="question q1 is settled: accept by ann"):
        state.question("q1", 0.0)
    state.apply(e.TaskCancelling(None, "ann", 5.0), AT)
    with pytest.raises(InvalidStateError, match="question q2 is closed"):
        state.question("q2", 0.0)


def test_messages_are_kept_in_their_order_and_counted():
    """Their size is that of their JSON."""
    messages = ["hurry", {"tone": "dry"}, None]
    state = folded(*BEGUN, *(e.MessageReceived(message, "ann") for message in messages))
    assert [orjson.loads(message) for message in state.messages] == messages
    assert state.messages_size == len(b'"hurry"' + b'{"tone":"dry"}' + b"null")


@pytest.mark.parametrize(
    "end",
    [
        e.TaskFailed("failed", "another step failed", "write", 0, ""),
        e.TaskCancelled("cancelled", None, "ann", True, ""),
    ],
    ids=lambda event: event.event_type,
)
def test_an_ended_task_has_no_open_questions(end):
    """Nobody is asked to answer for a task that is over."""
    assert folded(*BEGUN, started("look"), QUESTION, end).snapshot()["inputs"] == []


def test_a_question_may_be_answered_while_the_task_is_being_cancelled():
    """An answer that meets a cancel is kept and does not bring the task back to life."""
    state = folded(*BEGUN, started("look"), QUESTION, e.TaskCancelling(None, "ann", 5.0))
    state.apply(received("q1"), AT)
    assert (state.status, state.inputs) == (TaskStatus.CANCELLING, [])


# ------------------------------------------------------------------- the clock


def test_elapsed_counts_from_the_first_start():
    """A task's duration begins when it first ran, and is never negative."""
    state = TaskState("t1")
    state.apply(CREATED, "2026-01-01T00:00:00.000Z")
    state.apply(e.TaskQueued(1), "2026-01-01T00:00:01.000Z")
    assert state.elapsed(2_000_000_000.0) == 0.0
    state.apply(e.TaskStarted("node-1"), "1970-01-01T00:16:40.500Z")
    assert state.elapsed(1002.0) == 1.5
    assert state.elapsed(1.0) == 0.0


@pytest.mark.parametrize("piece", ["a", "😀", "\n", "\0", "a\0😀", "a" * 900 + "😀" * 100])
def test_a_long_output_is_cut_and_says_so(piece):
    """So that the event that ends a task or a step fits into a frame of 1 MiB."""
    steps = [Step(step_id=f"s{number}", agent="a") for number in range(5)]
    state = TaskState("t", plan=ExecutionPlan(steps=tuple(steps)))
    text = piece * (900_000 // len(piece))
    state.steps = {step.step_id: StepState(step, pieces=[text]) for step in steps}
    whole = 5 * len(text) + 8
    assert state.written.endswith(f"[cut: the whole text has {whole} characters]")
    assert 800_000 < len(orjson.dumps(state.written)) <= MAX_OUTPUT
    assert len(orjson.dumps(state.snapshot())) <= MAX_SNAPSHOT
    assert fitted(text[: 900_000 // 6]) == text[: 900_000 // 6]
