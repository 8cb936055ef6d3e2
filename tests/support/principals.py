"""Principals with a key each, as a server's settings and as what they come in by."""

from __future__ import annotations

from datetime import date

from agentsrv.server.auth.keys import make_key

TODAY = date(2026, 3, 1)
ADA_KEY, _ADA = make_key("ada", TODAY)
BOB_KEY, _BOB = make_key("bob", TODAY)
ADA = _ADA.line().strip()
BOTH = f"{ADA}, {_BOB.line().strip()}"


def bearer(token: str) -> dict[str, str]:
    """Headers of a handshake."""
    return {"Authorization": f"Bearer {token}"}
