"""A network of its own for a server, which has an address in it for everybody who connects.

Whoever uses one of them can be cut off: what comes to it and goes from it is dropped, without a
word to anybody. Nothing of the machine's own network is changed; all of it goes with the process
that holds it, which ends with ours, however that ends.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.measure import eventually
from tests.support.postgres import USER
from tests.support.programs import require

PLACES: Final = 9  # addresses that others may connect to
STARTS_WITHIN: Final = 60  # seconds
# Where Debian keeps iptables, not everybody looks.
PATH: Final = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])


class Network:
    """Two ends of a virtual cable: one here, the other in a network that one process holds."""

    def __init__(self, pid: int) -> None:
        self._namespace = f"/proc/{pid}/ns/net"
        self._link = f"agentsrv{pid}"
        # From the addresses for tests of networks, which are routed nowhere.
        self._prefix = f"198.{18 + pid // 256 % 2}.{pid % 256}"

    @property
    def within(self) -> Sequence[str]:
        """What runs a command there, as the one who PostgreSQL runs as."""
        who = pwd.getpwnam(USER)
        user = [f"--setuid={who.pw_uid}", f"--setgid={who.pw_gid}"]
        return ["nsenter", f"--net={self._namespace}", *user]

    def place(self, number: int) -> str:
        """One of the addresses that what runs there can be reached by."""
        return f"{self._prefix}.{10 + number}"

    def cut(self, place: str) -> None:
        """Drop what comes to a place, and what goes from it."""
        self._inside("iptables", "-A", "INPUT", "-d", place, "-j", "DROP")
        self._inside("iptables", "-A", "OUTPUT", "-s", place, "-j", "DROP")

    def heal(self, place: str) -> None:
        """Let everything through again."""
        self._inside("iptables", "-D", "INPUT", "-d", place, "-j", "DROP")
        self._inside("iptables", "-D", "OUTPUT", "-s", place, "-j", "DROP")

    def plug_in(self, pid: int) -> None:
        """Make the cable."""
        far = ["peer", "name", "far", "netns", str(pid)]
        _run("ip", "link", "add", self._link, "type", "veth", *far)
        _run("ip", "address", "add", f"{self._prefix}.1/24", "dev", self._link)
        _run("ip", "link", "set", self._link, "up")
        # What runs there calls from the first of its addresses: so that is none of the places.
        own = f"{self._prefix}.2"
        for place in (own, *map(self.place, range(PLACES))):
            self._inside("ip", "address", "add", f"{place}/24", "dev", "far")
        self._inside("ip", "link", "set", "lo", "up")
        self._inside("ip", "link", "set", "far", "up")

    def _inside(self, *command: str) -> None:
        _run("nsenter", f"--net={self._namespace}", *command)


@contextmanager
def network() -> Iterator[Network]:
    """A network, until the block is left."""
    if os.geteuid() != 0:
        pytest.skip("platform: only root makes networks")
    for program in ("unshare", "nsenter", "ip", "iptables"):
        require(program)
    ours = Path("/proc/self/ns/net").readlink()
    # cat ends when its input does: with this process.
    holder = subprocess.Popen(
        ["unshare", "--net", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with holder:  # closes its input, and waits for its end
        theirs = Path(f"/proc/{holder.pid}/ns/net")
        eventually(lambda: holder.poll() is not None or theirs.readlink() != ours, STARTS_WITHIN)
        if holder.poll() is not None:
            assert holder.stderr is not None
            pytest.skip(f"platform: no network can be made: {holder.stderr.read().decode()}")
        made = Network(holder.pid)
        made.plug_in(holder.pid)
        yield made


def _run(*command: str) -> None:
    environment = {**os.environ, "PATH": PATH}
    subprocess.run(command, check=True, capture_output=True, env=environment)
