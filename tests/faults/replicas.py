"""Three PostgreSQL servers: a primary, and two standbys of which one confirms each commit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.faults.apart import Network
from tests.support.postgres import QUICK, USER, Postgres, folder_of_servers, free_port

NAMES: Final = ("s1", "s2", "s3")
QUORUM: Final = f"ANY 1 ({','.join(NAMES)})"  # a primary is not among its own standbys
RECEIVED: Final = """
SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn
"""


class Replicas:
    """Whichever of them is the primary: what was acknowledged is in two."""

    def __init__(self, servers: dict[str, Postgres]) -> None:
        self._servers = servers
        self._primary = NAMES[0]

    def dsn(self, schema: str = "public") -> str:
        """How to reach a schema in the one that takes writes."""
        hosts = ",".join(f"{each.host}:{each.port}" for each in self._servers.values())
        query = f"target_session_attrs=read-write&search_path={schema}"
        return f"postgresql://{USER}@{hosts}/postgres?{query}"

    @property
    def primary(self) -> Postgres:
        """The one that takes writes."""
        return self._servers[self._primary]

    def start(self) -> None:
        """Return when they answer."""
        self.primary.make()
        self.primary.start()
        for name in NAMES[1:]:
            self._stand_by(name)

    def promote(self) -> None:
        """Behind the death of the primary: the standby that has most of it is the next."""
        standbys = {name: each for name, each in self._servers.items() if name != self._primary}
        received = {name: int(each.ask(RECEIVED)) for name, each in standbys.items()}
        self._primary = max(received, key=received.__getitem__)
        self.primary.promote()
        # By itself a standby would wait minutes for a primary that is silent.
        for name in standbys.keys() - {self._primary}:
            standbys[name].follow(self.primary, name)

    def rebuild(self) -> None:
        """Make a standby of the one that died: a new copy."""
        for name, server in self._servers.items():
            if not server.is_running:
                shutil.rmtree(server.folder)
                self._stand_by(name)

    def stop(self) -> None:
        """End all of them at once."""
        for server in self._servers.values():
            server.kill()

    def _stand_by(self, name: str) -> None:
        server = self._servers[name]
        self.primary.copy_to(server, name)
        server.start()


@contextmanager
def replicas(apart: Network | None = None) -> Iterator[Replicas]:
    """A primary and its standbys, perhaps in a network of their own; their folders go with them."""
    ports = {name: free_port() for name in NAMES}
    hosts = [apart.place(number) if apart else "127.0.0.1" for number in range(len(NAMES))]
    with folder_of_servers() as folder:
        made = Replicas(
            {
                name: Postgres(
                    folder / name,
                    port,
                    *QUICK,
                    f"synchronous_standby_names={QUORUM}",
                    "wal_retrieve_retry_interval=200ms",
                    "wal_keep_size=256MB",
                    host=host,
                    within=apart.within if apart else (),
                )
                for (name, port), host in zip(ports.items(), hosts, strict=True)
            }
        )
        try:
            made.start()
            yield made
        finally:
            made.stop()
