"""Authentication by API key or JSON Web Token.

- `authenticator`: turns a token into an `identity.Identity`; the rest of the server uses only this.
- `keys`: API keys in a file or in the settings.
- `tokens`: verification of JSON Web Tokens; `signing_keys`: the keys that sign them, from a file or
  from the issuer (JWKS).
- `handshake`: authentication in the first frames, and the end of a connection whose token expires.
"""
