"""Credentials are recognised by their context or their form; sentences about them stay."""

from __future__ import annotations

import base64
import re

import pytest

from agentsrv import credentials
from agentsrv.credentials import REACH, hide
from agentsrv.error_text import MAX_REDACTED, redact

SECRET = "s3cret-Value"
PARTS = (SECRET, "s3cret", "S3CRET", "dXNlcjpzM2NyZXQtVmFsdWU", "12345678", "hunter", "0123456789")

HIDDEN = {
    "bearer": f"refused: Bearer {SECRET}",
    "bearer on the next line": f"Bearer\n{SECRET}",
    "bearer, like a sentence": f"Bearer must-be-{SECRET}",
    "bearer, like another one": f"Bearer required-{SECRET}",
    "bearer as a subprotocol": f"bearer.{SECRET}",
    "illegal header value": f"Illegal header value b'Bearer {SECRET}\\n'",
    "key of two lines": f"Illegal header value b'Bearer first\\n{SECRET}'",
    "basic": "refused: Basic dXNlcjpzM2NyZXQtVmFsdWU=",
    "header line": f"POST / HTTP/1.1\r\nAuthorization: {SECRET}\r\nHost: a",
    "folded header": f"Authorization: Bearer\r\n  {SECRET}\r\nHost: a",
    "proxy header": f"Proxy-Authorization: Basic {SECRET}",
    "another scheme": f"Authorization: Token {SECRET}",
    "digest header": f'Authorization: Digest username="u", response={SECRET}',
    "signed header": f"Authorization: AWS4-HMAC-SHA256 Credential=a/b, Signature={SECRET}",
    "header dictionary": f"{{'Authorization': 'Bearer {SECRET}', 'a': 'b'}}",
    "header with a list": f"{{'Authorization': ['Bearer a', '{SECRET}']}}",
    "header pairs": f"[(b'authorization', b'Bearer {SECRET}')]",
    "header pair of a key": f"[('X-Auth-Token', '{SECRET}')]",
    "header of a key": f"X-Api-Key: {SECRET}",
    "header of a plain key": "X-Api-Key: hunterhunter",
    "cookie": f"Cookie: a=b; session={SECRET}",
    "folded cookie": f"Cookie: a=b;\r\n c={SECRET}\r\nHost: a",
    "set-cookie": f"Set-Cookie: session={SECRET}; Path=/; HttpOnly",
    "cookie dictionary": f"{{'Cookie': 'a=1; b={SECRET}'}}",
    "url": f"cannot open postgresql://user:{SECRET}@host/db",
    "url without user": f"redis://:{SECRET}@host:6379/0",
    "url, encoded password": f"postgresql://user:%40%2F{SECRET}%3A@host/db",
    "url, raw separators": f"postgresql://user:a@b/{SECRET}@host/db",
    "url, encoded": f"?target=postgresql%3A%2F%2Fuser%3A{SECRET}%40host%2Fdb",
    "url with a token": "https://abcdefghij0123456789@host/x",
    "query": f"GET /v1?a=1&api_key={SECRET}&b=2",
    "encoded query": f"?next=%2F%3Fpassword%3D{SECRET}%26b",
    "signature": f"https://host/?sig={SECRET}&X-Amz-Credential={SECRET}",
    "environment": f"OPENAI_API_KEY={SECRET}",
    "environment, one word": f"PGPASSWORD={SECRET}",
    "environment, short": f"DB_PASS={SECRET}",
    "spaces": f"aws_secret_access_key = {SECRET}",
    "refresh token": f"refresh_token=1//{SECRET}",
    "password like a date": f"password=2024-{SECRET}",
    "password with a comma": f"password=a,{SECRET} x",
    "password with a bracket": f"password=a){SECRET} x",
    "password of digits": "password=12345678",
    "keyword": f"Client(api_key='{SECRET}', timeout=3)",
    "bytes": f"Client(token=b'{SECRET}')",
    "arguments": f"get(url, auth=('ann', '{SECRET}'))",
    "json": f'{{"client_secret": "{SECRET}", "a": 1}}',
    "json, camel case": f'{{"accessToken":"{SECRET}"}}',
    "json, number": '{"password": 12345678}',
    "json, escaped quote": f'{{"password": "a\\"b{SECRET}"}}',
    "json, cut off": f'{{"password": "a b {SECRET}',
    "json, a phrase": f'{{"password": "the quick {SECRET}"}}',
    "escaped json": f'{{\\"password\\": \\"{SECRET}\\"}}',
    "twice escaped json": f'{{\\\\\\"password\\\\\\": \\\\\\"{SECRET}\\\\\\"}}',
    "python, another quote": f"{{'password': \"it's {SECRET}\"}}",
    "ruby": f"'password' => '{SECRET}'",
    "xml": f"<password>{SECRET}</password>",
    "yaml": f"password: {SECRET}",
    "yaml, a word": "db:\n  password: hunterhunter\n",
    "no space": f"password:{SECRET}",
    "connection string": f"Server=x;Password={SECRET};Database=y",
    "dsn": f"host=a password={SECRET} dbname=b",
    "option": f"exec --token {SECRET} --verbose",
    "option with a sign": f"exec --api-key={SECRET}",
    "arguments of a command": f"['exec', '--password', '{SECRET}']",
    "curl": f"curl -u ann:{SECRET} http://host",
    "npm": f"//registry.example/:_authToken={SECRET}",
    "pydantic": f"1 validation error\napi_key\n  Bad [type=a, input_value='{SECRET}', input_type=str]",
    "quoted in a sentence": f"the token '{SECRET}' is refused",
    "after a sentence": f"Invalid API key: {SECRET}",
    "after another one": f"Incorrect API key provided: {SECRET}.",
    "option in quotes": "exec --password 'hunter'",
    "openai": f"Incorrect API key provided: sk-proj-{SECRET}.",
    "own key": f"agentsrv_3f2a9c0d_{SECRET}",
    "github": "ghp_s3cretValues3cretValue",
    "aws": "AKIAS3CRETVALUES3CR",
    "slack": "xoxb-123-s3cretValue",
    "slack hook": "https://hooks.slack.com/services/T00/B00/s3cretValuexx",
    "google": "AIzas3cretValues3cretValues3cretVal",
    "jwt": "token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.s3cret-_DEF is expired",
    "jwt, cut off": "eyJhbGciOiJIUzI1NiJ9s3cret",
    "pem": f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
    "pem, escaped and cut off": f"-----BEGIN RSA PRIVATE KEY-----\\n{SECRET}\\n",
    "pgp": f"-----BEGIN PGP PRIVATE KEY BLOCK-----\n{SECRET}\n-----END PGP PRIVATE KEY BLOCK-----",
}

