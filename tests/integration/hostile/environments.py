"""Surroundings of a server as data: what is there when it starts, and what must come.

``SETTINGS`` is read in the process of the test, ``FILES`` by an application in it, ``PROCESSES``
by ``agentsrv`` commands of their own.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

TCP = "tcp://10.96.0.7:8765"
LATIN = "AGENTSRV_NODE=caf\xe9\n".encode("latin-1")
ENV = "AGENTSRV_CONCURRENCY=7\n"
TOML = "concurrency = 7\n"


class Given(NamedTuple):
    """Variables, files and arguments, and what is read of them."""

    name: str
    variables: Mapping[str, str] = {}
    files: Mapping[str, bytes | None] = {}
    """Contents by name; ``None`` is a folder."""
    arguments: Mapping[str, Any] = {}
    gives: Mapping[str, Any] = {}
    """Settings that differ from a server's without surroundings."""
    says: tuple[str, ...] = ()
    """Parts of what is reported; an empty tuple: nothing is reported."""
    refuses: str | None = None
    """Part of the sentence with which they are refused."""


def var(name: str, value: str, **more: Any) -> Given:
    """One variable."""
    return Given(f"{name}={value!r}", {f"AGENTSRV_{name}": value}, **more)


def toml(text: str | bytes, **more: Any) -> Given:
    """A file agentsrv.toml."""
    data = text.encode() if isinstance(text, str) else text
    return Given(f"toml {data[:40]!r}", files={"agentsrv.toml": data}, **more)


def dotenv(text: str | bytes, **more: Any) -> Given:
    """A file .env."""
    data = text.encode() if isinstance(text, str) else text
    return Given(f".env {data[:40]!r}", files={".env": data}, **more)


