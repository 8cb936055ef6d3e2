"""``agentsrv run``: run one task, on a server or in this process."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import orjson

from agentsrv.cli.connection import watched
from agentsrv.cli.exits import Exit, say
from agentsrv.cli.parameters import DEFAULT_URL
from agentsrv.cli.prompt import Left, Prompt
from agentsrv.cli.screen import Screen, shown
from agentsrv.cli.signals import on_signals
from agentsrv.cli.streams import typed
from agentsrv.client import Client, Options, ServerUnavailableError, TaskCancelledError
from agentsrv.errors import ConfigurationError, NotFoundError

if TYPE_CHECKING:
    from agentsrv.settings import Settings

_DOORS: Final = "key_file api_keys jwt_algorithm jwt_key jwt_jwks jwt_issuer jwt_audience"
_UNGUARDED: Final = dict.fromkeys([*_DOORS.split(), "tls_cert", "tls_key"]) | {
    "behind_proxy": False
}
DRAIN: Final = (
    0.01  # seconds for what runs in this process when it ends: no other start continues it
)
CANCEL_RETRY_DELAY: Final = 0.05  # seconds; a cancel may arrive before its task is created


@dataclass(frozen=True, slots=True)
class Job:
    """The arguments of ``run``."""

    text: str
    agent: str | None
    params: Mapping[str, Any]
    as_json: bool
    timeout: float | None
    """Seconds, after which the task is cancelled."""


def parse_params(given: list[str]) -> dict[str, Any]:
    """Read ``name=value``; the value is JSON, or else a string.

    Raises:
        ConfigurationError: One has no name.
    """
    params: dict[str, Any] = {}
    for text in given:
        name, equals, value = typed(text, "--param").partition("=")
        if not (name and equals):
            raise ConfigurationError(f"--param {text!r}; expected NAME=VALUE")
        try:
            params[name] = orjson.loads(value)
        except orjson.JSONDecodeError:
            params[name] = value
    return params


async def run(
    job: Job, url: str | None, token: str | None, ca: Path | None, knowledge: Path | None
) -> int:
    """Run one task; return the exit code."""
    async with reached(url, token, ca, knowledge) as place, shown(json=job.as_json) as screen:
        return await _run(place, screen, job)


@dataclass(frozen=True, slots=True)
class Place:
    """A server, and the connection to it."""

    client: Client
    url: str
    is_lasting: bool
    """Whether the server, and its tasks, continue without this process."""


@asynccontextmanager
async def reached(
    url: str | None, token: str | None, ca: Path | None, knowledge: Path | None
) -> AsyncIterator[Place]:
    """Connect to the server at ``url``; without a URL to the default one, or to one in here.

    Raises:
        ServerUnavailableError: No server answers at the given ``url``.
        ConfigurationError: ``knowledge`` is given and there is a server, which has its own.
    """
    client = Client(url or DEFAULT_URL, Options(ca=ca), token=token)
    try:
        await client.__aenter__()
    except ServerUnavailableError as refusal:
        if url is not None:
            raise
        found = refusal.message
    else:
        try:
            if knowledge is not None:
                raise ConfigurationError(
                    f"--knowledge is {knowledge}, but a server answers at {url or DEFAULT_URL} "
                    "and uses its own; set knowledge there, or leave the option out"
                )
            yield Place(client, url or DEFAULT_URL, is_lasting=True)
        finally:
            await client.aclose()
        return
    say(f"{found}; this process serves itself, and forgets the task afterwards")
    from agentsrv.builtin import app
    from agentsrv.cli.options import make_settings

    given = {"knowledge": knowledge} if knowledge is not None else {}
    settings = make_settings(
        host="127.0.0.1", port=0, store="memory:", drain_timeout=DRAIN, **given, **_UNGUARDED
    )
    with _index_somewhere(settings) as settings:
        async with app.running(settings) as running, Client(running.url) as client:
            yield Place(client, running.url, is_lasting=False)


@contextmanager
def _index_somewhere(settings: Settings) -> Iterator[Settings]:
    """Choose a writable place for the index of the knowledge folder, and print it."""
    if settings.knowledge is None:
        yield settings
        return
    from agentsrv.resources import make_index_folder

    try:
        say(f"the index of {settings.knowledge} is kept in {make_index_folder(settings)}")
    except ConfigurationError as error:
        say(f"{error.message}; this process keeps it in a temporary folder")
    else:
        yield settings
        return
    with TemporaryDirectory(prefix="agentsrv-") as folder:
        yield settings.model_copy(update={"knowledge_index": Path(folder, "knowledge.db")})


class _Stop:
    """Cancels the task on the server, at Ctrl-C or when the time is over.

    A second Ctrl-C ends this process at once, and leaves the task to a server that continues. At a
    question the first one only says what can be done.
    """

    def __init__(
        self, place: Place, screen: Screen, prompt: Prompt, key: str, timeout: float | None
    ) -> None:
        self.timed_out = False
        self.task_id: str | None = None
        self._place = place
        self._screen = screen
        self._prompt = prompt
        self._key = key
        self._cancelling: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._stop_listening = on_signals((signal.SIGINT,), self._interrupt)
        self._timer = loop.call_later(timeout, self._time_out) if timeout is not None else None

    async def close(self) -> None:
        self._stop_listening()
        if self._timer is not None:
            self._timer.cancel()
        if self._cancelling is not None:
            self._cancelling.cancel()
            await asyncio.wait({self._cancelling})

    def _interrupt(self, _number: signal.Signals) -> None:
        if self._cancelling is not None:
            self._screen.close()
            self.tell_how_to_come_back("interrupted again")
            os._exit(Exit.CANCELLED)
        if self._prompt.warn():
            return
        more = "leave it to the server" if self._place.is_lasting else "exit at once"
        self._screen.tell(f"cancelling the task; once more to {more}")
        self._begin("interrupted")

    def tell_how_to_come_back(self, why: str) -> None:
        """Print what happens to the task after this process has ended."""
        if not self._place.is_lasting:
            say(f"{why}: the task ends with this process")
            return
        say(f"{why}: the task is left to the server")
        if self.task_id is not None:
            url = self._place.url
            is_usual = url == os.environ.get("AGENTSRV_URL", DEFAULT_URL)
            where = "" if is_usual else f" --url {url}"
            say(f"to see what becomes of it: agentsrv tail {self.task_id}{where}")

    def _time_out(self) -> None:
        if self._cancelling is None:
            self.timed_out = True
            self._screen.tell("the time is over; cancelling the task")
            self._begin("timed out")

    def _begin(self, reason: str) -> None:
        self._cancelling = asyncio.create_task(self._cancel(reason))

    async def _cancel(self, reason: str) -> None:
        while True:
            try:
                await self._place.client.cancel(idempotency_key=self._key, reason=reason)
                return
            except NotFoundError:
                await asyncio.sleep(CANCEL_RETRY_DELAY)


async def _run(place: Place, screen: Screen, job: Job) -> int:
    key = uuid.uuid4().hex  # names the task to ``cancel`` before its id is known
    prompt = Prompt(screen.pause)
    stop = _Stop(place, screen, prompt, key, job.timeout)

    try:
        async with watched(place.client, screen.tell):
            task = await place.client.start(
                job.text, agent=job.agent, params=job.params, idempotency_key=key
            )
            stop.task_id = task.id
            on_input = prompt.ask if Prompt.is_possible() else None
            result = await task.result(on_event=screen.event, on_input=on_input)
    except Left:
        screen.close()
        stop.tell_how_to_come_back("the question stays open")
        return Exit.CANCELLED
    except TaskCancelledError:
        if not stop.timed_out:
            raise
        return Exit.TIME_OUT
    finally:
        await stop.close()
    screen.output(result.final_output)
    return Exit.DONE
