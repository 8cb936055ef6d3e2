import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agentsrv.models.plan import ExecutionPlan, ExplainedPlan, ReadySteps, Step


def plan(**needs: str) -> ExecutionPlan:
    """A plan of steps with the steps that each needs, as words."""
    return ExecutionPlan.model_validate(
        {
            "steps": [
                {"step_id": name, "agent": "writer", "depends_on": words.split()}
                for name, words in needs.items()
            ]
        }
    )


@st.composite
def graphs(draw):
    """The steps of an acyclic plan, in any order."""
    count = draw(st.integers(1, 9))
    names = [f"s{number}" for number in range(count)]
    needs = {
        name: draw(st.lists(st.sampled_from(names[:number]), max_size=3, unique=True))
        if number
        else []
        for number, name in enumerate(names)
    }
    return {name: needs[name] for name in draw(st.permutations(names))}


@given(graphs(), st.randoms(use_true_random=False))
def test_every_step_becomes_ready_once_and_after_what_it_needs(needs, random):
    """However steps end, a plan without a cycle is run whole and in an order that it allows."""
    found = plan(**{name: " ".join(words) for name, words in needs.items()})
    frontier = ReadySteps(found)
    settled: set[str] = set()
    ready = [step.step_id for step in frontier.start()]
    begun: list[str] = []
    running: list[str] = []
    while ready or running:
        assert ready == [name for name in needs if name in ready], "not in the plan's order"
        assert all(set(needs[name]) <= settled for name in ready)
        begun += ready
        running += ready
        ended = running.pop(random.randrange(len(running)))
        settled.add(ended)
        ready = [step.step_id for step in frontier.settle(ended)]
    assert sorted(begun) == sorted(needs)


@given(graphs())
def test_sinks_are_the_steps_that_nobody_needs(needs):
    """The final output is that of the steps on which no other depends, in the plan's order."""
    found = plan(**{name: " ".join(words) for name, words in needs.items()})
    wanted = {word for words in needs.values() for word in words}
    assert [step.step_id for step in found.sinks] == [n for n in needs if n not in wanted]


@given(graphs(), st.data())
def test_a_cycle_is_refused_wherever_it_is(needs, data):
    """One edge back from a step to something that needs it makes the plan invalid."""
    edges = [(name, word) for name, words in needs.items() for word in words]
    if not edges:
        return
    name, word = data.draw(st.sampled_from(edges))
    words = {key: " ".join(value) for key, value in needs.items()}
    words[word] += f" {name}"
    with pytest.raises(ValidationError, match="in a cycle") as refusal:
        plan(**words)
    assert name in str(refusal.value)
    assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"a": "a"}, "steps a depend on each other in a cycle"),
        ({"a": "b", "b": "a"}, "steps a, b depend on each other in a cycle"),
        ({"x": "", "a": "c", "b": "a", "c": "b"}, "steps a, b, c depend on each other in a cycle"),
        ({"a": "", "b": "nowhere"}, "step 'b' depends on 'nowhere', which is not in the plan"),
    ],
)
def test_a_wrong_dependency_is_named(needs, message):
    """The refusal of a cycle or an unknown step says which steps it is about."""
    with pytest.raises(ValidationError, match=message):
        plan(**needs)


def test_a_step_behind_a_cycle_is_not_said_to_be_in_it():
    """Only the steps of the cycle are blamed for it, not those that wait for them."""
    with pytest.raises(ValidationError) as refusal:
        plan(a="b", b="a", innocent="a")
    assert "innocent depend" not in refusal.value.errors()[0]["msg"]
    assert "steps a, b depend" in refusal.value.errors()[0]["msg"]


def test_a_step_id_that_occurs_twice_is_named():
    """Ids are unique; the refusal tells which one is not."""
    steps = [{"step_id": "a", "agent": "writer"}] * 2
    with pytest.raises(ValidationError, match="step_id 'a' occurs twice"):
        ExecutionPlan.model_validate({"steps": steps})


@pytest.mark.parametrize(
    ("count", "message"), [(0, "at least 1 item.*not 0"), (101, "at most 100 items.*not 101")]
)
def test_a_plan_has_1_to_100_steps(count, message):
    """The refusal of too few or too many steps says how many there are."""
    steps = [{"step_id": f"s{number}", "agent": "writer"} for number in range(count)]
    with pytest.raises(ValidationError, match=message):
        ExecutionPlan.model_validate({"steps": steps})


