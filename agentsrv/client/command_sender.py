"""Caller: puts commands to the server and waits for their answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from agentsrv.client.connection import Call, ReconnectingConnection
from agentsrv.client.subscriptions import Answer
from agentsrv.errors import AgentsrvError, InvalidCommandError
from agentsrv.protocol.strict_json import parse_object

OnReply = Callable[[Mapping[str, Any], bool], None]
"""Takes a reply, and whether its caller still waits for it."""


class CommandSender:
    """Puts commands to the server over a link; cancelling one withdraws the caller only."""

    def __init__(self, link: ReconnectingConnection) -> None:
        self._link = link

    async def ask(
        self, fields: Mapping[str, Any], on_reply: OnReply | None = None, *, resend: bool = True
    ) -> Mapping[str, Any]:
        """Ask, and wait for the reply; fields that are ``None`` are left out, a message is not.

        Args:
            fields: The command's.
            on_reply: Has its turn before any later frame is looked at.
            resend: Ask again where the connection is lost before the answer.

        Raises:
            AgentsrvError: The server refuses, or the command is none.
            Interrupted: The connection was lost, and it was not to be asked again.
        """
        given = {
            name: value
            for name, value in fields.items()
            if value is not None or name == "message"  # null is a message
        }
        try:
            body = orjson.dumps(given).decode()
            if "null" in body:  # of a None, or of a NaN
                json.dumps(given, default=str, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidCommandError(f"{given['command']} is not JSON: {error}") from None
        parse_object(body)  # what the server would refuse without knowing whom to tell
        return await self._wait(
            lambda settle: self._link.post(given, settle, resend=resend), on_reply
        )

    async def ask_by_line(self, line: str) -> Mapping[str, Any]:
        """Ask as people do who type, and wait for the reply.

        Raises:
            AgentsrvError: The server refuses.
        """
        return await self._wait(lambda settle: self._link.post_line(line, settle))

    async def _wait(
        self, post: Callable[[Callable[[Answer], None]], Call], on_reply: OnReply | None = None
    ) -> Mapping[str, Any]:
        self._link.check()
        waiting: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()

        def settle(answer: Answer) -> None:
            if on_reply is not None and not isinstance(answer, AgentsrvError):
                on_reply(answer, not waiting.done())
            if waiting.done():
                return
            if isinstance(answer, AgentsrvError):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)

        call = post(settle)
        try:
            return await waiting
        except asyncio.CancelledError:
            call.abandoned = True
            raise
