"""All stores do the same, whatever is done to them in whatever order."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agentsrv.errors import AgentsrvError
from agentsrv.models.states import TaskStatus
from agentsrv.models.transitions import TRANSITIONS
from agentsrv.store.base import Commit, Created, Head, Lease, Store
from agentsrv.store.memory import MemoryStore
from agentsrv.store.postgres.store import PostgresStore
from agentsrv.store.queue import QueueLimits
from agentsrv.store.sqlite.store import SqliteStore
from tests.support.store_listener import Heard
from tests.support.store_tasks import (
    HOUR,
    NOW,
    PENDING,
    QUEUED,
    STILL,
    DeafBus,
    following,
    head_of,
    log_of,
    new_task,
)

NewPlace = Callable[[], Coroutine[Any, Any, Callable[[], Store]]]
"""Finds an empty place, and returns what makes a store in it, as often as it is called."""

OWNERS = ["ann", "bob"]
RUNNING = 2
LIMITS = QueueLimits(total=4, waiting=3, running=RUNNING)


class Stores(RuleBasedStateMachine):
    """Does everything to a store and to one in memory, and compares what can be seen.

    Appends follow the table of transitions, and are made by who may make them: the server for
    a task without a worker, the holder of the lease for one that has it.
    """

    leases = Bundle("leases")
    lost = Bundle("lost")  # leases that their holders no longer have

    def __init__(self, new_place: NewPlace) -> None:
        super().__init__()
        self.new_place = new_place

    @initialize()
    def start(self) -> None:
        """Two empty stores, one loop."""
        self.runner = asyncio.Runner()
        self.make = self.runner.run(self.new_place())
        self.told: dict[str, list[Commit]] = {"memory": [], "other": []}
        self.memory = MemoryStore(LIMITS)
        self.now = NOW
        self.created = 0
        self.tasks: list[str] = []  # those that were not purged
        self.runner.run(self.open(self.memory, "memory"))
        self.open_other()
        self.held: set[str] = set()  # leased to a living worker
        self.orphans: set[str] = set()
        self.queue: list[str] = []
        self.owners: dict[str, str] = {}

    async def open(self, store: Store, name: str) -> None:
        """Open a store, and listen to it."""
        await store.open(Heard(committed=self.told[name].append))

    def open_other(self) -> None:
        """Open the place with a store of its own."""
        self.other = self.make()
        self.runner.run(self.open(self.other, "other"))

    def teardown(self) -> None:
        """Close the store and the loop."""
        if hasattr(self, "runner"):
            self.runner.run(self.other.close())
            self.runner.close()

    def both(self, call: Callable[[Store], Awaitable[Any]]) -> Any:
        """What both stores answer, or the class of what both of them raise."""

        async def outcome(store: Store) -> Any:
            try:
                return _anonymous(await call(store))
            except AgentsrvError as error:
                return type(error)

        async def outcomes() -> tuple[Any, Any]:
            return await outcome(self.memory), await outcome(self.other)

        memory, other = self.runner.run(outcomes())
        assert other == memory
        return memory

    def head(self, task_id: str) -> Head:
        """Where a task stands; one that was purged stands nowhere."""
        found = self.both(lambda store: store.head(task_id))
        assert (found is None) is (task_id not in self.tasks)
        return found or Head(task_id, "ann", TaskStatus.COMPLETED, seq=0, epoch=0)

    def settled(self, head: Head | Lease, status: TaskStatus) -> None:
        """Remember where a task waits after it took ``status``."""
        if status is QUEUED:
            self.queue.append(head.task_id)
        elif status.is_terminal:
            self.held.discard(head.task_id)
            self.orphans.discard(head.task_id)
            self.queue = [task_id for task_id in self.queue if task_id != head.task_id]

    @rule(
        owner=st.sampled_from(OWNERS),
        status=st.sampled_from([PENDING, QUEUED]),
        key=st.sampled_from([None, None, "k", "l"]),
        spec=st.sampled_from([b"1", b"1", b"2"]),
        count=st.integers(1, 3),
    )
    def create(self, owner, status, key, spec, count):
        """A client creates a task."""
        events = [b"%d" % seq for seq in range(1, count + 1)]
        task_id = f"t{self.created}"
        task = new_task(
            task_id, status, owner=owner, at=self.now, spec=spec, key=key, events=events
        )
        created = self.both(lambda store: store.create(task))
        if not isinstance(created, type) and not created.replayed:
            self.created += 1
            self.tasks.append(task_id)
            self.owners[task_id] = owner
            self.settled(created.head, status)

    @rule(hours=st.sampled_from([1, 23, 25]))
    def wait(self, hours):
        """Time passes; idempotency keys expire."""
        self.now += hours * HOUR

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), cancels=st.booleans())
    def decide(self, data, cancels):
        """The server executes or cancels a task that nobody runs."""
        head = self.head(data.draw(st.sampled_from(self.tasks)))
        if head.task_id in self.held:
            return
        if head.status is PENDING and not cancels:
            status = QUEUED
        elif head.status in (PENDING, QUEUED):
            status = TaskStatus.CANCELLED
        elif TaskStatus.CANCELLING in TRANSITIONS[head.status].values():
            status = TaskStatus.CANCELLING
        else:
            return
        if self.both(lambda store: store.append(following(head, status))) is None:
            self.settled(head, status)

    @rule(target=leases, extra=st.integers(0, 3), node=st.sampled_from(["one", "two"]))
    def claim(self, extra, node):
        """A worker claims all orphans and some of the queue."""
        # Stores that several nodes share may give another owner the first turn.
        has_order = isinstance(self.other, SqliteStore)
        extra = extra if has_order else len(self.queue)
        limit = len(self.orphans) + extra

        async def claim(store: Store) -> Any:
            leases = list(await store.claim(node, limit))
            orphans, queued = leases[: len(self.orphans)], leases[len(self.orphans) :]
            if not has_order:
                queued.sort(key=lambda lease: self.queue.index(lease.task_id))
            return sorted(orphans, key=lambda lease: lease.task_id) + queued

        claimed = self.both(claim)
        ids = [lease.task_id for lease in claimed]
        assert ids[: len(self.orphans)] == sorted(self.orphans)
        queued = ids[len(self.orphans) :]
        running = Counter(lease.owner for lease in claimed[: len(self.orphans)])
        running.update(self.owners[task_id] for task_id in self.held)
        for owner in OWNERS:
            line = [task_id for task_id in self.queue if self.owners[task_id] == owner]
            taken = [task_id for task_id in queued if self.owners[task_id] == owner]
            most = max(0, RUNNING - running[owner])
            assert taken == line[: len(taken)]
            assert len(taken) <= most
            if len(queued) < extra:
                assert len(taken) == min(len(line), most)
        self.held.update(ids)
        self.orphans.clear()
        self.queue = [task_id for task_id in self.queue if task_id not in ids]
        return multiple(*claimed)

    @rule(target=leases, lease=consumes(leases), data=st.data(), count=st.integers(1, 3))
    def work(self, lease, data, count):
        """The holder of a lease appends what its task's state takes."""
        head = self.head(lease.task_id)
        if lease.task_id not in self.held or head.epoch != lease.epoch:
            return multiple()
        row = sorted(set(TRANSITIONS[head.status].values()))
        status = data.draw(st.sampled_from(row))
        state = b"state" if status.is_terminal else None
        append = following(head, status, count, state)
        assert self.both(lambda store: store.append(append)) is None
        self.settled(head, status)
        return multiple() if status.is_terminal else lease

    @rule(lease=leases | lost, epoch=st.integers(-1, 1), expected=st.integers(-1, 1))
    def race(self, lease, epoch, expected):
        """Somebody who is not where the task is appends; it is fenced and changes nothing."""
        head = self.head(lease.task_id)
        append = following(head, TaskStatus.RUNNING)._replace(
            epoch=head.epoch + epoch,
            expected=max(0, head.seq + expected),
        )
        if (append.epoch, append.expected) != (head.epoch, head.seq):
            found = self.both(lambda store: store.append(append))
            assert isinstance(found, type)
            assert found.__name__ == "FencedError"

    @rule(target=lost, lease=consumes(leases))
    def release(self, lease):
        """A worker gives a lease back, which it may have lost."""
        head = self.head(lease.task_id)
        self.both(lambda store: store.release(lease.task_id, lease.epoch))
        if lease.task_id in self.held and head.epoch == lease.epoch:
            self.held.discard(lease.task_id)
            self.orphans.add(lease.task_id)
        return lease

    @rule(lease=lost)
    def release_again(self, lease):
        """A worker gives a lease back that it has no longer."""
        head = self.head(lease.task_id)
        if lease.task_id not in self.held or head.epoch != lease.epoch:
            self.both(lambda store: store.release(lease.task_id, lease.epoch))

    @rule()
    def purge(self):
        """Time goes by: all tasks that ended are forgotten."""
        ended = {task_id for task_id in self.tasks if self.head(task_id).status.is_terminal}
        assert self.both(lambda store: store.purge(NOW + 1, 999)) == len(ended)
        self.tasks = [task_id for task_id in self.tasks if task_id not in ended]

    @rule()
    def reopen(self):
        """The server stops and starts; whatever was leased is an orphan."""
        self.runner.run(self.other.close())
        self.open_other()
        self.runner.run(self.open(self.memory, "memory"))
        # Whose turn it is does not outlive a process.
        if isinstance(self.other, SqliteStore):
            self.memory._queue._turns = self.other._file.queue._turns.copy()
        self.orphans |= self.held
        self.held.clear()

    @invariant()
    def everything_reads_alike(self):
        """Heads, logs, states, lists and the queue's length are the same in both."""
        if not hasattr(self, "tasks"):
            return
        seen = self.both(lambda store: _view(store, self.tasks))
        own: dict[str, list[tuple[str, str]]] = {owner: [] for owner in OWNERS}
        for task_id, (head, log, *_) in zip(self.tasks, seen["tasks"], strict=True):
            assert head.task_id == task_id
            assert log == [b"%d" % seq for seq in range(1, head.seq + 1)]
            own[head.owner].insert(0, (head.task_id, head.status))
        assert seen["lists"] == own
        waiting = Counter(self.owners[task_id] for task_id in self.queue)
        assert seen["queued"] == (len(self.queue), *(waiting[owner] for owner in OWNERS))
        assert self.told["other"] == self.told["memory"]


