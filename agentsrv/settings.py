"""Every limit and default of the server, with its unit.

A setting is read from four sources; the first that has a value wins: arguments (the options of the
command line), ``AGENTSRV_…`` environment variables, ``.env`` and ``agentsrv.toml``. Each source
treats two values alike: an empty text counts as missing, and ``none`` turns an optional setting
off.

Kubernetes describes a Service named ``agentsrv`` by variables with the same prefix, for example
``AGENTSRV_PORT=tcp://10.0.0.7:8765``. These are recognized, reported and ignored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from io import StringIO
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args

from dotenv import dotenv_values
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from agentsrv.config_files import read_if_there, read_toml
from agentsrv.errors import ConfigurationError
from agentsrv.suggest import did_you_mean, meant_or_known

PREFIX: Final = "AGENTSRV_"
CLIENT_VARIABLES: Final = ("CA", "TOKEN", "URL")  # read by the command line's clients only
TOML_FILE: Final = Path("agentsrv.toml")
DOTENV_FILE: Final = Path(".env")
OFF: Final = "none"
SERVICE_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://\S+")
SERVICE_VARIABLE: Final = re.compile(
    rf"{PREFIX}(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""The variables that Kubernetes sets in each container for each Service of the namespace."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PerSecond = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return [part for part in map(str.strip, value.split(",")) if part]
    return value


Names = Annotated[tuple[Name, ...], NoDecode, BeforeValidator(_split)]
Loop = Literal["auto", "asyncio", "uvloop"]
LogFormat = Literal["auto", "text", "json"]
Role = Literal["all", "gateway", "worker"]


class Settings(BaseSettings):
    """The settings of a server.

    Each name is an option of ``agentsrv serve``, an ``AGENTSRV_…`` variable, a line of ``.env``
    and a key of ``agentsrv.toml``; the first source with a value wins. An empty value counts as
    missing; ``none`` turns an optional setting off.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )

    host: str = "127.0.0.1"
    """Address to listen on; by default the loopback interface."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8765
    """TCP port; 0 selects a free port."""

    key_file: Path | None = None
    """File of API keys, as ``agentsrv keys`` writes it; if set, clients must authenticate."""

    api_keys: SecretStr | None = None
    """API keys in place of a key file: its lines, separated by commas. They contain hashes."""

    jwt_algorithm: Literal["HS256", "RS256", "ES256"] | None = None
    """Signature algorithm of JSON Web Tokens; if set, they are accepted as well."""

    jwt_key: Path | None = None
    """File of the HS256 secret (32 bytes or more) or of the issuer's public key as PEM. Line
    ends at the end of the file are not part of a secret."""

    jwt_jwks: str | None = None
    """File or https URL of the issuer's keys (JWKS), in place of ``jwt_key``."""

    jwt_issuer: str | None = None
    """Required value of a token's ``iss``."""

    jwt_audience: str | None = None
    """Required value of a token's ``aud``, or of one of its entries."""

    auth_timeout: Seconds = 5.0
    """Seconds within which a client must authenticate."""

    tls_cert: Path | None = None
    """File of the TLS certificate and its chain, as PEM."""

    tls_key: Path | None = None
    """File of the certificate's private key, as PEM without a password."""

    behind_proxy: bool = False
    """A proxy in front of the server terminates TLS: a public address is allowed without
    ``tls_cert``."""

    trusted_proxies: Names = ("127.0.0.1", "::1")
    """Addresses and networks whose ``X-Forwarded-For`` is trusted if ``behind_proxy`` is set,
    separated by commas."""

    allowed_hosts: Names = ()
    """Host names of the server in addition to its address, as in URLs, separated by commas."""

    allowed_origins: Names = ()
    """Origins whose pages may connect, in addition to the server's own, separated by commas; for
    example ``https://app.example``."""

    store: str = Field("sqlite:///agentsrv.db", repr=False)
    """Location of the log: ``sqlite:///FILE``, ``memory:``, or ``postgresql://…``, which several
    servers can share."""

    secret_key: Annotated[SecretStr, Field(min_length=32)] | None = None
    """Key that encrypts answers to secret questions, 32 characters or more, the same on all nodes;
    by default in a file next to the SQLite store, created at first use."""

    bus: str | None = Field(None, repr=False)
    """``redis://HOST``: servers notify each other by Redis instead of PostgreSQL's NOTIFY."""

    role: Role = "all"
    """Role of a server that shares its store: ``gateway`` runs no tasks, ``worker`` accepts no
    clients."""

    node: Name | None = None
    """Name of this server in the cluster; by default host name, process id and a random part."""

    processes: Count = 1
    """Server processes on this port, to use several cores; they need a store that can be shared."""

    knowledge: Path | None = None
    """Folder of documents for the retriever; without it the retriever finds nothing."""

    knowledge_index: Path | None = None
    """File of the knowledge base's index; by default next to the SQLite store if ``store`` names
    one, otherwise in the user's state folder, ``~/.local/state/agentsrv``."""

    default_plan: Literal["auto", "report", "research"] = "auto"
    """Default plan: ``report``; ``research``, which also checks and corrects the report; or
    ``auto``: planned by the language model, and ``report`` if there is no model."""

    llm_url: str | None = None
    """Base URL of an OpenAI-compatible endpoint, such as ``http://127.0.0.1:8080/v1``."""

    llm_key: SecretStr | None = None
    """API key for that endpoint; prefer a variable, because other users can see options."""

    llm_model: str | None = None
    """Language model for the agents; without it they work by extraction alone."""

    llm_timeout: Seconds = 60.0
    """Seconds without a byte from the endpoint after which a request fails."""

    llm_max_tokens: Count = 4096
    """Maximum number of tokens in one answer of the model; a report has about 1000."""

    embedding_model: str | None = None
    """Embedding model of the same endpoint; if set, passages are also searched by meaning."""

    concurrency: Count = 100
    """Tasks that run at the same time. Agents mostly wait for models and tools."""

    queue_limit: Count = 10_000
    """Tasks that wait for a slot. If the queue is full, only a principal without a waiting task
    may add one."""

    command_rate: PerSecond | None = None
    """Commands per second of one principal; by default 500 with authentication, unlimited without.
    Commands over the limit fail with ``rate_limited``."""

    command_burst: Count = 2_000
    """Commands that a principal may send at once before ``command_rate`` applies; a large command
    counts as several."""

    principal_connections: Count | None = None
    """Connections of one principal; by default 100 with authentication, unlimited without."""

    principal_running: Count | None = None
    """Tasks of one principal that run at the same time; with authentication by default half of
    ``concurrency``, so that one principal cannot occupy all slots."""

    principal_queued: Count = 1_000
    """Waiting tasks of one principal; beyond this, ``execute`` fails with ``overloaded``."""

    principal_subscriptions: Count = 10_000
    """Subscriptions of one principal on all its connections; each costs less than 1 KiB."""

    address_connections: Count | None = None
    """Unauthenticated connections from one address, including unfinished handshakes; by default
    100 with authentication, unlimited without."""

    cancel_grace: Seconds = 5.0
    """Seconds that a cancelled step may take to end before it is abandoned and fenced off."""

    drain_timeout: Seconds = 10.0
    """Seconds that running tasks may take to end when the server stops."""

    retention: Seconds | None = 30 * 86_400.0
    """Seconds that a finished task and its idempotency key are kept; ``none`` keeps them."""

    max_step_output: Count = 1 << 20
    """Maximum output of one attempt of a step, in characters. Longer output is truncated and the
    step fails."""

    max_task_output: Count = 10 << 20
    """Maximum output of all steps of one task together, in characters."""

    max_result: Annotated[int, Field(ge=1024)] = 250_000
    """Maximum size of a step's result, in bytes of JSON; a larger result fails the step."""

    max_plan: Annotated[int, Field(ge=1024)] = 500_000
    """Maximum size of a plan, in bytes of JSON; a larger plan is rejected."""

    tracebacks: Literal["on", "off"] = "on"
    """Whether events contain the tracebacks of agents' errors; the server's log always does."""

    stall_warning: Seconds = 1.0
    """Seconds after which a blocked event loop is logged, with the stack that blocks it."""

    loop: Loop = "auto"
    """Event loop: ``asyncio``, ``uvloop``, or ``auto``, which uses uvloop if it is installed."""

    log_format: LogFormat = "auto"
    """Format of log lines: ``text``, ``json``, or ``auto``, which writes text to a terminal and
    JSON elsewhere."""

    metrics_principal: Name = "metrics"
    """Principal whose token may read ``/metrics``, if clients must authenticate."""

    max_frame: Annotated[int, Field(ge=1024)] = 1 << 20
    """Maximum size of one message from an authenticated client, in bytes (16 KiB from others); a
    plan of 100 steps has about 40 KiB."""

    max_connections: Count = 10_000
    """Open connections; each costs 10 to 15 KiB. Fewer are accepted if the system's limit of open
    files is lower."""

    open_timeout: Seconds = 10.0
    """Seconds within which a client must complete the handshake."""

    ping_interval: Seconds = 20.0
    """Seconds between pings; each interval varies by up to a fifth, which spreads the pings."""

    ping_timeout: Seconds = 20.0
    """Seconds within which a client must answer a ping."""

    stall_timeout: Seconds = 10.0
    """Seconds without progress in sending after which a slow client is disconnected; it can resume
    from the log."""

    @field_validator("*", mode="before")
    @classmethod
    def _has_no_nul(cls, value: Any) -> Any:
        if isinstance(value, str | Path) and "\0" in str(value):
            raise ValueError("it contains a NUL character")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            ip_network(name, strict=False)
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order: command line, environment, ``.env``, ``agentsrv.toml``."""
        return (
            _cleaned(init_settings),
            _cleaned(env_settings),
            _cleaned(_DotEnv(settings_cls, env_file=DOTENV_FILE)),
            _cleaned(InitSettingsSource(settings_cls, read_toml(TOML_FILE))),
        )


class _DotEnv(DotEnvSettingsSource):
    """Reads ``.env`` if it is a file; a folder of that name may be a virtual environment."""

    def _read_env_file(self, file_path: Path) -> Mapping[str, str | None]:
        text = read_if_there(file_path)
        return {name.lower(): value for name, value in dotenv_values(stream=StringIO(text)).items()}


def _cleaned(source: PydanticBaseSettingsSource) -> PydanticBaseSettingsSource:
    """Wrap ``source``: drop empty texts and Kubernetes' variables, translate ``none``."""
    return _Cleaned(source.settings_cls, source)


