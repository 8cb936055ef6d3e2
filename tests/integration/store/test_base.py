"""The conformance suite: what every store has to do, run by each of them."""

import asyncio
from collections import Counter

import orjson
import pytest

from agentsrv.errors import ConflictError, FencedError, InvalidCommandError, OverloadedError
from agentsrv.models.states import TaskStatus
from agentsrv.store import base
from agentsrv.store.base import Commit, Created, Head, Lease, Row, Store
from agentsrv.store.memory import MemoryStore
from agentsrv.store.postgres.store import PostgresStore
from agentsrv.store.queue import QueueLimits
from agentsrv.store.sqlite.store import SqliteStore
from tests.support.store_listener import Heard, heard
from tests.support.store_tasks import (
    CANCELLED,
    COMPLETED,
    HOUR,
    NOW,
    PENDING,
    QUEUED,
    RUNNING,
    STILL,
    DeafBus,
    claim,
    following,
    head_of,
    leased,
    log_of,
    new_task,
    numbers,
)

TERMINAL = [TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED]


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def make(request, tmp_path):
    """Makes an open store of each kind, with limits; closes them all."""
    opened: list[Store] = []
    places: dict[Store, tuple[str, QueueLimits]] = {}
    if request.param == "postgres":
        new_dsn = request.getfixturevalue("new_dsn")

    async def opening(store: Store) -> Store:
        await store.open(Heard())
        opened.append(store)
        return store

    async def make(**given: int) -> Store:
        limits = QueueLimits(**given)
        if request.param == "memory":
            return await opening(MemoryStore(limits))
        if request.param == "sqlite":
            return await opening(SqliteStore(tmp_path / f"{len(opened)}.db", limits))
        return await connect(await new_dsn(), limits)

    async def connect(dsn: str, limits: QueueLimits) -> Store:
        store = PostgresStore(dsn, node="node", bus=DeafBus(), limits=limits, timing=STILL)
        places[store] = dsn, limits
        return await opening(store)

    async def reopen(store: Store) -> Store:
        if isinstance(store, MemoryStore):
            await store.open()
            return store
        await store.close()
        if isinstance(store, SqliteStore):
            return await opening(SqliteStore(store.path, store._file.queue.limits))
        return await connect(*places[store])

    make.reopen = reopen  # type: ignore[attr-defined]
    yield make
    for store in opened:
        await store.close()


@pytest.fixture
async def store(make):
    """An empty store of each kind."""
    return await make()


@pytest.fixture
def commits(store):
    """What the store tells of commits."""
    told: list[Commit] = []
    heard(store).committed = told.append
    return told


@pytest.fixture
def calls(store):
    """How often the store said that something may be claimed."""
    rung = Counter[str]()
    heard(store).ready = lambda: rung.update(["ready"])
    return rung


async def outcomes(*awaitables):
    """Each awaitable's result, or its error's class."""
    found = await asyncio.gather(*awaitables, return_exceptions=True)
    return [type(each) if isinstance(each, BaseException) else each for each in found]


class TestCreate:
    async def test_a_new_task_is_there(self, store):
        """A created task has its head, its log and no state."""
        task = new_task(events=numbers(1, 2))
        expected = Head("t1", "ann", PENDING, seq=2, epoch=0)
        assert await store.create(task) == Created(expected, replayed=False)
        assert await store.head("t1") == expected
        assert await log_of(store, "t1") == numbers(1, 2)
        assert await store.spec("t1") == task.spec
        assert await store.state("t1") is None

    async def test_the_same_key_finds_the_same_task(self, store):
        """A repeated create with the same parameters answers the first task as it is now."""
        await store.create(new_task("t1", key="k"))
        await store.append(following(await head_of(store, "t1"), QUEUED))
        again = await store.create(new_task("t2", key="k", at=NOW + 23 * HOUR))
        assert again == Created(Head("t1", "ann", QUEUED, seq=2, epoch=0), replayed=True)
        assert await store.head("t2") is None
        assert (await store.list("ann", None, 10, None)).total == 1

    async def test_the_same_key_with_other_parameters_is_a_conflict(self, store):
        """The refusal names the key, and nothing is created."""
        await store.create(new_task("t1", key="k"))
        with pytest.raises(ConflictError, match="'k' was used with other parameters"):
            await store.create(new_task("t2", key="k", spec=b'{"n":2}'))
        assert await store.head("t2") is None
        assert await store.find_key("ann", "k") == "t1"

    @pytest.mark.parametrize("spec", [b'{"n":1}', b'{"n":2}'])
    async def test_a_key_is_free_again_after_a_day(self, store, spec):
        """25 hours later the key makes another task, with the same parameters or others."""
        await store.create(new_task("t1", key="k"))
        later = await store.create(new_task("t2", key="k", spec=spec, at=NOW + 25 * HOUR))
        assert (later.head.task_id, later.replayed) == ("t2", False)
        assert await store.find_key("ann", "k") == "t2"
        assert (await head_of(store, "t1")).seq == 1
        replay = await store.create(new_task("t3", key="k", spec=spec, at=NOW + 26 * HOUR))
        assert (replay.head.task_id, replay.replayed) == ("t2", True)

    async def test_a_key_belongs_to_its_owner(self, store):
        """Two owners may use the same key without meeting."""
        await store.create(new_task("t1", key="k"))
        other = await store.create(new_task("t2", key="k", owner="bob", spec=b"other"))
        assert not other.replayed
        assert await store.find_key("ann", "k") == "t1"
        assert await store.find_key("bob", "k") == "t2"
        assert await store.find_key("eve", "k") is None
        assert await store.find_key("ann", "x") is None

    async def test_tasks_without_a_key_are_never_the_same(self, store):
        """Without a key each create makes a task."""
        created = [await store.create(new_task(f"t{n}")) for n in range(3)]
        assert not any(each.replayed for each in created)

    async def test_a_key_used_twice_at_the_same_time_makes_one_task(self, store):
        """Concurrent creates with one key: one creates, the others find it."""
        creates = [store.create(new_task(f"t{n}", key="k")) for n in range(6)]
        found = await asyncio.gather(*creates)
        assert sorted(each.replayed for each in found) == [False] + [True] * 5
        assert len({each.head.task_id for each in found}) == 1
        assert (await store.list("ann", None, 10, None)).total == 1

    @pytest.mark.parametrize("owner", ["ann", "bob"])
    async def test_a_task_id_is_taken_once(self, store, owner):
        """A task is never overwritten by another with its id."""
        await store.create(new_task("t1", events=numbers(1, 3)))
        before = await head_of(store, "t1")
        (found,) = await outcomes(store.create(new_task("t1", owner=owner, events=[b"x"])))
        assert isinstance(found, type)
        assert await head_of(store, "t1") == before
        assert await log_of(store, "t1") == numbers(1, 3)

    async def test_a_refused_create_leaves_its_key_alone(self, store):
        """When the id is taken, an expired key still stands for the task that had it."""
        await store.create(new_task("t1", key="k"))
        await store.create(new_task("t2"))
        late = new_task("t2", key="k", at=NOW + 25 * HOUR)
        (found,) = await outcomes(store.create(late))
        assert isinstance(found, type)
        assert await store.find_key("ann", "k") == "t1"