KEPT = (
    "",
    "the password must be at least 8 characters",
    "password: expected a string",
    "password: too short",
    '{"password": "String should have at least 8 characters"}',
    'password authentication failed for user "ann"',
    "fe_sendauth: no password supplied",
    "password_file=/run/secrets/db",
    "KeyError: 'password'",
    "token limit exceeded",
    "max_tokens=512, token=None",
    "tokens: 1,234 of 2,000",
    "unexpected token: '}' at line 3",
    "unexpected token '}' or the token 'end' in a.py",
    "the password 'minimum' is no rule",
    "Unexpected token < in JSON at position 0",
    "bad token: eof in line",
    "invalid token: it contains characters that HTTP headers do not allow",
    "params.token: expected a string",
    "token bucket: 5 of 10",
    "expected one of 'password', 'token'",
    "Bearer token is missing",
    "Bearer token required",
    'Bearer realm="api", error="invalid_token"',
    "Bearer authentication failed",
    "Authorization: expected Bearer token",
    "expected Authorization: Bearer TOKEN",
    "Authorization: ***",
    "a basic question about Basic usage",
    "Basic authentication failed",
    "basic-auth-required here",
    "invalid api key",
    '{"error":{"code":"invalid_api_key","message":"Incorrect API key provided"}}',
    "params.api_key: Field required",
    "the secret key is missing",
    "a question needs the setting secret_key, the same on all nodes",
    "secretary: Ann",
    "the cookie was refused",
    "Cookie: expected a header",
    "--token TOKEN sets the token",
    "the option --api-keys needs a file",
    "signature: (a: int) -> str",
    "design signal sigma=0.5",
    "compass: north, author: Ann Example-2",
    "connect to http://127.0.0.1:8080/user@example",
    "http://[::1]:8080/, https://example.com:8443/a@b",
    "postgresql://user@host/db",
    "expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
    "task-force, risk-free, sk-learn",
    "hf_hub_download failed, npm_lifecycle_event is unset, pk_users is not unique",
)  # fmt: skip


@pytest.mark.parametrize("text", HIDDEN.values(), ids=HIDDEN)
def test_a_credential_is_hidden(text: str) -> None:
    """And a second pass changes nothing: a text may pass several places that redact."""
    shown = hide(text)
    assert "***" in shown
    assert [part for part in PARTS if part in shown] == []
    assert hide(shown) == shown


@pytest.mark.parametrize("text", KEPT)
def test_sentences_about_credentials_are_kept(text: str) -> None:
    """Redaction looks for credentials, not for words."""
    assert hide(text) == text


@pytest.mark.parametrize("text", HIDDEN.values(), ids=HIDDEN)
def test_a_credential_that_a_cut_divides_is_hidden(text: str) -> None:
    """Wherever it lies across the end of what is kept."""
    for place in range(0, len(text) + 1, max(1, len(text) // 8)):
        long = " " * (MAX_REDACTED - place) + text + " x" * REACH
        shown = redact(long)
        assert len(shown) < MAX_REDACTED + REACH
        assert [part for part in PARTS if part in shown] == []


HOSTILE = {
    text: (text * MAX_REDACTED)[:MAX_REDACTED]
    for text in (
        "a-a-", "=====", "::::", '{"{"{"', "token=", "token>", "<token>", "token,", "token: [",
        "password=)", "password: a ", "authorization: ", "authorization: digest ", "cookie: a",
        "cookie: the ", "--token ", "'password', ", "'token ", '"token": "is ', "token          ",
        "\\", '\\"', "://:", "%3a%2f%2f", "bearer ", "'bearer", "-----BEGIN PRIVATE KEY-----", "eyJ",
    )
} | {"base64": base64.b64encode(bytes(range(256)) * 50).decode()[:MAX_REDACTED]}  # fmt: skip


class Counting:
    """A pattern that counts the characters that its matches read."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.pattern, self.read = pattern, 0

    def match(self, text: str, at: int) -> re.Match[str] | None:
        """Match, and count."""
        found = self.pattern.match(text, at)
        self.read += 1 if found is None else found.end() - at
        return found


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_part_of_a_text_is_read_again_and_again(text: str, monkeypatch) -> None:
    """What follows a name is read a few times, not once for each name before it."""
    names = ("_VALUE", "_CONTENT", "_REST_OF_HEADER", "_SCHEME", "_SEPARATOR")
    counted = {name: Counting(getattr(credentials, name)) for name in names}
    for name, pattern in counted.items():
        monkeypatch.setattr(credentials, name, pattern)
    hide(text)
    for name, pattern in counted.items():
        assert pattern.read <= 3 * len(text), name
