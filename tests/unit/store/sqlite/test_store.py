import asyncio
import contextlib
import sqlite3
import threading
from typing import Any

import pytest

from agentsrv.errors import UnavailableError
from agentsrv.models.states import TaskStatus
from agentsrv.store.queue import QueueLimits
from agentsrv.store.sqlite import store as sqlite
from agentsrv.store.sqlite.file import StoreInUseError
from agentsrv.store.sqlite.store import SqliteStore
from tests.support.store_listener import Heard, heard
from tests.support.store_tasks import (
    COMPLETED,
    QUEUED,
    RUNNING,
    claim,
    following,
    head_of,
    leased,
    log_of,
    new_task,
    numbers,
)

DISK_ERROR = sqlite3.OperationalError("disk I/O error")


METHODS = ("committed", "ready", "durable")


@pytest.mark.parametrize("name", METHODS)
async def test_a_listener_that_fails_keeps_nobody_waiting(tmp_path, caplog, name):
    """What was committed is acknowledged, and so is what comes after it."""

    def fail(*_: Any) -> None:
        raise LookupError("a listener's fault")

    store = SqliteStore(tmp_path / "agentsrv.db")
    await store.open(Heard(**{name: fail}))
    async with asyncio.timeout(60):
        for number in range(3):
            await store.create(new_task(f"t{number}", QUEUED))
        await store.close()
    assert "a listener's fault" in caplog.text


async def test_a_file_that_cannot_be_closed_keeps_nobody_waiting(tmp_path, caplog, monkeypatch):
    """The server ends all the same; the log has the reason."""
    store = SqliteStore(tmp_path / "agentsrv.db")
    await store.open(Heard())
    close = store._file.close

    def fail() -> None:
        close()
        raise sqlite3.OperationalError("unable to close")

    monkeypatch.setattr(store._file, "close", fail)
    async with asyncio.timeout(60):
        await store.close()
    assert "unable to close" in caplog.text


