"""An issuer of JSON Web Tokens: honest ones, and those that nobody should accept."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

ISSUER, AUDIENCE = "https://issuer.example", "agentsrv"
SECRET = b"0123456789abcdef" * 2


@cache
def private_key(algorithm: str, number: int = 0, bits: int = 2048) -> Any:
    """A key to sign with; another one for each number."""
    if algorithm == "HS256":
        return SECRET if number == 0 else SECRET[::-1]
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65537, bits)


def pem(key: Any) -> bytes:
    """The public half, as its file has it; a secret as it is."""
    if isinstance(key, bytes):
        return key
    data: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data


def private_pem(key: object) -> bytes:
    """The half that only the issuer should have."""
    return key.private_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def jwk(algorithm: str, key: Any, key_id: str | None, **fields: Any) -> dict[str, Any]:
    """The public half, as a JWKS has it; of a secret all of it."""
    public = key if isinstance(key, bytes) else key.public_key()
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(public, as_dict=True)
    made.pop("key_ops", None)
    return made | ({"kid": key_id} if key_id is not None else {}) | fields


def claims(**changes: Any) -> dict[str, Any]:
    """What a token says; ``None`` leaves a claim out."""
    now = int(time.time())
    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": now + 300} | changes
    return {name: value for name, value in said.items() if value is not None}


def token(
    algorithm: str = "HS256",
    key: Any = None,
    headers: Mapping[str, Any] | None = None,
    **changes: Any,
) -> str:
    """A token, signed as tokens should be."""
    signed_by = private_key(algorithm) if key is None else key
    return jwt.encode(claims(**changes), signed_by, algorithm, headers=dict(headers or {}))


def forged(header: Any, said: Any, secret: bytes | None = SECRET) -> str:
    """A token made by hand, with an HMAC where there is a secret; bytes are taken as they are."""
    parts = [
        _encoded(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, said)
    ]
    text = ".".join(parts)
    if secret is None:
        return f"{text}."
    return f"{text}.{_encoded(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


HS256 = {"alg": "HS256", "typ": "JWT"}


def good() -> dict[str, str]:
    """Tokens that are accepted now."""
    now = int(time.time())
    return {
        "plain": token(),
        "for several": token(aud=["other", AUDIENCE]),
        "a type of its own": token(headers={"typ": "at+jwt"}),
        "with more": token(nbf=now - 10, iat=now, jti="1", scope="all"),
        "expired within the leeway": token(exp=now - 1),
        "soon valid within the leeway": token(nbf=now + 20),
        "a subject with a bar": token(sub="auth0|0042"),
    }


def bad() -> dict[str, str]:
    """Tokens that nobody should accept."""
    now = int(time.time())
    return {
        "nothing": "",
        "no token": "nonsense",
        "two parts": ".".join(token().split(".")[:2]),
        "four parts": token() + ".x",
        "no base64": "$.$.$",
        "no signature": ".".join([*token().split(".")[:2], ""]),
        "alg none": forged({"alg": "none"}, claims(), None),
        "alg None": forged({"alg": "None"}, claims(), None),
        "alg none with a signature": forged({"alg": "none"}, claims()),
        "no alg": forged({"typ": "JWT"}, claims()),
        "alg a list": forged({"alg": ["HS256"]}, claims()),
        "other length of hash": token("HS512", SECRET * 2),
        "other algorithm": token("RS256"),
        "other curve of algorithm": token("ES256"),
        "wrong key": token(key=private_key("HS256", 1)),
        "changed claims": ".".join(
            [token().split(".")[0], token(sub="bob").split(".")[1], token().split(".")[2]]
        ),
        "expired": token(exp=now - 100),
        "expired at zero": token(exp=0),
        "no exp": token(exp=None),
        "exp no number": forged(HS256, claims(exp="soon")),
        "exp without end": forged(HS256, b'{"iss":"%s","aud":"agentsrv","sub":"ada","exp":1e999}'
                                  % ISSUER.encode()),
        "exp not a number": forged(HS256, b'{"iss":"%s","aud":"agentsrv","sub":"ada","exp":NaN}'
                                   % ISSUER.encode()),
        "not yet valid": token(nbf=now + 300),
        "issued in the future": token(iat=now + 300),
        "no issuer": token(iss=None),
        "wrong issuer": token(iss="https://evil.example"),
        "no audience": token(aud=None),
        "wrong audience": token(aud="other"),
        "audience without us": token(aud=["other", "agentsrv2"]),
        "no subject": token(sub=None),
        "subject empty": token(sub=""),
        "subject a number": forged(HS256, claims(sub=1)),
        "subject a list": forged(HS256, claims(sub=["ada"])),
        "subject too long": token(sub="a" * 257),
        "subject with a line break": token(sub="ada\nroot"),
        "subject with a null": token(sub="ada\0"),
        "subject half a pair": forged(HS256, claims(sub="\ud800")),
        "subject of nobody": token(sub="anonymous"),
        "subject of the server": token(sub="server"),
        "unknown crit": token(headers={"crit": ["exp"]}),
        "crit b64": forged(HS256 | {"crit": ["b64"], "b64": False}, claims()),
        "crit empty": forged(HS256 | {"crit": []}, claims()),
        "kid a list": forged(HS256 | {"kid": ["a"]}, claims()),
        "kid a number": forged(HS256 | {"kid": 1}, claims()),
        "header a list": forged([], claims()),
        "header null": forged(None, claims()),
        "header deep": forged(b"[" * 2000, claims()),
        "header no text": forged(b"\xff", claims()),
        "claims a list": forged(HS256, []),
        "claims deep": forged(HS256, b"[" * 2000),
        "key in the header": token(
            "RS256", private_key("RS256", 1),
            {"jwk": jwk("RS256", private_key("RS256", 1), None)},
        ),
        "key elsewhere": token(key=private_key("HS256", 1), headers={"jku": "https://evil.example/"}),
    }  # fmt: skip