SETTINGS: tuple[Given, ...] = (
    # Unknown names, with the nearest known one.
    var("CONCURENCY", "3", says=("AGENTSRV_CONCURENCY in the environment", "AGENTSRV_CONCURRENCY?")),
    var("concurency", "3", says=("AGENTSRV_CONCURRENCY?",)),
    var("KNOWLEGE", "docs", says=("AGENTSRV_KNOWLEDGE?",)),
    var("XYZZY", "3", says=("AGENTSRV_XYZZY", "it has no effect")),
    var("URL", "ws://127.0.0.1:1"),
    var("TOKEN", "x"),
    dotenv("AGENTSRV_KEYFILE=k\nOTHER=1\n", says=("AGENTSRV_KEYFILE in .env", "AGENTSRV_KEY_FILE?")),
    toml("concurency = 3", says=("key concurency in agentsrv.toml", "did you mean concurrency?")),
    toml("[server]\nport = 1", says=("key server in agentsrv.toml",)),
    # Empty is unset; the next place counts.
    var("KNOWLEDGE", ""),
    var("KNOWLEDGE", "  "),
    var("PORT", ""),
    var("KEY_FILE", ""),
    var("RETENTION", ""),
    var("ALLOWED_ORIGINS", ""),
    var("BEHIND_PROXY", ""),
    Given("empty over .env", {"AGENTSRV_CONCURRENCY": ""}, {".env": ENV.encode()}, gives={"concurrency": 7}),
    Given("empty over toml", {}, {".env": b"AGENTSRV_CONCURRENCY=\n", "agentsrv.toml": TOML.encode()}, gives={"concurrency": 7}),
    Given("empty option", {"AGENTSRV_CONCURRENCY": "7"}, arguments={"concurrency": "", "knowledge": ""}, gives={"concurrency": 7}),
    toml('knowledge = ""'),
    # none switches off what can be off.
    var("RETENTION", "none", gives={"retention": None}),
    var("RETENTION", "None", gives={"retention": None}),
    var("KNOWLEDGE", "none"),
    var("COMMAND_RATE", "none"),
    var("TRUSTED_PROXIES", "none", gives={"trusted_proxies": ()}),
    toml('retention = "none"', gives={"retention": None}),
    Given("none over toml", {"AGENTSRV_KNOWLEDGE": "none"}, {"agentsrv.toml": b'knowledge = "docs"'}),
    Given("none as option", arguments={"retention": "none"}, gives={"retention": None}),
    var("CONCURRENCY", "none", refuses="concurrency is 'none'"),
    # A Service of Kubernetes that is called agentsrv, or whose name begins so.
    var("PORT", TCP, says=("AGENTSRV_PORT", TCP, "Kubernetes", "enableServiceLinks")),
    var("SERVICE_HOST", "10.96.0.7"),
    var("SERVICE_PORT", "8765"),
    var("SERVICE_PORT_HTTP", "8765"),
    var("PORT_8765_TCP", TCP),
    var("PORT_8765_TCP_PROTO", "tcp"),
    var("PORT_8765_TCP_PORT", "8765"),
    var("PORT_8765_TCP_ADDR", "10.96.0.7"),
    var("STORE_PORT", TCP),
    var("STORE_PORT_5432_TCP_ADDR", "10.96.0.7"),
    var("STORE_SERVICE_HOST", "10.96.0.7"),
    var("PORT", "http", refuses="port is 'http'"),
    Given("service, and a port in toml", {"AGENTSRV_PORT": TCP}, {"agentsrv.toml": b"port = 99"}, gives={"port": 99}, says=("Kubernetes",)),
    # Files of settings.
    dotenv(ENV, gives={"concurrency": 7}),
    dotenv(b"\xef\xbb\xbf" + ENV.encode(), gives={"concurrency": 7}),
    dotenv(ENV.replace("\n", "\r\n"), gives={"concurrency": 7}),
    dotenv(ENV.rstrip("\n"), gives={"concurrency": 7}),
    dotenv(""),
    dotenv(ENV.encode("utf-16"), refuses=".env, which is encoded as UTF-16"),
    dotenv(b"\xfe\xff" + ENV.encode("utf-16-be"), refuses=".env, which is encoded as UTF-16"),
    dotenv(ENV.encode("utf-16-le"), refuses=".env, which contains a NUL"),
    dotenv(ENV.encode("utf-32"), refuses=".env, which is encoded as UTF-32"),
    dotenv(LATIN, refuses="byte 0xe9 is not UTF-8"),
    dotenv(b"#" * ((1 << 20) + 1), refuses=".env, which is larger than"),
    Given(".env of a virtual environment", files={".env": None}),
    toml(TOML, gives={"concurrency": 7}),
    toml(b"\xef\xbb\xbf" + TOML.encode(), gives={"concurrency": 7}),
    toml(TOML.replace("\n", "\r\n"), gives={"concurrency": 7}),
    toml(""),
    toml("port = ", refuses="agentsrv.toml, which is not valid TOML"),
    toml("port: 1", refuses="agentsrv.toml, which is not valid TOML"),
    toml("port = 1\nport = 2", refuses="agentsrv.toml, which is not valid TOML"),
    toml(TOML.encode("utf-16"), refuses="agentsrv.toml, which is encoded as UTF-16"),
    toml('node = "café"'.encode("latin-1"), refuses="agentsrv.toml, in line 1 of which byte 0xe9"),
    toml(b"port = 1\0", refuses="agentsrv.toml, which contains a NUL"),
    toml("#" * ((1 << 20) + 1), refuses="agentsrv.toml, which is larger"),
    toml('store = "sqlite:///a\\u0000b"', refuses="NUL character"),
    toml("port = 'many'", refuses="port is 'many'"),
    Given("toml is a folder", files={"agentsrv.toml": None}, refuses="agentsrv.toml, which is a folder"),
    # Certificates.
    Given("no such certificates", {"SSL_CERT_FILE": "/no/certificates.pem"}, says=("SSL_CERT_FILE", "/no/certificates.pem", "does not exist")),
    Given("no such folder of them", {"SSL_CERT_DIR": "/no/certificates"}, says=("SSL_CERT_DIR",)),
    Given("empty", {"SSL_CERT_FILE": ""}),
)  # fmt: skip
"""Read by ``read_settings`` and ``settings_problems``."""

