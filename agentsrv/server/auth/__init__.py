"""Authentication: API keys, JWT, and the exchange in which a connection presents its token.

`authenticator` is what the rest of the server uses. It asks `keys` or `tokens`, whichever the
settings name; `signing_keys` fetches and caches the keys that JWTs are checked with. `handshake`
waits for a token in the first frames, and closes the connection when the token expires.
"""
