"""Serving: load an application, run it until a signal or a fault, end in time."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path, PurePath
from typing import Any, Final, NoReturn, TypeVar

from agentsrv import threads
from agentsrv.app import App
from agentsrv.cli import addresses, forks
from agentsrv.cli.exits import Exit, leave, say
from agentsrv.cli.signals import Signals, exit_now
from agentsrv.error_text import describe
from agentsrv.errors import AgentsrvError, ConfigurationError, LifespanError, missing_extra
from agentsrv.settings import Loop, Settings
from agentsrv.suggest import did_you_mean
from agentsrv.telemetry import export, logs, nonblocking_output
from agentsrv.wiring import DismantledError, Server

LAST_CHANCE: Final = 2.0  # seconds that tasks and threads of agents have after the shutdown
GC_THRESHOLDS: Final = (50_000, 20, 100)  # objects, then generations before an older one
POOL: Final = "agentsrv-pool"  # of the threads in which agents and files may block

T = TypeVar("T")

_log = logging.getLogger("agentsrv")


def load_app(target: str | None) -> App:
    """The application that ``module:app`` names; ``app`` is assumed where only a module is.

    Without a name it is the application with the built-in agents.

    Raises:
        ConfigurationError: There is no such module or no ``App`` in it.
    """
    if target is None:
        from agentsrv.builtin import app as builtin_app

        return builtin_app
    module_name, _, name = target.partition(":")
    _check_spelling(target, module_name, name or "app")
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - the import path holds strings
    _check_shadow(module_name)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"there is no module {error.name!r} in this folder, nor installed"
                f"{_meant(module_name, error.name)}"
            ) from None
        raise ConfigurationError(f"{module_name} cannot be imported: {error}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{module_name}: {error.message}") from error
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"{module_name} cannot be imported: {describe(error)}{_where(error)}"
        ) from error
    app = getattr(module, name or "app", None)
    if isinstance(app, App):
        return app
    found = f"{type(app).__name__} object" if app is not None else "nothing of that name"
    names = [key for key, value in vars(module).items() if isinstance(value, App)]
    hint = f"; there is {module_name}:{names[0]}" if names else ""
    raise ConfigurationError(
        f"expected an App at {module_name}:{name or 'app'}; found {found}{hint}"
    )


def _check_spelling(target: str, module_name: str, name: str) -> None:
    """Refuse a path: modules are named as in ``import``."""
    if not module_name.strip():
        raise ConfigurationError(f"the application is {target!r}; expected MODULE:APP")
    if not (re.search(r"[/\\]", module_name) or module_name.endswith(".py")):
        return
    path = PurePath(module_name.replace("\\", "/").removesuffix(".py"))
    first, where = path, ""
    if path.is_absolute():
        try:
            first = path.relative_to(Path.cwd())
        except (OSError, ValueError):  # it is elsewhere
            first, where = PurePath(path.name), f", in the folder {path.parent}"
    elif ".." in path.parts:
        first, where = PurePath(path.name), f", in the folder {path.parent}"
    raise ConfigurationError(
        f"the application is {target!r}, which is a path; expected a module: "
        f"agentsrv serve {'.'.join(first.parts)}:{name}{where}"
    )


def _check_shadow(module_name: str) -> None:
    """Refuse a file of this folder that has the name of a module that Python uses itself.

    One that is loaded already would be searched for the application in place of the file; one
    that is loaded later would get the file in place of the module.
    """
    name = module_name.partition(".")[0]
    here = next((path for path in (Path(name), Path(f"{name}.py")) if path.exists()), None)
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if here is None or (loaded and Path(loaded).resolve() in _files_of(here)):
        return
    if name in sys.stdlib_module_names or loaded:
        raise ConfigurationError(
            f"{here} has the name of a module that Python or agentsrv uses; rename it"
        )


def _files_of(module: Path) -> tuple[Path, Path]:
    """The file from which a module is loaded: itself, or that of a package."""
    return module.resolve(), (module / "__init__.py").resolve()


def _meant(module_name: str, missing: str) -> str:
    """A hint at what ``module_name`` was meant as; the module ``missing`` was not found."""
    parent, _, last = module_name.rpartition(".")
    if missing == module_name and parent in sys.modules:
        return f"; did you mean {parent}:{last}?"
    here = [file.stem for file in Path().glob("*.py")]
    here += [file.parent.name for file in Path().glob("*/__init__.py")]
    meant = did_you_mean(module_name, here)
    return f"; {meant}" if meant else ""


def calm_gc() -> None:
    """Let the garbage collector look seldom, and not at what is there for good.

    A server's objects die by reference counting; with the defaults a seventh of its time went
    into looking for cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def loop_factory(name: Loop) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the event loop of that name; ``auto`` is uvloop's where it is installed.

    Raises:
        ConfigurationError: uvloop is wanted and not installed.
    """
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        if name == "auto":
            return asyncio.new_event_loop
        raise ConfigurationError(missing_extra("the setting loop=uvloop", "fast")) from None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def serve(target: str | None, settings: Settings, complaints: Sequence[str] = ()) -> int:
    """Load the application and serve until a signal or a fault of the store; return the exit code.

    A second signal exits at once. Code of agents that does not stop is left behind: the
    process exits without it. From here on, nothing that is written to standard output or standard
    error blocks the process.

    Args:
        target: ``module:app``, or ``None`` for the built-in agents.
        settings: What to serve with.
        complaints: Sentences about the surroundings for the log, such as unknown variables.

    Raises:
        SystemExit: The application or a setting is wrong; the reason has been printed.
    """
    with nonblocking_output.redirected():
        try:
            app = load_app(target)
            logs.configure(settings.log_format, sys.stderr)
            for complaint in complaints:
                _log.warning("%s", complaint)
            send_spans = export.configure()
            with asyncio.Runner(loop_factory=loop_factory(settings.loop)) as runner:
                return _run(runner.get_loop(), _serve(app, settings, send_spans))
        except OSError as error:
            leave(addresses.explained(error, settings))
        except AgentsrvError as error:
            leave(error)


def _run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, int]) -> int:
    """Run ``work`` to its end, and return what it returns.

    A ``SystemExit`` or ``KeyboardInterrupt`` in a task or a callback that an agent has created
    leaves the loop, whoever awaits the task. The loop continues; whoever awaits it is given the
    error. Likewise where an agent stops the loop. Signals are never raised: `Signals` gets them.
    """
    serving = loop.create_task(work)
    while True:
        try:
            return loop.run_until_complete(serving)
        except RuntimeError as error:
            if serving.done():
                raise
            _log.error("code in this process stopped the event loop; it continues: %s", error)
        except (SystemExit, KeyboardInterrupt) as error:
            if serving.done():
                raise
            _log.error(
                "code in this process raised %s in an asyncio task or a callback of its own; the "
                "server continues. An agent ends its step by an error",
                type(error).__name__,
                exc_info=error,
            )


async def _serve(app: App, settings: Settings, send_spans: Callable[[], None]) -> int:
    stop = _Stop()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(thread_name_prefix=POOL))
    patience = settings.drain_timeout + settings.cancel_grace
    with Signals(stop.set, patience) as signals, ExitStack() as stack:
        code, server = int(Exit.DONE), None
        try:
            async with AsyncExitStack() as opened:
                server = await stop.unless_set(opened.enter_async_context(app.running(settings)))
                if server is not None:
                    calm_gc()
                    _log.info("listening on %s", server.url)
                    # Until the end of the process: agents may fork while the server drains.
                    stack.enter_context(forks.guarded(signals, server.port))
                    await _until_end(server, stop)
        except LifespanError as error:
            if server is None:
                raise
            say(error.message)  # at its end: the server is closed
            code = Exit.FAILED
        else:
            if server is not None:
                # Only now: the store may also have failed while the tasks were given time to end.
                code = _verdict(server)
        send_spans()
        await _end_leftovers(code)
    return code


class _Stop:
    """The demand that the server ends: it cancels a start, and ends the wait of one that runs."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._start = asyncio.timeout(None)

    def set(self) -> None:
        """Demand it; call it in the loop."""
        self._event.set()
        with suppress(RuntimeError):  # it has started
            self._start.reschedule(asyncio.get_running_loop().time())

    async def wait(self) -> None:
        """Wait for the demand."""
        await self._event.wait()

    async def unless_set(self, start: Awaitable[T]) -> T | None:
        """What ``start`` returns; ``None`` if it was cancelled by the demand. Call it once."""
        try:
            async with self._start:
                return await start
        except TimeoutError:
            if not self._start.expired():
                raise
        _log.info("the start was interrupted")
        return None


