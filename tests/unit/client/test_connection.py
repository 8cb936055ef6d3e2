import asyncio
import math

import pytest

from agentsrv.client import (
    Client,
    ConnectionClosedError,
    NotAServerError,
    Options,
    ProtocolError,
    Reconnect,
    SequenceGapError,
    ServerUnavailableError,
)
from agentsrv.client.connection import Timing
from agentsrv.client.tokens import Token, Tokens
from agentsrv.errors import (
    AgentsrvError,
    ConfigurationError,
    InvalidCommandError,
    InvalidJsonError,
    NotFoundError,
    OverloadedError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
)
from tests.support.fake_server import HELLO, T1, FakeServer, Peer, closes, event, forever, idle


class Waits:
    """A sleep that takes no time and records its seconds; a jitter that is always the maximum."""

    def __init__(self, **reconnect: float) -> None:
        self.seconds: list[float] = []
        self._options = Options(reconnect=Reconnect(**reconnect))  # type: ignore[arg-type]
        self._timing = Timing(random=lambda _low, high: high, sleep=self._sleep)

    def client(self, url: str, token: Token | None = None) -> Client:
        """Return a client that waits so."""
        return Client(url, self._options, token=token, _timing=self._timing)

    async def _sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


async def answers(peer: Peer) -> None:
    """Answer every command with nothing."""
    while True:
        await peer.reply(await peer.receive())


async def goes_away(peer: Peer) -> None:
    """Answer one command, say goodbye, and close."""
    await peer.reply(await peer.receive())
    await peer.send({"type": "goaway", "reason": "drain", "reconnect_in": 3.5})
    await peer.socket.close(1012, "restart")


@pytest.mark.parametrize("token", ["", "\n", "a b", "a\nb", "ä", "a, bearer.b", "=", "a\r\nX: y"])
def test_a_token_that_cannot_be_one_is_told_without_quoting_it(token):
    """Before there is a connection: it would be another header."""
    with pytest.raises(ConfigurationError, match="invalid token") as refused:
        Client("ws://127.0.0.1:1", token=token)
    assert len(token) < 4 or token not in refused.value.message


async def test_white_space_around_a_token_is_dropped():
    """A file ends with a line end."""
    assert await Tokens(" a.b\r\n").headers() == {"Authorization": "Bearer a.b"}


async def test_a_source_that_gives_no_token_is_asked_again():
    """Whoever issues them may be away for a moment; what is no token will not become one."""
    waits = Waits(first_attempts=3)
    given: list[object] = [OSError("away"), "good", None]

    def current() -> str:
        token = given.pop(0)
        if isinstance(token, OSError):
            raise token
        return token  # type: ignore[return-value]  # as a careless author would

    async with FakeServer(closes(4401), answers).running() as server:
        with pytest.raises(ConfigurationError, match="invalid token"):
            async with waits.client(server.url, current) as client:
                await client.ping()
        assert (server.connections, len(waits.seconds)) == (1, 2)


async def test_a_command_too_many_is_sent_again():
    """It was not carried out, so its caller need not know; one that has gone does."""
    waits = Waits()

    async def refuses(peer: Peer) -> None:
        for wait in (0.001, 0.002):
            command = await peer.receive()
            await peer.send(
                {"type": "error", "command": command["command"], "id": command["id"],
                 "code": "rate_limited", "message": "too many", "retryable": True,
                 "retry_after": wait}
            )  # fmt: skip
        command = await peer.receive()
        await peer.reply(command, task_id=T1, seq=7)
        await answers(peer)

    async with FakeServer(refuses).running() as server, waits.client(server.url) as client:
        assert await client.task(T1).send("hi") == 7
        await client.ping()
    assert [command["command"] for command in server.asked] == [*["send"] * 3, "ping"]
    assert len({command["id"] for command in server.asked[:3]}) == 1


async def test_a_command_too_late_is_sent_again_elsewhere():
    """A server that is about to stop did not carry it out; the next one will."""
    waits = Waits(base=0.1)

    async def too_late(peer: Peer) -> None:
        await peer.send({"type": "goaway", "reason": "drain", "reconnect_in": 1.0})
        command = await peer.receive()
        await peer.send(
            {"type": "error", "command": command["command"], "id": command["id"],
             "code": "shutting_down", "message": "too late", "retryable": True}
        )  # fmt: skip
        await idle(peer)  # it has tasks to wait for

    async def takes(peer: Peer) -> None:
        await peer.reply(await peer.receive(), task_id=T1, status="queued", seq=2)
        await answers(peer)

    async with (
        FakeServer(too_late, takes).running() as server,
        waits.client(server.url) as client,
    ):
        assert (await client.create("late")).id == T1
    assert [command["command"] for command in server.asked] == ["create"] * 2
    assert waits.seconds == [1.1]