class TestFind:
    async def test_a_prefix_finds_up_to_two_tasks(self, store):
        """None, one, or two of more, so that a caller can tell whether it is unambiguous."""
        for task_id in ("3f2a", "3f2b", "3f2c", "4a", "4A", "4a_", "4aé"):
            await store.create(new_task(task_id))
        assert list(await store.find("ann", "5")) == []
        assert list(await store.find("ann", "3f2a")) == ["3f2a"]
        assert list(await store.find("ann", "3f2a0")) == []
        assert list(await store.find("ann", "4A")) == ["4A"]
        assert list(await store.find("ann", "4aé")) == ["4aé"]
        assert len(found := await store.find("ann", "3f2")) == 2
        assert set(found) < {"3f2a", "3f2b", "3f2c"}
        assert len(await store.find("ann", "")) == 2

    @pytest.mark.parametrize("prefix", ["%", "_", "3_", "3%", "*", "?"])
    async def test_no_character_of_a_prefix_is_special(self, store, prefix):
        """A prefix is text, not a pattern."""
        await store.create(new_task("3f2a"))
        assert list(await store.find("ann", prefix)) == []

    async def test_tasks_of_others_are_not_found(self, store):
        """Another owner's task neither shows up nor makes a prefix ambiguous."""
        await store.create(new_task("3f2a"))
        await store.create(new_task("3f2b", owner="bob"))
        await store.create(new_task("3f2", owner="bob"))
        assert list(await store.find("ann", "3f")) == ["3f2a"]
        assert list(await store.find("eve", "3f")) == []


class TestRead:
    async def test_pages_are_joined_without_a_hole(self, store):
        """Whatever the page's size, the pages of a log are the log."""
        lease = await leased(store)
        await store.append(following(lease, count=22))
        for limit in (1, 2, 7, 23, 24, 1000):
            assert await log_of(store, "t1", limit) == numbers(1, 23)

    async def test_reading_begins_behind_a_number(self, store):
        """What follows a number is read, up to the limit; behind the end there is nothing."""
        lease = await leased(store)
        await store.append(following(lease, count=9))
        found = [list(await store.read("t1", after, 3)) for after in (4, 8, 10, 99)]
        assert found == [numbers(5, 7), numbers(9, 10), [], []]

    async def test_logs_do_not_mix(self, store):
        """Tasks that are written at the same time keep their own events."""
        leases = [await leased(store, f"t{n}") for n in range(3)]
        for round_ in range(1, 4):
            appends = [
                following(lease)._replace(
                    expected=round_,
                    events=[f"{lease.task_id} {round_}".encode()],
                )
                for lease in leases
            ]
            await asyncio.gather(*map(store.append, appends))
        for lease in leases:
            expected = [f"{lease.task_id} {round_}".encode() for round_ in range(1, 4)]
            assert await log_of(store, lease.task_id) == [b"1", *expected]

    async def test_any_bytes_come_back(self, store):
        """The store looks into no event: empty, long and binary ones come back as they were."""
        events = [b"", b"\x00\xff", b"x" * 300_000, "é".encode()]
        await store.create(new_task(events=events, spec=b"\x00"))
        assert await log_of(store, "t1") == events

    async def test_a_task_that_there_is_not(self, store):
        """Nothing is known of it, and asking is no error."""
        assert await store.head("t9") is None
        assert await log_of(store, "t9") == []
        assert await store.state("t9") is None
        assert await store.spec("t9") is None
        await store.release("t9", 0)


