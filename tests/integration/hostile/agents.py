"""What authors write, as data: each line is an input and what must come of it.

``test_agents.py`` runs the lines on a real server. A line's third member is what a client sees: a
value, or a `Refused` with parts of the error's text.
"""

from __future__ import annotations

import asyncio
import collections
import collections.abc
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import io
import ipaddress
import pathlib
import typing
import uuid
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, cast

import numpy as np
import pydantic
from pydantic import BaseModel, Field, RootModel, Secret, SecretStr

from agentsrv import App, InputDeclined, PermanentError, Step, StepContext
from agentsrv.errors import ModelError

T = TypeVar("T")


class Refused(tuple[str, ...]):
    """Parts of the text of the error that must come."""

    __slots__ = ()

    def __new__(cls, *parts: str) -> typing.Self:
        """Take the parts."""
        return super().__new__(cls, parts)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(enum.Enum):
    A = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class Kind(enum.StrEnum):
    PLAIN = "plain"


class Model(BaseModel):
    a: float = 1.0
    when: dt.datetime = dt.datetime(2026, 1, 1)  # noqa: DTZ001
    more: Any = None


class Box(BaseModel, Generic[T]):
    item: T


class Account(BaseModel):
    name: str = "ann"
    password: SecretStr = SecretStr("hidden")


class Shown(BaseModel):
    password: SecretStr = SecretStr("shown")

    @pydantic.field_serializer("password")
    def _show(self, value: SecretStr) -> str:
        return value.get_secret_value()


@dataclasses.dataclass
class Data:
    x: Any = 1


@pydantic.dataclasses.dataclass
class Checked:
    day: dt.date = dt.date(2026, 1, 1)


class Pair(NamedTuple):
    left: int
    right: int


class Row(typing.TypedDict):
    key: int


class Serialized(BaseModel):
    """Raises when it is written."""

    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    raised: BaseException

    @pydantic.field_serializer("raised")
    def _raise(self, value: BaseException) -> str:
        raise value


class Closed(collections.abc.Mapping[str, int]):
    """A row of a database whose cursor is closed."""

    def __getitem__(self, key: str) -> int:
        raise OSError("the cursor is closed")

    def __iter__(self) -> typing.Iterator[str]:
        raise OSError("the cursor is closed")

    def __len__(self) -> int:
        return 1


class Text(str):
    __slots__ = ()


class Lying(str):
    """Text whose methods tell something else."""

    __slots__ = ()

    def __len__(self) -> int:
        return 3

    def __str__(self) -> str:
        return "a/b"

    def __getitem__(self, key: Any) -> str:
        return "z"

    def isascii(self) -> bool:
        """Say so of every text."""
        return True


def _cycle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def _circle() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["a"] = {"b": found}
    return found


def _model_cycle() -> Model:
    found = Model()
    found.more = found
    return found


