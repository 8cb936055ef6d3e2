"""Plain functions that do to their surroundings whatever a program can do, for processes."""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import os
import pickle
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import orjson

from agentsrv import Step, StepContext
from agentsrv.errors import AgentsrvError

SLEEP: Final = ["sleep", "977"]
STATE: list[str] = []  # of this module, which no attempt may hand to another
PR_SET_PDEATHSIG: Final = 1

Do = Callable[[StepContext], Any]


class Boom:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"echo > {self.path}",))


def channel() -> int:
    """The descriptor of the channel, which a hostile program finds too."""
    for number in range(3, 256):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                return number
    raise LookupError("no socket is open")


def put(data: bytes, to: int | None = None) -> Any:
    """Write all of ``data`` to the channel, or to another descriptor."""
    os.write(channel() if to is None else to, data)


def framed(body: bytes) -> bytes:
    """A message with its length."""
    return struct.pack("!I", len(body)) + body


def loop() -> Any:
    """Never end."""
    while True:
        time.sleep(0.01)


def fork(do: Callable[[], Any]) -> None:
    """Call ``do`` in a copy of the process."""
    if os.fork() == 0:
        with suppress(BaseException):
            do()
        os._exit(0)


def daemonise() -> Any:
    """Start a program that is in no way below this one."""

    def leave() -> None:
        os.setsid()
        fork(lambda: os.execvp(SLEEP[0], SLEEP))  # noqa: S606

    fork(leave)


def pickles_everywhere(ctx: StepContext) -> None:
    """Write what runs code when it is unpickled, to all descriptors."""
    data = pickle.dumps(Boom(ctx.params["path"]))
    for number in range(256):
        with suppress(OSError):
            os.set_blocking(number, False)
            os.write(number, data + b"\n")
    loop()


def close_and_reopen(ctx: StepContext) -> None:
    """Let a connection of the agent's take the place of the channel, and log."""
    number = channel()
    ours, theirs = socket.socketpair()
    os.dup2(ours.fileno(), number)
    theirs.setblocking(False)
    ctx.log.info("into the agent's connection?")
    with suppress(BlockingIOError):
        Path(ctx.params["path"]).write_bytes(theirs.recv(1000))


def close_and_wait(_: StepContext) -> None:
    """Close all descriptors, and do not end."""
    os.closerange(0, 256)
    loop()


def lower_limits(_: StepContext) -> None:
    """Allow the process nothing that needs a descriptor or a file."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))


def change_everything(_: StepContext) -> None:
    """Leave traces in all state of the process."""
    os.chdir("/")
    os.environ["LEFT"] = "behind"
    os.umask(0o123)
    STATE.append("left")
    sys.path.insert(0, "/nowhere")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    time.sleep = lambda seconds: None
    logging.disable()
    gc.disable()


def endless_thread(_: StepContext) -> None:
    """Start a thread that keeps the process from its exit."""
    threading.Thread(target=loop).start()


def hanging_exit(_: StepContext) -> None:
    """Register what does not end."""
    atexit.register(loop)


def survive_parent(_: StepContext) -> None:
    """Kill the parent, having refused to die with it, and start a program."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
    subprocess.Popen(SLEEP, start_new_session=True)
    os.kill(os.getppid(), signal.SIGKILL)
    loop()


def kill_parent(number: signal.Signals) -> Do:
    """Send a signal to the parent and return."""

    def do(_: StepContext) -> str:
        os.kill(os.getppid(), number)
        time.sleep(0.05)
        return "sent"

    return do


def kill_parents_group(_: StepContext) -> str:
    """Send a signal to the group of the parent."""
    os.killpg(os.getpgid(os.getppid()), signal.SIGTERM)
    return "sent"


def twice(_: StepContext) -> str:
    """Return in two processes."""
    os.fork()
    return "once"


def dive(_: StepContext) -> None:
    """Call itself for ever."""
    dive(_)


def raise_error(error: BaseException) -> Do:
    """Raise ``error``."""

    def do(_: StepContext) -> None:
        raise error

    return do