async def test_the_wait_before_a_new_connection_grows_to_its_cap():
    """Full jitter: anything up to base, twice that, and so on, never more than the cap."""
    waits = Waits(base=0.1, cap=0.5, attempts=6)
    async with FakeServer(closes(1011)).running() as server, waits.client(server.url) as c:
        with pytest.raises(ServerUnavailableError, match="1011"):
            await c.ping()
        assert waits.seconds == [0.1, 0.2, 0.4, 0.5, 0.5]
        assert server.connections == 6


async def test_a_server_that_goes_away_says_when_to_come_back():
    """The wait is what goaway told, and the jitter on top of it."""
    waits = Waits(base=0.1)
    async with FakeServer(goes_away, answers).running() as server:
        async with waits.client(server.url) as client:
            await client.ping()
            await client.ping()
        assert waits.seconds == [3.6]


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013, 4408])
async def test_a_passing_close_is_followed_by_a_new_connection(code):
    """The command that waited is sent again there."""
    async with FakeServer(closes(code), answers).running() as server:
        async with Waits().client(server.url) as client:
            await client.ping()
        assert server.connections == 2


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (1000, ConnectionClosedError),
        (1003, ConnectionClosedError),
        (1009, ConnectionClosedError),
        (4400, ConnectionClosedError),
        (4401, UnauthenticatedError),
        (4403, UnauthenticatedError),
    ],
)
async def test_a_lasting_close_ends_everything(code, error):
    """Commands and iterators raise, and nobody connects again."""
    async with FakeServer(closes(code, "because")).running() as server:
        async with Waits().client(server.url) as client:
            with pytest.raises(error, match="because"):
                await client.ping()
            with pytest.raises(error):
                await anext(client.task(T1).events())
        assert server.connections == 1


async def test_nobody_there_is_told_at_once():
    """Entering raises, unless the client is asked to wait for a server."""
    async with FakeServer(idle).running() as server:
        url = server.url
    with pytest.raises(ServerUnavailableError, match="no server at"):
        await Client(url).__aenter__()
    waits = Waits(first_attempts=3)
    with pytest.raises(ServerUnavailableError):
        await waits.client(url).__aenter__()
    assert waits.seconds == [0.1, 0.2]


