"""``agentsrv doctor``: checks configuration and environment, and says what to do."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from agentsrv.cli import addresses
from agentsrv.cli.exits import Exit
from agentsrv.cli.serving import loop_factory
from agentsrv.error_text import redact
from agentsrv.errors import AgentsrvError, ConfigurationError
from agentsrv.knowledge.folder import scan
from agentsrv.resources import (
    POSTGRES,
    make_index_folder,
    node_name,
    open_models,
    open_store,
    store_file,
)
from agentsrv.server.auth.authenticator import open_authenticator
from agentsrv.server.listener import PASSING
from agentsrv.server.open_files import OTHER_FILES
from agentsrv.server.startup_checks import check_bind_address, tls_context
from agentsrv.settings import Settings, read_settings, settings_problems
from agentsrv.store.sqlite.faults import REINDEX_HINT
from agentsrv.store.sqlite.file import check_place, companion, holder_of, writer_of
from agentsrv.store.sqlite.inspect import MIN_SQLITE_VERSION, DamageReport, find_damage, read_info
from agentsrv.store.sqlite.log import WAL_LIMIT
from agentsrv.store.sqlite.store import LONG_WAL_BYTES

SCARCE: Final = 1 << 30  # bytes of free disk space
REPAIR: Final = (
    "look at the database server's disk and log, and restore the tables from a standby or a backup"
)
NAMED: Final = 5  # damaged tasks whose ids are printed
ANSWER: Final = 16  # tokens of the answer that a model is asked for


class Level(StrEnum):
    """How bad it is; the server does not start, or not as configured, with a ``FAIL``."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, and what to do about it."""

    level: Level
    what: str
    advice: str = ""


async def run(given: Mapping[str, Any]) -> int:
    """Make all checks and print what they find; return the exit code, 1 for any ``FAIL``."""
    worst = Exit.DONE
    async for finding in examine(given):
        print(f"{finding.level:4}  {redact(finding.what)}")
        if finding.advice:
            print(f"      {redact(finding.advice)}")
        if finding.level is Level.FAIL:
            worst = Exit.FAILED
    return worst


async def examine(given: Mapping[str, Any]) -> AsyncIterator[Finding]:
    """What each check finds; ``given`` are the settings of the command line."""
    for finding in check_surroundings():
        yield finding
    try:
        settings = read_settings(**given)
        loop_factory(settings.loop)
        open_store(settings, node_name())
    except ConfigurationError as error:
        yield Finding(Level.FAIL, f"settings: {error.message}", "the rest was not checked")
        return
    yield Finding(Level.OK, "settings: each has a value that it may have")
    for check in CHECKS:
        for finding in check(settings):
            yield finding
    for question in (check_access, check_postgres, check_models):
        async for finding in question(settings):
            yield finding


def check_surroundings() -> Iterator[Finding]:
    """Report names in the environment, ``.env`` and ``agentsrv.toml`` that have no effect."""
    try:
        for problem in settings_problems():
            level = Level.FAIL if problem.is_mistake else Level.WARN
            yield Finding(level, problem.description, problem.advice)
    except ConfigurationError:
        return  # the settings report it


async def check_access(settings: Settings) -> AsyncIterator[Finding]:
    """Who may connect: keys, tokens, certificates, and the address."""
    try:
        authenticator = await open_authenticator(settings, time.time)
        check_bind_address(settings, is_guarded=authenticator.is_required)
        tls_context(settings)
    except ConfigurationError as error:
        yield Finding(Level.FAIL, f"access: {error.message}", "the server does not start")
        return
    what = "clients need a token" if authenticator.is_required else "nobody is asked for a token"
    yield Finding(Level.OK, f"access: {what}, {'TLS' if settings.tls_cert else 'no TLS'}")
    if settings.jwt_key is not None and settings.jwt_algorithm == "HS256":
        data = settings.jwt_key.read_bytes()
        secret = data.rstrip(b"\r\n")
        what = f"jwt_key: a secret of {len(secret)} bytes"
        if len(secret) < len(data):
            what += f"; the line end at the end of {settings.jwt_key} is not part of it"
        yield Finding(Level.OK, what, "the issuer must sign with exactly these bytes")


def check_port(settings: Settings) -> Iterator[Finding]:
    """Whether the address can be listened on now."""
    where = f"address: {settings.host}, port {settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        why = addresses.explained(error, settings)
        yield Finding(Level.FAIL, f"address: {why}", "unless this server is the one that runs")
        return
    yield Finding(Level.OK, where)


