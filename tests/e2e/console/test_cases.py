"""The JavaScript client: what cannot be sent, answers without an id, aborts, wrong answers."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close
from websockets.http11 import Response

from agentsrv import App, StepContext
from agentsrv.client.connection_errors import close_error, connect_error
from agentsrv.errors import AgentsrvError
from tests.e2e.console.test_client import node
from tests.support.nodejs import npm_folder
from tests.support.talk import serving

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(shutil.which("node") is None, reason="needs node, Debian's package nodejs"),
]
ORIGIN = "the server does not allow this origin"
CASES = Path(__file__).with_name("cases.mjs")
app = App()


@app.agent(retries=0)
async def asker(step, ctx: StepContext):
    """Ask for a number."""
    return str(await ctx.ask("How many?", int))


@app.agent
async def echo(step, ctx, value: int = 0):
    """Return the value."""
    return str(value)


async def case(name: str, *arguments: str, **environment: str) -> Any:
    """What came of a case."""
    status, out, err = await node(str(CASES), name, *arguments, **environment)
    assert (status, err) == (0, ""), err
    return json.loads(out)


SENT = {
    "text": '"a✓😀"',
    "object": '{"a":[1,-0.5,true,null,"b"],"b":{"c":1e+21}}',
    "undefinedField": '{"b":1}',
    "date": '"1970-01-01T00:00:00.000Z"',
    "toJSON": "[1]",
    "bigint": "9223372036854775807",
    "instance": '{"a":1}',
    "hugeNumber": "1e+20",
}
REFUSED = {
    "halfSurrogate": "message: found half of a surrogate pair",
    "halfInside": "message.a.0: found half of a surrogate pair",
    "halfName": "message: found half of a surrogate pair",
    "nan": "message: found NaN",
    "infinity": "message.0: found Infinity",
    "function": "message: found a function",
    "functionInside": "message.a: found a function",
    "symbol": "message: found a symbol",
    "hole": "message.0: found undefined",
    "undefinedItem": "message.0: found undefined",
    "cycle": "message.a.0: found a value that contains itself",
    "deep": "found more than 32 levels",
    "hugeBigint": "message: found an integer beyond 64 bits",
    "unsafe": "message: found 9007199254740994, which may be rounded; expected a BigInt",
    "map": "message: found a Map",
    "set": "message: found a Set",
    "bytes": "message: found a Uint8Array",
    "regexp": "message: found a RegExp",
    "error": "message: found a Error",
    "promise": "message: found a Promise",
    "invalidDate": "message: found an invalid date",
    "boxed": "message: found a Number",
    "undefined": "message: found undefined",
}
LARGE = ("tooLarge", "tooLargeInBytes")
THROWN = ("toJSONThrows", "getterThrows")


async def test_what_json_would_lose_is_refused_before_it_is_sent():
    """What is sent is what was given, and a refusal leaves the client usable."""
    found = await case("values")
    for name, text in SENT.items():
        assert found[name]["text"] == text, name
    for name, message in REFUSED.items():
        assert found[name]["code"] == "invalid_command", name
        assert message in found[name]["message"]
        assert "text" not in found[name]
    for name in LARGE:
        assert found[name]["code"] == "too_large"
        assert "text" not in found[name]
    for name in THROWN:
        assert found[name]["message"] == "mine"
    assert {*found} == {*SENT, *REFUSED, *LARGE, *THROWN}
    assert all(each["works"] for each in found.values())


INTEGERS = [
    "small:number:5", "half:number:1.5", "long:number:0.12345678901234568",
    "big:number:100000000000000000000", 'text:string:"9223372036854775807',
]  # fmt: skip
EXPECTED: dict[str, Any] = {
    "unnamedError": ["invalid_json", "answered"],
    "endedSubscription": ["answered", "not_found"],
    "abortedBefore": ["AbortError", 0],
    "abortedWhileOffline": ["AbortError", 0],
    "integers": [
        [["max:bigint:9223372036854775807", *INTEGERS, "list:object:-9007199254740993"], []],
        [
            ["max:number:9223372036854776000", *INTEGERS, "list:object:-9007199254740992"],
            ["agentsrv: the integer 9223372036854775807 is rounded; the option bigints keeps such integers"],
        ],
    ],
    "afterClose": ["closed"] * 11,
    "handlersThatThrow": ["frame", "state", "take", "up"],
    "onEventThatThrows": ["mine", "works"],
    "unreadableFrames": ["closed", "closed", "ignored", "ignored"],
    "noWebSocket": "there is no WebSocket here; expected the option WebSocket, or Node 22",
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
async def test_a_case_without_a_server(name):
    """With a WebSocket that is scripted."""
    assert await case(name) == EXPECTED[name]


async def test_answers_over_a_real_server():
    """A wrong answer is asked again, one that is declined or that fails ends the run."""
    async with serving(app) as server:
        seen, output = await case("wrongAnswers", server.url)
        assert seen == [
            ["How many?", None],
            ["How many?", "invalid_input"],
            ["How many?", "invalid_input"],
        ]
        assert output == "3"
        assert "declined" in await case("declined", server.url)
        assert await case("brokenOnInput", server.url) == "mine"
        assert await case("realHalfSurrogate", server.url) == [
            "invalid_command",
            "9007199254740993",
        ]


def as_javascript(error: AgentsrvError | None) -> str:
    """The state of the client in JavaScript after what is this error in Python."""
    assert error is not None
    if "4401" in error.message:
        return "unauthenticated"
    return "waiting" if error.retryable else "closed"


CODES = [*range(1000, 1016), 3000, 4000, 4400, 4401, 4403, 4404, 4408, 4409, 4500, 4999]
STATUSES = [
    200,
    204,
    400,
    401,
    403,
    404,
    405,
    407,
    408,
    410,
    421,
    426,
    429,
    500,
    501,
    502,
    503,
    504,
]


async def test_closes_are_taken_as_in_python():
    """Whether the client connects again, stops, or wants another token."""
    found = await case("closes", ",".join(map(str, CODES)))
    for code in CODES:
        closed = ConnectionClosed(Close(code, ""), None)
        assert found[str(code)][0] == as_javascript(close_error(closed, "ws://x")), code


@pytest.fixture
def ws() -> str:
    """The package ws, which tells the status of a handshake."""
    return str(npm_folder("ws", "ws@8.23.0") / "node_modules/ws/wrapper.mjs")


@pytest.mark.interop
@pytest.mark.timeout(300)  # the first time it is installed
async def test_statuses_of_a_handshake_are_taken_as_in_python(ws):
    """The reason of a client that stops names the status, or what it means."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        status = request.split()[1][1:]
        writer.write(b"HTTP/1.1 %b No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        given = ",".join(map(str, STATUSES))
        found = await case("statuses", f"ws://127.0.0.1:{port}", given, WS=ws)
    for status in STATUSES:
        refused = connect_error(InvalidStatus(Response(status, "No", Headers())), "ws://x")
        name, reason = found[str(status)]
        assert name == as_javascript(refused), status
        assert f"HTTP {status}" in reason or (status, reason) == (403, ORIGIN)


@pytest.mark.interop
@pytest.mark.timeout(300)
async def test_a_refused_origin_ends_a_client_in_node(ws):
    """With the reason; a request from there would be answered, for it has no origin."""
    async with serving(app) as server:
        assert await case("origin", server.url, WS=ws) == ["closed", ORIGIN]


async def test_an_answer_whose_reply_was_lost_is_compared_with_the_one_that_counts():
    """As the Python client does: a conflict is the caller's own answer only if that is in the log."""
    found = await case("lostReplies")
    assert {name for name, code in found.items() if code == "answered"} == {
        "the same text", "another order", "a name of objects", "a date", "a bigint", "nothing", "a rounded integer",
        "a secret", "both declined",
    }  # fmt: skip
    assert set(found.values()) == {"answered", "conflict"}
