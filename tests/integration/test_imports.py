"""Each command and each public module imports only the packages that it needs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import agentsrv
from agentsrv.cli.commands import COMMANDS
from tests.support.places import APP, serving_places

EXTRAS = frozenset(
    """
    asyncpg cryptography httpx2 jsonschema_rs jwt markdown_it mcp numpy openai opentelemetry
    prometheus_client pypdf pytest redis watchfiles
    """.split()
)
STORES = frozenset({"agentsrv.store", "sqlite3"})
SERVER = STORES | {"agentsrv.agents", "agentsrv.app", "agentsrv.engine", "agentsrv.server"}
CLIENT = frozenset({"agentsrv.client", "websockets"})
MODELS = frozenset({"agentsrv.models.commands", "agentsrv.models.plan"})
SETTINGS = frozenset({"agentsrv.settings", "pydantic_settings"})
EVERYTHING = EXTRAS | SERVER | CLIENT | MODELS | SETTINGS
EVERYTHING |= {"agentsrv.bench", "asyncio", "pydantic", "rich"}
ARGUMENTS = frozenset({"pydantic"})  # with which Typer converts them
A_CLIENT_NEEDS = CLIENT | ARGUMENTS | {"asyncio"}


@dataclass(frozen=True)
class Case:
    """A command that is run, and the packages that it must not import."""

    line: str
    """With the names of ``places`` in braces."""
    without: frozenset[str]
    status: int = 0
    at_most: int = 10_000
    """Modules that it imports."""
    environment: Mapping[str, str] = field(default_factory=dict)


def completion(line: str, shell: str = "bash") -> Mapping[str, str]:
    """The environment in which the last word of ``line`` is completed."""
    if shell == "bash":
        words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    else:
        words = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return words | {"_AGENTSRV_COMPLETE": f"complete_{shell}"}


CASES = {
    # No command is called: at most twice the cost of `import pydantic`.
    "": Case("", EVERYTHING, status=2, at_most=220),
    "--help": Case("--help", EVERYTHING, at_most=220),
    **{
        f"{line}, completed in {shell}": Case(
            "", EVERYTHING, at_most=240, environment=completion(line, shell)
        )
        for shell in ("bash", "fish", "zsh")
        for line in ("agentsrv se", "agentsrv tail --af")
    },
    "agentsrv serve --de, completed": Case(
        "",
        EVERYTHING - ARGUMENTS - SETTINGS - {"asyncio"},
        environment=completion("agentsrv serve --de"),
    ),
    "--version": Case("--version", EVERYTHING | {"typer", "orjson"}, at_most=130),
    # Clients.
    "agents": Case("agents --url {url}", EVERYTHING - A_CLIENT_NEEDS),
    "cancel": Case("cancel {pending} --url {url}", EVERYTHING - A_CLIENT_NEEDS),
    "list": Case("list --url {url}", EVERYTHING - A_CLIENT_NEEDS),
    "respond": Case("respond {question} yes --url {url}", EVERYTHING - A_CLIENT_NEEDS),
    "run": Case("run hello --agent quick --url {url}", EVERYTHING - A_CLIENT_NEEDS),
    "status": Case("status {done} --url {url}", EVERYTHING - A_CLIENT_NEEDS),
    "tail": Case("tail {done} --url {url}", EVERYTHING - A_CLIENT_NEEDS),
    "tail --help": Case("tail --help", EVERYTHING, at_most=240),
    "top": Case("top --url {url}", EVERYTHING - A_CLIENT_NEEDS - {"rich"}),
    "demo": Case("demo", EVERYTHING - A_CLIENT_NEEDS),
    "mcp": Case("mcp --url {url}", SERVER | SETTINGS | {"agentsrv.bench", "agentsrv.models.plan"}),
    # The server, with a store in memory; then with the built-in agents and with SQLite.
    "serve": Case(
        "serve quick:app --port 0 --store memory:",
        EXTRAS
        | {"agentsrv.builtin", "agentsrv.knowledge", "agentsrv.agents.llm"}
        | {"agentsrv.bench", "agentsrv.client", "agentsrv.store.sqlite.store", "rich", "sqlite3"}
        | {"agentsrv.protocol.schema", "agentsrv.server.docs"},
    ),
    "serve, the built-in agents": Case(
        "serve --port 0 --store sqlite:///served.db",
        EXTRAS
        | {"agentsrv.knowledge.search", "agentsrv.agents.llm"}
        | {"agentsrv.bench", "agentsrv.client", "agentsrv.store.memory", "rich"},
    ),
    "serve --help": Case("serve --help", EVERYTHING - ARGUMENTS - SETTINGS - {"asyncio"}),
    # Commands that need no server.
    "backup": Case(
        "backup copy.db --store sqlite:///{store}",
        EVERYTHING - ARGUMENTS - STORES - MODELS - SETTINGS - {"asyncio"},
    ),
    "bench": Case("bench no-such-probe", EXTRAS | {"rich"}, status=2),
    "doctor": Case("doctor --port 0", EXTRAS | {"agentsrv.bench", "agentsrv.client", "rich"}),
    "index": Case(
        "index {texts}",
        (EXTRAS | SERVER | CLIENT | {"agentsrv.bench", "rich"}) - {"agentsrv.agents"} - STORES,
    ),
    "keys": Case("keys list --key-file no-keys", EVERYTHING - ARGUMENTS - {"agentsrv.server"}),
    "nodes": Case(
        "nodes --store memory:", CLIENT | EXTRAS | (SERVER - STORES) | {"rich"}, status=2
    ),
    "schema": Case("schema", EVERYTHING - ARGUMENTS - MODELS),
}
SCRIPT = """
import atexit, sys
empty = set(sys.modules)
def report():
    with open("imported", "w") as file:
        imported = {name for name, module in sys.modules.items() if module is not None}
        print(*sorted(imported - empty), sep="\\n", file=file)
