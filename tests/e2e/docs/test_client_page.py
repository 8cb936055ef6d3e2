"""docs/howto/client.md: each of its programs prints what the page shows, on a real server."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agentsrv import client
from agentsrv.client import Client, Options, Reconnect, TaskHandle, results
from agentsrv.errors import AgentsrvError
from tests.e2e.docs.pages import DOCS
from tests.support.listening import listening

PAGE = (DOCS / "howto" / "client.md").read_text(encoding="utf-8")
REFERENCE = (DOCS / "reference" / "client.md").read_text(encoding="utf-8")
URL = "ws://127.0.0.1:8765"
SECTIONS = [
    (text.partition("\n")[0], re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL))
    for text in re.split(r"^## ", PAGE, flags=re.MULTILINE)
    if "```python" in text
]
(_, ((_, SHOP),)), *PROGRAMS = SECTIONS


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """Where the page's application is served, as the page says."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.py").write_text(SHOP)
    with listening(folder, "shop:app") as address:
        yield address


@pytest.mark.parametrize(("title", "blocks"), PROGRAMS, ids=[title for title, _ in PROGRAMS])
def test_each_program_prints_what_the_page_shows(title, blocks, url, tmp_path):
    """It is run as a program of its own; only the server's address is another."""
    (_, program), (_, shown) = blocks
    assert URL in program
    (tmp_path / "program.py").write_text(program.replace(URL, url))
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown


def rows(section: str) -> dict[str, str]:
    """The first two columns of a section's table."""
    text = REFERENCE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| (`.*?`) \| (.*?) \|", text, re.MULTILINE))


def test_every_option_is_told_with_its_default():
    """In the order of the class."""
    defaults = {name: getattr(Options(), name) for name in Options.__slots__}
    told = {name.strip("`"): text.strip("`") for name, text in rows("Options").items()}
    assert told == {
        name: "Reconnect()" if value == Reconnect() else str(value)
        for name, value in defaults.items()
    }
    assert f"attempts={Reconnect().attempts}" in REFERENCE


@pytest.mark.parametrize(("section", "kind"), [("Client", Client), ("TaskHandle", TaskHandle)])
def test_every_method_is_told(section, kind):
    """Those of the class, and the arguments of `Client.start`."""
    functions = inspect.getmembers(kind, inspect.isfunction)
    methods = {name for name, _ in functions if not name.startswith("_")} - {"aclose"}
    told = {name.strip("`").partition("(")[0] for name in rows(section)}
    arguments = {*inspect.signature(Client.start).parameters} - {"self", "text"}
    assert told == methods | (arguments if kind is Client else set())


def test_every_result_is_told_with_its_fields():
    """All dataclasses that a method returns."""
    told = {name.strip("`"): re.findall(r"\w+", fields) for name, fields in rows("Results").items()}
    kinds = {
        name: kind for name, kind in vars(results).items()
        if dataclasses.is_dataclass(kind) and kind.__module__ == results.__name__
    }  # fmt: skip
    assert told == {
        name: [field.name for field in dataclasses.fields(kind)] for name, kind in kinds.items()
    }


def test_every_error_of_the_client_is_told():
    """Those that `agentsrv.client` has beside the server's."""
    told = {name for names in rows("Errors") for name in re.findall(r"\w+", names)}
    own = {name for name in client.__all__ if isinstance(kind := getattr(client, name), type)
           and issubclass(kind, AgentsrvError)}  # fmt: skip
    assert told == own
