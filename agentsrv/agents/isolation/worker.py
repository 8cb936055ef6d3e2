"""The worker: a process that calls one agent's function once, and the context for it.

Theory of operation
===================

`work` runs in the process that the supervisor has forked. It connects the standard streams to the
pipes, restores the signal handlers that the fork server began with, receives the job, and calls the
function with a `WorkerContext`. Log records and progress are sent on the channel. The return value
follows in pieces of text or as the result, and the process exits like any Python program.

If the fork server has imported the application, `Application.load` finds the function in memory.
Otherwise it imports the application here. The main module is imported as ``__mp_main__``, so code
under ``if __name__ == "__main__"`` does not run.

The agent's code shares the process with this module. It may close the channel's descriptor, fork,
call ``sys.exit`` or raise in a signal handler. `Channel` therefore checks before each use that the
descriptor is the same socket and the process the same process.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import runpy
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, NoReturn

import orjson
from pydantic import ValidationError

from agentsrv.agents.agent import SLOTS, StepContext
from agentsrv.agents.isolation import system, wire
from agentsrv.agents.params import Parameters, complaint, origin_of
from agentsrv.error_text import format_traceback, redact
from agentsrv.errors import AgentsrvError, ConfigurationError, PermanentError
from agentsrv.models.plan import Step
from agentsrv.models.states import StepStatus
from agentsrv.models.task import StepState
from agentsrv.models.text import joined

MAIN: Final = "__main__"
AS_MAIN: Final = "__mp_main__"  # the name that multiprocessing gives the imported main module
MAX_LOGGED: Final = 8_000  # characters of a message in the log

_log = logging.getLogger("agentsrv.agent")


class Loaded(NamedTuple):
    """An agent's function and its parameters."""

    run: Callable[..., Any]
    params: Parameters


@dataclass(slots=True)
class Application:
    """The author's modules, identified as the server has imported them.

    Attributes:
        main_name: The main module's name if it was started by ``python -m``.
        main_path: The main module's file if it is a script.
    """

    main_name: str | None
    main_path: str | None
    _loaded: dict[tuple[str, str], Loaded] = field(default_factory=dict)
    _main: types.ModuleType | None = None

    def load(self, module: str, name: str) -> Loaded:
        """Import a module and return a function of it; errors of the import are not caught.

        Args:
            module: The module's name.
            name: The function's qualified name, with dots for classes.
        """
        loaded = self._loaded.get((module, name))
        if loaded is None:
            found: Any = self._import(module)
            for part in name.split("."):
                found = getattr(found, part)
            params = Parameters.of(found, f"agent {name!r}", SLOTS)
            loaded = Loaded(params.adapted(found), params)
            self._loaded[module, name] = loaded
        return loaded

    def _import(self, name: str) -> types.ModuleType:
        """Import one module.

        The main module is imported by the name ``__mp_main__``, as multiprocessing does, so code
        under ``if __name__ == "__main__"`` does not run.
        """
        if name != MAIN:
            return importlib.import_module(name)
        if self._main is not None:
            return self._main
        module = types.ModuleType(AS_MAIN)
        if self.main_name is not None:
            content = runpy.run_module(self.main_name, run_name=AS_MAIN, alter_sys=True)
        elif self.main_path is not None:
            content = runpy.run_path(self.main_path, run_name=AS_MAIN)
        else:
            raise ConfigurationError(
                "the agent's function was defined in an interactive session; expected one in a "
                "file, which the agent's process can import"
            )
        module.__dict__.update(content)
        self._main = sys.modules[MAIN] = sys.modules[AS_MAIN] = module
        return module


