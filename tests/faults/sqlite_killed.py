"""A writer to be killed: forks children that append and print what was acknowledged.

Each line on standard input starts a child, which prints ``pid N``, then ``TASK SEQ`` for each
acknowledged write, until it is killed; then the parent prints ``dead``. Forked, because a child
then needs no time to import anything.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from agentsrv.models.states import TaskStatus
from agentsrv.store.base import Head
from agentsrv.store.sqlite.store import SqliteStore
from tests.support.store_tasks import following, new_task

WRITERS = 20


def main(path: Path) -> None:
    """Start a child for each line, one after the other."""
    for round_, _ in enumerate(iter(sys.stdin.readline, "")):
        child = os.fork()
        if child == 0:
            say(f"pid {os.getpid()}")
            try:
                asyncio.run(write(path, round_))
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        say("dead")


def say(line: str) -> None:
    """Print at once: what the kernel has is not lost by a kill."""
    os.write(1, f"{line}\n".encode())


async def write(path: Path, round_: int) -> None:
    """Append to many tasks at the same time until killed."""
    store = SqliteStore(path)
    await store.open()
    async with asyncio.TaskGroup() as group:
        for number in range(WRITERS):
            group.create_task(write_one(store, f"t{round_}-{number}"))


async def write_one(store: SqliteStore, task_id: str) -> None:
    """One task's log, one to three events at a time."""
    created = await store.create(new_task(task_id, TaskStatus.PENDING, key=task_id))
    say(f"{task_id} 1")
    head: Head = created.head
    while True:
        append = following(head, TaskStatus.RUNNING, count=head.seq % 3 + 1)
        await store.append(append)
        head = head._replace(seq=head.seq + len(append.events))
        say(f"{task_id} {head.seq}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