class TestList:
    async def test_pages_go_on_until_the_end(self, store):
        """Following the cursor shows each task once, the newest first, and then ends."""
        for number in range(7):
            await store.create(new_task(f"t{number}", at=NOW + number))
        rows, cursor, sizes = [], None, []
        while True:
            page = await store.list("ann", None, 3, cursor)
            assert page.total == 7
            rows += page.rows
            sizes.append(len(page.rows))
            cursor = page.next_cursor
            if cursor is None:
                break
        assert sizes == [3, 3, 1]
        assert rows == [
            Row(f"t{number}", PENDING, f"do t{number}", NOW + number) for number in range(6, -1, -1)
        ]

    async def test_a_full_last_page_is_the_last(self, store):
        """No cursor leads to an empty page."""
        for number in range(4):
            await store.create(new_task(f"t{number}"))
        first = await store.list("ann", None, 2, None)
        second = await store.list("ann", None, 2, first.next_cursor)
        assert [row.task_id for row in second.rows] == ["t1", "t0"]
        assert second.next_cursor is None

    async def test_tasks_created_meanwhile_do_not_shift_the_pages(self, store):
        """A cursor is a place, not a count."""
        for number in range(4):
            await store.create(new_task(f"t{number}"))
        first = await store.list("ann", None, 2, None)
        await store.create(new_task("t9"))
        second = await store.list("ann", None, 2, first.next_cursor)
        assert [row.task_id for row in second.rows] == ["t1", "t0"]
        assert second.total == 5

    @pytest.mark.parametrize("text", ["x" * 32_768, "\0" * 32_768, "😀" * 32_768])
    async def test_a_page_has_at_most_a_frame(self, store, text):
        """The cursor leads to the rest, whatever ``limit`` allows."""
        for number in range(40):
            await store.create(new_task(f"t{number}")._replace(user_input=text))
        names, cursor, pages = [], None, 0
        while pages == 0 or cursor is not None:
            page = await store.list("ann", None, 500, cursor)
            assert sum(len(orjson.dumps(row.user_input)) + 150 for row in page.rows) < 1 << 20
            assert page.total == 40
            names += [row.task_id for row in page.rows]
            cursor, pages = page.next_cursor, pages + 1
        assert names == [f"t{number}" for number in range(39, -1, -1)]
        assert pages > 1

    async def test_a_list_may_be_of_one_status(self, store):
        """Rows, total and cursor are of the tasks with that status."""
        for number in range(6):
            await store.create(new_task(f"t{number}", QUEUED if number % 2 else PENDING))
        page = await store.list("ann", QUEUED, 2, None)
        assert [row.task_id for row in page.rows] == ["t5", "t3"]
        assert page.total == 3
        rest = await store.list("ann", QUEUED, 2, page.next_cursor)
        assert [(row.task_id, row.status) for row in rest.rows] == [("t1", QUEUED)]
        assert (rest.total, rest.next_cursor) == (3, None)
        assert (await store.list("ann", COMPLETED, 2, None)) == base.Page([], 0, None)

    async def test_a_list_shows_the_status_of_now(self, store):
        """A task that went on is listed where it is."""
        lease = await leased(store)
        await store.append(following(lease, COMPLETED))
        assert (await store.list("ann", QUEUED, 9, None)).rows == []
        assert (await store.list("ann", COMPLETED, 9, None)).total == 1

    async def test_tasks_of_others_are_hidden(self, store):
        """Neither rows nor totals tell of other owners' tasks."""
        await store.create(new_task("t1"))
        await store.create(new_task("t2", owner="bob"))
        page = await store.list("ann", None, 9, None)
        assert [row.task_id for row in page.rows] == ["t1"]
        assert page.total == 1
        assert await store.list("eve", None, 9, None) == base.Page([], 0, None)

    @pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", " 1", "²", "9" * 19, "1; DROP TABLE"])
    async def test_a_bad_cursor_is_told(self, store, cursor):
        """Only what a list has given is a cursor."""
        with pytest.raises(InvalidCommandError, match=r"cursor is .*; expected the next_cursor"):
            await store.list("ann", None, 9, cursor)


