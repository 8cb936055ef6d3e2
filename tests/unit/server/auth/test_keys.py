"""API keys and their file."""

from __future__ import annotations

import logging
import os
import re
from datetime import date

import pytest

from agentsrv.errors import ConfigurationError
from agentsrv.server.auth.keys import (
    Key,
    KeyRing,
    add_key,
    make_key,
    parse_keys,
    read_keys,
    revoke_key,
)
from tests.support.principals import TODAY

LINE = f"key 0011aabb ada {'f' * 64} 2026-03-01"


def test_a_key_is_long_random_and_known_by_its_hash_alone():
    """Its text says what it is and stands in neither the key nor its line."""
    text, key = make_key("ada", TODAY)
    assert re.fullmatch(rf"agentsrv_{key.key_id}_[A-Za-z0-9_-]{{43}}", text)
    assert text not in key.line() + repr(key)
    assert make_key("ada", TODAY)[0] != text


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\n", "x" * 65, "ä", "server"])
def test_not_everything_is_a_principal(name):
    """Names stand in a line of words, and the server's own is taken."""
    with pytest.raises(ConfigurationError, match="expected up to 64"):
        make_key(name, TODAY)


def test_a_file_has_what_was_appended(tmp_path):
    """Keys in their order, those revoked marked; only its owner may read it."""
    file = tmp_path / "keys"
    assert read_keys(file) == {}
    first, second = make_key("ada", TODAY)[1], make_key("bob", TODAY)[1]
    add_key(file, first)
    add_key(file, second)
    revoke_key(file, first.key_id, date(2026, 3, 2))
    assert list(read_keys(file).values()) == [first._replace(revoked=date(2026, 3, 2)), second]
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_line_that_somebody_left_open_is_ended(tmp_path):
    """Else two lines would be none."""
    file = tmp_path / "keys"
    file.write_text(LINE)
    key = make_key("bob", TODAY)[1]
    add_key(file, key)
    assert [found.principal for found in read_keys(file).values()] == ["ada", "bob"]


def test_comments_and_empty_lines_are_nothing():
    """A file may be written by hand."""
    assert parse_keys(f"# of Ada\n\n  {LINE}  \n", "keys") == {
        "0011aabb": Key("0011aabb", "ada", "f" * 64, TODAY)
    }


@pytest.mark.parametrize(
    "line",
    [
        "ada",
        LINE[:-1],
        LINE.replace("2026-03-01", "2026-02-30"),
        LINE.replace("f" * 64, "f" * 63),
        LINE.replace("ada", "server"),
        LINE + " x",
        "revoked 99999999 2026-03-01",
        "revoked 0011aabb soon",
    ],
)
def test_a_line_that_is_none_is_told_by_its_number(line):
    """What stands in it is not: it may be a key that somebody pasted."""
    with pytest.raises(ConfigurationError, match=r"^keys, line 2: expected") as refused:
        parse_keys(f"{LINE}\n{line}", "keys")
    assert line not in refused.value.message


def test_a_ring_knows_the_keys_of_a_file_and_of_the_settings(tmp_path):
    """And nothing else, however alike."""
    file = tmp_path / "keys"
    ada, ada_key = make_key("ada", TODAY)
    bob, bob_key = make_key("bob", TODAY)
    add_key(file, ada_key)
    ring = KeyRing(file, {bob_key.key_id: bob_key})
    assert ring.find(ada) == ada_key
    assert ring.find(bob) == bob_key
    assert ada_key.key_id in ring
    for text in (ada[:-1], ada + "x", ada.upper(), "agentsrv_", "", ada_key.digest, "\ud800",
                 ada.replace(ada_key.key_id, bob_key.key_id), make_key("ada", TODAY)[0]):  # fmt: skip
        assert ring.find(text) is None


def test_a_ring_follows_its_file(tmp_path, caplog):
    """A key counts when it was made, and not when it was revoked."""
    file = tmp_path / "keys"
    ada, ada_key = make_key("ada", TODAY)
    add_key(file, ada_key)
    ring = KeyRing(file, {})
    bob, bob_key = make_key("bob", TODAY)
    add_key(file, bob_key)
    assert ring.find(bob) == bob_key
    revoke_key(file, ada_key.key_id, TODAY)
    assert ring.find(ada) is None
    assert ada_key.key_id not in ring
    for spoil in (lambda: file.write_text("nonsense"), file.unlink):
        spoil()
        with caplog.at_level(logging.ERROR):
            assert ring.find(bob) == bob_key
        assert "the keys that were read before remain valid" in caplog.messages[-1]
    add_key(file, ada_key)
    assert ring.find(ada) == ada_key
    assert ring.find(bob) is None


@pytest.mark.parametrize("content", [None, b"nonsense", b"\xff"])
def test_a_ring_needs_a_file_that_can_be_read(tmp_path, content):
    """A server without its keys must not start."""
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=re.escape(str(file))):
        KeyRing(file, {})


def test_a_revoked_key_of_the_settings_does_not_count():
    """The lines mean the same wherever they stand."""
    text, key = make_key("ada", TODAY)
    lines = f"{key.line()}revoked {key.key_id} 2026-03-02"
    assert KeyRing(None, parse_keys(lines, "api_keys")).find(text) is None


def test_a_file_is_made_for_its_owner_whatever_the_mask(tmp_path):
    """Others may not even read the hashes."""
    before = os.umask(0)
    try:
        add_key(tmp_path / "keys", make_key("ada", TODAY)[1])
    finally:
        os.umask(before)
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600
