"""Who somebody is."""

from __future__ import annotations

import math

import pytest

from agentsrv.errors import ConfigurationError, Unauthenticated
from agentsrv.server.auth import Authenticator, Identity, make_authenticator, token_of
from agentsrv.server.keys import KeyRing, parse_keys
from agentsrv.settings import Settings
from tests.server.people import ADA, ADA_KEY


def keys_of_ada() -> KeyRing:
    """One key."""
    return KeyRing(None, parse_keys(ADA, "keys"))


async def test_without_keys_everybody_is_anonymous():
    """Nobody is asked, and no token is looked at."""
    authenticator = make_authenticator(Settings(), lambda: 0.0)
    assert not authenticator.is_required
    assert await authenticator.identify("nonsense") == Identity("anonymous")


async def test_a_key_is_its_principal_until_it_is_revoked():
    """And a token that is none is told without being quoted."""
    authenticator = Authenticator(keys_of_ada(), lambda: 0.0)
    assert authenticator.is_required
    identity = await authenticator.identify(ADA_KEY)
    assert (identity.principal, identity.expires_at) == ("ada", math.inf)
    assert authenticator.holds(identity)
    assert not Authenticator(KeyRing(None, {}), lambda: 0.0).holds(identity)
    for token in ("nonsense", ADA_KEY[:-1], "agentsrv_"):
        with pytest.raises(Unauthenticated) as refused:
            await authenticator.identify(token)
        assert refused.value.message == "the token is not accepted"


def test_an_identity_ends_when_it_expires():
    """At that second, not behind it."""
    now = [99.0]
    authenticator = Authenticator(keys_of_ada(), lambda: now[0])
    assert authenticator.holds(Identity("ada", expires_at=100.0))
    now[0] = 100.0
    assert not authenticator.holds(Identity("ada", expires_at=100.0))


async def test_keys_come_from_a_file_and_from_the_settings(tmp_path):
    """Either makes a server ask; a file that is not there is told."""
    file = tmp_path / "keys"
    file.write_text(ADA)
    for settings in (Settings(key_file=file), Settings(api_keys=ADA)):  # type: ignore[arg-type]
        authenticator = make_authenticator(settings, lambda: 0.0)
        assert (await authenticator.identify(ADA_KEY)).principal == "ada"
    with pytest.raises(ConfigurationError, match="expected: agentsrv keys create"):
        make_authenticator(Settings(key_file=tmp_path / "none"), lambda: 0.0)


def test_an_empty_list_of_keys_lets_nobody_in():
    """That somebody set it says that they want to be asked."""
    assert make_authenticator(Settings(api_keys=""), lambda: 0.0).is_required  # type: ignore[arg-type]


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
        (["Basic YTpi"], [], Unauthenticated),
        ([""], [], Unauthenticated),
        (["Bearer a", "Bearer a"], [], Unauthenticated),
        (["Bearer a"], ["bearer.a"], Unauthenticated),
        ([], ["bearer.a, bearer.b"], Unauthenticated),
    ],
)
def test_a_handshake_brings_one_token_or_none(authorizations, subprotocols, token):
    """What is ambiguous is refused."""
    if token is Unauthenticated:
        with pytest.raises(Unauthenticated):
            token_of(authorizations, subprotocols)
    else:
        assert token_of(authorizations, subprotocols) == token
