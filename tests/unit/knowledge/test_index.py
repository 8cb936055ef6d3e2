import sqlite3

import pytest

from agentsrv.errors import KnowledgeError
from agentsrv.knowledge.documents import read_document
from agentsrv.knowledge.folder import scan
from agentsrv.knowledge.index import APPLICATION_ID, Index


def test_a_scan_follows_no_links_and_passes_hidden_files_over(tmp_path):
    """Loops and links are entries with a reason, hidden folders no entries at all."""
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.txt").symlink_to("a.txt")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("text")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "b.txt").write_text("text")
    assert [(file.name, file.reason) for file in scan(tmp_path)] == [
        ("a.txt", ""),
        ("link.txt", "symbolic link"),
    ]


def test_a_name_that_is_no_text_is_skipped_with_its_reason(tmp_path):
    """File systems allow names that are not UTF-8; the index does not."""
    try:
        (tmp_path / "bad\udcff.txt").write_text("text")
    except OSError:
        pytest.skip("this file system refuses such names")
    (found,) = scan(tmp_path)
    assert found.reason == "its name is not UTF-8"
    assert found.name.encode()


def test_a_missing_folder_is_an_error(tmp_path):
    """Nothing is forgotten because a disk is not mounted."""
    with pytest.raises(KnowledgeError, match="cannot list the folder"):
        scan(tmp_path / "missing")


@pytest.mark.parametrize("content", [b"precious text", b"SQLite format 3\0" + b"x" * 100])
def test_a_foreign_file_is_never_overwritten(tmp_path, content):
    """A path given by mistake does not cost a file."""
    database = tmp_path / "mine"
    database.write_bytes(content)
    with pytest.raises(KnowledgeError, match="not a knowledge index"):
        Index(database)
    assert database.read_bytes() == content


def test_another_schema_version_is_rebuilt(tmp_path):
    """An index of an older program is emptied, not misread."""
    database = tmp_path / "index.db"
    Index(database).close()
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT INTO file VALUES (1, 'old', 0, 0, 1.0, 5, 1, NULL)")
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    index = Index(database)
    assert index.totals() == (0, 0, 0)
    index.close()


def test_a_damaged_index_is_rebuilt(tmp_path):
    """Its pages are garbage, its header says that it is ours."""
    database = tmp_path / "index.db"
    Index(database).close()
    content = database.read_bytes()
    database.write_bytes(content[:100] + b"\xff" * (len(content) - 100))
    index = Index(database)
    assert index.totals() == (0, 0, 0)
    index.close()


def test_the_file_says_whose_it_is(tmp_path):
    """The application id is in the file itself before anything is indexed."""
    index = Index(tmp_path / "index.db")
    header = (tmp_path / "index.db").read_bytes()[68:72]
    index.close()
    assert header == APPLICATION_ID.to_bytes(4, "big")


def test_a_failed_batch_leaves_nothing(tmp_path):
    """A transaction that is broken off changes nothing."""
    (tmp_path / "a.txt").write_text("The server waits for the next request.")
    index = Index(tmp_path / "index.db")
    files = [file for file in scan(tmp_path) if file.name == "a.txt"]

    def fails(path, name):
        raise MemoryError

    with pytest.raises(MemoryError):
        index.read(tmp_path, files, 1.0, fails)
    assert index.read(tmp_path, files, 1.0, read_document) == 1
    assert index.totals()[:2] == (1, 1)
    index.close()
