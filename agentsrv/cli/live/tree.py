"""A task's plan as a tree: each step hangs from the last of those that it waits for."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from rich.tree import Tree

from agentsrv.cli.render import shorten
from agentsrv.models.states import StepStatus, TaskStatus

if TYPE_CHECKING:  # `agentsrv top` uses the marks alone, and needs no models
    from agentsrv.cli.live.view import StepView, TaskView

Status = TaskStatus | StepStatus

SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
ASCII_SPINNER: Final = "|/-\\"
MARKS: Final = {
    "completed": ("✓", "+", "green"),
    "failed": ("✗", "x", "red"),
    "cancelled": ("■", "#", "yellow"),
    "skipped": ("–", "-", "dim"),
    "retrying": ("↻", "~", "yellow"),
    "input_required": ("?", "?", "magenta"),
    "running": ("▸", ">", "cyan"),
}
"""For each state, where nothing turns: its mark, the same in ASCII, and its colour."""
WAITING: Final = ("·", ".", "dim")
COLUMNS_PER_LEVEL: Final = 12  # of the terminal, for each level that the tree may be deep
TITLE: Final = 20  # columns of the task's description that are shown at least
MINUTE: Final = 60


@dataclass(frozen=True, slots=True)
class PlanTree:
    """The task at one moment, as Rich draws it.

    Every line is cut at the terminal's width. A plan that is higher than the terminal is shown
    by those of its steps with which something is, and a count.

    Attributes:
        view: What is known of the task.
        now: The time, from which running steps' times are told.
        turn: Counts the drawings, and turns the spinners; ``None`` for one that stays, which has no
            times of what still runs.
    """

    view: TaskView
    now: datetime
    turn: int | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw as much as there is room for."""
        steps = list(self.view.steps.values())
        room = max(options.size.height - 3, 3)  # lines, beside the task's own and the prompt
        shown = steps
        if sum(1 + len(self._details(step)) for step in steps) > room:
            shown = [step for step in steps if step.is_active or step.status is StepStatus.FAILED]
        yield self._tree(shown, options)
        if len(shown) < len(steps):
            done = sum(step.status is StepStatus.COMPLETED for step in steps)
            yield Text(f"{done} of {len(steps)} steps completed", style="dim", no_wrap=True)

    def _tree(self, shown: list[StepView], options: ConsoleOptions) -> Tree:
        root = Tree(self._task(options), guide_style="dim")
        nodes: dict[str, tuple[Tree, frozenset[str]]] = {}  # with the steps above it, and itself
        deepest = max(options.max_width // COLUMNS_PER_LEVEL, 1)
        for step in shown:
            below = [nodes[other] for other in step.depends_on if other in nodes]
            top: tuple[Tree, frozenset[str]] = root, frozenset()
            # The last one of those that hang as deep.
            parent, above = max(reversed([top, *below]), key=lambda node: len(node[1]))
            if len(above) >= deepest:
                parent, above = top
            label = self._step(step, above, options)
            for detail in self._details(step):
                label.append(f"\n  {detail}", style="dim")
            nodes[step.step_id] = (parent.add(label), above | {step.step_id})
        return root

    def _task(self, options: ConsoleOptions) -> Text:
        view = self.view
        facts = [view.task_id]
        if view.status is not TaskStatus.RUNNING:
            facts.append(view.last_event)
        if not view.status.is_terminal and view.began is not None and self.turn is not None:
            facts.append(self._since(view.began))
        told = "  ".join(facts)
        line = self._mark(view.status, options)
        line.append(shorten(view.title, max(options.max_width - len(told) - 4, TITLE)), "bold")
        return line.append(f"  {told}", "dim")

    def _step(self, step: StepView, above: AbstractSet[str], options: ConsoleOptions) -> Text:
        line = self._mark(step.status, options)
        line.append(f"{step.step_id} {step.agent}")
        facts = []
        if set(step.depends_on) - above:
            facts.append(f"after {', '.join(step.depends_on)}")
        if step.attempt > 1 or step.status is StepStatus.RETRYING:
            facts.append(f"attempt {step.attempt} of {step.max_attempts}")
        if step.took is not None:
            facts.append(f"{step.took:.2f} s" if step.took < MINUTE else seconds(step.took))
        elif step.is_active and step.began is not None and self.turn is not None:
            facts.append(self._since(step.began))
        return line.append("".join(f"  {fact}" for fact in facts), "dim")

    def _details(self, step: StepView) -> list[str]:
        shows_activity = step.is_active and step.activity and self.turn is not None
        return [*step.troubles, step.activity] if shows_activity else step.troubles

    def _mark(self, status: Status, options: ConsoleOptions) -> Text:
        if self.turn is not None and status in (TaskStatus.RUNNING, TaskStatus.CANCELLING):
            frames = ASCII_SPINNER if options.ascii_only else SPINNER
            mark, style = frames[self.turn % len(frames)], "cyan"
        else:
            fine, plain, style = MARKS.get(status, WAITING)
            mark = plain if options.ascii_only else fine
        return Text.assemble((mark, style), " ", no_wrap=True, overflow="ellipsis")

    def _since(self, began: datetime) -> str:
        return seconds(max(0.0, (self.now - began).total_seconds()))


def seconds(value: float) -> str:
    """A duration, as people read it."""
    if value < MINUTE:
        return f"{value:.1f} s"
    minutes, rest = divmod(int(value), MINUTE)
    return f"{minutes}:{rest:02} min"
