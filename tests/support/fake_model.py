"""A scripted OpenAI-compatible server, on a real socket: it says exactly what a test wants."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from agentsrv.settings import Settings

PIECE = re.compile(r"\s*\S+\s*")


@dataclass(frozen=True)
class Request:
    """What was asked, as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        """All messages as one text."""
        return "\n".join(str(message.get("content")) for message in self.body["messages"])


@dataclass(frozen=True)
class Raw:
    """An answer to the letter; without a length it ends with the connection."""

    body: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"
    cut: bool = False


@dataclass(frozen=True)
class Hang:
    """Begin with ``text`` (or not at all), then go silent until the client hangs up."""

    text: str | None = None


@dataclass(frozen=True)
class Calls:
    """A message that calls tools: their names and arguments."""

    tools: dict[str, dict[str, Any]]


Reply = str | Raw | Hang | Calls
Answer = Reply | Callable[[Request], Reply]


def refusal(status: int, message: str, **headers: str) -> Raw:
    """An error as OpenAI words it; an underscore in a header stands for a hyphen."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Raw(json.dumps({"error": {"message": message, "type": "test"}}), status, named)


class FakeModel:
    """Answers chats with what `script` was given, one each; the last one again and again."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.embedded: list[list[str]] = []
        self.embed: Callable[[str], list[float]] | Raw | Hang = refusal(404, "no embeddings here")
        self.asked = asyncio.Event()
        self.hung_up = asyncio.Event()
        self.url = ""
        self._script: list[Answer] = [refusal(500, "nothing is scripted")]

    def script(self, *answers: Answer) -> None:
        """Give these answers from now on."""
        self._script = list(answers)

    def settings(self, **more: Any) -> Settings:
        """Of a server that uses this model and forgets everything."""
        given = {"port": 0, "store": "memory:", "llm_url": self.url, "llm_model": "fake"}
        return Settings(**{**given, **more})

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while (request := await _read(reader)) is not None:
                if not await self._answer(request, reader, writer):
                    break
        except ConnectionError:
            self.hung_up.set()
        finally:
            writer.close()

    async def _answer(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer; return whether the connection goes on."""
        if request.path.endswith("/embeddings"):
            self.embedded.append(request.body["input"])
            reply: Reply | None = None if callable(self.embed) else self.embed
        else:
            self.requests.append(request)
            self.asked.set()
            answer = self._script.pop(0) if len(self._script) > 1 else self._script[0]
            reply = answer(request) if callable(answer) else answer
        streams = bool(request.body.get("stream"))
        if isinstance(reply, Hang):
            if reply.text is not None:
                writer.write(_head(200, {"content-type": "text/event-stream"}))
                writer.writelines(_chunks(reply.text))
            await reader.read()  # until the other side closes
            self.hung_up.set()
            return False
        if reply is None:
            _write_json(writer, self._vectors(request.body["input"]))
        elif isinstance(reply, Raw):
            length = {} if reply.cut else {"content-length": str(len(reply.body.encode()))}
            headers = {"content-type": reply.kind, **length, **reply.headers}
            writer.write(_head(reply.status, headers) + reply.body.encode())
            if reply.cut:
                await writer.drain()
                return False
        elif streams and isinstance(reply, str):
            writer.write(_head(200, {"content-type": "text/event-stream", "connection": "close"}))
            for chunk in (*_chunks(reply), *_ending()):
                writer.write(chunk)
                await writer.drain()
            return False
        else:
            _write_json(writer, _completion(reply))
        await writer.drain()
        return True

    def _vectors(self, texts: Iterable[str]) -> dict[str, Any]:
        assert callable(self.embed)
        data = [{"index": n, "embedding": self.embed(text)} for n, text in enumerate(texts)]
        data.reverse()  # the order is the index's to tell
        return {"object": "list", "model": "fake", "data": data, "usage": {}}


@asynccontextmanager
async def fake_model() -> AsyncIterator[FakeModel]:
    """A scripted server on a free port."""
    model = FakeModel()
    server = await asyncio.start_server(model.serve, "127.0.0.1", 0)
    model.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield model
    finally:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        ours = {task for task in tasks if "FakeModel.serve" in repr(task.get_coro())}
        for task in ours:
            task.cancel()
        if ours:
            await asyncio.wait(ours)


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode().strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(first.split()[1], headers, json.loads(body or b"{}"))


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _write_json(writer: asyncio.StreamWriter, value: Any) -> None:
    body = json.dumps(value).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    writer.write(_head(200, headers) + body)


USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def _completion(reply: str | Raw | Calls) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply}
    if isinstance(reply, Calls):
        calls = [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for number, (name, arguments) in enumerate(reply.tools.items())
        ]
        message |= {"content": None, "tool_calls": calls}
    reason = "tool_calls" if isinstance(reply, Calls) else "stop"
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "fake",
        "choices": [choice],
        "usage": USAGE,
    }


def _event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "fake"}
    return f"data: {json.dumps(chunk | {'choices': choices} | more)}\n\n".encode()


def _chunks(text: str) -> list[bytes]:
    return [
        _event([{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
        for piece in PIECE.findall(text)
    ]


def _ending() -> list[bytes]:
    done = _event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    return [done, _event([], usage=USAGE), b"data: [DONE]\n\n"]
