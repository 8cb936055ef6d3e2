"""``agentsrv run``: one task from the command to its result, on a server or without one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from agentsrv.app import App
from agentsrv.cli.exits import Exit, say
from agentsrv.cli.options import make_settings
from agentsrv.cli.prompt import Prompt
from agentsrv.cli.render import Printer, as_json
from agentsrv.client import Client, NoServer, Record, TaskCancelled
from agentsrv.errors import ConfigurationError, NotFound

DEFAULT_URL: Final = "ws://127.0.0.1:8765"
_DOORS: Final = "key_file api_keys jwt_algorithm jwt_key jwt_jwks jwt_issuer jwt_audience"
_UNGUARDED: Final = dict.fromkeys([*_DOORS.split(), "tls_cert", "tls_key"]) | {
    "behind_proxy": False
}
LOOK_AGAIN: Final = 0.05  # seconds until a task that is to be cancelled has been created


@dataclass(frozen=True, slots=True)
class Job:
    """What ``run`` was asked."""

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
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigurationError(f"--param {text!r}; expected NAME=VALUE")
        try:
            params[name] = orjson.loads(value)
        except orjson.JSONDecodeError:
            params[name] = value
    return params


async def run(job: Job, url: str | None, token: str | None, knowledge: Path | None) -> int:
    """Run one task; return the exit code."""
    async with _reached(url, token, knowledge) as client:
        return await _run(client, job)


@asynccontextmanager
async def _reached(
    url: str | None, token: str | None, knowledge: Path | None
) -> AsyncIterator[Client]:
    """A client of the server at ``url``; without a URL, of the usual one or one in here."""
    client = Client(url or DEFAULT_URL, token=token)
    try:
        await client.__aenter__()
    except NoServer:
        if url is not None:
            raise
    else:
        try:
            yield client
        finally:
            await client.aclose()
        return
    say(f"no server at {DEFAULT_URL}; this process serves itself, and forgets the task afterwards")
    given = {"knowledge": knowledge} if knowledge is not None else {}
    settings = make_settings(host="127.0.0.1", port=0, store="memory:", **given, **_UNGUARDED)
    async with App().running(settings) as running, Client(running.url) as client:
        yield client


class _Stop:
    """Cancels the task on the server, at Ctrl-C or when the time is over."""

    def __init__(self, client: Client, key: str, timeout: float | None) -> None:
        self.timed_out = False
        self._client = client
        self._key = key
        self._cancelling: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        self._timer = loop.call_later(timeout, self._time_out) if timeout is not None else None

    async def close(self) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        if self._timer is not None:
            self._timer.cancel()
        if self._cancelling is not None:
            self._cancelling.cancel()
            await asyncio.wait({self._cancelling})

    def _interrupt(self) -> None:
        if self._cancelling is not None:
            say("interrupted again: the task is left to the server")
            os._exit(Exit.CANCELLED)
        say("cancelling the task; once more to exit at once")
        self._begin("interrupted")

    def _time_out(self) -> None:
        if self._cancelling is None:
            self.timed_out = True
            say("the time is over; cancelling the task")
            self._begin("timed out")

    def _begin(self, reason: str) -> None:
        self._cancelling = asyncio.create_task(self._cancel(reason))

    async def _cancel(self, reason: str) -> None:
        while True:
            try:
                await self._client.cancel(idempotency_key=self._key, reason=reason)
                return
            except NotFound:
                await asyncio.sleep(LOOK_AGAIN)


async def _run(client: Client, job: Job) -> int:
    printer = Printer(sys.stderr, sys.stdout)

    def show(record: Record) -> None:
        if job.as_json:
            print(as_json(record), flush=True)
        else:
            printer.event(record)

    key = uuid.uuid4().hex  # names the task to ``cancel`` before its id is known
    stop = _Stop(client, key, job.timeout)
    try:
        completed = await client.run(
            job.text,
            on_event=show,
            on_input=Prompt().ask if Prompt.is_possible() else None,
            agent=job.agent,
            params=job.params,
            idempotency_key=key,
        )
    except TaskCancelled:
        if not stop.timed_out:
            raise
        return Exit.TIME_OUT
    finally:
        await stop.close()
    if not job.as_json:
        printer.output(completed.final_output)
    return Exit.DONE
