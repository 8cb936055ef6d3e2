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