class TestAppend:
    async def test_events_follow_and_the_head_moves(self, store):
        """After an append the log, the number and the status are those of its events."""
        lease = await leased(store)
        assert await store.append(following(lease, count=3)) is None
        assert await head_of(store, "t1") == Head("t1", "ann", RUNNING, seq=4, epoch=1)
        assert await log_of(store, "t1") == numbers(1, 4)

    @pytest.mark.parametrize("status", TERMINAL)
    async def test_the_state_is_kept_with_the_terminal_event(self, store, status):
        """A finished task's snapshot can be read as it was written."""
        lease = await leased(store)
        await store.append(following(lease))
        assert await store.state("t1") is None
        await store.append(following(await head_of(store, "t1"), status, state=b'{"x":1}'))
        assert await store.state("t1") == b'{"x":1}'
        assert (await head_of(store, "t1")).status is status

    @pytest.mark.parametrize(
        "change",
        [{"epoch": 0}, {"epoch": 2}, {"expected": 0}, {"expected": 2}, {"epoch": 0, "expected": 0}],
        ids=str,
    )
    @pytest.mark.parametrize("status", [RUNNING, QUEUED, COMPLETED])
    async def test_another_epoch_or_number_is_fenced(self, store, commits, change, status):
        """A writer that is not where it believes writes nothing, and is told where things are."""
        lease = await leased(store)
        commits.clear()
        before = await head_of(store, "t1")
        with pytest.raises(FencedError, match=r"t1 has epoch 1 at event 1; expected epoch"):
            await store.append(following(lease, status, 2, b"state")._replace(**change))
        assert await head_of(store, "t1") == before
        assert await log_of(store, "t1") == numbers(1, 1)
        assert await store.state("t1") is None
        assert commits == []

    async def test_a_task_that_there_is_not_is_fenced(self, store):
        """Appending to nothing writes nothing."""
        with pytest.raises(FencedError, match="t9 has no task"):
            await store.append(following(Head("t9", "ann", RUNNING, 0, 0)))
        assert await store.head("t9") is None

    async def test_an_old_worker_is_fenced_by_the_next_claim(self, store):
        """Once a task was released and claimed again, its former worker writes nothing more."""
        old = await leased(store)
        await store.append(following(old))
        await store.release("t1", old.epoch)
        (new,) = await claim(store, "other", 1)
        assert new == old._replace(epoch=old.epoch + 1, seq=2)
        with pytest.raises(FencedError, match="epoch 2 at event 2; expected epoch 1 at event 2"):
            await store.append(following(old)._replace(expected=2))
        await store.append(following(new))
        assert await log_of(store, "t1") == numbers(1, 3)

    async def test_a_refused_append_spoils_nothing_beside_it(self, store):
        """Appends that are committed together are refused each for itself."""
        leases = [await leased(store, f"t{n}") for n in range(3)]
        appends = [following(lease, count=2) for lease in leases]
        appends[1] = appends[1]._replace(expected=7)
        assert await outcomes(*map(store.append, appends)) == [None, FencedError, None]
        assert [len(await log_of(store, lease.task_id)) for lease in leases] == [3, 1, 3]


class TestRace:
    async def test_one_of_six_writers_wins(self, store):
        """Of writers that append behind the same number one is acknowledged, a hundred times."""
        lease = await leased(store)
        for seq in range(1, 101):
            appends = [
                following(lease)._replace(expected=seq, events=[b"%d %d" % (seq, writer)])
                for writer in range(6)
            ]
            found = await outcomes(*map(store.append, appends))
            assert Counter(found) == {None: 1, FencedError: 5}
            (body,) = await store.read("t1", seq, 10)
            assert body == appends[found.index(None)].events[0]
        assert (await head_of(store, "t1")).seq == 101

    async def test_many_writers_leave_no_hole(self, store):
        """After 2,000 concurrent appends to 50 tasks every log is whole and in order."""
        leases = [await leased(store, f"t{n}") for n in range(50)]

        async def write(lease):
            head: Head | Lease = lease
            for count in range(40):
                append = following(head, COMPLETED if count == 39 else RUNNING, count % 3 + 1)
                await store.append(append)
                head = head._replace(seq=head.seq + len(append.events))
            return head.seq

        lengths = await asyncio.gather(*map(write, leases))
        for lease, length in zip(leases, lengths, strict=True):
            assert await log_of(store, lease.task_id, 17) == numbers(1, length)
        assert (await store.list("ann", COMPLETED, 1, None)).total == 50


class TestQueue:
    async def test_a_full_queue_refuses_a_new_task(self, make):
        """Beyond the limit a task that would be queued is refused, with the time to wait."""
        store = await make(total=2)
        for number in range(2):
            await store.create(new_task(f"t{number}", QUEUED))
        assert store.queued == 2
        with pytest.raises(OverloadedError, match="2 tasks are waiting already") as refusal:
            await store.create(new_task("t9", QUEUED, key="k"))
        assert refusal.value.retry_after == 1.0
        assert await store.head("t9") is None
        assert await store.find_key("ann", "k") is None
        assert (await store.list("ann", None, 9, None)).total == 2
        await store.create(new_task("t8", PENDING))

    async def test_an_owner_has_a_part_of_the_queue(self, make):
        """Beyond it the owner is refused and others are not; nobody's first is refused at all."""
        store = await make(total=3, waiting=2)
        for number in range(2):
            await store.create(new_task(f"a{number}", QUEUED))
        with pytest.raises(OverloadedError, match="2 of your tasks are waiting already"):
            await store.create(new_task("a9", QUEUED))
        await store.create(new_task("b0", QUEUED, owner="bob"))
        with pytest.raises(OverloadedError, match="3 tasks are waiting already"):
            await store.create(new_task("b1", QUEUED, owner="bob"))
        await store.create(new_task("e0", QUEUED, owner="eve"))
        await store.create(new_task("a8"))
        with pytest.raises(OverloadedError, match="2 of your tasks"):
            await store.append(following(await head_of(store, "a8"), QUEUED))

    async def test_a_full_queue_refuses_an_append(self, make):
        """Executing a pending task is refused too, and leaves it as it was."""
        store = await make(total=1)
        await store.create(new_task("t1"))
        await store.create(new_task("t2", QUEUED))
        before = await head_of(store, "t1")
        with pytest.raises(OverloadedError, match="1 tasks are waiting already") as refusal:
            await store.append(following(before, QUEUED))
        assert refusal.value.retry_after == 1.0
        assert await head_of(store, "t1") == before
        assert await log_of(store, "t1") == numbers(1, 1)
        assert store.queued == 1

    async def test_a_full_queue_still_answers_a_replay(self, make):
        """A repeated create with a key takes no place and is not refused."""
        store = await make(total=1)
        await store.create(new_task("t1", QUEUED, key="k"))
        assert (await store.create(new_task("t2", QUEUED, key="k"))).replayed

    async def test_claims_and_cancels_make_room(self, make):
        """A claimed task and one that was cancelled while it waited take no place."""
        store = await make(total=2)
        for number in range(2):
            await store.create(new_task(f"t{number}", QUEUED))
        await claim(store, "node", 1)
        assert store.queued == 1
        await store.append(following(await head_of(store, "t1"), CANCELLED))
        assert store.queued == 0
        for number in range(2, 4):
            await store.create(new_task(f"t{number}", QUEUED))
        assert store.queued == 2

    async def test_the_limit_holds_under_concurrent_creates(self, make):
        """Of ten creates at once exactly as many are queued as there is room for."""
        store = await make(total=4)
        found = await outcomes(*(store.create(new_task(f"t{n}", QUEUED)) for n in range(10)))
        assert found.count(OverloadedError) == 6
        assert store.queued == 4
        assert len(await claim(store, "node", 99)) == 4