def check_sqlite(_: Settings) -> Iterator[Finding]:
    """The library that Python was built with."""
    version = f"SQLite: {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < MIN_SQLITE_VERSION:
        wanted = ".".join(map(str, MIN_SQLITE_VERSION))
        yield Finding(Level.FAIL, version, f"use a Python with SQLite {wanted} or newer")
        return
    try:
        with closing(sqlite3.connect(":memory:")) as db:
            db.execute("CREATE VIRTUAL TABLE passage USING fts5(body)")
    except sqlite3.Error:
        yield Finding(
            Level.WARN, f"{version}, without FTS5", "the knowledge base needs a Python that has it"
        )
        return
    yield Finding(Level.OK, f"{version}, with FTS5")


def check_store(settings: Settings) -> Iterator[Finding]:
    """The log, and whether another server has it."""
    if settings.store.startswith(POSTGRES):
        return
    path = store_file(settings)
    if path is None:
        yield Finding(
            Level.WARN, "store: in memory", "tasks are forgotten when the server ends; set store"
        )
        return
    if not path.parent.is_dir():
        yield Finding(Level.FAIL, f"store: no folder {path.parent}", f"mkdir -p {path.parent}")
        return
    try:
        check_place(path)
    except ConfigurationError as error:
        yield Finding(Level.FAIL, f"store: {error.message}", "set store to another file")
        return
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        yield Finding(Level.FAIL, f"store: {path} cannot be written", "run as the user who may")
        return
    if not path.exists():
        yield Finding(Level.OK, f"store: {path} will be made")
        return
    try:
        found, holder = read_info(path), holder_of(path)
    except (ConfigurationError, OSError) as error:
        advice = "restore a backup, or set store to another file"
        yield Finding(Level.FAIL, f"store: {path}: {error}", advice)
        return
    told = f"store: {path}, tasks: {found.tasks}, unfinished: {found.unfinished}"
    if holder is not None:
        yield Finding(
            Level.WARN, f"{told}; a server{holder} uses it", "another one would not start"
        )
    elif found.is_old:
        yield Finding(
            Level.WARN, f"{told}, by an older version", "agentsrv backup FILE, before you start"
        )
    else:
        yield Finding(Level.OK, told)
    yield from _check_file(path, holder)


def _check_file(path: Path, holder: str | None) -> Iterator[Finding]:
    """What is wrong with a store that can be opened."""
    writer = writer_of(path)
    if writer is not None and f"(process {writer})" not in (holder or ""):
        yield Finding(
            Level.WARN,
            f"lock: process {writer} is writing to {path}; a server waits for it",
            "wait until that program has ended, or end it",
        )
    names = path.stat().st_nlink
    if names > 1:
        yield Finding(
            Level.WARN,
            f"links: {path} has {names} names; a write-ahead log belongs to one of them only",
            "remove the other hard links: a server that starts by another name misses events",
        )
    log = companion(path, "-wal")
    if log.exists() and log.stat().st_size > LONG_WAL_BYTES:
        yield Finding(
            Level.WARN,
            f"write-ahead log: {log.stat().st_size / 1e6:,.0f} MB",
            f"find the program that reads the store for long: lsof {path}",
        )
    try:
        damage = find_damage(path)
    except ConfigurationError as error:
        damage = DamageReport(error.message, [])
    if damage.indexes:
        yield Finding(
            Level.FAIL,
            f"indexes: {path}: {', '.join(damage.indexes)}: {damage.reason}",
            REINDEX_HINT.replace("FILE", str(path))
            if not damage.tasks
            else "restore a copy made by agentsrv backup: rows are damaged, too",
        )
    if damage.tasks or (damage.reason and not damage.indexes):
        named = _named(damage.tasks) or "none that can be named"
        reason = damage.reason or "events are not what was written"
        yield Finding(
            Level.FAIL,
            f"damage: {path}: {reason}; tasks that cannot be read: {named}",
            "the other tasks run; look at the disk, and restore a copy made by agentsrv backup",
        )


def _named(tasks: Sequence[str]) -> str:
    """Some of the damaged tasks, and how many there are more."""
    more = f" and {len(tasks) - NAMED} more" if len(tasks) > NAMED else ""
    return ", ".join(tasks[:NAMED]) + more


def check_disk(settings: Settings) -> Iterator[Finding]:
    """Space where the log grows."""
    path = store_file(settings)
    if path is None or not path.parent.is_dir():
        return
    free = shutil.disk_usage(path.parent).free
    told = f"disk: {free / 1e9:,.1f} GB free for the store"
    if free >= SCARCE:
        yield Finding(Level.OK, told)
        return
    level = Level.FAIL if free < WAL_LIMIT else Level.WARN
    yield Finding(level, told, "make room, or set a shorter retention: a full disk ends the server")


