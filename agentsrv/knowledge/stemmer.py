"""Stems of words, computed by SQLite's ``porter`` tokenizer, which the knowledge index uses too.

A word is inserted into a full-text table in memory, and the table's vocabulary is read back. The
stems in this process are therefore the same as those in the index.
"""

from __future__ import annotations

import sqlite3
from functools import lru_cache
from threading import Lock
from typing import Final

TOKENIZER: Final = "porter unicode61"
MAX_WORD: Final = 64  # letters; longer words are data, and would fill the cache

_lock = Lock()


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Return the stem of ``word``; very long words, and several words, are returned unchanged."""
    if len(word) > MAX_WORD:
        return word
    with _lock:
        table = _table()
        table.execute("INSERT INTO words (rowid, word) VALUES (1, ?)", (word,))
        found = table.execute("SELECT term, cnt FROM vocabulary").fetchall()
        table.execute("INSERT INTO words (words) VALUES ('delete-all')")
    is_one_word = [count for _, count in found] == [1]
    return found[0][0] if is_one_word else word


@lru_cache(maxsize=1)
def _table() -> sqlite3.Connection:
    # Any thread may use it while it holds the lock.
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute(
        f"CREATE VIRTUAL TABLE words USING fts5 (word, content = '', tokenize = '{TOKENIZER}')"
    )
    connection.execute("CREATE VIRTUAL TABLE vocabulary USING fts5vocab (words, row)")
    # Never committed: an open transaction halves the time for each word.
    connection.execute("BEGIN")
    return connection
