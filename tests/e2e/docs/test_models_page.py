"""docs/reference/models.md: its tables are those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from agentsrv.builtin import app
from agentsrv.builtin.planner import MAX_PLANNED, PlanName, report, research
from agentsrv.builtin.validator import Verdict
from agentsrv.settings import Settings

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "models.md").read_text(
    encoding="utf-8"
)


def rows(section: str) -> list[tuple[str, str]]:
    """The first two columns of the first table of a section, without its head."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \| (.*?) ?\|", text, re.MULTILINE)


def test_every_setting_of_models_is_told():
    """With its default."""
    fields = Settings.model_fields
    told = {name: default.strip("`") for name, default in rows("Settings")}
    own = [name for name in fields if name.startswith("llm_") or name == "embedding_model"]
    assert set(told) == {*own, "default_plan"}
    for name, default in told.items():
        expected = fields[name].default
        assert default == (
            ""
            if expected is None
            else f"{expected:g}"
            if isinstance(expected, float)
            else str(expected)
        )


def test_every_agent_and_every_verdict_is_told():
    """And no other."""
    agents = [name for name, _ in rows("Agents")]
    assert agents == [agent["name"] for agent in app.registry.described()]
    assert [name for name, _ in rows("Verdicts")] == list(get_args(Verdict))


def test_every_plan_is_told_with_its_steps():
    """In their order."""
    told = dict(rows("Plans"))
    assert set(told) == set(get_args(PlanName))
    assert told["report"] == ", ".join(step.agent for step in report("x"))
    added = [step.agent for step in research("x")][len(report("x")) :]
    assert told["research"] == f"the same, then {' and '.join(added)}"
    assert f"at most {MAX_PLANNED} steps" in told["auto"]