def _deep(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def _generator() -> typing.Iterator[int]:
    yield 1


async def _agenerator() -> typing.AsyncIterator[int]:
    yield 1


NAN = float("nan")
WHEN = dt.datetime(2026, 1, 1)  # noqa: DTZ001

RESULTS: list[tuple[str, typing.Callable[[], Any], Any]] = [
    ("model", Model, {"a": 1.0, "when": "2026-01-01T00:00:00", "more": None}),
    ("nested models", lambda: {"m": [Model(more=Data())]}, {"m": [{"a": 1.0, "when": "2026-01-01T00:00:00", "more": {"x": 1}}]}),
    ("generic model", lambda: Box[int](item=1), {"item": 1}),
    ("root model", lambda: RootModel[list[int]]([1]), [1]),
    ("dataclass", Data, {"x": 1}),
    ("pydantic dataclass", Checked, {"day": "2026-01-01"}),
    ("typed dict", lambda: Row(key=1), {"key": 1}),
    ("named tuple", lambda: Pair(1, 2), [1, 2]),
    ("tuple", lambda: (1, (2,)), [1, [2]]),
    ("set", lambda: {1}, [1]),
    ("frozenset", lambda: frozenset({"a"}), ["a"]),
    ("deque", lambda: collections.deque([1]), [1]),
    ("counter", lambda: collections.Counter("aa"), {"a": 2}),
    ("datetime", lambda: WHEN, "2026-01-01T00:00:00"),
    ("date", lambda: dt.date(2026, 1, 1), "2026-01-01"),
    ("time", lambda: dt.time(1, 2), "01:02:00"),
    ("timedelta", lambda: dt.timedelta(days=1), "P1D"),
    ("decimal", lambda: decimal.Decimal("1.50"), "1.50"),
    ("uuid", lambda: uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ("path", lambda: pathlib.Path("/a/b"), "/a/b"),
    ("address", lambda: ipaddress.ip_address("127.0.0.1"), "127.0.0.1"),
    ("fraction", lambda: fractions.Fraction(1, 2), "1/2"),
    ("enum", lambda: Colour.RED, "red"),
    ("int enum", lambda: [Level.LOW], [1]),
    ("bytes", lambda: b"x", "eA=="),
    ("bytes that are no text", lambda: {"a": b"\xff\xfe"}, {"a": "__4="}),
    ("bytearray", lambda: bytearray(b"x"), "eA=="),
    ("int keys", lambda: {1: 2}, {"1": 2}),
    ("enum keys", lambda: {Colour.RED: 1}, {"red": 1}),
    ("date keys", lambda: {dt.date(2026, 1, 1): 1}, {"2026-01-01": 1}),
    ("uuid keys", lambda: {uuid.UUID(int=1): 1}, {"00000000-0000-0000-0000-000000000001": 1}),
    ("numpy numbers", lambda: [np.int64(3), np.float32(0.5)], [3, 0.5]),
    ("subclass of str", lambda: [Text("a")], ["a"]),
    ("none inside", lambda: {"a": None}, {"a": None}),
    ("largest integers", lambda: [2**64 - 1, -(2**63)], [2**64 - 1, -(2**63)]),
    ("surrogate pair", lambda: ["\ud83d\ude00"], ["😀"]),
    ("half a pair", lambda: {"\ud83d": "\ude00"}, {"\ufffd": "\ufffd"}),
    ("shown secret", Shown, {"password": "shown"}),
    ("deep, but allowed", lambda: _deep(200), _deep(200)),
    ("nan", lambda: {"items": [1, {"price": NAN}]}, Refused("result.items[1].price: found nan")),
    ("nan at the top", lambda: NAN, Refused("result: found nan")),
    ("inf in a model", lambda: {"m": Model(a=float("inf"))}, Refused("result.m.a: found inf")),
    ("nan of numpy", lambda: [np.float64("nan")], Refused("result[0]: found nan")),
    ("none and nan", lambda: [None, NAN], Refused("result[1]: found nan")),
    ("integer of 71 bits", lambda: 2**70, Refused("result: found an integer of 71 bits", "at most 64")),
    ("negative integer of 64 bits", lambda: -(2**63) - 1, Refused("result: found a negative integer of 64 bits", "at most 63")),
    ("integer in a model", lambda: Model(more=[2**64]), Refused("result.more[0]: found an integer")),
    ("keys that collide", lambda: {1: 1, "1": 2}, Refused("result: found two keys", "'1'")),
    ("cycle", _cycle, Refused("result[0]: found a value that contains itself")),
    ("cycle of objects", _circle, Refused("result.a.b: found a value that contains itself")),
    ("cycle of models", _model_cycle, Refused("result.more", "contains itself")),
    ("depth", lambda: _deep(5000), Refused("found more than 250 nested values")),
    ("generator", _generator, Refused("result: found generator", "read only once")),
    ("generator inside", lambda: {"a": [_generator()]}, Refused("result.a[0]: found generator")),
    ("generator in a model", lambda: Model(more=_generator()), Refused("result.more: found generator")),
    ("async generator", _agenerator, Refused("result: found async_generator")),
    ("coroutine", lambda: [asyncio.sleep(0)], Refused("result[0]: found coroutine", "await it")),
    ("map", lambda: map(str, [1]), Refused("result: found map")),
    ("open file", io.StringIO, Refused("result: found _io.StringIO")),
    ("secret", lambda: SecretStr("hidden"), Refused("result: found a secret")),
    ("generic secret", lambda: {"a": Secret[int](1)}, Refused("result.a: found a secret")),
    ("secret in a model", lambda: [Account()], Refused("result[0].password: found a secret")),
    ("object", object, Refused("result: found object")),
    ("class", lambda: Model, Refused("result: found")),
    ("function", lambda: {"f": len}, Refused("result.f: found")),
    ("exception", lambda: ValueError("x"), Refused("result: found ValueError")),
    ("array", lambda: np.array([1]), Refused("result: found numpy.ndarray")),
    ("80 MB", lambda: {"x": "y" * 80_000_000}, Refused("result: found 80000008 bytes", "at most 250000")),
    ("80 MB of bytes", lambda: [b"y" * 80_000_000], Refused("result: found", "at most 250000")),
    ("serializer that raises", lambda: Serialized(raised=ValueError("own")), Refused("result: Serialized", "ValueError: own")),
    ("serializer that exits", lambda: Serialized(raised=SystemExit(3)), Refused("result: Serialized", "SystemExit: 3")),
    ("serializer that interrupts", lambda: [Serialized(raised=KeyboardInterrupt("own"))], Refused("result[0]: Serialized", "KeyboardInterrupt: own")),
    ("serializer that cancels", lambda: Serialized(raised=asyncio.CancelledError("own")), Refused("result: Serialized", "CancelledError: own")),
    ("serializer whose error has no text", lambda: Serialized(raised=_Hostile(SystemExit(3))), Refused("result: Serialized")),
    ("many items", lambda: {"x": {1} | set(range(10**6))}, Refused("at most 250000")),
]  # fmt: skip


class Odd:
    """A number, or a text, that fails when it is looked at."""

    def __float__(self) -> float:
        raise RuntimeError("no number")

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Exits:
    """A number, or a text, that ends the process when it is looked at."""

    def __float__(self) -> float:
        raise SystemExit(3)

    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


PROGRESS: list[tuple[str, tuple[Any, ...], tuple[Any, ...]]] = [
    ("numbers", (1, 10, "one"), (1, 10, "one")),
    ("no total", (1,), (1, None, "")),
    ("nan", (NAN, 10), (None, 10, "")),
    ("nan total", (1, NAN), (1, None, "")),
    ("infinity", (float("inf"), 10), (None, 10, "")),
    ("percent", ("50%",), (None, None, "")),
    ("none", (None,), (None, None, "")),
    ("bool", (True, 2), (1.0, 2, "")),
    ("decimal", (decimal.Decimal("0.5"), 1), (0.5, 1, "")),
    ("decimal nan", (decimal.Decimal("nan"), 1), (None, 1, "")),
    ("fraction", (fractions.Fraction(1, 2), 1), (0.5, 1, "")),
    ("numpy", (np.int64(3), np.float32(4)), (3.0, 4.0, "")),
    ("array", (np.array([1, 2]), 3), (None, 3, "")),
    ("negative", (-1, 10), (0, 10, "")),
    ("beyond the total", (11, 10), (10, 10, "")),
    ("total of zero", (0, 0), (0, None, "")),
    ("negative total", (1, -5), (1, None, "")),
    ("huge", (2**70,), (float(2**70), None, "")),
    ("beyond floats", (10**400, 1), (None, 1, "")),
    ("complex", (1j,), (None, None, "")),
    ("object", (Odd(), 1, Odd()), (None, 1, "Odd")),
    ("number that exits", (Exits(), 1, Exits()), (None, 1, "Exits")),
    ("message of none", (1, 2, None), (1, 2, "")),
    ("message of bytes", (1, 2, b"x"), (1, 2, "b'x'")),
    ("message of a number", (1, 2, 3), (1, 2, "3")),
    ("message of a list", (1, 2, [1]), (1, 2, "[1]")),
    ("half a pair", (1, 2, "a\ud83d"), (1, 2, "a\ufffd")),
    ("long message", (1, 2, "x" * 10**6), (1, 2, "x" * 2000)),
]

TEXTS: list[tuple[str, list[Any], Any]] = [
    ("pair in two pieces", ["smile \ud83d", "\ude00 end"], "smile 😀 end"),
    ("pair, with an empty piece between", ["\ud83d", "", "\ude00"], "😀"),
    ("pair in one piece", ["\ud83d\ude00"], "😀"),
    ("half at the end", ["a", "b\ud83d"], "ab\ufffd"),
    ("half, then text", ["\ud83d", "b"], "\ufffdb"),
    ("second half alone", ["a\ude00b"], "a\ufffdb"),
    ("halves in the wrong order", ["\ude00\ud83d", "x"], "\ufffd\ufffdx"),
    ("two first halves", ["\ud83d", "\ud83d\ude00"], "\ufffd😀"),
    ("subclass of str", [Text("a"), Kind.PLAIN], "aplain"),
    ("long piece", ["é" * 200_000], "é" * 200_000),
    ("too long", ["x" * 1_048_577], Refused("too long", "1048576 characters", "max_step_output")),
    (
        "subclass that lies about its length",
        [Lying("x" * 1_048_577)],
        Refused("too long", "1048576 characters"),
    ),
    ("subclass that lies about its characters", [Lying("a\ud83d"), "b"], "a\ufffdb"),
    ("bytes", [b"x"], Refused("yielded bytes; expected str")),
    ("a number", ["a", 1], Refused("yielded int; expected str")),
]


async def fails(error: BaseException) -> None:
    """Raise, as a child of a group does."""
    await asyncio.sleep(0)
    raise error


async def _group(*errors: BaseException) -> None:
    async with asyncio.TaskGroup() as group:
        for error in errors:
            group.create_task(fails(error))


def _raise(error: BaseException) -> None:
    raise error


def _undefined() -> None:
    undefined_name  # type: ignore[name-defined]  # noqa: B018, F821


def _in_library() -> None:
    functools.reduce(lambda left, right: left + right, ["a"], 1)  # type: ignore[operator]


def _json_of_object() -> None:
    import json

    json.dumps(object())


class _Hostile(Exception):
    """An error whose texts raise."""

    def __init__(self, raised: BaseException) -> None:
        super().__init__()
        self._raised = raised

    def __str__(self) -> str:
        raise self._raised

    __repr__ = __str__


class _Raising:
    """An attribute that raises."""

    def __get__(self, *_: object) -> typing.NoReturn:
        raise SystemExit(3)

    def __set__(self, *_: object) -> None:
        pass


class _HostileAttributes(ModelError):
    __cause__ = __context__ = __notes__ = _Raising()
    message = retry_after = details = status = _Raising()


class _HostilePermanent(PermanentError):
    __cause__ = __context__ = __notes__ = _Raising()
    message = retry_after = details = _Raising()


class _Bare(ModelError):
    def __init__(self) -> None:
        """Set nothing."""


class _OddText(Exception):
    def __str__(self) -> str:
        class Odder(str):
            __slots__ = ()
            __len__ = __getitem__ = encode = __bool__ = _Raising()

        return Odder("odd")


class _HostileGroup(ExceptionGroup[Exception]):
    exceptions = _Raising()


class _Itself(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> tuple[Exception]:
        return (self,)


def _noted(error: BaseException, note: Any) -> BaseException:
    error.__notes__ = [note]
    return error


def _deep_group(error: Exception) -> BaseException:
    for _ in range(3000):
        error = ExceptionGroup("g", [error])
    return error


def _raise_wait(wait: Any) -> None:
    raise ModelError("busy", retry_after=wait)


_NO_WAITS: list[Any] = [NAN, -1.0, "x", [], -(10**400), SystemExit]

FAILURES: list[tuple[str, typing.Callable[[], Any], int, tuple[str, ...]]] = [
    # What is raised, attempts of an agent with retries=2, parts of the last message.
    ("error", lambda: _raise(ValueError("a")), 3, ("ValueError: a",)),
    ("permanent", lambda: _raise(PermanentError("a")), 1, ("PermanentError: a",)),
    ("group", lambda: _group(ValueError("inner 1"), KeyError("inner 2")), 3, ("ValueError: inner 1", "KeyError: 'inner 2'")),
    ("permanent in a group", lambda: _group(ValueError("a"), PermanentError("b")), 1, ("PermanentError: b",)),
    ("declined in a group", lambda: _group(InputDeclined("no")), 1, ("InputDeclined: no",)),
    ("nested groups", lambda: _raise(ExceptionGroup("o", [ExceptionGroup("i", [PermanentError("x")])])), 1, ("PermanentError: x",)),
    ("cause", lambda: _raise(_caused(ValueError("a"), OSError("b"))), 3, ("ValueError: a", "OSError: b")),
    ("key in the text", lambda: _raise(ValueError("Bearer sk-verysecret1")), 3, ("Bearer ***",)),
    ("undefined name", _undefined, 1, ("NameError", "undefined_name")),
    ("missing attribute", lambda: None.missing, 1, ("AttributeError", "missing")),  # type: ignore[attr-defined]
    ("wrong type", lambda: "a" + 1, 1, ("TypeError",)),  # type: ignore[operator]
    ("wrong arguments", cast("Any", fails), 1, ("TypeError", "missing 1 required")),
    ("wrong type in a group", lambda: _group(ValueError("a"), _typed()), 3, ("ValueError: a",)),
    ("wrong type in a library", _json_of_object, 3, ("TypeError", "not JSON serializable")),
    ("text that cannot be made", lambda: _raise(_NoText()), 3, ("_NoText",)),
    ("half a pair in the text", lambda: _raise(ValueError("a\ud83d")), 3, ("ValueError: a?",)),
    ("exit", lambda: _raise(SystemExit(3)), 3, ("SystemExit: 3",)),
    ("exit in the text", lambda: _raise(_Hostile(SystemExit(3))), 3, ("_Hostile",)),
    ("interrupt in the text", lambda: _raise(_Hostile(KeyboardInterrupt())), 3, ("_Hostile",)),
    ("attributes that raise", lambda: _raise(_HostileAttributes("a")), 3, ("_HostileAttributes: a",)),
    ("permanent, with attributes that raise", lambda: _raise(_HostilePermanent("a")), 1, ("_HostilePermanent: a",)),
    ("without the attributes of its class", lambda: _raise(_Bare()), 3, ("_Bare",)),
    ("text that is no text", lambda: _raise(_OddText("a")), 3, ("_OddText: odd",)),
    ("notes that raise", lambda: _raise(_noted(ValueError("a"), Odd())), 3, ("ValueError: a",)),
    ("group that cannot be read", lambda: _raise(_HostileGroup("g", [ValueError("a")])), 3, ("_HostileGroup: g",)),
    ("group that contains itself", lambda: _raise(_Itself("g", [ValueError("a")])), 3, ("_Itself: g",)),
    ("deep group", lambda: _raise(_deep_group(ValueError("a"))), 3, ("ExceptionGroup: g", "ValueError: a")),
    ("permanent, deep in a group", lambda: _raise(_deep_group(PermanentError("a"))), 1, ("PermanentError: a",)),
    ("many errors in a group", lambda: _raise(ExceptionGroup("g", [ValueError("a")] * 5000)), 3, ("and 4990 more",)),
    ("cause that cannot be read", lambda: _raise(_caused(ValueError("a"), _Hostile(SystemExit(3)))), 3, ("ValueError: a",)),
    ("its own cause", lambda: _raise(_caused(error := ValueError("a"), error)), 3, ("ValueError: a",)),
    ("result that cannot be read", Closed, 3, ("OSError: the cursor is closed",)),
    *(
        (f"retry_after of {wait!r:.20}", functools.partial(_raise_wait, wait), 3, ("ModelError: busy",))
        for wait in _NO_WAITS
    ),
]  # fmt: skip


class _NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def _caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def _typed() -> BaseException:
    """A TypeError that was raised in a library."""
    try:
        _json_of_object()
    except TypeError as error:
        return error
    raise AssertionError


WAITS: list[tuple[str, typing.Callable[[], Any], float]] = [
    ("retry_after", lambda: _raise(ModelError("busy", retry_after=7.0)), 7.0),
    ("retry_after as text", functools.partial(_raise_wait, "5"), 5.0),
    ("retry_after of a day", functools.partial(_raise_wait, 86_400), 60.0),
    ("retry_after beyond floats", functools.partial(_raise_wait, 10**400), 60.0),
    ("retry_after of infinity", functools.partial(_raise_wait, float("inf")), 60.0),
    ("retry_after in a group, beside nan", lambda: _group(ModelError("a", retry_after=7.0), ModelError("b", retry_after=NAN)), 7.0),
    ("retry_after in a group", lambda: _group(ModelError("busy", retry_after=7.0), ValueError("a")), 7.0),
]  # fmt: skip

if typing.TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]


async def plain(step: Step, ctx: StepContext) -> str:
    """Say who is called."""
    return f"{ctx.step.step_id} {step.step_id}"


async def prefixed(prefix: str, step: Step, ctx: StepContext) -> str:
    """Say the prefix."""
    return prefix


class Callable:
    """An object that is an agent."""

    async def __call__(self, step: Step, ctx: StepContext) -> str:
        """Be called."""
        return "called"

    async def method(self, step: Step, ctx: StepContext) -> str:
        """Be called by its name."""
        return "method"

    @staticmethod
    async def static(step: Step, ctx: StepContext) -> str:
        """Be called without an object."""
        return "static"

    @classmethod
    async def of_class(cls, step: Step, ctx: StepContext) -> str:
        """Be called with the class."""
        return cls.__name__


def decorated(run: Any) -> Any:
    """An author's decorator, which is async itself."""

    @functools.wraps(run)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await run(*args, **kwargs)

    return wrapper


def plainly_decorated(run: Any) -> Any:
    """An author's decorator, which hands the coroutine on."""

    @functools.wraps(run)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return run(*args, **kwargs)

    return wrapper


async def nothing() -> str:
    """Take neither step nor context."""
    return "nothing"


async def only_params(language: str = "en") -> str:
    """Take a param only."""
    return language


async def turned(ctx: StepContext, step: Step, n: int = 1) -> str:
    """Take them the other way."""
    return f"{step.step_id} {ctx.attempt} {n}"


async def renamed(work: Step, it: StepContext) -> str:
    """Call them by other names."""
    return f"{work.step_id} {it.attempt}"


async def positional(step: Step, n: int, /, ctx: StepContext) -> str:
    """Take them by position."""
    return f"{step.step_id} {n}"


async def aliased(step: Step, ctx: StepContext, from_: Annotated[str, Field(alias="from")]) -> str:
    """Take a param with a name that is a keyword."""
    return from_


async def aliased_default(
    step: Step, ctx: StepContext, from_: str = Field("x", alias="from")
) -> str:
    """The same with a default."""
    return from_


async def named(step: Step, ctx: StepContext, model_config: int, schema: str, copy: bool) -> str:
    """Take params that a model has as attributes."""
    return f"{model_config} {schema} {copy}"


async def typed(step: Step, ctx: StepContext, row: Row, rows: list[Row] | None = None) -> str:
    """Take a typed dict."""
    return str(row["key"])


async def rest(step: Step, ctx: StepContext, n: int = 1, **params: Any) -> str:
    """Take all params."""
    return f"{n} {sorted(params)}"


async def returns_unknown(step: Step, ctx: StepContext) -> Unknown:
    """Have an annotation that nobody needs."""
    return "unknown"


async def takes_unknown(step: Step, ctx: StepContext, thing: Unknown) -> str:
    """Have an annotation that cannot be evaluated."""
    return "unknown"


def _local(register: Any = lambda run: run) -> Any:
    class Local(BaseModel):
        n: int

    async def local(step: Step, ctx: StepContext, it: Local) -> str:
        return str(it.n)

    return register(local)


async def bad_default(step: Step, ctx: StepContext, n: int = "many") -> str:  # type: ignore[assignment]
    """Have a default of another type."""
    return "never"


async def opaque(step: Step, ctx: StepContext, thing: io.StringIO) -> str:
    """Take what no JSON can be."""
    return "never"


async def twice(
    step: Step, ctx: StepContext, a: int = Field(1, alias="x"), b: int = Field(1, alias="x")
) -> str:
    """Take one param twice."""
    return "never"


async def unnamed(step: Step, ctx: StepContext, *things: int) -> str:
    """Take any number of things."""
    return "never"


def sync(step: Step, ctx: StepContext) -> str:
    """Not be async."""
    return "never"


REGISTRATIONS: list[tuple[str, typing.Callable[[App], Any], dict[str, Any], Any]] = [
    # How it is registered as agent "it", the task's params, its text or the error's.
    ("decorator with a name", lambda app: app.agent("it")(plain), {}, "step_001 step_001"),
    ("partial", lambda app: app.agent("it")(functools.partial(prefixed, "p")), {}, "p"),
    ("partial of a keyword", lambda app: app.agent("it")(functools.partial(turned, n=2)), {}, "step_001 1 2"),
    ("object", lambda app: app.agent("it")(Callable()), {}, "called"),
    ("bound method", lambda app: app.agent("it")(Callable().method), {}, "method"),
    ("static method", lambda app: app.agent("it")(Callable.static), {}, "static"),
    ("bound class method", lambda app: app.agent("it")(Callable.of_class), {}, "Callable"),
    ("static method object", lambda app: app.agent("it")(vars(Callable)["static"]), {}, "static"),
    ("wrapper", lambda app: app.agent("it")(decorated(plain)), {}, "step_001 step_001"),
    ("plain wrapper", lambda app: app.agent("it")(plainly_decorated(plain)), {}, "step_001 step_001"),
    ("lambda in a thread", lambda app: app.agent("it", isolation="thread")(lambda step, ctx: "x"), {}, "x"),
    ("no parameters", lambda app: app.agent("it")(nothing), {}, "nothing"),
    ("params only", lambda app: app.agent("it")(only_params), {"language": "de"}, "de"),
    ("other order", lambda app: app.agent("it")(turned), {"n": 3}, "step_001 1 3"),
    ("other names", lambda app: app.agent("it")(renamed), {}, "step_001 1"),
    ("positional only", lambda app: app.agent("it")(positional), {"n": 4}, "step_001 4"),
    ("alias", lambda app: app.agent("it")(aliased), {"from": "here"}, "here"),
    ("alias of a default", lambda app: app.agent("it")(aliased_default), {"from": "here"}, "here"),
    ("alias, left out", lambda app: app.agent("it")(aliased_default), {}, "x"),
    ("names of a model's own", lambda app: app.agent("it")(named), {"model_config": 1, "schema": "s", "copy": True}, "1 s True"),
    ("typed dict", lambda app: app.agent("it")(typed), {"row": {"key": 1}, "rows": [{"key": 2}]}, "1"),
    ("all params", lambda app: app.agent("it")(rest), {"n": 2, "a": 1, "b": 2}, "2 ['a', 'b']"),
    ("unknown return", lambda app: app.agent("it")(returns_unknown), {}, "unknown"),
    ("local type", lambda app: _local(app.agent("it")), {"it": {"n": 5}}, "5"),
    ("local type, out of reach", lambda app: app.agent("it")(_local()), {}, Refused("agent 'it', parameter 'it'", "'Local'", "top of the module")),
    ("misspelt option", lambda app: app.agent("it", timout=5)(plain), {}, Refused("agent 'it'", "'timout'", "did you mean timeout?")),  # type: ignore[call-overload]
    ("option of another type", lambda app: app.agent("it", retries="3")(plain), {}, Refused("agent 'it' has retries='3'", "integer")),  # type: ignore[call-overload]
    ("timeout of nan", lambda app: app.agent("it", timeout=NAN)(plain), {}, Refused("agent 'it' has timeout=nan")),
    ("wrong isolation", lambda app: app.agent("it", isolation="tread")(plain), {}, Refused("agent 'it' has isolation='tread'", "'thread'")),  # type: ignore[call-overload]
    ("two names", lambda app: app.agent("it", name="that")(plain), {}, Refused("agent 'it'", "'that'", "one name")),
    ("name of no plan", lambda app: app.agent("it is")(plain), {}, Refused("agent 'it is'", "letters, digits")),
    ("lambda without a name", lambda app: app.agent(isolation="thread")(lambda step, ctx: "x"), {}, Refused("'<lambda>'", "name='…'")),
    ("registered twice", lambda app: [app.agent("it")(plain), app.agent("it")(turned)], {}, Refused("'it' is registered twice", "plain", "turned")),
    ("method in a class body", lambda app: app.agent("it")(Callable.method), {}, Refused("agent 'it'", "Callable.method", "bound method")),
    ("class method in a class body", lambda app: app.agent("it")(vars(Callable)["of_class"]), {}, Refused("agent 'it'", "class method")),
    ("class", lambda app: app.agent("it")(Callable), {}, Refused("agent 'it'", "the class Callable", "Class()")),
    ("no function", lambda app: app.agent("it")(5), {}, Refused("agent 'it'", "expected a function")),  # type: ignore[type-var]
    ("plain function", lambda app: app.agent("it")(sync), {}, Refused("agent 'it'", "isolation='thread'")),
    ("async in a thread", lambda app: app.agent("it", isolation="thread")(plain), {}, Refused("agent 'it'", "takes a plain function")),
    ("unknown type", lambda app: app.agent("it")(takes_unknown), {}, Refused("agent 'it', parameter 'thing'", "Unknown", "TYPE_CHECKING")),
    ("bad default", lambda app: app.agent("it")(bad_default), {}, Refused("agent 'it', parameter 'n'", "'many'", "valid integer")),
    ("type without JSON", lambda app: app.agent("it")(opaque), {}, Refused("agent 'it', parameter 'thing'", "StringIO")),
    ("one param twice", lambda app: app.agent("it")(twice), {}, Refused("agent 'it'", "'x'")),
    ("any number of things", lambda app: app.agent("it")(unnamed), {}, Refused("agent 'it' takes *things", "**params")),
    ("unknown param", lambda app: app.agent("it")(only_params), {"langage": "de"}, Refused("params.langage: unknown; did you mean language?")),
    ("unknown param of none", lambda app: app.agent("it")(plain), {"x": 1}, Refused("params.x: unknown")),
]  # fmt: skip


class After(NamedTuple):
    """An answer, after another one that is refused as `invalid_input`."""

    refused: Any
    answer: Any


def _even(value: int) -> int:
    if value in _RAISED:
        raise _RAISED[value]
    if value % 2:
        raise ValueError("not even")
    return value


def _even_secret(value: SecretStr) -> SecretStr:
    if value.get_secret_value() != "2":
        raise KeyError(value.get_secret_value())
    return value


_RAISED: dict[int, BaseException] = {3: KeyError("own"), 5: SystemExit("own")}
Even = Annotated[int, pydantic.AfterValidator(_even)]
EvenSecret = Annotated[SecretStr, pydantic.AfterValidator(_even_secret)]

QUESTIONS: list[tuple[str, dict[str, Any], Any, Any]] = [
    # Arguments of ask, the answer, what the agent is given (its repr) or the error of the step.
    ("enum options", {"options": [Colour.RED, Colour.BLUE]}, "red", repr(Colour.RED)),
    ("all of an enum", {"options": Colour}, "blue", repr(Colour.BLUE)),
    ("date options", {"options": [dt.date(2026, 1, 2)]}, "2026-01-02", repr(dt.date(2026, 1, 2))),
    ("tuple options", {"options": [(1, 2)]}, [1, 2], "(1, 2)"),
    ("text options", {"options": ["a", "b"]}, "a", "'a'"),
    ("enum", {"type": Colour}, "red", repr(Colour.RED)),
    ("typed dict", {"type": Row}, {"key": 1}, "{'key': 1}"),
    ("no options", {"options": []}, None, Refused("options are empty")),
    ("enum of nothing", {"type": {"enum": []}}, None, Refused("enum is empty")),
    ("literal of a member", {"type": Literal[Colour.RED]}, None, Refused("no JSON value becomes <Colour.RED")),
    ("list of literals of members", {"type": list[Literal[Colour.RED, "a"]]}, None, Refused("no JSON value becomes <Colour.RED")),
    ("literal of bytes", {"type": Literal[b"x"]}, None, Refused("no JSON value becomes b'x'")),
    ("literal of a number of an enum", {"type": Literal[Level.LOW]}, 1, repr(Level.LOW)),
    ("literal of nothing", {"type": Literal[()]}, None, Refused("question's type")),
    ("enum of tuples", {"type": Point}, None, Refused("no JSON value becomes (1, 2)")),
    ("enum of tuples as options", {"options": Point}, [1, 2], repr(Point.A)),
    ("text as options", {"options": "ab"}, None, Refused("options are 'ab'", "list")),
    ("options of another type", {"type": int, "options": ["a"]}, None, Refused("question's options", "valid integer")),
    ("options without JSON", {"options": [object()]}, None, Refused("options[0]: found object")),
    ("default of none of them", {"options": ["a"], "default": "b"}, None, Refused("question's default")),
    ("timeout of nan", {"timeout": NAN}, None, Refused("timeout is nan")),
    ("timeout beyond the calendar", {"timeout": 1e12}, None, Refused("timeout is 1000000000000.0", "at most")),
    ("timeout beyond the clock", {"timeout": 1e300}, None, Refused("timeout is 1e+300", "at most")),
    ("prompt that lies about its length", {"prompt": Lying("x" * 40_000)}, None, Refused("prompt has 40000 characters")),
    ("prompt that lies about its characters", {"prompt": Lying("a\ud83d"), "type": bool}, True, "True"),
    ("key that lies about its text", {"key": Lying("k"), "type": bool}, True, "True"),
    ("key of a number", {"key": 5}, None, Refused("key is 5; expected text")),
    ("like a ciphertext", {"type": SecretStr}, After({"sealed": "x"}, "hidden"), "SecretStr('**********')"),
    ("object like a ciphertext", {"type": {"type": "object", "writeOnly": True}}, After({"sealed": ""}, {"a": 1}), "{'a': 1}"),
    ("like a ciphertext, of no secret", {"type": dict[str, str]}, {"sealed": "x"}, "{'sealed': 'x'}"),
    ("validator that refuses", {"type": Even}, After(1, 2), "2"),
    ("validator that fails", {"type": Even}, After(3, 2), Refused("CheckError", "KeyError: 'own'")),
    ("validator that exits", {"type": Even}, After(5, 2), Refused("CheckError", "SystemExit: own")),
    ("validator of a secret that fails", {"type": EvenSecret}, After("secret 3", "2"), Refused("CheckError", "***")),
    ("secret with a default", {"type": SecretStr, "default": SecretStr("x")}, None, Refused("default")),
]  # fmt: skip
