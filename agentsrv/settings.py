"""Every limit and default of the server, with its unit and its reason.

A setting is looked for in four places: arguments, which are the options of the command line, the
environment, ``.env`` and ``agentsrv.toml``. Two values mean the same in each of them: an empty text
leaves the setting out, so that the next place counts; ``none`` switches a setting off that can be
off. Kubernetes describes a Service named ``agentsrv`` by variables that begin like the server's
own, ``AGENTSRV_PORT=tcp://10.0.0.7:8765`` among them; these are recognized and not used.
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
CLIENT_VARIABLES: Final = (
    "CA",
    "TOKEN",
    "URL",
)  # of the command line's clients; they are no settings
TOML_FILE: Final = Path("agentsrv.toml")
DOTENV_FILE: Final = Path(".env")
OFF: Final = "none"
SERVICE_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://\S+")
SERVICE_VARIABLE: Final = re.compile(
    rf"{PREFIX}(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes sets in each container for each Service of the namespace."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PerSecond = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]


def _split(given: Any) -> Any:
    if isinstance(given, str):
        return [part for part in map(str.strip, given.split(",")) if part]
    return given


Names = Annotated[tuple[Name, ...], NoDecode, BeforeValidator(_split)]
Loop = Literal["auto", "asyncio", "uvloop"]
LogFormat = Literal["auto", "text", "json"]
Role = Literal["all", "gateway", "worker"]


class Settings(BaseSettings):
    """What an operator may set.

    Each name is an option of ``agentsrv serve``, an ``AGENTSRV_…`` variable, a line of ``.env``
    and a key of ``agentsrv.toml``; the earlier of these wins. An empty value is as none at all;
    ``none`` switches off what can be off.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )

    host: str = "127.0.0.1"
    """Address to listen on; the loopback interface until somebody decides otherwise."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8765
    """TCP port; 0 takes a free one."""

    key_file: Path | None = None
    """File of API keys, as ``agentsrv keys`` writes it; with it, nobody comes in without one."""

    api_keys: SecretStr | None = None
    """Lines of such a file in place of one, with commas between; the keys stand there as hashes."""

    jwt_algorithm: Literal["HS256", "RS256", "ES256"] | None = None
    """The one algorithm by which JSON Web Tokens are signed; with it, they are taken too."""

    jwt_key: Path | None = None
    """File of the HS256 secret, of 32 bytes or more, or of the issuer's public key as PEM. Line
    ends at the end of the file are not part of a secret."""

    jwt_jwks: str | None = None
    """In place of ``jwt_key``: file or https URL of the issuer's keys (JWKS)."""

    jwt_issuer: str | None = None
    """What a token's ``iss`` must be."""

    jwt_audience: str | None = None
    """What a token's ``aud`` must be, or hold."""

    auth_timeout: Seconds = 5.0
    """Seconds that a client has to say who it is."""

    tls_cert: Path | None = None
    """File of the TLS certificate and its chain, as PEM."""

    tls_key: Path | None = None
    """File of the certificate's private key, as PEM and without a password."""

    behind_proxy: bool = False
    """A proxy in front of the server encrypts: the address may be others' to reach without TLS."""

    trusted_proxies: Names = ("127.0.0.1", "::1")
    """Addresses and networks, with commas between, whose ``X-Forwarded-For`` is believed where the
    server is behind a proxy."""

    allowed_hosts: Names = ()
    """Names of the server beside its address, as clients write them in URLs; commas between."""

    allowed_origins: Names = ()
    """Origins whose pages may connect, such as ``https://app.example``, beside the server's own."""

    store: str = Field("sqlite:///agentsrv.db", repr=False)
    """Where the log is: ``sqlite:///FILE``, ``memory:``, or ``postgresql://…``, which several
    servers may share."""

    secret_key: Annotated[SecretStr, Field(min_length=32)] | None = None
    """Key for answers to secret questions, of 32 characters or more, the same on all nodes; by
    default it is in a file beside the SQLite store, made at first use."""

    bus: str | None = Field(None, repr=False)
    """``redis://HOST``, by which servers wake each other in place of PostgreSQL's own NOTIFY."""

    role: Role = "all"
    """Of servers that share a store: ``gateway`` runs no tasks, ``worker`` takes no clients."""

    node: Name | None = None
    """Name of this server among them; by default of the machine, the process and at random."""

    processes: Count = 1
    """Servers on this one port, for a machine's cores; they share a store."""

    knowledge: Path | None = None
    """Folder of texts for the retriever; without it the retriever finds nothing."""

    knowledge_index: Path | None = None
    """File of the knowledge base's index; by default beside the SQLite store if ``store`` names
    one, and else in the user's folder for state, ``~/.local/state/agentsrv``."""

    default_plan: Literal["auto", "report", "research"] = "auto"
    """The built-in plan: ``report``; ``research``, which also checks the report and mends it; or
    ``auto``: the language model plans, and without one it is ``report``."""

    llm_url: str | None = None
    """Base URL of an OpenAI-compatible endpoint, such as ``http://127.0.0.1:8080/v1``."""

    llm_key: SecretStr | None = None
    """Key for that endpoint; better a variable than an option, which other users can see."""

    llm_model: str | None = None
    """The language model that agents use; without it they do without one."""

    llm_timeout: Seconds = 60.0
    """Seconds without a byte from the endpoint until a request has failed."""

    llm_max_tokens: Count = 4096
    """Tokens of one answer, at most: a report is about 1000."""

    embedding_model: str | None = None
    """The model of the same endpoint that gives passages vectors, for a search by meaning too."""

    concurrency: Count = 100
    """Tasks that run at the same time. Agents mostly wait for models and tools."""

    queue_limit: Count = 10_000
    """Tasks that wait for a slot; beyond, only a principal without one may add its first."""

    command_rate: PerSecond | None = None
    """Commands a second of one principal; by default 500 where clients say who they are, and any
    number where nobody is asked. Beyond, they are answered ``rate_limited``."""

    command_burst: Count = 2_000
    """Commands that a principal may send at once, before its rate counts; large ones count as
    several."""

    principal_connections: Count | None = None
    """Connections of one principal; by default 100 where clients say who they are."""

    principal_running: Count | None = None
    """Tasks of one principal that run at the same time; by default half of ``concurrency`` where
    clients say who they are, so that nobody has all slots."""

    principal_queued: Count = 1_000
    """Tasks of one principal that wait; beyond, ``execute`` is answered ``overloaded``."""

    principal_subscriptions: Count = 10_000
    """Subscriptions of one principal, on all its connections; one costs less than 1 KiB."""

    address_connections: Count | None = None
    """Connections from one address that have not said whose they are, unfinished handshakes
    among them; by default 100 where clients say who they are."""

    cancel_grace: Seconds = 5.0
    """Seconds that a cancelled step has to end before it is fenced off."""

    drain_timeout: Seconds = 10.0
    """Seconds that running tasks have to end when the server stops."""

    retention: Seconds | None = 30 * 86_400.0
    """Seconds that an ended task is kept; without it, for ever. A key of it ends with it."""

    max_step_output: Count = 1 << 20
    """Characters that one attempt of a step may write; longer output is cut and the step fails."""

    max_task_output: Count = 10 << 20
    """Characters that the steps of one task may write together."""

    max_result: Annotated[int, Field(ge=1024)] = 250_000
    """Bytes of JSON of a step's result; with a larger one the step fails."""

    max_plan: Annotated[int, Field(ge=1024)] = 500_000
    """Bytes of JSON of a plan; a larger one is refused."""

    tracebacks: Literal["on", "off"] = "on"
    """Whether events carry the tracebacks of agents' errors; the log always has them."""

    stall_warning: Seconds = 1.0
    """Seconds that the event loop may be blocked before the log shows by what."""

    loop: Loop = "auto"
    """Event loop of the server: ``asyncio``, ``uvloop``, or ``auto``: uvloop where it is there."""

    log_format: LogFormat = "auto"
    """Lines of the log: ``text`` for people, ``json`` for programs, or ``auto``: for people where
    they go to a terminal."""

    metrics_principal: Name = "metrics"
    """Whose token ``/metrics`` is shown to, where anybody is asked for one."""

    max_frame: Annotated[int, Field(ge=1024)] = 1 << 20
    """Bytes of one message from an authenticated client, 16 KiB from others; a plan of 100 steps is
    about 40 KiB."""

    max_connections: Count = 10_000
    """Open connections; one costs 10 to 15 KiB, and fewer are taken where the system allows the
    process fewer open files."""

    open_timeout: Seconds = 10.0
    """Seconds that a client has for the handshake."""

    ping_interval: Seconds = 20.0
    """Seconds between pings, spread by a fifth so that thousands of them do not meet."""

    ping_timeout: Seconds = 20.0
    """Seconds that a client has to answer a ping."""

    stall_timeout: Seconds = 10.0
    """Seconds after which a client that takes nothing is dropped; its log waits for it."""

    @field_validator("*", mode="before")
    @classmethod
    def _has_no_nul(cls, given: Any) -> Any:
        if isinstance(given, str | Path) and "\0" in str(given):
            raise ValueError("it contains a NUL character")
        return given

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            ip_network(name, strict=False)
        return given

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, environment, ``.env``, then ``agentsrv.toml``."""
        return (
            _cleaned(init_settings),
            _cleaned(env_settings),
            _cleaned(_DotEnv(settings_cls, env_file=DOTENV_FILE)),
            _cleaned(InitSettingsSource(settings_cls, read_toml(TOML_FILE))),
        )


class _DotEnv(DotEnvSettingsSource):
    """``.env``, as far as there is a file of that name: a folder is a virtual environment's."""

    def _read_env_file(self, file_path: Path) -> Mapping[str, str | None]:
        text = read_if_there(file_path)
        return {name.lower(): value for name, value in dotenv_values(stream=StringIO(text)).items()}