class Gate:
    """Stands before a connection: counts commits, holds them up, or makes them fail."""

    def __init__(self, store: SqliteStore) -> None:
        self._db = store._file._db
        self.commits = 0
        self.error: Exception | None = None
        self.reached = threading.Event()
        self.opened = threading.Event()
        self.opened.set()
        store._file._db = self  # type: ignore[assignment]

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        """Pass a statement on; a COMMIT only when the gate is open."""
        if sql == "COMMIT":
            self.reached.set()
            assert self.opened.wait(30)
            if self.error is not None:
                raise self.error
            self.commits += 1
        return self._db.execute(sql, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    @contextlib.asynccontextmanager
    async def held(self, store: SqliteStore):
        """While within, the thread stands before the COMMIT of a task, and work gathers."""
        self.opened.clear()
        self.reached.clear()
        first = asyncio.ensure_future(store.create(new_task("held")))
        assert await asyncio.to_thread(self.reached.wait, 10)
        try:
            yield
        finally:
            self.opened.set()
            await asyncio.gather(first, return_exceptions=True)


@pytest.fixture
def path(tmp_path):
    """Where the store is."""
    return tmp_path / "agentsrv.db"


@pytest.fixture
async def store(path):
    """An open, empty store."""
    store = SqliteStore(path)
    await store.open(Heard())
    yield store
    await store.close()


@contextlib.asynccontextmanager
async def opened(path, **limits):
    """A store that is open within."""
    store = SqliteStore(path, QueueLimits(**limits))
    await store.open(Heard())
    try:
        yield store
    finally:
        await store.close()


class TestReopening:
    async def test_logs_are_kept(self, path):
        """Everything that was acknowledged is there again, byte for byte."""
        async with opened(path) as store:
            lease = await leased(store)
            await store.append(following(lease, RUNNING, 3))
            await store.append(following(await head_of(store, "t1"), COMPLETED, 1, b"state"))
            await store.create(new_task("t2", key="k"))
        async with opened(path) as store:
            assert await log_of(store, "t1") == numbers(1, 5)
            assert await store.state("t1") == b"state"
            assert (await head_of(store, "t1")).status is COMPLETED
            assert await store.find_key("ann", "k") == "t2"
            assert (await store.create(new_task("t3", key="k"))).replayed
            assert await claim(store, "node", 9) == []

    async def test_leases_are_freed(self, path):
        """Tasks of a process that is gone are claimed first, and it is fenced."""
        async with opened(path) as store:
            old = await leased(store, "t1")
            await store.append(following(old))
            waiting = await leased(store, "t2")
            await store.create(new_task("t3", QUEUED))
        async with opened(path) as store:
            leases = await claim(store, "node", 2)
            assert leases == [
                old._replace(epoch=2, seq=2),
                waiting._replace(epoch=2),
            ]
            assert [lease.task_id for lease in await claim(store, "node", 2)] == ["t3"]

    async def test_the_queue_keeps_its_order_and_its_length(self, path):
        """Tasks wait in the order of queueing, before and after, and the new ones behind them."""
        async with opened(path, total=4) as store:
            for number in range(4):
                await store.create(new_task(f"t{number}"))
            for number in (2, 0, 3):
                await store.append(following(await head_of(store, f"t{number}"), QUEUED))
        async with opened(path, total=4) as store:
            assert store.queued == 3
            await store.append(following(await head_of(store, "t1"), QUEUED))
            leases = await claim(store, "node", 99)
            assert [lease.task_id for lease in leases] == ["t2", "t0", "t3", "t1"]

    async def test_cursors_survive(self, path):
        """A list that was begun before goes on after."""
        async with opened(path) as store:
            for number in range(3):
                await store.create(new_task(f"t{number}"))
            page = await store.list("ann", None, 2, None)
        async with opened(path) as store:
            rest = await store.list("ann", None, 2, page.next_cursor)
            assert [row.task_id for row in rest.rows] == ["t0"]


class TestOpening:
    async def test_one_server_at_a_time(self, path, store):
        """A second server on the same file is told so, and the first one notices nothing."""
        with pytest.raises(
            StoreInUseError, match=r"another server \(process \d+\) uses the store .*agentsrv\.db"
        ):
            await SqliteStore(path).open()
        await store.create(new_task())

    async def test_closing_lets_the_next_one_in(self, path, store):
        """The lock ends with the store."""
        second = SqliteStore(path)
        with pytest.raises(StoreInUseError):
            await second.open()
        await store.close()
        await second.open()
        await second.create(new_task())
        await second.close()

    async def test_the_settings_that_make_commits_durable(self, store):
        """A commit is in the write-ahead log and synced to the disk."""
        modes = {
            name: store._file._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous")
        }
        assert modes == {"journal_mode": "wal", "synchronous": 2}  # 2: FULL

    async def test_an_unused_store_can_be_closed(self, path):
        """Closing before opening, and closing twice, are no errors."""
        await SqliteStore(path).close()
        async with opened(path) as store:
            await store.close()


async def test_a_damaged_task_that_was_claimed_makes_room_for_another(path, monkeypatch):
    """The worker that got fewer tasks than it can run is told to claim again."""
    async with opened(path) as store:
        for number in range(2):
            await store.create(new_task(f"t{number}", QUEUED))
        rung: list[str] = []
        heard(store).ready = lambda: rung.append("ready")
        dropped = [{"t0": "its page is damaged"}]
        monkeypatch.setattr(store._file, "take_dropped", lambda: dropped.pop() if dropped else {})
        assert await claim(store, "node", 1) == []
        await asyncio.sleep(0)
        assert rung == ["ready"]
        assert [lease.task_id for lease in await claim(store, "node", 1)] == ["t1"]


class TestClosing:
    async def test_what_is_under_way_is_finished(self, path):
        """Writes handed over before the end are durable, acknowledged and told."""
        store = SqliteStore(path)
        await store.open(Heard())
        told: list[str] = []
        heard(store).committed = lambda commit: told.append(commit.task_id)
        creates = [asyncio.ensure_future(store.create(new_task(f"t{n}"))) for n in range(50)]
        await asyncio.sleep(0)
        await store.close()
        assert [(await create).replayed for create in creates] == [False] * 50
        assert len(told) == 50
        async with opened(path) as again:
            assert (await again.list("ann", None, 1, None)).total == 50

    async def test_what_comes_during_the_end_is_refused(self, path):
        """A write that is handed over while the store closes is not made; nothing is broken."""
        store = SqliteStore(path)
        await store.open(Heard())
        broken: list[BaseException] = []
        heard(store).broken = broken.append
        closing = asyncio.ensure_future(store.close())
        await asyncio.sleep(0)
        write = asyncio.ensure_future(store.create(new_task()))
        await closing
        with pytest.raises(UnavailableError, match="the store is closed"):
            await write
        assert broken == []
        async with opened(path) as again:
            assert await again.head("t1") is None

    async def test_afterwards_everything_is_unavailable(self, path):
        """A closed store says so, whatever it is asked."""
        async with opened(path) as store:
            lease = await leased(store)
        calls = [
            store.create(new_task("t2")),
            store.head("t1"),
            store.find("ann", ""),
            store.find_key("ann", "k"),
            store.read("t1", 0, 1),
            store.state("t1"),
            store.list("ann", None, 1, None),
            store.append(following(lease)),
            store.claim("node", 1),
            store.release("t1", 1),
        ]
        for call in calls:
            with pytest.raises(UnavailableError, match="the store is closed"):
                await call


class TestGroupCommit:
    async def test_what_gathers_during_a_commit_is_one_transaction(self, store):
        """While the disk works, appends wait together and are committed together."""
        leases = [await leased(store, f"t{n}") for n in range(200)]
        gate = Gate(store)
        async with gate.held(store):
            writes = [store.append(following(lease)) for lease in leases]
        await asyncio.gather(*writes)
        assert gate.commits == 2  # the one that was held, and one for all the rest
        for lease in leases:
            assert await log_of(store, lease.task_id) == numbers(1, 2)

    async def test_a_batch_has_a_limit(self, store, monkeypatch):
        """More than one turn of the loop may write goes into several transactions, in order."""
        monkeypatch.setattr(sqlite, "MAX_EVENTS_PER_TURN", 9)
        leases = [await leased(store, f"t{n}") for n in range(25)]
        gate = Gate(store)
        order: list[str] = []
        heard(store).committed = lambda commit: order.append(commit.task_id)
        async with gate.held(store):
            writes = [store.append(following(lease)) for lease in leases]
        await asyncio.gather(*writes)
        assert gate.commits == 1 + 3
        assert order == ["held", *(lease.task_id for lease in leases)]

    async def test_a_lone_write_waits_for_nobody(self, store):
        """Without company each write is a transaction of its own."""
        gate = Gate(store)
        for number in range(5):
            await store.create(new_task(f"t{number}"))
        assert gate.commits == 5

    async def test_writes_are_told_in_the_order_of_their_calls(self, store):
        """A task's appends that are handed over without waiting are told in their order."""
        lease = await leased(store)
        told: list[int] = []
        heard(store).committed = lambda commit: told.append(commit.after)
        head = lease
        writes = []
        for _ in range(100):
            writes.append(store.append(following(head)))
            head = head._replace(seq=head.seq + 1)
        await asyncio.gather(*writes)
        assert told == list(range(1, 101))
        assert await log_of(store, "t1") == numbers(1, 101)

    async def test_a_write_is_not_told_before_its_commit(self, store):
        """Neither its caller nor anybody else learns of a write that is not yet durable."""
        lease = await leased(store)
        gate = Gate(store)
        told: list[int] = []
        heard(store).committed = lambda commit: told.append(commit.after)
        async with gate.held(store):
            done = store.append(following(lease))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not done.done()
            assert told == []
        await done
        assert told == [0, 1]


@pytest.mark.faults
class TestBrokenDisk:
    @pytest.mark.parametrize("waits", [False, True], ids=["in the batch", "behind the batch"])
    async def test_a_failed_commit_acknowledges_nothing(self, path, caplog, waits):
        """Everybody is told that the outcome is unknown; the file is intact."""
        store = SqliteStore(path)
        await store.open(Heard())
        broken: list[BaseException] = []
        told: list[str] = []
        heard(store).broken = broken.append
        leases = [await leased(store, f"t{n}") for n in range(10)]
        await asyncio.gather(*(store.append(following(lease)) for lease in leases))
        heard(store).committed = lambda commit: told.append(commit.task_id)
        gate = Gate(store)
        async with gate.held(store) if waits else contextlib.nullcontext():
            gate.error = DISK_ERROR
            heads = [lease._replace(seq=2) for lease in leases]
            writes: list[asyncio.Future[Any]] = [store.append(following(head)) for head in heads]
            writes.append(asyncio.ensure_future(store.create(new_task("t99", QUEUED))))
            writes.append(asyncio.ensure_future(store.head("t1")))
            await asyncio.sleep(0)
        for write in writes:
            with pytest.raises(UnavailableError, match="disk I/O error; the outcome is unknown"):
                await write
        gate.error = None  # the disk is well again, but what it lost is unknown
        for call in (store.head("t0"), store.create(new_task("t98")), store.claim("node", 1)):
            with pytest.raises(UnavailableError, match="disk I/O error"):
                await call
        assert told == []
        assert len(broken) == 1
        assert gate.commits == 0
        assert "cannot write any more" in caplog.text
        await store.close()
        async with opened(path) as again:
            for lease in leases:
                assert await log_of(again, lease.task_id) == numbers(1, 2)
            for task_id in ("t98", "t99", "held"):
                assert await again.head(task_id) is None
            assert len(await claim(again, "node", 99)) == 10

    async def test_a_broken_store_is_told_once(self, store, monkeypatch):
        """However much had been handed over when the disk failed, that is told once."""
        monkeypatch.setattr(sqlite, "MAX_EVENTS_PER_TURN", 9)
        gate = Gate(store)
        broken: list[BaseException] = []
        heard(store).broken = broken.append
        async with gate.held(store):
            writes = [asyncio.ensure_future(store.create(new_task(f"t{n}"))) for n in range(35)]
            await asyncio.sleep(0)
            gate.error = DISK_ERROR
        found = await asyncio.gather(*writes, return_exceptions=True)
        assert [type(each) for each in found] == [UnavailableError] * 35
        assert broken == [DISK_ERROR]

    async def test_a_broken_store_can_be_closed_and_opened_anew(self, path, store):
        """After a failure the lock is let go, and another store starts with what is there."""
        await store.create(new_task("t1"))
        gate = Gate(store)
        gate.error = DISK_ERROR
        with pytest.raises(UnavailableError):
            await store.create(new_task("t2"))
        gate.error = None
        await store.close()
        async with opened(path) as again:
            assert (await head_of(again, "t1")).status is TaskStatus.PENDING
            await again.create(new_task("t2"))


async def test_the_file_stops_growing_where_old_tasks_are_purged(tmp_path):
    """Freed pages are used again: ten generations of tasks take the room of little more than one."""
    store = SqliteStore(tmp_path / "agentsrv.db")
    await store.open(Heard())
    sizes = []
    try:
        for generation in range(10):
            for number in range(100):
                task = f"t{generation}-{number}"
                await store.create(new_task(task)._replace(events=[b"x" * 1000] * 20))
                head = await head_of(store, task)
                await store.append(following(head, TaskStatus.CANCELLED, 1, b"state"))
            while await store.purge(float("inf"), 30):
                pass
            sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
    finally:
        await store.close()
    assert sizes[-1] < 2 * sizes[0]
    assert sizes[-1] <= max(sizes[:5])