class TestClaim:
    async def test_the_queue_is_first_in_first_out(self, store):
        """Tasks are claimed in the order of queueing, not of creation."""
        for number in range(4):
            await store.create(new_task(f"t{number}"))
        for number in (2, 0, 3):
            await store.append(following(await head_of(store, f"t{number}"), QUEUED))
        await store.create(new_task("t4", QUEUED))
        leases = await claim(store, "node", 99)
        assert [lease.task_id for lease in leases] == ["t2", "t0", "t3", "t4"]

    async def test_owners_take_turns(self, store):
        """One with many tasks does not delay another's first, and its own stay in order."""
        for number in range(50):
            await store.create(new_task(f"a{number}", QUEUED))
        await claim(store, "node", 2)
        await store.create(new_task("b0", QUEUED, owner="bob"))
        await store.create(new_task("b1", QUEUED, owner="bob"))
        assert (store.queued, store.queued_by("ann"), store.queued_by("bob")) == (50, 48, 2)
        leases = [lease.task_id for lease in await claim(store, "node", 5)]
        assert leases == ["a2", "b0", "a3", "b1", "a4"]

    async def test_an_owner_at_its_limit_is_passed_over(self, make):
        """Others are claimed meanwhile; when one of its tasks ends, that rings."""
        store = await make(running=2)
        rung = []
        for number in range(4):
            await store.create(new_task(f"a{number}", QUEUED))
        await store.create(new_task("b0", QUEUED, owner="bob"))
        first, *rest = await claim(store, "node", 9)
        assert [lease.task_id for lease in rest] == ["b0", "a1"]
        heard(store).ready = lambda: rung.append("ready")
        await store.append(following(rest[0], COMPLETED))
        assert (await claim(store, "node", 9), rung) == ([], [])
        await store.append(following(first, COMPLETED))
        assert rung == ["ready"]
        assert [lease.task_id for lease in await claim(store, "node", 9)] == ["a2"]

    async def test_leases_from_before_the_opening_count(self, make):
        """A restart is no way to have more tasks running than others may."""
        store = await make(running=1)
        lease = await leased(store, "a0")
        await store.create(new_task("a1", QUEUED))
        await store.append(following(lease))
        store = await make.reopen(store)
        assert [lease.task_id for lease in await claim(store, "node", 9)] == ["a0"]
        await store.append(following(await head_of(store, "a0"), COMPLETED))
        assert [lease.task_id for lease in await claim(store, "node", 9)] == ["a1"]

    async def test_a_lease_has_all_that_a_worker_needs(self, store):
        """The epoch is raised, and the lease tells where the log ends and what was asked."""
        await store.create(new_task("t1", QUEUED, owner="bob", spec=b"spec", events=numbers(1, 2)))
        assert await claim(store, "node", 1) == [
            Lease("t1", epoch=1, seq=2, spec=b"spec", owner="bob")
        ]
        assert await head_of(store, "t1") == Head("t1", "bob", QUEUED, seq=2, epoch=1)

    async def test_the_limit_is_respected(self, store):
        """A claim gives as many as were asked for, and the rest stays."""
        for number in range(5):
            await store.create(new_task(f"t{number}", QUEUED))
        assert await claim(store, "node", 0) == []
        sizes = [len(await claim(store, "node", limit)) for limit in (2, 2, 2, 2)]
        assert sizes == [2, 2, 1, 0]

    async def test_only_what_waits_is_claimed(self, store):
        """Pending tasks and tasks that ended while they waited are nobody's to run."""
        await store.create(new_task("t1", PENDING))
        for number, status in enumerate(TERMINAL, 2):
            await store.create(new_task(f"t{number}", QUEUED))
            await store.append(following(await head_of(store, f"t{number}"), status))
        assert await claim(store, "node", 99) == []
        assert store.queued == 0

    async def test_a_claimed_task_is_not_claimed_again(self, store):
        """While a worker has a task, and after it ended, nobody else gets it."""
        lease = await leased(store)
        assert await claim(store, "other", 9) == []
        await store.append(following(lease, RUNNING))
        assert await claim(store, "other", 9) == []
        await store.append(following(await head_of(store, "t1"), COMPLETED))
        assert await claim(store, "other", 9) == []

    async def test_claims_at_the_same_time_share_nothing(self, store):
        """Every waiting task goes to exactly one of the claiming nodes."""
        for number in range(20):
            await store.create(new_task(f"t{number}", QUEUED))
        found = await asyncio.gather(*(claim(store, f"node {n}", 4) for n in range(8)))
        claimed = [lease.task_id for leases in found for lease in leases]
        assert sorted(claimed) == sorted(f"t{number}" for number in range(20))

    async def test_orphans_go_first(self, store):
        """Tasks that lost their worker are claimed before those that wait for their first."""
        running, waiting = await leased(store, "t1"), await leased(store, "t2")
        await store.append(following(running))
        await store.create(new_task("t0", QUEUED))
        await store.release("t2", waiting.epoch)
        await store.release("t1", running.epoch)
        leases = await claim(store, "node", 2)
        assert sorted(lease.task_id for lease in leases) == ["t1", "t2"]
        assert [lease.task_id for lease in await claim(store, "node", 2)] == ["t0"]


