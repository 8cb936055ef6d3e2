"""Who somebody is."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from agentsrv.errors import ConfigurationError, UnauthenticatedError
from agentsrv.server.auth.authenticator import Authenticator, open_authenticator, token_of
from agentsrv.server.auth.identity import Identity
from agentsrv.server.auth.keys import KeyRing, parse_keys
from agentsrv.settings import Settings
from tests.support.principals import ADA, ADA_KEY


def keys_of_ada() -> KeyRing:
    """One key."""
    return KeyRing(None, parse_keys(ADA, "keys"))


async def test_without_keys_everybody_is_anonymous():
    """Nobody is asked, and no token is looked at."""
    authenticator = await open_authenticator(Settings(), lambda: 0.0)
    assert not authenticator.is_required
    assert await authenticator.identify("nonsense") == Identity("anonymous")


async def test_a_key_is_its_principal_until_it_is_revoked():
    """And a token that is none is told without being quoted."""
    authenticator = Authenticator(keys_of_ada(), None, lambda: 0.0)
    assert authenticator.is_required
    identity = await authenticator.identify(ADA_KEY)
    assert (identity.principal, identity.expires_at) == ("ada", math.inf)
    assert authenticator.remaining(identity) == math.inf
    assert Authenticator(KeyRing(None, {}), None, lambda: 0.0).remaining(identity) == 0
    for token in ("nonsense", "", ADA_KEY[:-1], "agentsrv_", "a" * 10_000):
        with pytest.raises(UnauthenticatedError) as refused:
            await authenticator.identify(token)
        assert refused.value.message == "the token is not accepted"


def test_an_identity_ends_when_it_expires():
    """At that second, not behind it."""
    now = [99.0]
    authenticator = Authenticator(keys_of_ada(), None, lambda: now[0])
    assert authenticator.remaining(Identity("ada", expires_at=100.0)) == 1
    now[0] = 100.0
    assert authenticator.remaining(Identity("ada", expires_at=100.0)) == 0


async def test_keys_come_from_a_file_and_from_the_settings(tmp_path):
    """Either makes a server ask; a file that is not there is told."""
    file = tmp_path / "keys"
    file.write_text(ADA)
    for settings in (Settings(key_file=file), Settings(api_keys=ADA)):  # type: ignore[arg-type]
        authenticator = await open_authenticator(settings, lambda: 0.0)
        assert (await authenticator.identify(ADA_KEY)).principal == "ada"
    with pytest.raises(ConfigurationError, match="expected: agentsrv keys create"):
        await open_authenticator(Settings(key_file=tmp_path / "none"), lambda: 0.0)


async def test_an_empty_list_of_keys_is_no_list():
    """As of any setting; without keys a server listens on the loopback interface only."""
    found = await open_authenticator(Settings(api_keys=""), lambda: 0.0)  # type: ignore[arg-type]
    assert not found.is_required


@pytest.mark.parametrize(
    ("authorizations", "subprotocols", "token"),
    [
        ([], [], None),
        ([], ["agentsrv.v1"], None),
        (["Bearer abc"], [], "abc"),
        (["bearer   abc "], [], "abc"),
        ([], ["agentsrv.v1, bearer.abc"], "abc"),
        ([], ["bearer.a.b.c", "agentsrv.v1"], "a.b.c"),
        (["Bearer"], [], ""),
        (["Basic YTpi"], [], None),  # these are for a proxy in front
        (["NTLM TlRM"], [], None),
        (["basic YTpi", "Bearer abc"], [], "abc"),
        (["Digest username=a"], ["bearer.abc"], "abc"),
        (["Token abc"], [], UnauthenticatedError),
        ([""], [], UnauthenticatedError),
        (["Bearer a", "Bearer a"], [], UnauthenticatedError),
        (["Bearer a"], ["bearer.a"], UnauthenticatedError),
        ([], ["bearer.a, bearer.b"], UnauthenticatedError),
    ],
)
def test_a_handshake_brings_one_token_or_none(authorizations, subprotocols, token):
    """What is ambiguous is refused."""
    if token is UnauthenticatedError:
        with pytest.raises(UnauthenticatedError):
            token_of(authorizations, subprotocols)
    else:
        assert token_of(authorizations, subprotocols) == token


@pytest.mark.parametrize("left_out", ["jwt_algorithm", "jwt_issuer", "jwt_audience"])
async def test_tokens_need_an_algorithm_an_issuer_and_an_audience(left_out):
    """Half a configuration is none."""
    given = {"jwt_algorithm": "HS256", "jwt_issuer": "i", "jwt_audience": "a", "jwt_jwks": "k"}
    del given[left_out]
    with pytest.raises(ConfigurationError, match=f"{left_out} (is )?None.* need all three"):
        await open_authenticator(Settings(**given), lambda: 0.0)  # type: ignore[arg-type]


async def test_tokens_need_the_extra(monkeypatch):
    """The sentence says how to get it."""
    monkeypatch.setattr("agentsrv.server.auth.authenticator.find_spec", lambda name: None)
    given = {"jwt_algorithm": "HS256", "jwt_issuer": "i", "jwt_audience": "a", "jwt_jwks": "k"}
    with pytest.raises(ConfigurationError, match=r"pip install 'agentsrv\[jwt\]'"):
        await open_authenticator(Settings(**given), lambda: 0.0)  # type: ignore[arg-type]


@pytest.mark.process
def test_the_server_is_imported_without_the_extra():
    """What is not configured is not needed."""
    code = (
        "import sys; sys.modules.update(jwt=None, cryptography=None);"
        "import agentsrv.cli; print('imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "imported\n", done.stderr