def test_a_plan_may_have_100_steps_in_a_row():
    """The longest chain is a plan."""
    needs = {f"s{number}": f"s{number - 1}" if number else "" for number in range(100)}
    assert [step.step_id for step in plan(**needs).sinks] == ["s99"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step_id", ""),
        ("step_id", "a b"),
        ("step_id", "a\n"),
        ("step_id", "x" * 65),
        ("step_id", 7),
        ("agent", ""),
        ("agent", None),
        ("description", "x" * 4097),
        ("description", 1),
        ("depends_on", "a"),
        ("depends_on", [1]),
        ("max_retries", -1),
        ("max_retries", 101),
        ("max_retries", 1.5),
        ("max_retries", True),
        ("max_retries", "3"),
        ("timeout", 0),
        ("timeout", -1.0),
        ("timeout", float("inf")),
        ("timeout", float("nan")),
        ("timeout", True),
        ("timeout", "5"),
        ("colour", "red"),
    ],
)
def test_a_steps_field_has_its_limits(field, value):
    """A value of the wrong type or out of its limits is refused, and the field is named."""
    good = {"step_id": "a", "agent": "writer"}
    Step.model_validate(good)
    with pytest.raises(ValidationError) as refusal:
        Step.model_validate(good | {field: value})
    assert refusal.value.errors()[0]["loc"][0] == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step_id", "A-z_0.9"),
        ("step_id", "x" * 64),
        ("description", "x" * 4096),
        ("max_retries", 0),
        ("max_retries", 100),
        ("timeout", 0.001),
        ("timeout", 5),
        ("input", {"any": ["thing", None]}),
    ],
)
def test_a_steps_field_may_be_at_its_limit(field, value):
    """The limits themselves are allowed."""
    step = Step.model_validate({"step_id": "a", "agent": "writer"} | {field: value})
    assert getattr(step, field) == value


@given(graphs(), st.integers(0, 5), st.none() | st.floats(0.5, 60), st.none() | st.integers(0, 5))
def test_a_described_plan_is_the_same_plan_again(needs, default, timeout, retries):
    """What ``plan_created`` tells is enough to run the very same plan after a crash."""
    steps = [
        {
            "step_id": name,
            "agent": "writer",
            "description": f"do {name}",
            "depends_on": words,
            "input": {"n": 1} if words else None,
            "timeout": timeout,
            "max_retries": retries,
        }
        for name, words in needs.items()
    ]
    first = ExecutionPlan.model_validate({"steps": steps})
    told = orjson.loads(orjson.dumps(first.described({"writer": default}.__getitem__)))
    assert all(step["max_retries"] == (default if retries is None else retries) for step in told)
    again = ExecutionPlan.model_validate({"steps": told})
    wanted = {"max_retries": default} if retries is None else {}
    assert again.steps == tuple(step.model_copy(update=wanted) for step in first.steps)
    assert orjson.loads(orjson.dumps(again.described({"writer": -1}.__getitem__))) == told


def test_a_described_step_has_the_fields_of_the_protocol():
    """``input`` and ``timeout`` stand in ``plan_created`` only where they are set."""
    assert plan(a="").described({"writer": 3}.__getitem__) == [
        {"step_id": "a", "agent": "writer", "description": "", "depends_on": (), "max_retries": 3}
    ]


def test_a_plan_may_explain_itself():
    """A client cannot: to it the explanation is an unknown field."""
    steps = (Step(step_id="a", agent="writer"),)
    assert ExecutionPlan(steps=steps).origin == (None, None)
    explained = ExplainedPlan(steps=steps, planned_by="rules", reason="no model")
    assert explained.origin == ("rules", "no model")
    retries = {"writer": 3}.__getitem__
    assert explained.described(retries) == ExecutionPlan(steps=steps).described(retries)
    with pytest.raises(ValidationError, match="planned_by"):
        ExecutionPlan.model_validate(
            {"steps": [{"step_id": "a", "agent": "b"}], "planned_by": "me"}
        )