class Channel:
    """The worker's end of the channel; threads may share it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.max_message = wire.MAX_MESSAGE_BYTES
        self._identity = os.fstat(connection.fileno())
        self._owner = os.getpid()
        self._sending = threading.Lock()
        self._asking = threading.Lock()
        self._asked = 0

    @property
    def is_own(self) -> bool:
        """Whether this process received the job, and is not a fork of that process."""
        return os.getpid() == self._owner

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; blocks while the server does not read.

        Raises:
            OSError: The channel was closed.
            ValueError: The message is too large.
            TypeError: It is not JSON.
        """
        if not self.is_own:
            raise OSError("ctx belongs to the agent's process; this is a copy made by os.fork()")
        data = wire.frame(message, self.max_message)
        with self._sending:
            self._check()
            self._connection.sendall(data)

    def receive(self) -> dict[str, Any]:
        """Return the server's next message."""
        (size,) = wire.HEADER.unpack(self._exactly(wire.HEADER.size))
        message: dict[str, Any] = orjson.loads(self._exactly(size))
        return message

    def request(self, method: str, **arguments: Any) -> Any:
        """Send a request to the server; return its answer.

        Raises:
            PermanentError: The server rejected it; another attempt would fail as well.
            AgentsrvError: The server rejected it.
        """
        with self._asking:
            self._asked += 1
            self.send({"request": self._asked, "method": method, "arguments": arguments})
            while (reply := self.receive()).get("reply") != self._asked:
                pass  # the reply to a request that a signal interrupted
        failed = reply.get("failed")
        if failed is not None:
            kind = PermanentError if failed["permanent"] else AgentsrvError
            raise kind(failed["message"])
        return reply.get("value")

    def _check(self) -> None:
        """Raise `OSError` unless the descriptor still is the channel and not a later file."""
        found = os.fstat(self._connection.fileno())
        if (found.st_dev, found.st_ino) != (self._identity.st_dev, self._identity.st_ino):
            raise OSError("the connection to the server was closed by the agent")

    def _exactly(self, size: int) -> bytearray:
        self._check()
        data = bytearray()
        while len(data) < size:
            part = self._connection.recv(min(size - len(data), 1 << 20))
            if not part:
                raise ConnectionError("the server has closed the connection")
            data += part
        return data


class _ToServer(logging.Handler):
    """Sends log records to the server."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        try:
            entry: dict[str, Any] = {
                "level": record.levelno,
                "logger": record.name,
                "message": _encodable(redact(record.getMessage(), max_length=MAX_LOGGED)),
            }
            if record.exc_info and record.exc_info[1] is not None:
                entry["traceback"] = format_traceback(record.exc_info[1])
            self._channel.send({"log": entry})
        except Exception:  # noqa: BLE001 - `handleError` prints it
            self.handleError(record)


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


class WorkerContext(StepContext):
    """The context of a step in a process: methods block, and those that need the loop raise."""

    channel: Channel
    origins: Mapping[str, str]
    """Module and name of the functions that the dependencies' agents have, by step id."""

    @property
    def state(self) -> Any:
        """Not in a process."""
        raise _missing("state")

    @property
    def agents(self) -> Any:
        """Not in a process."""
        raise _missing("agents")

    def check_plan(self, *_: Any, **__: Any) -> Any:
        """Not in a process."""
        raise _missing("check_plan")

    def _ran(self, step_id: str, agent: Any) -> bool:
        if isinstance(agent, str):
            return super()._ran(step_id, agent)
        return self.origins[step_id] == _as_in_server(origin_of(agent))

    def progress(  # type: ignore[override]  # a blocking method
        self, done: float, total: float | None = None, message: str = ""
    ) -> None:
        """Publish the progress of the step; blocks until the server has appended it."""
        self.channel.request("progress", done=done, total=total, message=message)

    def search(self, *_: Any, **__: Any) -> Any:
        """Not available in a process."""
        raise _missing("search")

    def ask(self, *_: Any, **__: Any) -> Any:
        """Not available in a process."""
        raise _missing("ask")

    def confirm(self, *_: Any, **__: Any) -> Any:
        """Not in a process."""
        raise _missing("confirm")

    def messages(self) -> Any:
        """Not available in a process."""
        raise _missing("messages")


def _as_in_server(origin: str) -> str:
    """The origin of a function of the main module, which has another name in a worker."""
    return MAIN + origin.removeprefix(AS_MAIN) if origin.startswith(f"{AS_MAIN}.") else origin