def _cleaned(source: PydanticBaseSettingsSource) -> PydanticBaseSettingsSource:
    """Let ``source`` leave out empty texts, switch off what is ``none``, and skip Kubernetes'."""
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
    """Whether ``none`` switches the setting off."""
    field = Settings.model_fields[name]
    return type(None) in get_args(field.annotation) or isinstance(field.default, tuple)


class Complaint(NamedTuple):
    """Something in the surroundings that has no effect, and what to do about it."""

    what: str
    advice: str
    is_mistake: bool = True
    """Whether somebody has probably meant something else."""


def complaints() -> Iterator[Complaint]:
    """What is wrong with the variables, ``.env``, ``agentsrv.toml``, and files that they name.

    Raises:
        ConfigurationError: A file of settings cannot be read.
    """
    known = {*map(str.upper, Settings.model_fields), *CLIENT_VARIABLES}
    dotenv = dotenv_values(stream=StringIO(read_if_there(DOTENV_FILE))) if _has_dotenv() else {}
    places: tuple[tuple[str, Mapping[str, str | None]], ...] = (
        ("the environment", os.environ),
        (".env", dotenv),
    )
    for place, variables in places:
        for name, value in variables.items():
            own = name.upper().removeprefix(PREFIX)
            if own == name.upper():
                continue
            is_service = own not in known and SERVICE_VARIABLE.fullmatch(name.upper())
            if is_service or (own == "PORT" and SERVICE_ADDRESS.fullmatch((value or "").strip())):
                if own == "PORT":
                    yield _of_service(name, value or "")
            elif own not in known:
                yield _unknown(f"variable {name} in {place}", own, known, PREFIX)
    for key in read_toml(TOML_FILE):
        if key not in Settings.model_fields:
            yield _unknown(f"key {key} in {TOML_FILE}", key, Settings.model_fields)
    yield from missing_certificates()


def missing_certificates() -> Iterator[Complaint]:
    """The variables of OpenSSL that name certificates which do not exist."""
    for name, exists in (("SSL_CERT_FILE", Path.is_file), ("SSL_CERT_DIR", Path.is_dir)):
        value = os.environ.get(name)
        if value and not exists(Path(value)):
            yield Complaint(
                f"variable {name} is {value!r}, which does not exist",
                "unset it, or name the certificates of authorities: without them no connection "
                "by TLS is trusted",
            )


def _has_dotenv() -> bool:
    return DOTENV_FILE.is_file()


def _of_service(name: str, value: str) -> Complaint:
    return Complaint(
        f"variable {name} is {value!r}, which Kubernetes sets for a Service of that name; it is "
        "not used",
        "set enableServiceLinks: false in the pod, or port in agentsrv.toml or as an option",
        is_mistake=False,
    )


def _unknown(what: str, name: str, known: Any, prefix: str = "") -> Complaint:
    meant = did_you_mean(name, known, prefix)
    return Complaint(f"unknown {what}", meant or "it has no effect; remove it")