def check_files(settings: Settings) -> Iterator[Finding]:
    """How many connections the process may have."""
    import resource  # not on Windows

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # as far as the server raises its own
    wanted = settings.max_connections + PASSING + OTHER_FILES
    unlimited = most == resource.RLIM_INFINITY
    told = f"open files: {'any number' if unlimited else f'up to {most}'}"
    told += f", for max_connections {settings.max_connections}"
    if unlimited or most >= wanted:
        yield Finding(Level.OK, told)
        return
    fit = max(1, most - PASSING - OTHER_FILES)
    advice = f"raise the hard limit to {wanted}, or set max_connections to {fit}"
    yield Finding(Level.WARN, told, advice)


def check_knowledge(settings: Settings) -> Iterator[Finding]:
    """The folder of texts and its index."""
    folder = settings.knowledge
    if folder is None:
        yield Finding(Level.OK, "knowledge: none; the retriever finds nothing")
        return
    try:
        index = make_index_folder(settings)
        files = [file for file in scan(folder) if not file.reason]
    except AgentsrvError as error:
        yield Finding(Level.FAIL, f"knowledge: {error.message}", "see the setting knowledge")
        return
    told = f"knowledge: {folder}, files: {len(files)}"
    if not files:
        yield Finding(Level.WARN, told, "the retriever finds nothing in an empty folder")
    elif not index.exists():
        yield Finding(Level.OK, f"{told}; the index {index} will be made")
    elif not os.access(index, os.R_OK | os.W_OK):
        yield Finding(Level.FAIL, f"{told}; {index} cannot be written", "run as the user who may")
    else:
        yield Finding(Level.OK, f"{told}, index {index}")


async def check_postgres(settings: Settings) -> AsyncIterator[Finding]:
    """The database that servers share, and who lives in it."""
    if not settings.store.startswith(POSTGRES):
        return
    from agentsrv.store.postgres import inspect

    try:
        found = await inspect.read_info(settings.store)
    except ConfigurationError as error:
        yield Finding(Level.FAIL, f"store: {error.message}", "look at the address in store")
        return
    told = f"store: PostgreSQL {found.version}"
    if found.nodes is None:
        yield Finding(Level.OK, f"{told}; its tables will be made")
        return
    lives = [node for node in found.nodes if node.expires_in > 0]
    tasks = sum(node.running for node in lives)
    yield Finding(Level.OK, f"{told}, nodes: {len(lives)}, tasks that they run: {tasks}")
    try:
        examined = await inspect.examine(settings.store)
    except ConfigurationError as error:
        yield Finding(Level.FAIL, f"damage: {error.message}", REPAIR)
        return
    which = "all" if examined.is_whole else "the newest"
    told = f"damage: {which} {examined.tasks:,} tasks of the store were read, with their logs"
    if not examined.damaged:
        yield Finding(Level.OK, f"{told}; none is damaged")
        return
    yield Finding(
        Level.FAIL,
        f"{told}; {len(examined.damaged)} cannot be read: "
        f"{_named([each.name for each in examined.damaged])}: {examined.damaged[0].reason}",
        f"the other tasks run; {REPAIR}",
    )


async def check_models(settings: Settings) -> AsyncIterator[Finding]:
    """Each model, by a question of a few tokens."""
    try:
        async with open_models(settings) as models:
            if models.llm is None and models.embedder is None:
                yield Finding(Level.OK, "models: none; the built-in agents do without")
            if models.llm is not None:
                hello = [{"role": "user", "content": "Say hello."}]
                await models.llm.create(hello, max_completion_tokens=ANSWER)
                yield Finding(Level.OK, f"llm_model: {models.llm.model} answers")
            if models.embedder is not None:
                (vector,) = await models.embedder.embed(["hello"])
                told = f"{models.embedder.model} gives vectors of {len(vector)} numbers"
                yield Finding(Level.OK, f"embedding_model: {told}")
    except AgentsrvError as error:
        advice = "look at llm_url, llm_key and the names of the models"
        yield Finding(Level.FAIL, f"models: {error.message}", advice)


CHECKS: Final[tuple[Callable[[Settings], Iterator[Finding]], ...]] = (
    check_port,
    check_sqlite,
    check_store,
    check_disk,
    check_files,
    check_knowledge,
)
