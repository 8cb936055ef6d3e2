"""A thread with an event loop, in which other threads run coroutines and wait for them.

Theory of operation
-------------------
`LoopThread.run` gives a coroutine to the loop and waits on a queue. The queue has two kinds of
items: functions that the waiting thread is to call, and ``None`` once the coroutine has ended.
Functions among the keyword arguments are replaced by coroutine functions that put a call into this
queue and wait for its outcome. So functions of the caller run in the caller's thread, where they
may block, and may call `run` again.

An exception that interrupts the wait, such as ``KeyboardInterrupt``, cancels the coroutine, waits
until it has ended, and propagates. The coroutine registers its task in ``tasks`` at its first step.
``_cancel`` is given to the loop after that step, so that it finds the task.

``_closed`` is set under a lock, and nothing is given to the loop without this lock: after `close`
no coroutine can be left in the loop with a thread that waits for it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar

from agentsrv.client.errors import ClientUsageError, ConnectionClosedError

CLOSE_GRACE: Final = 1.0  # seconds for calls of other threads to end by themselves

P = ParamSpec("P")
T = TypeVar("T")
Calls = SimpleQueue[Callable[[], None] | None]
"""Functions for the waiting thread to call; ``None`` when the coroutine has ended."""


class LoopThread:
    """Runs coroutines of one client for other threads.

    The thread is a daemon: it does not delay the end of the program. `close` ends it.

    Args:
        close: Closes the client; called once, in the loop.
    """

    def __init__(self, close: Callable[[], Awaitable[None]]) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(
            target=_run, args=(self.loop,), name="agentsrv-client", daemon=True
        )
        self._close = close
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._closed = False
        try:
            self.thread.start()
        except RuntimeError:
            self.loop.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether it was not closed, and this process is not a child of the one that started it."""
        return not self._closed and self._process == os.getpid()

    def run(
        self,
        function: Callable[P, Coroutine[Any, Any, T]],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> T:
        """Call a coroutine function in the loop, and return its result.

        Functions among ``options`` are called in the calling thread.

        Raises:
            ConnectionClosedError: It was closed, before the call or during it.
            ClientUsageError: In its own thread, or in a child of ``os.fork()``.
        """
        self._check_thread()
        if self._process != os.getpid():
            raise ClientUsageError(
                f"the client belongs to process {self._process}, and this is its child "
                f"{os.getpid()}; make another SyncClient after os.fork()"
            )
        calls: Calls = SimpleQueue()
        for name, value in options.items():
            if callable(value):
                options[name] = self._call_in_waiting_thread(value, calls)
        return self._wait(function(*arguments, **options), calls)

    def close(self) -> None:
        """Close the client, and end the thread. Closing again has no effect.

        Calls of other threads raise `ConnectionClosedError`. In a child of ``os.fork()`` nothing is
        closed: the connection belongs to the parent.

        Raises:
            ClientUsageError: It is called in its own thread.
        """
        if self._process != os.getpid():
            self._closed = True
            return
        self._check_thread()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            ended = asyncio.run_coroutine_threadsafe(self._end(), self.loop)
        ended.result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def close_soon(self) -> None:
        """Close without waiting, from ``__del__``."""
        self._closed = True
        with suppress(RuntimeError):  # the interpreter ends, and the thread with it
            ended = asyncio.run_coroutine_threadsafe(self._end(), self.loop)
            _ending.add(ended)
            ended.add_done_callback(_stop(self.loop))

    def _wait(self, work: Coroutine[Any, Any, T], calls: Calls) -> T:
        tasks: list[asyncio.Task[Any]] = []
        try:
            future = self._submit(_registered(work, tasks))
            future.add_done_callback(lambda _: calls.put(None))
            while (call := calls.get()) is not None:
                call()
        except BaseException:  # also between the submission and the first wait
            self._cancel(tasks)
            work.close()
            raise
        try:
            return future.result()
        except CancelledError:
            raise ConnectionClosedError("the client is closed") from None

    def _check_thread(self) -> None:
        if threading.current_thread() is self.thread:
            raise ClientUsageError(
                "the client's own thread cannot wait for the client; a token function must not "
                "use the client that it belongs to"
            )

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if self._closed:
                work.close()
                raise ConnectionClosedError("the client is closed")
            return asyncio.run_coroutine_threadsafe(work, self.loop)

    def _call_in_waiting_thread(
        self, function: Callable[..., Any], calls: Calls
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Return a coroutine function that has the waiting thread call ``function``."""

        async def call(*arguments: Any) -> Any:
            outcome = self.loop.create_future()
            calls.put(lambda: self._call(outcome, function, arguments))
            return await outcome

        return call

    def _call(
        self, outcome: asyncio.Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> None:
        if outcome.done():
            return  # cancelled in the meantime: a question that was settled otherwise
        result, error = None, None
        try:
            result = function(*arguments)
        except Exception as raised:  # noqa: BLE001 - raised again in the loop
            error = raised
        with suppress(RuntimeError):  # the loop was closed in the meantime
            self.loop.call_soon_threadsafe(_set_outcome, outcome, result, error)

    def _cancel(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        with self._lock:
            if self._closed:
                return
            ended = asyncio.run_coroutine_threadsafe(_cancel_and_wait(tasks), self.loop)
        ended.result()

    async def _end(self) -> None:
        await self._close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            _, running = await asyncio.wait(others, timeout=CLOSE_GRACE)
            for task in running:
                task.cancel()
            await asyncio.wait(others)


_ending: set[Future[None]] = set()
"""The ends of clients that were dropped: without this reference they could be collected."""


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop) -> Callable[[Future[None]], None]:
    def stop(ended: Future[None]) -> None:  # in any thread
        _ending.discard(ended)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(loop.stop)  # in contrast to stop(), it wakes the selector

    return stop


async def _registered(work: Coroutine[Any, Any, T], tasks: list[asyncio.Task[Any]]) -> T:
    task = asyncio.current_task()
    assert task is not None
    tasks.append(task)
    return await work


async def _cancel_and_wait(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _set_outcome(outcome: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if outcome.done():
        return
    if error is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(result)
