"""Sends commands, and waits for their replies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import orjson

from agentsrv.client.connection import PendingCommand, ReconnectingConnection
from agentsrv.client.subscriptions import Outcome
from agentsrv.errors import AgentsrvError, InvalidCommandError
from agentsrv.protocol.strict_json import parse_object

OnReply = Callable[[Mapping[str, Any]], None]


class CommandSender:
    """Sends commands over a connection and waits for their replies.

    Cancelling a call withdraws the caller only: the server may have received the command.
    """

    def __init__(self, connection: ReconnectingConnection) -> None:
        self._connection = connection

    def check(self) -> None:
        """Check that a command can be sent here; see ``ReconnectingConnection.check``."""
        self._connection.check()

    def call_in_loop(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call ``function`` soon in the client's event loop, from any thread.

        Without effect once the loop is closed.
        """
        loop = self._connection.loop
        if loop is not None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(function, *arguments)

    async def request(
        self, fields: Mapping[str, Any], on_reply: OnReply | None = None, *, resend: bool = True
    ) -> Any:
        """Send a command and return the fields of its reply, checked by `frames.check_reply`.

        Args:
            fields: The command; fields that are ``None`` are omitted, except for ``message``.
            on_reply: Called with the reply before any later frame is read, even if the call was
                cancelled in the meantime.
            resend: Whether to send it again if the connection is lost before the reply.

        Raises:
            AgentsrvError: The server refuses the command, or the command is not valid JSON.
            ReplyLostError: The connection was lost before the reply, and ``resend`` is false.
        """
        given = {
            name: value
            for name, value in fields.items()
            if value is not None or name == "message"  # null is a valid message
        }
        try:
            body = orjson.dumps(given).decode()
            if "null" in body:  # from a None, or from a NaN, which orjson writes as null
                json.dumps(given, default=str, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidCommandError(f"{given['command']} is not JSON: {error}") from None
        parse_object(body)  # the server would refuse it with an error that has no id
        return await self._wait(
            lambda on_outcome: self._connection.send(given, on_outcome, resend=resend), on_reply
        )

    async def _wait(
        self,
        send: Callable[[Callable[[Outcome], None]], PendingCommand],
        on_reply: OnReply | None = None,
    ) -> Any:
        self._connection.check()
        waiting: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()

        def resolve(outcome: Outcome) -> None:
            if isinstance(outcome, AgentsrvError):
                if not waiting.done():
                    waiting.set_exception(outcome)
                return
            if on_reply is not None:
                on_reply(outcome)
            if not waiting.done():
                waiting.set_result(outcome)

        command = send(resolve)
        try:
            return await waiting
        except asyncio.CancelledError:
            command.abandoned = True
            raise
