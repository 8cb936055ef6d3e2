import pytest
from pydantic import ValidationError

from agentsrv.settings import Settings, settings_problems
from tests.faults import asking_app, busy_app, cluster_app, rogue_app, slow_app
from tests.integration.agents.isolation.test_process_function import MARK


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder without settings, and an environment without any."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"AGENTSRV_{name.upper()}", raising=False)


def test_defaults_are_for_one_machine():
    """Without any setting the server listens on the loopback and keeps its log in a file."""
    settings = Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8765)
    assert settings.store == "sqlite:///agentsrv.db"
    assert settings.knowledge is None
    assert (settings.cancel_grace, settings.max_frame) == (5.0, 1 << 20)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_explained(name):
    """By a sentence, which is the help of its option, too."""
    description = Settings.model_fields[name].description
    assert description
    assert description.endswith(".")


def test_the_earlier_place_wins(tmp_path, monkeypatch):
    """Command line, then environment, then .env, then agentsrv.toml, setting by setting."""
    (tmp_path / "agentsrv.toml").write_text(
        'port = 1001\nhost = "toml"\nconcurrency = 11\nqueue_limit = 12\n'
    )
    assert Settings().port == 1001
    (tmp_path / ".env").write_text("AGENTSRV_PORT=1002\nAGENTSRV_HOST=dotenv\nOTHER=1\n")
    settings = Settings()
    assert (settings.port, settings.host, settings.concurrency) == (1002, "dotenv", 11)
    monkeypatch.setenv("AGENTSRV_PORT", "1003")
    monkeypatch.setenv("AGENTSRV_CONCURRENCY", "13")
    settings = Settings()
    assert (settings.port, settings.host, settings.concurrency) == (1003, "dotenv", 13)
    settings = Settings(port=1004)
    assert (settings.port, settings.host, settings.queue_limit) == (1004, "dotenv", 12)


def test_a_key_is_not_shown(monkeypatch):
    """Whoever prints the settings does not print it."""
    monkeypatch.setenv("AGENTSRV_LLM_KEY", "sk-secret")
    settings = Settings()
    assert "sk-secret" not in f"{settings} {settings!r} {settings.model_dump_json()}"
    assert settings.llm_key is not None
    assert settings.llm_key.get_secret_value() == "sk-secret"


def test_settings_cannot_be_changed():
    """What the server was started with is what it runs with."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "0"),
        ("port", "65535"),
        ("concurrency", "1"),
        ("max_frame", "1024"),
        ("cancel_grace", "0.001"),
        ("knowledge", "texts"),
    ],
)
def test_a_setting_may_be_at_its_limit(monkeypatch, name, value):
    """The limits themselves are allowed, and text is read as the setting's type."""
    monkeypatch.setenv(f"AGENTSRV_{name.upper()}", value)
    found = getattr(Settings(), name)
    assert found == type(found)(value)
    assert not isinstance(found, str)


def test_several_names_stand_with_commas_between(tmp_path, monkeypatch):
    """In a variable; agentsrv.toml may have a list."""
    monkeypatch.setenv("AGENTSRV_ALLOWED_HOSTS", " a.example, b.example,")
    (tmp_path / "agentsrv.toml").write_text('trusted_proxies = ["10.0.0.0/8"]')
    settings = Settings()
    assert settings.allowed_hosts == ("a.example", "b.example")
    assert settings.trusted_proxies == ("10.0.0.0/8",)
    monkeypatch.setenv("AGENTSRV_TRUSTED_PROXIES", "proxy.example")
    with pytest.raises(ValidationError, match=r"trusted_proxies\n"):
        Settings()


KINDS = {name: str(info.annotation) for name, info in Settings.model_fields.items()}
SECONDS = [name for name, kind in KINDS.items() if "float" in kind]
COUNTS = [name for name, kind in KINDS.items() if "int" in kind and name != "port"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "-1"),
        ("port", "65536"),
        ("port", "http"),
        ("max_frame", "1023"),
        *((name, value) for name in SECONDS for value in ("0", "-1", "inf", "nan", "soon")),
        *((name, value) for name in COUNTS for value in ("0", "-1", "1.5", "many")),
    ],
)
def test_a_setting_has_its_limits(monkeypatch, name, value):
    """A value out of its limits is refused, and the setting is named."""
    monkeypatch.setenv(f"AGENTSRV_{name.upper()}", value)
    with pytest.raises(ValidationError, match=rf"{name}\n"):
        Settings()


@pytest.mark.parametrize(
    "name",
    sorted(
        {MARK, busy_app.SYNCHRONOUS}
        | {app.TRACE for app in (asking_app, busy_app, cluster_app, rogue_app, slow_app)}
    ),
)
def test_variables_of_tests_are_no_settings(name, monkeypatch):
    """A server of a test does not report them as unknown."""
    monkeypatch.setenv(name, "x")
    assert not [found for found in settings_problems() if name in found.description]