CONTENTS: Mapping[str, bytes | None] = {
    "missing": None,  # and its folder, too
    "folder": None,
    "empty": b"",
    "UTF-16": ("secret " * 9).encode("utf-16"),
    "code page": b"caf\xe9\n" * 9,
    "large": b"x" * ((1 << 20) + 1),
}
SERVES = "serves"
SECRET = {"jwt_algorithm": "HS256", "jwt_issuer": "i", "jwt_audience": "a"}
PUBLIC = SECRET | {"jwt_algorithm": "RS256"}


class Named(NamedTuple):
    """A setting that names a file, and the sentence for each of ``CONTENTS``, in their order."""

    setting: str
    expected: Sequence[str]
    others: Mapping[str, Any] = {}


FILES: tuple[Named, ...] = (
    Named("key_file", ["does not exist", "is a folder", SERVES, "as UTF-16", "0xe9 is not UTF-8", "is larger"]),
    Named("jwt_key", ["does not exist", "is a folder", "the secret", SERVES, SERVES, "is larger"], SECRET),
    Named("jwt_key", ["does not exist", "is a folder", *(["public key (PEM) of RS256"] * 3), "is larger"], PUBLIC),
    Named("jwt_jwks", ["does not exist", "is a folder", *(["jwt_jwks cannot be read"] * 3), "is larger"], PUBLIC),
    Named("tls_cert", ["does not exist", "is a folder", *["expected a certificate"] * 4], {"tls_key": __file__}),
    Named("tls_key", ["does not exist", "is a folder", *["expected a certificate"] * 4], {"tls_cert": __file__}),
    Named("knowledge", ["expected a folder", SERVES, *(["expected a folder"] * 4)]),
    Named("store", ["does not exist", "is a folder", SERVES, *(["cannot open the store"] * 3)]),
)  # fmt: skip


class Started(NamedTuple):
    """A command, what it is started in, and how it must end."""

    name: str
    command: Sequence[str] = ("serve",)
    variables: Mapping[str, str | None] = {}
    """``PLACE`` in a value is the working folder, ``ROOT`` that of the package."""
    files: Mapping[str, bytes | None] = {}
    closed: Sequence[int] = ()
    """Standard streams that are closed."""
    ignored: Sequence[signal.Signals] = ()
    limits: Mapping[int, int] = {}
    umask: int = 0o022
    cwd: str = "."
    """``deleted`` and ``/`` are special."""
    status: int | None = None
    """Exit status; ``None``: it serves, and ends with 0 at SIGTERM."""
    says: str = ""
    """Part of what is on standard error."""


APP = {"m.py": b"from agentsrv import App\napp = App()\n", "pkg/m.py": b"from agentsrv import App\napp = App()\n"}  # fmt: skip
SILENT = b"import logging.config\nfrom agentsrv import App\nlogging.config.dictConfig({'version': 1})\napp = App()\n"  # fmt: skip
TEXTS = {"docs/a.md": b"# Threads\n\nA thread is a sequence of instructions.\n"}

SCRIPT = {
    "PYTHONSAFEPATH": "1"
}  # as for `agentsrv`: only `python -m` imports from the working folder
LACKING = {"PYTHONSAFEPATH": "1", "PYTHONPATH": "PLACE:ROOT"}


def lacks(part: str) -> bytes:
    """A module that hides one of Python's, as if Python had been built without it."""
    message = f"No module named {part!r}"
    return f"raise ModuleNotFoundError({message!r}, name={part!r})\n".encode()


