"""Crew: the asyncio tasks of one step, and whether all of them only wait for answers.

Theory of operation
===================

A crash of the process is a loss of each step whose code ran. A step with an open question runs no
code only if *all* of its asyncio tasks wait for answers: an agent may ask in one task and work in
another. So the server has to know the tasks of a step:

- its *own* task, in which the server calls the agent;
- the *others*, which the agent, or a library that it uses, has created. A task factory of the event
  loop (`watch`) adds them. It knows the step by a context variable, which tasks, callbacks and
  ``asyncio.to_thread`` inherit. Tasks that an earlier attempt left behind belong to the step too.

A task waits for an answer if it is suspended in ``ctx.ask``, or in one of the ways of asyncio to
wait for tasks of the crew that do: ``await task``, ``asyncio.gather``, a ``TaskGroup`` at its end,
``asyncio.wait_for``. Whatever wakes it up, a time-out too, ends ``ctx.ask`` first, where the server
takes notice. A task that waits for anything else may run at any moment: while there is one, a
crash may be the step's.

Threads and callbacks of the loop that an agent starts and no task of it waits for are not known.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable
from contextvars import Context, ContextVar
from typing import Any, Final
from weakref import WeakSet

Tasks = Iterable["asyncio.Future[Any]"]

_step_tasks: ContextVar[StepTasks | None] = ContextVar("crew", default=None)


class StepTasks:
    """The tasks of one step."""

    def __init__(self) -> None:
        self.own: asyncio.Task[Any] | None = None
        """The step's own task, while an attempt is under way: its context refers to the crew."""
        self.code: Any = None
        """The agent's coroutine or asynchronous generator that the own task runs, likewise."""
        self._others: WeakSet[asyncio.Task[Any]] | None = None
        self._asking: set[asyncio.Task[Any] | None] = set()

    def begin(self, own: asyncio.Task[Any]) -> None:
        """Let the running task ``own`` be the step's; tasks that it creates belong to the step."""
        self.own = own
        _step_tasks.set(self)

    def add(self, task: asyncio.Task[Any]) -> None:
        """Take a task that code of the step has created."""
        if self._others is None:
            self._others = WeakSet()
        self._others.add(task)

    def ask(self) -> asyncio.Task[Any] | None:
        """Take down that the running task waits for an answer; return it, for `answered`."""
        task = asyncio.current_task()
        self._asking.add(task)
        return task

    def answered(self, task: asyncio.Task[Any] | None) -> None:
        """Take down that the task does not wait any more."""
        self._asking.discard(task)

    @property
    def is_one(self) -> bool:
        """Whether the own task is the only one, and waits for an answer."""
        return self.own in self._asking and not self._living()

    @property
    def only_waits(self) -> bool:
        """Whether each of the tasks waits for an answer."""
        living = {self.own, *self._living()}
        for task in living - self._asking:
            awaited = [] if task is None else self._awaited(task)
            if not awaited or not living.issuperset(awaited):
                return False
        return True

    def _living(self) -> list[asyncio.Task[Any]]:
        return [task for task in self._others or () if not task.done()]

    def _awaited(self, task: asyncio.Task[Any]) -> list[asyncio.Future[Any]]:
        """The tasks without whose end a suspended task does not go on; none if it may."""
        waiter: Any = getattr(task, "_fut_waiter", None)  # asyncio has no public way to see it
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
    """The tasks that a function of asyncio waits for; none of another function."""
    if frame.f_code is _GROUP_EXIT:
        group: Any = frame.f_locals["self"]
        tasks: Tasks = group._tasks  # noqa: SLF001 - likewise
        return tasks
    if frame.f_code is _WAIT_FOR:  # before Python 3.12 it makes a task of what it waits for
        future = frame.f_locals.get("fut")
        return [future] if isinstance(future, asyncio.Future) else []
    return []


class _Factory:
    """Creates the tasks of an event loop; those of steps are added to their crews."""

    def __init__(self, before: Any) -> None:
        self._before = before  # the factory that the loop had

    def __call__(self, loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any]
        if self._before is None:
            task = asyncio.Task(coro, loop=loop, **options)
        else:
            task = self._before(loop, coro, **options)
        context: Context | None = options.get("context")
        step_tasks = _step_tasks.get() if context is None else context.get(_step_tasks)
        if step_tasks is not None:
            step_tasks.add(task)
        return task


def watch() -> None:
    """Let the running loop add the tasks of steps to their crews, from now on."""
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    if not isinstance(before, _Factory):
        loop.set_task_factory(_Factory(before))