def _anonymous(answer: Any) -> Any:
    """The answer without what only some stores tell: holders, and what a crash interrupted."""
    match answer:
        case Head():
            return answer._replace(node=None)
        case Created():
            return answer._replace(head=_anonymous(answer.head))
        case [Lease(), *_]:
            return [lease._replace(interrupted=()) for lease in answer]
    return answer


async def _view(store: Store, tasks: list[str]) -> dict[str, Any]:
    """All that can be seen of a store."""

    async def view(task_id: str) -> tuple[Any, ...]:
        log = await log_of(store, task_id, 4)
        rest = await asyncio.gather(store.state(task_id), store.spec(task_id))
        return await head_of(store, task_id), log, *rest

    keys = [store.find_key(owner, key) for owner in OWNERS for key in ("k", "l")]
    return {
        "tasks": await asyncio.gather(*map(view, tasks)),
        "lists": {owner: await _listed(store, owner, None) for owner in OWNERS},
        "waiting": {owner: await _listed(store, owner, QUEUED) for owner in OWNERS},
        "keys": await asyncio.gather(*keys),
        "queued": (store.queued, *map(store.queued_by, OWNERS)),
    }


async def _listed(store: Store, owner: str, status: TaskStatus | None) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    totals, cursor = set(), None
    while True:
        page = await store.list(owner, status, 3, cursor)
        rows += [(row.task_id, row.status) for row in page.rows]
        totals.add(page.total)
        cursor = page.next_cursor
        if cursor is None:
            assert totals == {len(rows)}
            return rows


def _compare(new_place: NewPlace, examples: int) -> None:
    class InPlaces(Stores):
        def __init__(self) -> None:
            super().__init__(new_place)

    run_state_machine_as_test(
        InPlaces,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            # Without shrinking, which takes minutes here: add Phase.shrink to understand a failure.
            phases=[Phase.reuse, Phase.generate],
        ),
    )


def test_sqlite(tmp_path):
    """A file does as memory does."""
    numbers = count()

    async def new_place() -> Callable[[], Store]:
        path = tmp_path / f"{next(numbers)}.db"
        return lambda: SqliteStore(path, LIMITS)

    _compare(new_place, 30)


def test_postgres(new_dsn):
    """A schema of PostgreSQL does as memory does."""

    async def new_place() -> Callable[[], Store]:
        dsn = await new_dsn()
        return lambda: PostgresStore(dsn, node="node", bus=DeafBus(), limits=LIMITS, timing=STILL)

    _compare(new_place, 10)
