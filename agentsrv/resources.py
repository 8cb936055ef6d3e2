"""Opens the store, the knowledge base and the models that the settings name.

Each function imports the modules of the resource that it opens: a server with a store in
PostgreSQL does not import SQLite, and a server without a model does not import the endpoint client.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agentsrv.error_text import redact_url
from agentsrv.errors import ConfigurationError, missing_extra
from agentsrv.settings import Settings
from agentsrv.store.base import Store
from agentsrv.store.queue import QueueLimits
from agentsrv.telemetry.export import open_tracing

if TYPE_CHECKING:
    from agentsrv.agents.llm import Embedder, LanguageModel
    from agentsrv.engine.vault import Vault
    from agentsrv.knowledge.service import KnowledgeService

SQLITE: Final = "sqlite:///"
POSTGRES: Final = ("postgresql://", "postgres://")


def node_name() -> str:
    """Return a name that no other server has: host name, process id and random digits."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"


def need_postgres() -> None:
    """Check that the extra for PostgreSQL is installed.

    Raises:
        ConfigurationError: It is not installed.
    """
    if find_spec("asyncpg") is None:
        raise ConfigurationError(missing_extra("a store in PostgreSQL", "postgres"))


def open_store(settings: Settings, node: str) -> Store:
    """Return the store that ``settings.store`` names, for ``node``; the caller opens it.

    Raises:
        ConfigurationError: The value is invalid, the extra for it is not installed, or a setting
            needs a store that several servers share.
    """
    limits = QueueLimits(
        settings.queue_limit, settings.principal_queued, settings.principal_running
    )
    if settings.store.startswith(POSTGRES):
        need_postgres()
        from agentsrv.store.postgres.store import PostgresStore

        return PostgresStore(
            settings.store,
            node=node,
            bus=settings.bus,
            role=settings.role,
            limits=limits,
        )
    if settings.role != "all" or settings.processes > 1 or settings.bus is not None:
        raise ConfigurationError(
            f"store is {redact_url(settings.store)!r}; expected postgresql://… with the settings "
            "role, bus and processes, which are for servers that share a store"
        )
    if settings.store == "memory:":
        from agentsrv.store.memory import MemoryStore

        return MemoryStore(limits)
    file = store_file(settings)
    if file is not None:
        from agentsrv.store.sqlite.store import SqliteStore

        return SqliteStore(file, limits)
    raise ConfigurationError(
        f"store is {redact_url(settings.store)!r}; expected sqlite:///FILE (a fourth slash begins "
        "an absolute path), memory: or postgresql://USER@HOST/DATABASE"
    )


async def open_vault(settings: Settings) -> Vault:
    """Return the vault that encrypts the answers to secret questions."""
    from agentsrv.engine.vault import Vault

    key = settings.secret_key
    store, file = store_file(settings), None
    if store is not None:
        from agentsrv.store.sqlite.file import companion

        file = companion(store, ".key")
    vault = Vault(
        None if key is None else key.get_secret_value(),
        file,
        is_shared=settings.store.startswith(POSTGRES),
    )
    await asyncio.to_thread(vault.load)
    return vault


def store_file(settings: Settings) -> Path | None:
    """Return the SQLite file that ``settings.store`` names; ``None`` for another kind of store.

    Raises:
        ConfigurationError: The name cannot be that of a file.
    """
    name = settings.store.removeprefix(SQLITE)
    if not name or name == settings.store:
        return None
    if ":memory:" in name or name.startswith("file:"):
        raise ConfigurationError(
            f"store is {settings.store!r}; expected a file's name, or memory: for a store that is "
            "lost with the process"
        )
    if "?" in name or "\0" in name:
        raise ConfigurationError(
            f"store is {settings.store!r}; expected a file's name without ? and U+0000: there are "
            "no parameters"
        )
    if Path(name).name in {"", ".."}:
        raise ConfigurationError(
            f"store is {settings.store!r}, which is a folder; expected a file in it"
        )
    return Path(name)