def _missing(name: str) -> PermanentError:
    return PermanentError(
        f"ctx.{name} is not available with isolation='process'; expected ctx.log, ctx.progress or "
        "ctx.set_result. Use it in an async agent, and pass the outcome to this one as params "
        "or by depends_on"
    )


async def _nothing(*_: Any, **__: Any) -> Any:
    """Placeholder for the callbacks that `WorkerContext` does not use."""


def work(
    channel: int, output: tuple[int, int], handlers: Mapping[int, Any], application: Application
) -> NoReturn:
    """Call the function that the server's job names; never returns."""
    _stand_alone(output, handlers)
    code = os.EX_OK
    try:
        connection = Channel(socket.socket(fileno=channel))
        job = connection.receive()["job"]
        code = _do(job, connection, application)
    except KeyboardInterrupt:  # cancelled before or after the function call
        code = 128 + signal.SIGINT
    except BaseException as error:  # noqa: BLE001 - the server reads the exit status
        print(format_traceback(error), file=sys.stderr)  # noqa: T201 - goes to the server's log
        code = os.EX_SOFTWARE
    _exit(code)


def _stand_alone(output: tuple[int, int], handlers: Mapping[int, Any]) -> None:
    """Connect the standard streams to the pipes, and restore the initial signal handlers."""
    for descriptor, number in zip(output, (1, 2), strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number in signal.valid_signals():
        with suppress(OSError, ValueError):
            signal.signal(number, handlers.get(number, signal.SIG_DFL))
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # the application has replaced it
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _do(job: dict[str, Any], channel: Channel, application: Application) -> int:
    """Call the function and send the outcome; return the exit status."""
    ours = logging.getLogger("agentsrv")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    ours.addHandler(to_server := _ToServer(channel))
    channel.max_message = wire.max_message(job["max_result"])
    try:
        function = application.load(job["module"], job["function"])
        channel.send({"loaded": True})
        if not logging.root.handlers:  # the application has not configured logging
            logging.root.setLevel(logging.INFO)
            logging.root.addHandler(to_server)
        step = Step.model_validate(job["step"])
        ctx = WorkerContext(
            **job["context"],
            step=step,
            searcher=_nothing,
            reporter=_nothing,
            asker=_nothing,
            mailbox=_nothing,
            dependencies={
                step_id: StepState(Step(step_id=step_id, agent=agent), StepStatus(status))
                for step_id, (agent, status, _) in job["dependencies"].items()
            },
        )
        ctx.channel = channel
        ctx.origins = {step_id: origin for step_id, (*_, origin) in job["dependencies"].items()}
        try:
            arguments = function.params.arguments(ctx.params)
        except ValidationError as error:
            raise PermanentError(complaint(error)) from None
        value = function.run(step, ctx, **arguments)
        if not channel.is_own:  # the agent called os.fork(), and this is the copy
            return os.EX_OK
        result = ctx.result
        if isinstance(value, str):
            value = joined(value)
            for start in range(0, len(value), wire.PIECE_CHARACTERS):
                channel.send({"text": value[start : start + wire.PIECE_CHARACTERS]})
        elif value is not None:
            result = value
        outcome = {"done": {"result": wire.checked(result, job["max_result"])}}
    except SystemExit as error:
        return _exit_status(error)
    except BaseException as error:
        if not channel.is_own:
            raise
        outcome = {"failed": wire.failure(error)}
    channel.send(outcome)
    return os.EX_OK


def _exit_status(error: SystemExit) -> int:
    """Return the status with which the interpreter exits on ``sys.exit``."""
    if error.code is None:
        return os.EX_OK
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)  # noqa: T201 - as the interpreter does
    return 1


def _exit(code: int) -> NoReturn:
    """Exit like Python programs and multiprocessing's processes."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - joins the threads
        atexit._run_exitfuncs()  # noqa: SLF001 - there is no public function
    except BaseException as error:  # noqa: BLE001 - the outcome has been sent
        print(format_traceback(error), file=sys.stderr)  # noqa: T201 - goes to the server's log
    finally:
        system.flush_output()
        os._exit(code)