atexit.register(report)
sys.argv[0] = "agentsrv"
from agentsrv.cli import main
main()
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The values for the names in braces."""
    with serving_places(tmp_path_factory.mktemp("places")) as named:
        yield named


@pytest.mark.parametrize("name", CASES)
def test_a_command_imports_what_it_needs(name: str, places: dict[str, str], tmp_path: Path) -> None:
    """Counts the modules that are loaded in addition to those of an empty program."""
    case = CASES[name]
    if name == "mcp":
        pytest.importorskip("mcp")
    (tmp_path / "quick.py").write_text(APP)
    line = case.line.format_map(places)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *line.split()],
        cwd=tmp_path,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), **case.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = ""
    if line.startswith("serve ") and "--help" not in line:
        assert process.stderr is not None
        while "listening on" not in said:
            said = process.stderr.readline()
            assert said, "the server ended before it listened"
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == case.status, f"{out}{said}{err}"
    imported = set((tmp_path / "imported").read_text().split("\n"))
    assert imported & case.without == set()
    assert len(imported) <= case.at_most, f"{len(imported)} modules"


def test_each_command_has_a_case() -> None:
    """A new command says here what it must not import."""
    assert set(COMMANDS) <= set(CASES)


PROGRAMS = {
    "import agentsrv": (40, EVERYTHING | {"orjson", "typer"}),
    "import agentsrv.client": (250, EVERYTHING - CLIENT - {"asyncio"} | {"typer"}),
    "from agentsrv import Step, PermanentError": (330, SERVER | CLIENT | EXTRAS | {"typer"}),
    "import agentsrv.app": (
        430,
        EXTRAS
        | {"agentsrv.builtin", "agentsrv.knowledge", "agentsrv.agents.llm"}
        | {"agentsrv.client", "agentsrv.store.sqlite.store", "sqlite3", "typer"},
    ),
}


@pytest.mark.parametrize("code", PROGRAMS)
def test_a_program_imports_what_it_names(code: str, tmp_path: Path) -> None:
    """The same for the modules that authors and clients import."""
    at_most, without = PROGRAMS[code]
    script = SCRIPT.partition("from agentsrv.cli")[0] + code
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    imported = set((tmp_path / "imported").read_text().split("\n"))
    assert imported & without == set()
    assert len(imported) <= at_most, f"{len(imported)} modules"


def test_every_public_name_is_found() -> None:
    """By the module that `agentsrv` names for it, and nothing else is."""
    assert sorted(agentsrv._MODULES) == sorted(agentsrv.__all__)
    for name in agentsrv.__all__:
        assert getattr(agentsrv, name) is not None
        assert name in dir(agentsrv)
    with pytest.raises(AttributeError, match="'agentsrv' has no attribute 'Nothing'"):
        _ = agentsrv.Nothing
