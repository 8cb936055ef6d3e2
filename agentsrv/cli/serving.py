"""Serving: load an application, run it until a signal or a fault, end in time."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from agentsrv.app import App, Running
from agentsrv.cli.exits import Exit, say
from agentsrv.errors import ConfigurationError, missing_extra
from agentsrv.settings import Loop, Settings
from agentsrv.telemetry import export, logs

LAST_CHANCE: Final = 2.0  # seconds that tasks and threads of agents have behind the shutdown
GC_THRESHOLDS: Final = (50_000, 20, 100)  # objects, then generations before an older one
POOL: Final = "agentsrv-pool"  # of the threads in which agents and files may block

_log = logging.getLogger("agentsrv")


def load_app(target: str | None) -> App:
    """The application that ``module:app`` names; ``app`` is assumed where only a module is.

    Raises:
        ConfigurationError: There is no such module or no ``App`` in it.
    """
    if target is None:
        return App()
    module_name, _, name = target.partition(":")
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - the import path holds strings
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"there is no module {error.name!r} in this folder, nor installed"
            ) from None
        raise ConfigurationError(f"{module_name} cannot be imported: {error}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{module_name}: {error.message}") from error
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"{module_name} cannot be imported: {type(error).__name__}: {error}{_where(error)}"
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


def serve(app: App, settings: Settings) -> int:
    """Serve until SIGTERM, SIGINT or a fault of the store; return the exit code.

    A second signal exits at once. Code of agents that does not stop is left behind: the
    process exits without it.
    """
    logs.configure(settings.log_format, sys.stderr)
    send_spans = export.configure()
    with asyncio.Runner(loop_factory=loop_factory(settings.loop)) as runner:
        return runner.run(_serve(app, settings, send_spans))


async def _serve(app: App, settings: Settings, send_spans: Callable[[], None]) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(thread_name_prefix=POOL))
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _on_signal, stop, number)
    async with app.running(settings) as running:
        calm_gc()
        _log.info("listening on %s", running.url)
        await _until_end(running, stop)
    # Only now: the store may also have failed while the tasks were given time to end.
    code = _verdict(running)
    send_spans()
    await _end_leftovers(code)
    return code


async def _until_end(running: Running, stop: asyncio.Event) -> None:
    stopped = asyncio.create_task(stop.wait())
    try:
        ends: set[asyncio.Future[Any]] = {stopped, running.broken}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()


def _verdict(running: Running) -> int:
    if not running.broken.done():
        return Exit.DONE
    say(f"the store cannot be trusted any more: {running.broken.result()}; start the server again")
    return Exit.FAILED


def _on_signal(stop: asyncio.Event, number: signal.Signals) -> None:
    if stop.is_set():
        _log.warning("%s again: exiting at once", number.name)
        _exit_now(128 + number)
    _log.info("%s: running tasks may end; a second signal exits at once", number.name)
    stop.set()


async def _end_leftovers(code: int) -> None:
    """Exit now, if something of an agent does not stop; else return."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=LAST_CHANCE)
    stubborn = [task.get_name() for task in tasks if not task.done()]
    closing = asyncio.create_task(asyncio.get_running_loop().shutdown_default_executor())
    await asyncio.wait({closing}, timeout=LAST_CHANCE)
    if not closing.done():
        stubborn += [thread.name for thread in threading.enumerate() if POOL in thread.name]
    if stubborn:
        _log.warning("exiting although this does not stop: %s", ", ".join(stubborn))
        _exit_now(code)


def _exit_now(code: int) -> None:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _where(error: BaseException) -> str:
    """The place in the author's code, as far as it is known."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames or "importlib" in frames[-1].filename:
        return ""
    return f" ({frames[-1].filename}:{frames[-1].lineno})"