class Unprintable(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no text")


def nested() -> Any:
    """A list within a list, 5,000 times."""
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    return value


# Name: what the program does, and the end of its task: None if it completes, else a part of the
# error message. After each of them the next task must find everything as it was.
PROGRAMS: Final[dict[str, tuple[Do, str | None]]] = {
    "print": (lambda _: print("hello"), None),
    "print without an end of line": (lambda _: print("hello", end=""), None),
    "print what is not UTF-8": (lambda _: put(b"\xff\xfe\x00\x1b[2J\n", 1), None),
    "print on stderr": (lambda _: print("hello", file=sys.stderr), None),
    "print a flood": (lambda _: put(b"x\n" * 30_000, 1), None),
    "print a line without end": (lambda _: put(b"x" * 300_000, 1), None),
    "a program prints": (lambda _: subprocess.run(["echo", "hello"], check=True), None),
    "a program prints later": (
        lambda _: subprocess.Popen(["sh", "-c", "sleep 1; echo late"]),
        None,
    ),
    "a program holds the pipe": (lambda _: subprocess.Popen(SLEEP), None),
    "a program in a session of its own": (
        lambda _: subprocess.Popen(SLEEP, start_new_session=True),
        None,
    ),
    "a daemon": (lambda _: daemonise(), None),
    "a chain of daemons": (lambda _: [daemonise() for _ in range(5)], None),
    "read stdin": (lambda _: {"read": sys.stdin.read()}, None),
    "a program reads stdin": (lambda _: subprocess.run(["cat"], check=True), None),
    "sys.exit with a number": (lambda _: sys.exit(3), "ended with exit status 3"),
    "sys.exit with a text": (lambda _: sys.exit("enough"), "ended with exit status 1"),
    "sys.exit": (lambda _: sys.exit(), "exit status 0 before the agent returned"),
    "os._exit": (lambda _: os._exit(5), "ended with exit status 5"),
    "abort": (lambda _: os.abort(), "was killed by SIGABRT"),
    "a segmentation fault": (lambda _: ctypes.string_at(0), "was killed by SIGSEGV"),
    "SIGTERM to itself": (lambda _: os.kill(os.getpid(), signal.SIGTERM), "killed by SIGTERM"),
    "SIGKILL to itself": (
        lambda _: os.kill(os.getpid(), signal.SIGKILL),
        "was killed by SIGKILL (out of memory?)",
    ),
    "SIGINT to itself": (lambda _: os.kill(os.getpid(), signal.SIGINT), "KeyboardInterrupt"),
    "a real-time signal to itself": (lambda _: os.kill(os.getpid(), 40), "killed by signal 40"),
    "SIGTERM to its group": (lambda _: os.killpg(0, signal.SIGTERM), "killed by SIGTERM"),
    "SIGKILL to its group": (lambda _: os.killpg(0, signal.SIGKILL), "killed by SIGKILL"),
    "SIGTERM to its parent": (kill_parent(signal.SIGTERM), None),
    "SIGHUP to its parent": (kill_parent(signal.SIGHUP), None),
    "SIGINT to its parent": (kill_parent(signal.SIGINT), None),
    "SIGUSR1 to its parent": (kill_parent(signal.SIGUSR1), None),
    "SIGCHLD to its parent": (kill_parent(signal.SIGCHLD), None),
    "SIGKILL to its parent": (kill_parent(signal.SIGKILL), "killed together with its supervisor"),
    "SIGTERM to its parent's group": (kill_parents_group, None),
    "survive its parent": (survive_parent, "killed together with its supervisor"),
    "change all state": (change_everything, None),
    "lower the limits": (lower_limits, None),
    "leave the process group": (lambda _: os.setpgid(os.fork() or os._exit(0), 0), None),
    "a copy that lives on": (lambda _: fork(loop), None),
    "a copy that returns, too": (twice, None),
    "a copy that exits": (lambda _: fork(sys.exit), None),
    "a copy that uses ctx": (lambda ctx: fork(lambda: ctx.progress(1)), None),
    "a thread that never ends": (endless_thread, None),
    "an atexit handler that hangs": (hanging_exit, None),
    "an atexit handler that fails": (lambda _: atexit.register(lambda: 1 / 0), None),
    "close all descriptors": (lambda _: os.closerange(0, 256), "ended with exit status 70"),
    "close all descriptors and wait": (
        close_and_wait,
        "closed its connection to the server",
    ),
    "close stdout": (lambda _: os.close(1), None),
    "close sys.stdout": (lambda _: sys.stdout.close(), None),
    "close the channel and reopen it": (close_and_reopen, "ended with exit status 70"),
    "a huge result": (lambda _: ["x" * 1000] * 5000, "the agent's result is refused"),
    "a huge text": (lambda _: "x" * 10_000_000, "the output is too long"),
    "a huge text of escapes": (lambda _: "\x00" * 2_000_000, "the output is too long"),
    "a set": (lambda _: {1, 2}, None),
    "bytes": (lambda _: b"x", None),
    "not a number": (lambda _: float("nan"), "the agent's result is refused"),
    "a large integer": (lambda _: 1 << 70, "the agent's result is refused"),
    "half a surrogate pair in a result": (lambda _: ["\ud800"], None),
    "half a surrogate pair": (lambda _: "\ud800", None),
    "a function": (lambda _: gc.get_objects, "the agent's result is refused"),
    "a deep result": (lambda _: nested(), "the agent's result is refused"),
    "recursion": (dive, "RecursionError: maximum recursion depth exceeded"),
    "an error": (raise_error(ValueError("boom")), "ValueError: boom"),
    "an error of several lines": (raise_error(OSError("a\nb\x1b[2J")), "OSError: a"),
    "an error without a text": (raise_error(Unprintable()), "Unprintable"),
    "a long error": (raise_error(ValueError("x" * 10_000_000)), "ValueError: xxx"),
    "an error with half a pair": (raise_error(ValueError("\ud800")), "ValueError: ?"),
    "an error of the server's": (raise_error(AgentsrvError("later")), "AgentsrvError: later"),
    "an error group": (
        raise_error(ExceptionGroup("both", [ValueError("first"), KeyError("second")])),
        "ValueError: first",
    ),
    "a base exception": (raise_error(BaseException("strange")), "BaseException: strange"),
    "GeneratorExit": (raise_error(GeneratorExit()), "GeneratorExit"),
    "MemoryError": (raise_error(MemoryError()), "MemoryError"),
    "pickles on all descriptors": (pickles_everywhere, "sent an invalid message"),
    "random bytes to the channel": (
        lambda _: (put(os.urandom(64) * 9), loop()),
        "sent an invalid message",
    ),
    "a length and nothing else": (lambda _: put(b"\x00\x00\x00\x09"), "sent an invalid message"),
    "a huge length": (lambda _: (put(b"\xff" * 8), loop()), "sent an invalid message"),
    "a message that is not JSON": (
        lambda _: (put(framed(b"{")), loop()),
        "sent an invalid message",
    ),
    "a message that is a list": (
        lambda _: (put(framed(b"[1]")), loop()),
        "sent an invalid message",
    ),
    "a message that is unknown": (
        lambda _: (put(framed(b'{"a": 1}')), loop()),
        "sent an invalid message",
    ),
    "a deep message": (lambda _: (put(framed(b"[" * 9000)), loop()), "sent an invalid message"),
    "a request that is unknown": (
        lambda _: (
            put(framed(orjson.dumps({"request": 1, "method": "x", "arguments": {}}))),
            loop(),
        ),
        "it requests 'x'",
    ),
    "an error with a strange name": (
        lambda _: (
            put(framed(orjson.dumps({"failed": {"type": "a\n" * 99, "message": "m"}}))),
            loop(),
        ),
        "UnknownError: m",
    ),
    "a result of infinity": (
        lambda _: (put(framed(b'{"done": {"result": 1e999}}')), loop()),
        "JSON",
    ),
    "log lines with strange fields": (
        lambda _: [
            put(framed(orjson.dumps({"log": {"message": "m", "level": level, "logger": name}})))
            for level, name in ((-1, 3), (10**9, "x" * 999), (0, None))
        ],
        None,
    ),
}


def program(step: Step, ctx: StepContext, how: str, path: str = "") -> Any:
    """Do what ``PROGRAMS`` has by that name."""
    value = PROGRAMS[how][0](ctx)
    try:
        orjson.dumps(value)
    except TypeError:
        return None if PROGRAMS[how][1] is None else value
    return value


def look(step: Step, ctx: StepContext) -> dict[str, Any]:
    """Return the state of the process that others could have changed."""
    umask = os.umask(0)
    return {
        "cwd": str(Path.cwd()),
        "environment": os.environ.get("LEFT"),
        "umask": umask,
        "globals": STATE,
        "path": sys.path[0],
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "child": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
        "ignored": [
            number
            for number in signal.valid_signals()
            if signal.getsignal(number) == signal.SIG_IGN
        ],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "sleep": time.sleep.__name__,
        "gc": gc.isenabled(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "stdin": sys.stdin.read(),
        "threads": threading.active_count(),
        "descriptors": sorted(
            number for number in range(256) if Path(f"/proc/self/fd/{number}").exists()
        ),
        "leads its session": os.getsid(0) == os.getpid(),
    }


def wait(step: Step, ctx: StepContext, how: str = "loop", path: str = "") -> str:
    """Run until stopped, in one of several ways; ``path`` gets the process's id when it does."""
    Path(path).write_text(str(os.getpid()))
    if how == "loop":
        loop()
    elif how == "C":
        sum(range(10**15))
    elif how == "program":
        subprocess.run(SLEEP, check=True)
    elif how == "stubborn":
        while True:
            with suppress(BaseException):
                loop()
    elif how == "daemon":
        daemonise()
        loop()
    elif how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "parent stopped":
        os.kill(os.getppid(), signal.SIGSTOP)
        loop()
    elif how == "left its group":
        subprocess.Popen(SLEEP, process_group=0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        loop()
    elif how == "deaf":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        subprocess.Popen(["sh", "-c", "trap '' INT TERM HUP; sleep 977"])
        loop()
    elif how == "flood":
        while True:
            print("x" * 100)
    elif how == "log flood":
        while True:
            ctx.log.info("x" * 100)
    return "never"


def tidy(step: Step, ctx: StepContext, path: str = "") -> str:
    """Clean up when interrupted."""
    Path(path).write_text("begun")
    try:
        loop()
    finally:
        Path(path).write_text("cleaned up")
    return "never"


def speak(step: Step, ctx: Any, count: int = 3) -> str:
    """Log and report progress."""
    for number in range(count):
        ctx.log.info("line %d", number)
        ctx.progress(number, count, f"part {number}")
    logging.getLogger("library").warning("of a library")
    try:
        PROGRAMS["told"]
    except KeyError:
        ctx.log.exception("with a traceback")
    return "spoken"


def misreport(step: Step, ctx: Any) -> str:
    """Report what is not a number, and what is not JSON."""
    with suppress(TypeError):
        ctx.progress({1, 2})
    return "reported"


def use(step: Step, ctx: StepContext, what: str = "search") -> str:
    """Use a part of the context that processes do not have."""
    return str(getattr(ctx, what)("x") if what != "messages" else ctx.messages())


def crash(step: Step, ctx: StepContext) -> str:
    """End the process in the first attempt, return in the second."""
    if ctx.attempt == 1:
        os._exit(9)
    return f"attempt {ctx.attempt}"


def big(step: Step, ctx: StepContext, size: int = 0) -> str:
    """Return a text of that size."""
    return "ä" * size


def fill(step: Step, ctx: StepContext, size: int = 0) -> None:
    """Set a result of that size."""
    ctx.set_result("a" * size)


def connect(step: Step, ctx: StepContext) -> list[int]:
    """The ports of sockets that are open; none but the channel, which has no port."""
    found = []
    for number in range(256):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                with socket.socket(fileno=os.dup(number)) as copy:
                    found.append(int(copy.family))
    return found