class _Cleaned(PydanticBaseSettingsSource):
    def __init__(
        self, settings_cls: type[BaseSettings], source: PydanticBaseSettingsSource
    ) -> None:
        super().__init__(settings_cls)
        self._source = source

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self._source.get_field_value(field, field_name)

    def __call__(self) -> dict[str, Any]:
        found = {}
        for name, value in self._source().items():
            field = Settings.model_fields.get(name)
            text = value.strip() if isinstance(value, str) else None
            if field is None or text == "":
                continue
            if text is not None and text.lower() == OFF and is_optional(name):
                found[name] = () if isinstance(field.default, tuple) else None
            elif not (name == "port" and text is not None and SERVICE_ADDRESS.fullmatch(text)):
                found[name] = value
        return found


def read_settings(**given: Any) -> Settings:
    """The settings that are ``given``, then of the environment, ``.env`` and ``agentsrv.toml``.

    Raises:
        ConfigurationError: A name that is given is unknown, a value is invalid, or a file cannot
            be read.
    """
    for name in given:
        if name not in Settings.model_fields:
            meant = meant_or_known(name, Settings.model_fields, "settings")
            raise ConfigurationError(f"unknown setting {name!r}; {meant}")
    try:
        return Settings(**given)
    except ValidationError as error:
        told = [
            f"{'.'.join(map(str, complaint['loc']))} is {complaint['input']!r}: {complaint['msg']}"
            for complaint in error.errors(include_url=False)
        ]
        raise ConfigurationError("; ".join(told)) from None
    except SettingsError as error:
        raise ConfigurationError(str(error)) from None


