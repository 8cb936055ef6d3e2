"""The wire protocols without I/O: text in, commands out; facts in, bytes out."""

from typing import Final

PROTOCOL: Final = "agentsrv.v1"
AG_UI: Final = "ag-ui"
"""The subprotocol of front ends that speak AG-UI 1.0."""