async def test_what_is_no_agentsrv_is_told():
    """Plain HTTP, another greeting, and no greeting in time are not waited for."""

    async def http(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(http, "127.0.0.1", 0) as plain:
        with pytest.raises(NotAServerError, match="HTTP 200"):
            await Client(f"ws://127.0.0.1:{plain.sockets[0].getsockname()[1]}").__aenter__()

    async def other(peer):
        await peer.send({"type": "auth_required", "ha_version": "1"})
        await idle(peer)

    async with FakeServer(other, greet=False).running() as server:
        with pytest.raises(NotAServerError, match="no greeting"):
            await Client(server.url).__aenter__()
    async with FakeServer(idle, greet=False).running() as server:
        with pytest.raises(ServerUnavailableError, match="in time"):
            await Client(server.url, Options(open_timeout=0.05)).__aenter__()


def test_a_url_of_something_else_is_a_mistake_of_the_caller():
    """It is told before anything is connected."""
    with pytest.raises(ConfigurationError, match="ws://"):
        Client("ftp://127.0.0.1:8765")


async def test_a_refusal_is_raised_as_its_class():
    """With all that the frame tells; also where the code is a newer server's."""

    async def refuses(peer):
        frame = {"type": "error", "message": "full", "retryable": True}
        asked = await peer.receive()
        detail = [{"field": "a", "reason": "b"}]
        told = {"code": "overloaded", "retry_after": 2.5, "details": detail}
        await peer.send({**frame, **told, "command": "ping", "id": asked["id"]})
        asked = await peer.receive()
        await peer.send({**frame, "code": "too_hot", "command": "ping", "id": asked["id"]})
        await idle(peer)

    async with FakeServer(refuses).running() as server, Client(server.url) as client:
        with pytest.raises(OverloadedError, match="full") as told:
            await client.ping()
        assert (told.value.retryable, told.value.retry_after) == (True, 2.5)
        assert told.value.details == [{"field": "a", "reason": "b"}]
        with pytest.raises(AgentsrvError) as unknown:
            await client.ping()
        assert (unknown.value.code, unknown.value.retryable) == ("too_hot", True)


async def test_answers_are_matched_by_id_in_any_order():
    """What was asked first may be answered last."""

    async def swaps(peer):
        first, second = await peer.receive(), await peer.receive()
        await peer.reply(second, task_id="second", status="cancelled", already=False)
        await peer.reply(first, task_id="first", status="cancelled", already=False)
        await idle(peer)

    async with FakeServer(swaps).running() as server, Client(server.url) as client:
        replies = await asyncio.gather(
            client.task("first").cancel(), client.task("second").cancel()
        )
    assert [reply.task_id for reply in replies] == ["first", "second"]


async def test_what_the_server_would_not_take_is_refused_here():
    """A frame over its limit would cost the connection; JSON too deep would get no answer."""
    deep: dict[str, object] = {}
    for _ in range(40):
        deep = {"deep": deep}
    async with FakeServer(idle).running() as server, Client(server.url) as client:
        with pytest.raises(TooLargeError, match="takes 10000"):
            await client.create("x" * 20_000)
        with pytest.raises(InvalidJsonError, match="nested"):
            await client.create("x", params=deep)
        with pytest.raises(InvalidCommandError, match="not JSON"):
            await client.create("x", params={"a": object()})
        for number in (math.nan, math.inf):
            with pytest.raises(InvalidCommandError, match="not JSON: Out of range float"):
                await client.create("x", params={"a": [None, number]})
        assert server.asked == []


async def test_the_answer_to_a_cancelled_command_disturbs_nobody():
    """Its caller is gone; and it is not sent again on another connection."""

    async def late(peer):
        asked = await peer.receive()
        await peer.reply(await peer.receive())
        await peer.reply(asked)
        await peer.receive()
        await peer.receive()
        await peer.socket.close(1012)

    async with FakeServer(late, answers).running() as server:
        async with Waits().client(server.url) as client:
            for _ in range(2):
                asking = asyncio.create_task(client.agents())
                await asyncio.sleep(0.01)
                asking.cancel()
                await client.ping()
        asked = [asked["command"] for asked in server.asked]
        assert asked == ["agents", "ping", "agents", "ping", "ping"]


@pytest.mark.parametrize("frame", [b"no json", b"[]", b"{}", b'{"type":"event","seq":1}'])
async def test_a_frame_that_cannot_be_read_ends_everything(frame):
    """It is the server's fault, and would be again on another connection."""

    async def babbles(peer):
        await peer.socket.send(frame, text=True)
        await idle(peer)

    async with FakeServer(babbles).running() as server, Client(server.url) as client:
        with pytest.raises(ProtocolError, match="cannot be read"):
            await client.ping()


@pytest.mark.parametrize("reply", [{"seq": None}, {"task_id": ["t"]}, {"task_id": {}}])
async def test_a_reply_that_cannot_be_read_is_an_error_of_its_command(reply):
    """Its caller does not wait for another one; the connection lives."""

    async def babbles(peer):
        await peer.reply(await peer.receive(), **reply)
        await peer.reply(await peer.receive())
        await idle(peer)

    async with FakeServer(babbles).running() as server, Client(server.url) as client:
        with pytest.raises(ProtocolError, match="cannot be read"):
            await client.start("x")
        await client.ping()


@pytest.mark.parametrize("limits", [None, [], "x", {"max_frame": "x"}, {"max_frame": [1]}])
async def test_a_greeting_with_other_limits_is_none(limits):
    """Before a command depends on them."""

    async def greets(peer):
        await peer.send(HELLO | {"limits": limits})
        await idle(peer)

    async with FakeServer(greets, greet=False).running() as server:
        with pytest.raises(NotAServerError):
            async with Client(server.url):
                pass


async def test_a_subscription_that_cannot_go_on_is_no_answer_to_a_command():
    """It fails the iterators of its task; other commands and tasks go on."""

    async def refuses(peer):
        await peer.subscribed(after=0, seq=2)
        ping = await peer.receive()
        await peer.send(
            {"type": "error", "command": "subscribe", "id": None, "task_id": T1,
             "code": "not_found", "message": "not kept any more", "retryable": False}
        )  # fmt: skip
        await peer.reply(ping)
        await idle(peer)

    async with FakeServer(refuses).running() as server, Client(server.url) as client:
        events = client.task(T1).events()
        following = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.05)
        await client.ping()
        with pytest.raises(NotFoundError, match="not kept"):
            await following


