import sqlite3

import pytest

from agentsrv.errors import ConfigurationError, OverloadedError
from agentsrv.store.queue import QueueLimits
from agentsrv.store.sqlite.log import LOG, SqliteLog
from agentsrv.store.sqlite.schema import SCHEMA_VERSION, SEQ_BITS
from tests.support.store_tasks import COMPLETED, NOW, QUEUED, RUNNING, following, new_task, numbers


@pytest.fixture
def path(tmp_path):
    """Where the store is."""
    return tmp_path / "agentsrv.db"


@pytest.fixture
def log(path):
    """An open, empty log."""
    log = SqliteLog(path, QueueLimits(2))
    log.open()
    yield log
    log.close()


def open_and_close(path):
    """Open a store, and let go of it whatever happens."""
    log = SqliteLog(path, QueueLimits(2))
    try:
        log.open()
    finally:
        log.close()


def database(path, script):
    """Make a database that is none of ours."""
    db = sqlite3.connect(path)
    db.executescript(script)
    db.close()


def test_a_new_file_has_the_schema(log, path):
    """An empty place becomes a store of this version."""
    assert log._db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert path.exists()


def test_a_file_that_is_no_database_is_refused(path):
    """The refusal names the file and the reason, and the file stays as it is."""
    garbage = b"This is a letter to my grandmother.\n" * 100
    path.write_bytes(garbage)
    with pytest.raises(
        ConfigurationError, match=r"cannot open the store .*agentsrv\.db: .*not a d"
    ):
        open_and_close(path)
    assert path.read_bytes() == garbage


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 99, -1])
def test_a_schema_of_another_version_is_refused(path, version):
    """A newer server's file is left alone, and both versions are told."""
    open_and_close(path)
    database(path, f"PRAGMA user_version={version}")
    expected = f"its schema is {version}; expected {SCHEMA_VERSION}"
    with pytest.raises(ConfigurationError, match=expected):
        open_and_close(path)


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE notes (text)",
        "CREATE TABLE task (title); CREATE TABLE event (place)",
        f"CREATE TABLE notes (text); PRAGMA user_version={SCHEMA_VERSION}",
        "CREATE TABLE notes (text); PRAGMA user_version=7",
    ],
    ids=["other tables", "tables of the same names", "the same version", "another version"],
)
def test_another_programs_database_is_refused(path, script):
    """A database that is not ours gets none of our tables and no other mode."""
    database(path, script)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="cannot open the store"):
        open_and_close(path)
    assert path.read_bytes() == before


def test_a_missing_folder_is_told(tmp_path):
    """The refusal names the folder, and it is not made."""
    with pytest.raises(ConfigurationError, match=r"folder .*nowhere does not exist"):
        open_and_close(tmp_path / "nowhere" / "agentsrv.db")
    assert not (tmp_path / "nowhere").exists()


def test_a_refused_file_is_not_locked(path):
    """After a failed opening the place can be opened, once what was wrong is gone."""
    path.write_bytes(b"garbage " * 100)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="cannot open"):
            open_and_close(path)
    path.unlink()
    open_and_close(path)


def test_a_schema_that_was_begun_is_finished_or_begun_again(path):
    """An empty file, as a crash may leave one, becomes a store."""
    path.touch()
    open_and_close(path)
    assert path.stat().st_size > 0


def test_what_was_not_committed_is_gone(path):
    """A process that ends between a write and its commit leaves nothing of it."""
    first = SqliteLog(path, QueueLimits(2))
    first.open()
    first.create(new_task("t1", events=numbers(1, 3)))
    first.commit()
    first.create(new_task("t2", events=numbers(1, 3)))
    first.flush()
    assert first.head("t2") is not None
    first.close()
    again = SqliteLog(path, QueueLimits(2))
    again.open()
    assert again.read("t1", 0, 9) == numbers(1, 3)
    assert (again.head("t2"), again.read("t2", 0, 9)) == (None, [])
    again.close()


def test_a_refusal_spoils_nothing_beside_it(log):
    """The others of a transaction are committed when one is refused."""
    log.create(new_task("t1", QUEUED))
    log.create(new_task("t2", QUEUED))
    with pytest.raises(OverloadedError):
        log.create(new_task("t3", QUEUED))
    log.create(new_task("t4"))
    log.commit()
    page = log.list("ann", None, 9, None)
    assert [row.task_id for row in page.rows] == ["t4", "t2", "t1"]
    assert len(log.queue) == 2


def test_events_can_be_read_within_their_transaction(log):
    """A read between a write and its commit sees what was written."""
    log.create(new_task("t1", events=numbers(1, 3)))
    assert log.read("t1", 1, 9) == numbers(2, 3)


