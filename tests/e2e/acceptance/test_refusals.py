"""Each reason not to start is one sentence, and docs/reference/startup-errors.md lists it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.support.certificates import make_certificate
from tests.support.issuer import SECRET, pem, private_key, private_pem
from tests.support.principals import ADA

ROOT: Final = Path(__file__).parents[3]
PAGE: Final = ROOT / "docs" / "reference" / "startup-errors.md"
PATIENCE: Final = 200  # seconds for all of them
USAGE: Final = 2  # exit status
EVERYWHERE: Final = "--host=0.0.0.0"
HS256: Final = ("--jwt-algorithm=HS256", "--jwt-issuer=https://issuer.example", "--jwt-audience=a")
RS256: Final = ("--jwt-algorithm=RS256", *HS256[1:])
REACHED: Final = "host is '0.0.0.0', which others can reach, and "
NOBODY: Final = (
    "clients would not have to authenticate; expected key_file (see: agentsrv keys create), "
    "api_keys or jwt_algorithm"
)
NO_PAIR: Final = "expected a certificate and its key without a password, as PEM: "


@dataclass(frozen=True)
class Refusal:
    """Options of ``agentsrv serve``, the variable with its keys, and how its sentence begins."""

    options: tuple[str, ...]
    sentence: str
    keys: str | None = None


REFUSALS: Final = {
    "no keys": Refusal((EVERYWHERE,), REACHED + NOBODY),
    "no keys, behind a proxy": Refusal(
        ("--behind-proxy",), "behind_proxy says that others reach the server, and " + NOBODY
    ),
    "no keys, behind a proxy, for all": Refusal(
        ("--host=::", "--behind-proxy"),
        "behind_proxy says that others reach the server, and " + NOBODY,
    ),
    "no TLS": Refusal(
        (EVERYWHERE,),
        REACHED + "the traffic would not be encrypted; expected tls_cert and tls_key, or "
        "behind_proxy if a proxy terminates TLS",
        keys=ADA,
    ),
    "no TLS key": Refusal(
        ("--tls-cert=cert.pem",), "TLS needs a certificate and its key; tls_key is missing"
    ),
    "no certificate": Refusal(
        ("--tls-key=key.pem",), "TLS needs a certificate and its key; tls_cert is missing"
    ),
    "a certificate that is not there": Refusal(
        ("--tls-cert=no.pem", "--tls-key=no.pem"),
        "tls_cert is 'no.pem', which does not exist; expected a file",
    ),
    "a TLS key with a password": Refusal(
        ("--tls-cert=cert.pem", "--tls-key=key.pem"),
        f"tls_cert is 'cert.pem', tls_key 'key.pem'; {NO_PAIR}the key has a password",
    ),
    "an origin without a scheme": Refusal(
        ("--allowed-origins=app.example",),
        "allowed_origins contains 'app.example', which is not an origin and matches no page; "
        "expected scheme://host or scheme://host:port, such as https://app.example",
    ),
    "all origins": Refusal(
        ("--allowed-origins=*",),
        "allowed_origins contains '*', which is not an origin and matches no page; ",
    ),
    "a host with a scheme": Refusal(
        ("--allowed-hosts=https://app.example",),
        "allowed_hosts contains 'https://app.example', which is not a host name and matches no "
        "request; expected a name or an address, such as app.example",
    ),
    "keys that are none": Refusal((), "api_keys, line 1: expected", keys="nonsense"),
    "a key in place of its hash": Refusal((), "api_keys, line 1: expected", keys="agentsrv_1_2"),
    "a key file that is not there": Refusal(
        ("--key-file=no",), "key_file is 'no', which does not exist; expected: agentsrv keys create"
    ),
    "JWT by halves": Refusal(
        ("--jwt-algorithm=HS256",),
        "jwt_algorithm is 'HS256', jwt_issuer None, jwt_audience None; "
        "JSON Web Tokens need all three",
    ),
    "JWT of another algorithm": Refusal(
        ("--jwt-algorithm=HS1",), "jwt_algorithm is 'HS1': Input should be 'HS256', 'RS256'"
    ),
    "JWT without a key": Refusal(HS256, "JSON Web Tokens need either jwt_key or jwt_jwks"),
    "JWT with two": Refusal(
        (*HS256, "--jwt-key=secret", "--jwt-jwks=set"),
        "JSON Web Tokens need either jwt_key or jwt_jwks",
    ),
    "a secret that is short": Refusal(
        (*HS256, "--jwt-key=short"), "jwt_key is a secret of 31 bytes; expected at least 32"
    ),
    "a key file that is none": Refusal(
        (*RS256, "--jwt-key=secret"),
        "jwt_key is 'secret'; expected a file with the secret or the public key (PEM) of RS256",
    ),
    "an RSA key that is short": Refusal(
        (*RS256, "--jwt-key=small.pem"), "jwt_key is a key of 1024 bits; expected at least 2048"
    ),
    "a private key": Refusal(
        (*RS256, "--jwt-key=private.pem"), "jwt_key is a private key; expected the public one"
    ),
    "a JWKS that is not encrypted": Refusal(
        (*RS256, "--jwt-jwks=http://issuer.example/keys"),
        "jwt_jwks is 'http://issuer.example/keys'; expected a file or an https URL",
    ),
    "a JWKS that is not there": Refusal(
        (*RS256, "--jwt-jwks=no"), "jwt_jwks is 'no', which does not exist; expected a file"
    ),
    "a JWKS that is no JSON": Refusal((*RS256, "--jwt-jwks=secret"), "jwt_jwks cannot be read: "),
    "a JWKS of others": Refusal((*RS256, "--jwt-jwks=set"), "jwt_jwks has no key for RS256"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With files that will not do."""
    make_certificate(tmp_path, b"password")
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "short").write_bytes(SECRET[:-1])
    small = private_key("RS256", 1, 1024)
    (tmp_path / "small.pem").write_bytes(pem(small))
    (tmp_path / "private.pem").write_bytes(private_pem(private_key("RS256")))
    (tmp_path / "set").write_text('{"keys": []}')
    return tmp_path