@pytest.mark.parametrize("seconds", [1e300, -5])
async def test_a_server_cannot_have_the_client_wait_for_ever(seconds):
    """What it asks for is bounded."""

    async def leaves(peer):
        await peer.send({"type": "goaway", "reason": "drain", "reconnect_in": seconds})
        await peer.socket.close(1012)

    waits = Waits()
    running = FakeServer(leaves, answers).running()
    async with running as server, waits.client(server.url) as client:
        await client.ping()
    assert waits.seconds
    assert max(waits.seconds) <= 100


async def test_a_frame_over_the_clients_limit_ends_everything():
    """It would come again, so connecting again would not help."""

    async def shouts(peer):
        await peer.send({"type": "shout", "text": "a" * 5000})
        await idle(peer)

    options = Options(max_frame=4000)
    async with FakeServer(shouts).running() as server, Client(server.url, options) as client:
        with pytest.raises(ProtocolError, match="cannot be taken"):
            await client.ping()


async def test_frames_of_a_newer_server_are_passed_over():
    """As are answers that nobody waits for."""

    async def newer(peer):
        await peer.send({"type": "weather", "sunny": True}, {"type": "caught_up", "task_id": T1})
        await peer.send({"type": "reply", "command": "ping", "id": 999})
        await answers(peer)

    async with FakeServer(newer).running() as server, Client(server.url) as client:
        await client.ping()


async def test_a_hole_in_the_log_is_raised():
    """An iterator yields what is in order, and then tells of the hole."""

    async def forgets(peer):
        await peer.subscribed(after=0, seq=5)
        await peer.send(event(1), event(2), event(4), event(5))
        await answers(peer)

    async with FakeServer(forgets).running() as server, Client(server.url) as client:
        events = client.task(T1).events()
        assert [(await anext(events)).seq, (await anext(events)).seq] == [1, 2]
        with pytest.raises(SequenceGapError):
            await anext(events)


async def test_a_server_whose_store_is_away_is_asked_again(monkeypatch):
    """Who follows a task notices nothing; who wants to begin is told."""
    monkeypatch.setattr("agentsrv.client.subscriptions.RETRY_DELAY", 0.01)
    away = {"type": "error", "code": "unavailable", "retryable": True, "message": "not now"}

    async def dies(peer):
        await peer.subscribed(after=0, seq=5)
        await peer.send(event(1), event(2))
        await peer.socket.close(1012)

    async def comes_back(peer):
        for _ in range(2):
            command = await peer.receive()
            await peer.send(away | {"command": "subscribe", "id": command["id"]})
        await peer.subscribed(after=2, seq=5)
        await peer.send(event(3), event(4), event(5, "task_completed", final_output=""))
        command = await peer.receive()
        await peer.send(away | {"command": "subscribe", "id": command["id"]})
        await answers(peer)

    async with FakeServer(dies, comes_back).running() as server, Client(server.url) as client:
        assert [record.seq async for record in client.task(T1).events()] == [1, 2, 3, 4, 5]
        with pytest.raises(UnavailableError, match="not now"):
            await anext(client.task(T1).events())


async def test_leaving_the_client_ends_what_waits():
    """A command and an iterator that wait elsewhere raise Closed; nothing runs on."""
    async with FakeServer(idle).running() as server:
        async with Client(server.url) as client:
            pinging = asyncio.create_task(client.ping())
            following = asyncio.ensure_future(anext(client.task(T1).events()))
            await asyncio.sleep(0.01)
        for waiting in (pinging, following):
            with pytest.raises(ConnectionClosedError):
                await waiting
        with pytest.raises(ConnectionClosedError):
            await client.ping()
        await client.aclose()


async def test_cancelling_the_start_leaves_nothing():
    """A client that waits for a server can be given up."""
    options = Options(reconnect=Reconnect(first_attempts=10))
    timing = Timing(sleep=lambda _: forever())
    client = Client("ws://127.0.0.1:1", options, _timing=timing)
    starting = asyncio.create_task(client.__aenter__())
    await asyncio.sleep(0.05)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_the_greeting_can_be_read():
    """It tells the server's version and limits; before entering there is none."""
    async with FakeServer(idle).running() as server:
        client = Client(server.url)
        with pytest.raises(ConnectionClosedError):
            _ = client.hello
        async with client:
            assert client.hello.limits == HELLO["limits"]
