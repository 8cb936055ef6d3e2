"""Why an address cannot be listened on, in one sentence that says what to do."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from agentsrv.errors import AgentsrvError
from agentsrv.settings import Settings

LISTENS: Final = "0A"  # the state of a listening socket in /proc/net/tcp
LOWEST: Final = 1024  # port that anybody may listen on


class AddressError(AgentsrvError):
    """The address cannot be listened on. This may pass: status 1, so that a supervisor retries."""


def explained(error: OSError, settings: Settings) -> AgentsrvError | OSError:
    """Return an error that explains ``error``, if it is about the address; else ``error``."""
    host, port = settings.host, settings.port
    if isinstance(error, socket.gaierror):
        return AddressError(
            f"host is {host!r}, which cannot be resolved ({error.strerror}); expected an address "
            "or a name of this machine: --host"
        )
    match error.errno:
        case errno.EADDRINUSE:
            user = user_of(port)
            by = f" by {user}" if user else ""
            return AddressError(f"port {port} of {host} is taken{by}; choose another one: --port")
        case errno.EADDRNOTAVAIL:
            return AddressError(
                f"host is {host!r}, which is no address of this machine; expected one of its "
                "own, such as 127.0.0.1: --host"
            )
        case errno.EACCES | errno.EPERM if error.filename is None and 0 < port < LOWEST:
            return AddressError(
                f"port {port} needs rights that this user does not have; choose one from "
                f"{LOWEST} on: --port"
            )
    return error


def user_of(port: int) -> str | None:
    """The process that listens on the port, where the system shows it (Linux, own processes)."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return None
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    if os.readlink(descriptor) in inodes:  # noqa: PTH115 - no path
                        return f"process {process.name} ({_command_of(process)})"
    return None


def _command_of(process: Path) -> str:
    words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    if len(words) > 1 and Path(words[1]).name == "agentsrv":  # Python with the script
        return "agentsrv"
    return Path(words[0]).name or (process / "comm").read_text().strip()