@pytest.mark.timeout(2 * PATIENCE)
def test_each_refusal_to_start_is_one_sentence(folder, note):
    """And the exit status of a wrong use; no listener, no stack, and no secret."""
    serve = ["serve", "--port=0", "--store=memory:"]
    lines = [
        ([*serve, *refusal.options], {"AGENTSRV_API_KEYS": refusal.keys} if refusal.keys else {})
        for refusal in REFUSALS.values()
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.e2e.acceptance.command_lines"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=json.dumps(lines),
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    wrong = {}
    for (name, refusal), (status, told) in zip(
        REFUSALS.items(), json.loads(ran.stdout), strict=True
    ):
        is_right = told.startswith(f"agentsrv: {refusal.sentence}") and told.count("\n") == 1
        if not is_right or status != USAGE or SECRET.decode()[:-1] in told:
            wrong[name] = (status, told)
    note(f"{len(REFUSALS)} refusals to start, without their sentence = {len(wrong)}")
    assert wrong == {}


def test_each_sentence_stands_on_the_page():
    """As the server says it, but for what is the operator's own."""
    page = PAGE.read_text(encoding="utf-8")
    shown = [re.escape(line) for line in re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)]
    patterns = [line.replace(re.escape("…"), ".*") for line in shown]
    missing = [
        refusal.sentence
        for refusal in REFUSALS.values()
        if not any(re.match(pattern, refusal.sentence) for pattern in patterns)
    ]
    said_by_none = [
        line
        for line, pattern in zip(shown, patterns, strict=True)
        if not any(re.match(pattern, refusal.sentence) for refusal in REFUSALS.values())
    ]
    assert (missing, said_by_none) == ([], [])