def knowledge_index(settings: Settings) -> Path:
    """Return the file of the knowledge base's index; its folder may not exist yet.

    It is next to the SQLite store if ``store`` is set to one. Otherwise it is in the user's state
    folder, one file for each knowledge folder, so that nothing is written into the working folder
    without a setting that asks for it.
    """
    if settings.knowledge_index is not None:
        return settings.knowledge_index
    file = store_file(settings) if "store" in settings.model_fields_set else None
    if file is not None:
        return file.with_suffix(".knowledge.db")
    folder = Path(settings.knowledge or "").absolute()
    digest = sha256(os.fsencode(folder)).hexdigest()[:12]
    return state_folder() / f"{folder.name}-{digest}.knowledge.db"


def state_folder() -> Path:
    """Return the folder for this user's state, according to the XDG base directories."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or "")
    if not folder.is_absolute():
        folder = Path(os.path.expanduser("~"), ".local", "state")  # noqa: PTH111 - never raises
    return folder.absolute() / "agentsrv"


def make_index_folder(settings: Settings) -> Path:
    """Create the folder of ``knowledge_index`` if it is the user's state folder; return the file.

    Raises:
        ConfigurationError: The folder cannot be created or written.
    """
    index = knowledge_index(settings)
    if index.parent == state_folder():
        try:
            index.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"the index of the knowledge base cannot be stored in {index.parent}: "
                f"{error.strerror}; set knowledge_index, or XDG_STATE_HOME"
            ) from None
        if not os.access(index.parent, os.W_OK):
            raise ConfigurationError(
                f"the index of the knowledge base cannot be stored in {index.parent}, which cannot "
                "be written; set knowledge_index, or XDG_STATE_HOME"
            )
    return index


def make_library(settings: Settings, embedder: Embedder | None) -> KnowledgeService | None:
    """Return the service of the folder ``settings.knowledge``; the caller opens it.

    ``None`` if the setting is not set.

    Raises:
        ConfigurationError: The folder does not exist, or the index cannot be stored.
    """
    if settings.knowledge is None:
        return None
    if not settings.knowledge.is_dir():
        raise ConfigurationError(f"knowledge is {settings.knowledge}; expected a folder")
    from agentsrv.knowledge.search import KnowledgeBase
    from agentsrv.knowledge.service import KnowledgeService

    return KnowledgeService(
        KnowledgeBase(settings.knowledge, make_index_folder(settings), embedder)
    )


@dataclass(frozen=True, slots=True)
class Models:
    """The configured models of a server; they share one client."""

    llm: LanguageModel | None = None
    embedder: Embedder | None = None


NO_MODELS: Final = Models()


@asynccontextmanager
async def open_models(settings: Settings) -> AsyncIterator[Models]:
    """Open the models that ``settings`` name; their connections are closed on exit.

    Raises:
        ConfigurationError: A model is named without an endpoint or an endpoint without a model,
            or the extra is not installed.
    """
    named = settings.llm_model or settings.embedding_model
    if not named and not settings.llm_url:
        yield NO_MODELS
        return
    if not named or not settings.llm_url:
        shown = settings.llm_url and redact_url(settings.llm_url)
        raise ConfigurationError(
            f"llm_url is {shown!r}, llm_model {settings.llm_model!r}, embedding_model "
            f"{settings.embedding_model!r}; expected llm_url together with one of the models"
        )
    if find_spec("openai") is None or find_spec("numpy") is None:
        raise ConfigurationError(missing_extra("a language model", "llm"))
    from agentsrv.agents.llm import Embedder, Endpoint, LanguageModel

    key = settings.llm_key.get_secret_value() if settings.llm_key is not None else None
    async with Endpoint(settings.llm_url, key, settings.llm_timeout) as endpoint:
        chat, vectors, tracing = settings.llm_model, settings.embedding_model, open_tracing()
        yield Models(
            LanguageModel(endpoint, chat, settings.llm_max_tokens, tracing) if chat else None,
            Embedder(endpoint, vectors, tracing) if vectors else None,
        )