PROCESSES: tuple[Started, ...] = (
    Started("nothing special"),
    Started("an unknown variable", variables={"AGENTSRV_CONCURENCY": "3"}, says="did you mean AGENTSRV_CONCURRENCY?"),
    Started("an unknown key", files={"agentsrv.toml": b"concurency = 3"}, says="did you mean concurrency?"),
    Started("an unknown option", ("serve", "--concurency=3"), status=2, says="--concurrency"),
    Started("Kubernetes", variables={"AGENTSRV_PORT": TCP, "AGENTSRV_SERVICE_HOST": "10.0.0.1"}, says="Kubernetes"),
    Started("UTF-16", files={".env": ENV.encode("utf-16")}, status=2, says=".env, which is encoded as UTF-16"),
    Started("no valid TOML", files={"agentsrv.toml": b"port = "}, status=2, says="is not valid TOML"),
    Started("closed stdin", closed=(0,)),
    Started("closed stdout", closed=(1,)),
    Started("closed stderr", closed=(2,)),
    Started("all closed", closed=(0, 1, 2)),
    Started("ignored signals", ignored=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)),
    Started("no locale", variables={"LC_ALL": "C", "LANG": None, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    Started("a code page", variables={"PYTHONIOENCODING": "cp1252"}),
    Started("umask 777", umask=0o777),
    Started("umask 0", umask=0),
    Started("no home", variables={"HOME": None}),
    Started("a home that does not exist", variables={"HOME": "/no/home"}),
    Started("a home that cannot be written", ("serve", "--knowledge=docs"), {"HOME": "/proc", "XDG_STATE_HOME": None}, TEXTS, status=2, says="set knowledge_index, or XDG_STATE_HOME"),
    Started("optimized", ("serve", "m:app"), {"PYTHONOPTIMIZE": "2"}, APP),
    Started("no temporary folder", variables={"TMPDIR": "/no/folder"}),
    Started("few files", limits={resource.RLIMIT_NOFILE: 64}),
    Started("no core, small stack", limits={resource.RLIMIT_CORE: 0, resource.RLIMIT_STACK: 1 << 20}),
    Started("an application that silences all loggers", ("serve", "m:app"), files={"m.py": SILENT}, says="listening on"),
    Started("no certificates, and a model", ("serve", "--llm-url=https://127.0.0.1:1/v1", "--llm-model=m"), {"SSL_CERT_FILE": "/no/file.pem"}, status=2, says="/no/file.pem"),
    Started("a path with an application", ("serve", "m.py:app"), files=APP, status=2, says="agentsrv serve m:app"),
    Started("a path from here", ("serve", "./m.py"), files=APP, status=2, says="agentsrv serve m:app"),
    Started("a path below", ("serve", "pkg/m.py"), files=APP, status=2, says="agentsrv serve pkg.m:app"),
    Started("a dot for a colon", ("serve", "m.app"), files=APP, status=2, says="did you mean m:app?"),
    Started("a dot for a colon, below", ("serve", "pkg.m.app"), files=APP, status=2, says="did you mean pkg.m:app?"),
    Started("a misspelt module", ("serve", "n:app"), files={"mine.py": b"", **APP}, status=2, says="there is no module 'n'"),
    Started("no module", ("serve", ""), status=2, says="expected MODULE:APP"),
    Started("the root as folder", ("serve", "--knowledge=PLACE/docs"), files=TEXTS, cwd="/"),
    Started("a folder that is gone", ("serve", "m:app"), cwd="deleted", status=2, says="working folder"),
    Started("the name of a module of Python", ("serve", "email:app"), SCRIPT, files={"email.py": APP["m.py"]}, status=2, says="email.py has the name of a module"),
    Started("the name of a package that is loaded", ("serve", "pydantic"), SCRIPT, files={"pydantic.py": APP["m.py"]}, status=2, says="pydantic.py has the name of a module"),
    Started("a package with a name of Python's", ("serve", "email.main:app"), SCRIPT, files={"email/__init__.py": b"", "email/main.py": APP["m.py"]}, status=2, says="rename it"),
    *(Started(f"Python without {part}", ("serve",), LACKING, {f"{part}.py": lacks(part)}, status=2, says=f"without the module {part}") for part in ("_sqlite3", "_ssl", "zlib", "_ctypes")),
    Started("no such host", ("serve", "--host=no.such.host.invalid", "--behind-proxy", "--api-keys=KEY"), status=1, says="cannot be resolved"),
    Started("another machine's address", ("serve", "--host=192.0.2.1", "--behind-proxy", "--api-keys=KEY"), status=1, says="no address of this machine"),
)  # fmt: skip
"""The server's store is in memory and its port free, unless the command says otherwise."""
