"""The wire protocols without I/O: text in, commands out; facts in, bytes out."""

from typing import Final

PROTOCOL: Final = "agentsrv.v1"