def test_only_writes_that_somebody_waits_for_are_changes(log):
    """Reading and claiming need no commit of their own; creating and releasing do."""
    log.create(new_task("t1", QUEUED))
    assert log.has_changes
    log.commit()
    assert not log.has_changes
    log.head("t1")
    (lease,) = log.claim("node", 1)
    assert not log.has_changes
    log.release("t1", lease.epoch)
    assert log.has_changes


def test_readiness_is_asked_once(log):
    """What became ready is told at the first asking after it."""
    assert log.take_ready_changed() is False
    log.create(new_task("t1", at=NOW))
    assert log.take_ready_changed() is False
    log.create(new_task("t2", QUEUED))
    assert log.take_ready_changed() is True
    assert log.take_ready_changed() is False


def test_nobody_works_on_what_is_not_committed(log):
    """Else a crash could forget a task whose steps have begun, and its key with it."""
    log.create(new_task("t1", QUEUED))
    log.create(new_task("t2"))
    log.commit()
    log.append(following(log.head("t2"), QUEUED))
    assert [lease.task_id for lease in log.claim("node", 9)] == ["t1"]
    log.create(new_task("t3", QUEUED))
    assert log.claim("node", 9) == ()
    log.commit()
    assert [lease.task_id for lease in log.claim("node", 9)] == ["t2", "t3"]


def test_a_purge_leaves_no_events(log):
    """The rows of forgotten tasks are gone from the file, and only theirs."""
    for number, ended in enumerate((True, False, True)):
        log.create(new_task(f"t{number}", QUEUED, events=numbers(1, 2)))
        log.commit()
        (lease,) = log.claim("node", 1)
        log.append(following(lease, COMPLETED if ended else RUNNING, count=3))
    log.commit()
    assert log.purge(NOW + 1, 9) == 2
    log.commit()
    rows = log._db.execute("SELECT place FROM event ORDER BY place").fetchall()
    assert rows == [(2 << SEQ_BITS | 2,), (2 << SEQ_BITS | 5,)]  # one for each append
    assert log.read("t1", 0, 9) == numbers(1, 5)


def test_a_log_is_read_without_a_look_at_others(log):
    """By the primary key, from both ends."""
    sql = f"SELECT body FROM event, {LOG} WHERE place > first + ? AND place <= last"  # noqa: S608
    plan = str(log._db.execute(f"EXPLAIN QUERY PLAN {sql}", ("t1", "t1", 0)).fetchall())
    assert "SEARCH event USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)" in plan
    assert "SCAN event" not in plan


def test_a_file_of_the_first_version_is_taken_over(path):
    """With a row for each event it was, and its logs can be read and go on."""
    open_and_close(path)
    database(
        path,
        """
        ALTER TABLE task DROP COLUMN interrupted;
        ALTER TABLE task ADD COLUMN losses INTEGER NOT NULL DEFAULT 0;
        DROP TABLE event;
        CREATE TABLE event (task INTEGER NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL,
            UNIQUE (task, seq)) STRICT;
        INSERT INTO task (task_id, owner, status, seq, user_input, created_at, spec)
            VALUES ('t1', 'ann', 'pending', 2, 'x', 1, x'7b7d'),
                   ('t2', 'ann', 'pending', 1, 'x', 1, x'7b7d');
        INSERT INTO event VALUES (2, 1, x'31'), (1, 1, x'31'), (1, 2, x'32');
        PRAGMA user_version=1;
        """,
    )
    log = SqliteLog(path, QueueLimits(2))
    log.open()
    try:
        assert log.read("t1", 0, 9) == numbers(1, 2)
        assert log.read("t2", 0, 9) == numbers(1, 1)
        head = log.head("t1")
        assert head is not None
        log.append(following(head, count=3))
        log.commit()
        assert log.read("t1", 1, 9) == numbers(2, 5)
        assert log._db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    finally:
        log.close()


@pytest.mark.parametrize("query", ["ready", "node", "owner"])
def test_queries_of_the_hot_path_use_an_index(log, query):
    """Claiming, freeing and listing look at no more rows than they answer."""
    statements = {
        "ready": "SELECT id FROM task WHERE ready IS NOT NULL ORDER BY ready, id LIMIT 5",
        "node": "UPDATE task SET node = NULL, ready = 0 WHERE node IS NOT NULL",
        "owner": "SELECT count(*) FROM task WHERE owner = 'ann' AND status = 'queued'",
    }
    plan = log._db.execute(f"EXPLAIN QUERY PLAN {statements[query]}").fetchall()
    assert f"INDEX task_{query}" in str(plan)
    assert "USE TEMP B-TREE" not in str(plan)