async def _until_end(server: Server, stop: _Stop) -> None:
    stopped = asyncio.create_task(stop.wait())
    try:
        ends: set[asyncio.Future[Any]] = {stopped, server.broken}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:  # only code that cancels all tasks reaches this one
        _end_as_by_crash("code in this process has cancelled the server's own asyncio tasks")
    finally:
        stopped.cancel()
    if server.broken.done() and isinstance(fault := server.broken.result(), DismantledError):
        _end_as_by_crash(str(fault))


def _end_as_by_crash(reason: str) -> NoReturn:
    """Exit at once, without a drain: so the attempts whose code runs are charged with it."""
    _log.critical(
        "%s; it cannot continue and ends at once. After a restart, running tasks continue; a step "
        "that causes this again and again is failed",
        reason,
    )
    exit_now(Exit.FAILED)


def _verdict(server: Server) -> int:
    if not server.broken.done():
        return Exit.DONE
    say(f"the store cannot be trusted any more: {server.broken.result()}; start the server again")
    return Exit.FAILED


async def _end_leftovers(code: int) -> None:
    """Exit now, if something of an agent does not stop; else return."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=LAST_CHANCE)
    stubborn = [task.get_name() for task in tasks if not task.done()]
    loop = asyncio.get_running_loop()
    closing: set[asyncio.Future[Any]] = {
        asyncio.create_task(loop.shutdown_default_executor()),
        threads.in_own_thread(threads.shut_down, "agentsrv-shutdown"),
    }
    _, left = await asyncio.wait(closing, timeout=LAST_CHANCE)
    own_threads = [
        thread for thread in threading.enumerate() if thread.name.startswith((POOL, threads.NAME))
    ]
    for thread in own_threads:
        if not left:  # it was left behind by what it belonged to, or is about to end
            thread.join(LAST_CHANCE)
    stubborn += [thread.name for thread in own_threads if thread.is_alive()]
    if stubborn:
        _log.warning("exiting although this does not stop: %s", ", ".join(stubborn))
        exit_now(code)


def _where(error: BaseException) -> str:
    """The place in the author's code, as far as it is known."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames or "importlib" in frames[-1].filename:
        return ""
    return f" ({frames[-1].filename}:{frames[-1].lineno})"