class TestRelease:
    async def test_a_released_task_can_be_claimed_by_another(self, store):
        """It goes on from its log with the next epoch."""
        lease = await leased(store)
        await store.append(following(lease, count=2))
        await store.release("t1", lease.epoch)
        assert (await head_of(store, "t1")).status is RUNNING
        expected = lease._replace(epoch=2, seq=3)
        assert await claim(store, "other", 9) == [expected]
        assert await claim(store, "third", 9) == []

    async def test_a_stale_release_has_no_effect(self, store):
        """Who lost a lease cannot take it from who has it now."""
        lease = await leased(store)
        await store.release("t1", lease.epoch - 1)
        assert await claim(store, "other", 9) == []
        await store.release("t1", lease.epoch)
        (again,) = await claim(store, "other", 9)
        await store.release("t1", lease.epoch)
        assert await claim(store, "third", 9) == []
        await store.append(following(again))

    async def test_a_second_release_has_no_effect(self, store):
        """A task that was released twice is claimed once."""
        lease = await leased(store)
        await store.append(following(lease))
        await store.release("t1", lease.epoch)
        await store.release("t1", lease.epoch)
        assert len(await claim(store, "other", 9)) == 1
        assert await claim(store, "other", 9) == []

    @pytest.mark.parametrize("status", TERMINAL)
    async def test_an_ended_task_is_not_released(self, store, status):
        """A terminal event gives the lease back for good."""
        lease = await leased(store)
        await store.append(following(lease, status))
        await store.release("t1", lease.epoch)
        assert await claim(store, "other", 9) == []

    async def test_a_task_that_ends_after_its_release_is_not_claimed(self, store):
        """A last append by the releasing worker counts, and nobody runs the task again."""
        lease = await leased(store)
        await store.append(following(lease))
        await store.release("t1", lease.epoch)
        await store.append(following(await head_of(store, "t1"), CANCELLED))
        assert await claim(store, "other", 9) == []

    async def test_a_pending_task_is_not_released_into_the_queue(self, store):
        """Releasing what was never claimed queues nothing."""
        await store.create(new_task("t1"))
        await store.release("t1", 0)
        assert await claim(store, "node", 9) == []


class TestReopening:
    @pytest.mark.parametrize("times", [1, 2])
    async def test_a_task_that_lost_its_worker_is_claimed_once(self, make, times):
        """However often the store was opened since, the task goes to one worker, by a new epoch."""
        store = await make()
        old = await leased(store, "t1")
        await store.append(following(old))
        for _ in range(times):
            store = await make.reopen(store)
        (lease,) = await claim(store, "node", 9)
        assert lease._replace(interrupted=()) == old._replace(epoch=2, seq=2)
        assert await claim(store, "node", 9) == []
        with pytest.raises(FencedError):
            await store.append(following(old)._replace(expected=2))

    async def test_a_former_worker_cannot_release(self, make):
        """A release that comes late, from before the opening, does not offer the task twice."""
        store = await make()
        old = await leased(store, "t1")
        store = await make.reopen(store)
        await store.release("t1", old.epoch)
        assert len(await claim(store, "node", 9)) == 1
        assert await claim(store, "node", 9) == []

    async def test_what_waits_goes_on_waiting(self, make):
        """Queued, pending and ended tasks are as they were, and the queue is as long."""
        store = await make()
        ended = await leased(store, "t1")
        await store.append(following(ended, COMPLETED))
        await store.create(new_task("t2"))
        await store.create(new_task("t3", QUEUED))
        store = await make.reopen(store)
        assert store.queued == 1
        assert [lease.task_id for lease in await claim(store, "node", 9)] == ["t3"]

    async def test_a_release_is_no_crash(self, make):
        """A worker that gave its task back, or whose process had declared its stop, lost nothing."""
        store = await make()
        lease = await leased(store)
        await store.append(following(lease))
        await store.release("t1", lease.epoch)
        (lease,) = await claim(store, "node", 1)
        assert lease.interrupted == ()
        await store.append(following(lease))
        await store.announce_stop()
        store = await make.reopen(store)
        (lease,) = await claim(store, "node", 1)
        assert lease.interrupted == ()

    async def test_a_crash_before_the_first_append_is_none(self, make):
        """No code of the task ran: it waits for its start to be written."""
        store = await make()
        await leased(store)
        store = await make.reopen(store)
        (lease,) = await claim(store, "node", 1)
        assert lease.interrupted == ()