def is_optional(name: str) -> bool:
    """Whether ``none`` turns the setting off."""
    field = Settings.model_fields[name]
    return type(None) in get_args(field.annotation) or isinstance(field.default, tuple)


class SettingsProblem(NamedTuple):
    """A variable, line or key that has no effect, with advice."""

    description: str
    advice: str
    is_mistake: bool = True
    """Whether it is probably a mistake of the operator."""


def settings_problems() -> Iterator[SettingsProblem]:
    """Yield the problems of the variables, ``.env``, ``agentsrv.toml``, and files that they name.

    Raises:
        ConfigurationError: A file of settings cannot be read.
    """
    known = {*map(str.upper, Settings.model_fields), *CLIENT_VARIABLES}
    dotenv = dotenv_values(stream=StringIO(read_if_there(DOTENV_FILE))) if _has_dotenv() else {}
    sources: tuple[tuple[str, Mapping[str, str | None]], ...] = (
        ("the environment", os.environ),
        (".env", dotenv),
    )
    for source, variables in sources:
        for name, value in variables.items():
            own = name.upper().removeprefix(PREFIX)
            if own == name.upper():
                continue
            is_service = own not in known and SERVICE_VARIABLE.fullmatch(name.upper())
            if is_service or (own == "PORT" and SERVICE_ADDRESS.fullmatch((value or "").strip())):
                if own == "PORT":
                    yield _of_service(name, value or "")
            elif own not in known:
                yield _unknown(f"variable {name} in {source}", own, known, PREFIX)
    for key in read_toml(TOML_FILE):
        if key not in Settings.model_fields:
            yield _unknown(f"key {key} in {TOML_FILE}", key, Settings.model_fields)
    yield from missing_certificates()


def missing_certificates() -> Iterator[SettingsProblem]:
    """Yield the variables of OpenSSL that name certificates which do not exist."""
    for name, exists in (("SSL_CERT_FILE", Path.is_file), ("SSL_CERT_DIR", Path.is_dir)):
        value = os.environ.get(name)
        if value and not exists(Path(value)):
            yield SettingsProblem(
                f"variable {name} is {value!r}, which does not exist",
                "unset it, or name a file or folder of certificates: without them no TLS "
                "connection is trusted",
            )


def _has_dotenv() -> bool:
    return DOTENV_FILE.is_file()


def _of_service(name: str, value: str) -> SettingsProblem:
    return SettingsProblem(
        f"variable {name} is {value!r}, which Kubernetes sets for a Service of that name; it is "
        "ignored",
        "set enableServiceLinks: false in the pod, or port in agentsrv.toml or as an option",
        is_mistake=False,
    )


def _unknown(subject: str, name: str, known: Any, prefix: str = "") -> SettingsProblem:
    meant = did_you_mean(name, known, prefix)
    return SettingsProblem(f"unknown {subject}", meant or "it has no effect; remove it")
