"""docs/howto/mcp.md: its program prints what the page shows, and its table has every tool."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import cast

from agentsrv.cli.mcp.server import Tools
from agentsrv.client import Client
from tests.e2e.examples.sessions import served

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "howto" / "mcp.md").read_text(
    encoding="utf-8"
)
URL = "ws://127.0.0.1:8765"


def block(language: str) -> str:
    """The page's only block in a language."""
    [text] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def test_the_program_prints_what_the_page_shows(tmp_path):
    """With the official client and the examples' knowledge; only the address is another."""
    with served() as url:
        (tmp_path / "program.py").write_text(block("python").replace(URL, url))
        done = subprocess.run(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == block("text")


async def test_the_table_has_every_tool_and_argument():
    """Those that may be left out with a question mark."""
    server = Tools(cast("Client", None)).server()
    tools = {}
    for tool in await server.list_tools():
        required = tool.input_schema.get("required", [])
        names = tool.input_schema["properties"]
        tools[tool.name] = [f"{name}{'' if name in required else '?'}" for name in names]
    documented = {
        name: re.findall(r"`([\w?]+)`", arguments)
        for name, arguments in re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE, re.MULTILINE)
    }
    assert documented == tools