class TestPurge:
    async def test_ended_tasks_are_forgotten_whole(self, store):
        """Head, log, state, spec, key and row are gone, and the id and key are free again."""
        await store.create(new_task("t1", QUEUED, key="k"))
        (lease,) = await claim(store, "node", 1)
        await store.append(following(lease, COMPLETED, 3, b"state"))
        assert await store.purge(NOW + 1, 10) == 1
        assert await store.head("t1") is None
        assert await log_of(store, "t1") == []
        assert (await store.state("t1"), await store.spec("t1")) == (None, None)
        assert await store.find_key("ann", "k") is None
        assert list(await store.find("ann", "t")) == []
        assert await store.list("ann", None, 9, None) == base.Page([], 0, None)
        assert await store.purge(NOW + 1, 10) == 0
        assert not (await store.create(new_task("t1", key="k"))).replayed
        assert await log_of(store, "t1") == numbers(1, 1)

    async def test_only_what_ended_before_is_forgotten(self, store):
        """Tasks that have not ended, or ended later, stay as they are."""
        await store.create(new_task("pending", at=0))
        await store.create(new_task("queued", QUEUED, at=0))
        await store.create(new_task("late", QUEUED, at=0))
        late = await head_of(store, "late")
        await store.append(following(late, CANCELLED)._replace(at=NOW + 1))
        before = await store.list("ann", None, 9, None)
        assert await store.purge(NOW + 1, 10) == 0
        assert await store.list("ann", None, 9, None) == before
        assert await log_of(store, "late") == numbers(1, 2)
        assert await store.purge(NOW + 2, 10) == 1
        assert [lease.task_id for lease in await claim(store, "node", 9)] == ["queued"]

    async def test_the_limit_is_respected(self, store):
        """A purge takes as many as it is told, so that it may be done bit by bit."""
        for number in range(5):
            lease = await leased(store, f"t{number}")
            await store.append(following(lease, COMPLETED))
        assert [await store.purge(NOW + 1, 2) for _ in range(4)] == [2, 2, 1, 0]

    async def test_a_key_that_went_to_another_task_stays_with_it(self, store):
        """Forgetting the first task of an expired key leaves the second one's alone."""
        lease = await leased(store, "t0")
        await store.append(following(lease, COMPLETED))
        await store.create(new_task("t1", QUEUED, key="k"))
        (lease,) = await claim(store, "node", 1)
        await store.append(following(lease, COMPLETED))
        await store.create(new_task("t2", key="k", at=NOW + 25 * HOUR))
        assert await store.purge(NOW + 1, 10) == 2
        assert await store.find_key("ann", "k") == "t2"

    async def test_lists_go_on_over_what_was_forgotten(self, store):
        """A cursor survives the purge of tasks before and behind it."""
        for number in range(6):
            lease = await leased(store, f"t{number}")
            if number % 2:
                await store.append(following(lease, COMPLETED))
        first = await store.list("ann", None, 2, None)
        await store.purge(NOW + 1, 10)
        await store.create(new_task("t9"))
        rest = await store.list("ann", None, 9, first.next_cursor)
        assert [row.task_id for row in rest.rows] == ["t2", "t0"]

    async def test_nobody_is_told(self, store, commits):
        """A purge is no commit of events."""
        lease = await leased(store)
        await store.append(following(lease, COMPLETED))
        commits.clear()
        await store.purge(NOW + 1, 10)
        assert commits == []


class TestCallbacks:
    async def test_each_write_is_told_once(self, store, commits):
        """A create and an append are told with their events and the number before them."""
        await store.create(new_task("t1", QUEUED, events=numbers(1, 2)))
        (lease,) = await claim(store, "node", 1)
        await store.append(following(lease, count=3))
        assert [(each.task_id, each.owner, each.after, list(each.events)) for each in commits] == [
            ("t1", "ann", 0, numbers(1, 2)),
            ("t1", "ann", 2, numbers(3, 5)),
        ]

    async def test_replays_and_refusals_are_not_told(self, make):
        """Where nothing was written, nothing is told."""
        store = await make(total=1)
        await store.create(new_task("t1", QUEUED, key="k"))
        told: list[Commit] = []
        heard(store).committed = told.append
        await store.create(new_task("t2", QUEUED, key="k"))
        stale = following(await head_of(store, "t1"))._replace(epoch=7)
        refused = [
            store.create(new_task("t2", key="k", spec=b"other")),
            store.create(new_task("t2", QUEUED)),
            store.append(stale),
        ]
        assert await outcomes(*refused) == [ConflictError, OverloadedError, FencedError]
        assert told == []

    async def test_a_write_is_told_when_it_can_be_read(self, store):
        """When a commit is told its awaitable is done, but its caller has not yet gone on."""
        lease = await leased(store)
        handed: list[asyncio.Future[None]] = []
        order: list[str] = []
        seen = []
        heard(store).committed = lambda _: seen.append(
            ([done.done() for done in handed], list(order))
        )

        async def write():
            # A store may tell within the call, before anybody has the awaitable.
            handed.append(store.append(following(lease)))
            await handed[0]
            order.append("the caller goes on")

        await write()
        assert seen in ([([True], [])], [([], [])])

    async def test_readiness_is_told(self, store, calls):
        """A queued task, created or executed, and a released one ring; others do not."""
        await store.create(new_task("t1"))
        assert calls.total() == 0
        await store.append(following(await head_of(store, "t1"), QUEUED))
        rung = calls.total()
        assert rung > 0
        await store.create(new_task("t2", QUEUED))
        assert calls.total() > rung
        rung = calls.total()
        first, second = await claim(store, "node", 2)
        await store.append(following(first))
        assert calls.total() == rung
        for lease in (first, second):
            await store.release(lease.task_id, lease.epoch)
            assert calls.total() > rung
            rung = calls.total()


