"""StepTasks: the asyncio tasks of one step, and whether all of them wait for answers.

Theory of operation
===================

A crash of the process is a loss of each step whose code runs. A step with an open question is idle
only if *all* of its asyncio tasks wait for answers: an agent may ask in one task and work in
another. So the server has to know the tasks of a step:

- the *own* task, in which the server calls the agent;
- the *others*, which the agent, or a library that it uses, has created. The task factory of the
  event loop (`install_task_factory`) adds them. It finds the step in a context variable, which
  tasks, callbacks and ``asyncio.to_thread`` inherit. Tasks that an earlier attempt left behind
  belong to the step too.

A task waits for an answer if it is suspended in ``ctx.ask``, or in one of asyncio's ways to wait
for tasks of the step that do: ``await task``, ``asyncio.gather``, a ``TaskGroup`` at its end,
``asyncio.wait_for``. Every event that wakes it up, a time-out included, ends its ``ctx.ask`` first,
and the server calls `StepTasks.end_wait` there. A task that waits for anything else may continue at
any moment, so while there is one, a crash may be caused by the step.

Limits: threads, and callbacks of the event loop, that an agent starts and that none of its tasks
waits for are not seen.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable
from contextvars import Context, ContextVar
from typing import Any, Final
from weakref import WeakSet

Tasks = Iterable["asyncio.Future[Any]"]

_current: ContextVar[StepTasks | None] = ContextVar("step_tasks", default=None)


class StepTasks:
    """The asyncio tasks of one step; see the head of this module."""

    def __init__(self) -> None:
        self.own: asyncio.Task[Any] | None = None
        """The task in which the server calls the agent, while an attempt is under way.

        It is reset with the attempt, because its context refers to this object.
        """
        self.code: Any = None
        """The agent's coroutine or asynchronous generator, while an attempt is under way."""
        self._others: WeakSet[asyncio.Task[Any]] | None = None
        self._waiting: set[asyncio.Task[Any] | None] = set()

    def begin(self, own: asyncio.Task[Any]) -> None:
        """Begin an attempt in ``own``, the running task, whose tasks belong to the step."""
        self.own = own
        _current.set(self)

    def add(self, task: asyncio.Task[Any]) -> None:
        """Add a task that code of the step has created."""
        if self._others is None:
            self._others = WeakSet()
        self._others.add(task)

    def begin_wait(self) -> asyncio.Task[Any] | None:
        """Record that the running task waits for an answer; return it, for `end_wait`."""
        task = asyncio.current_task()
        self._waiting.add(task)
        return task

    def end_wait(self, task: asyncio.Task[Any] | None) -> None:
        """Record that the task does not wait any more."""
        self._waiting.discard(task)

    @property
    def is_own_waiting(self) -> bool:
        """Whether the own task is the only one, and waits for an answer."""
        return self.own in self._waiting and not self._unfinished()

    @property
    def are_all_waiting(self) -> bool:
        """Whether each of the tasks waits for an answer."""
        unfinished = {self.own, *self._unfinished()}
        for task in unfinished - self._waiting:
            awaited = [] if task is None else self._awaited(task)
            if not awaited or not unfinished.issuperset(awaited):
                return False
        return True

    def _unfinished(self) -> list[asyncio.Task[Any]]:
        return [task for task in self._others or () if not task.done()]

    def _awaited(self, task: asyncio.Task[Any]) -> list[asyncio.Future[Any]]:
        """The tasks that must end before a suspended task continues; empty if it may now."""
        waiter: Any = getattr(task, "_fut_waiter", None)  # asyncio has no public attribute for it
        if isinstance(waiter, asyncio.Task):
            return [waiter]
        gathered: Tasks | None = getattr(waiter, "_children", None)  # of asyncio.gather
        if gathered is None and waiter is not None:
            code = self.code if task is self.own else task.get_coro()
            frame = _innermost(code)
            gathered = [] if frame is None else _tasks_of(frame)
        return [each for each in gathered or () if not each.done()]


def _innermost(code: Any) -> Any:
    """The frame in which a suspended coroutine or asynchronous generator waits."""
    frame = None
    while True:
        if inspect.iscoroutine(code):
            frame, code = code.cr_frame, code.cr_await
        elif inspect.isasyncgen(code):
            frame, code = code.ag_frame, code.ag_await
        else:
            return frame


_GROUP_EXIT: Final = getattr(asyncio.TaskGroup, "_aexit", asyncio.TaskGroup.__aexit__).__code__
_WAIT_FOR: Final = asyncio.wait_for.__code__


def _tasks_of(frame: Any) -> Tasks:
    """The tasks that a function of asyncio waits for; empty for any other function."""
    if frame.f_code is _GROUP_EXIT:
        group: Any = frame.f_locals["self"]
        tasks: Tasks = group._tasks  # noqa: SLF001 - no public attribute
        return tasks
    if frame.f_code is _WAIT_FOR:  # before Python 3.12 it wraps its argument in a task
        future = frame.f_locals.get("fut")
        return [future] if isinstance(future, asyncio.Future) else []
    return []


class _TaskFactory:
    """Creates the tasks of an event loop, and adds those of steps to their `StepTasks`."""

    def __init__(self, previous: Any) -> None:
        self._previous = previous  # the factory that the loop had

    def __call__(self, loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any]
        if self._previous is None:
            task = asyncio.Task(coro, loop=loop, **options)
        else:
            task = self._previous(loop, coro, **options)
        context: Context | None = options.get("context")
        step_tasks = _current.get() if context is None else context.get(_current)
        if step_tasks is not None:
            step_tasks.add(task)
        return task


def install_task_factory() -> None:
    """Let the running loop add the tasks of steps to their `StepTasks` from now on; idempotent."""
    loop = asyncio.get_running_loop()
    previous = loop.get_task_factory()
    if not isinstance(previous, _TaskFactory):
        loop.set_task_factory(_TaskFactory(previous))