class TestCancelledCaller:
    @pytest.mark.parametrize("turns", range(4))
    async def test_a_create_happens_whole_or_not_at_all(self, store, commits, turns):
        """Whenever its caller is cancelled, the task is there with all its events or is not."""
        caller = asyncio.create_task(store.create(new_task("t1", QUEUED, events=numbers(1, 3))))
        for _ in range(turns):
            await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait({caller})
        head = await store.head("t1")
        written = head is not None
        assert turns == 0 or written
        assert await log_of(store, "t1") == (numbers(1, 3) if written else [])
        assert [len(commit.events) for commit in commits] == ([3] if written else [])
        assert len(await claim(store, "node", 9)) == written

    @pytest.mark.parametrize("turns", range(4))
    async def test_an_append_happens_whole_or_not_at_all(self, store, commits, turns):
        """A cancelled append is in the log with all its events, is told, and fences the next."""
        lease = await leased(store)
        commits.clear()
        done = store.append(following(lease, COMPLETED, 3, b"state"))
        for _ in range(turns):
            await asyncio.sleep(0)
        done.cancel()
        assert await head_of(store, "t1") == Head("t1", "ann", COMPLETED, seq=4, epoch=1)
        assert await log_of(store, "t1") == numbers(1, 4)
        assert await store.state("t1") == b"state"
        assert [commit.after for commit in commits] == [1]
        with pytest.raises(FencedError):
            await store.append(following(lease))

    async def test_a_cancelled_refusal_writes_nothing(self, store, commits):
        """Cancelling the caller of an append that is fenced changes nothing."""
        lease = await leased(store)
        commits.clear()
        done = store.append(following(lease)._replace(expected=9))
        await asyncio.sleep(0)
        if not done.cancel():
            assert isinstance(done.exception(), FencedError)
        assert await log_of(store, "t1") == numbers(1, 1)
        assert commits == []


@pytest.mark.parametrize(("cursor", "position"), [(None, None), ("0", 0), ("12", 12)])
def test_a_cursor_is_a_number(cursor, position):
    """What a list has given is read back."""
    assert base.parse_cursor(cursor) == position


ODD_NAMES = ["\0", "t1\0", "\0/a/1", "\ud800", "t1\udfff", "", "\U0010ffff", "x" * 5000, "'; --"]


@pytest.mark.parametrize("name", ODD_NAMES)
class TestOddNames:
    """Texts that a client or a token may send where a name is expected."""

    async def test_there_is_nothing_of_that_name(self, store, name):
        """Whatever is asked for; the task that is there is found all the same."""
        await store.create(new_task("t1", key="k"))
        assert await store.head(name) is None
        assert await store.read(name, 0, 9) in ((), [])
        assert await store.spec(name) is None
        assert await store.state(name) is None
        assert list(await store.find(name, "t")) == []
        assert await store.find_key("ann", name) is None
        assert await store.find_key(name, "k") is None
        page = await store.list(name, None, 9, None)
        assert (page.rows, page.total) == ([], 0)
        spans = [base.Span(name, 0, 9), base.Span("t1", 0, 9)]
        assert [list(log or ()) for log in await store.read_each(spans)] == [[], numbers(1, 1)]
        if name:
            assert list(await store.find("ann", name)) == []
            with pytest.raises(InvalidCommandError, match="cursor"):
                await store.list("ann", None, 9, name)

    async def test_a_name_that_one_store_cannot_keep_is_refused_by_each(self, store, name):
        """With the same error; what comes after it is written."""
        if "\0" in name or not base.is_text(name):
            with pytest.raises(InvalidCommandError, match="expected neither"):
                await store.create(new_task("t1", owner=name))
            if not base.is_text(name):
                with pytest.raises(InvalidCommandError, match="expected neither"):
                    await store.create(new_task("t1", key=name))
                with pytest.raises(InvalidCommandError, match="expected neither"):
                    await store.create(new_task("t1")._replace(user_input=name))
        else:
            await store.create(new_task("t2", owner=name, key=name))
            assert await store.find_key(name, name) == "t2"
        await store.create(new_task("t1"))
        assert await store.head("t1") is not None
