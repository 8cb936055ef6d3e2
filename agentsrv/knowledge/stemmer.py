"""The stems of words, as the knowledge index has them: SQLite's ``porter`` tokenizer makes both.

A word is written to a full-text table in memory, and the vocabulary of the table is read back. A
stem that is counted in a text is thereby the one by which the index finds it.
"""

from __future__ import annotations

import sqlite3
from functools import lru_cache
from threading import Lock
from typing import Final

TOKENIZER: Final = "porter unicode61"
MAX_WORD: Final = 64  # letters; more is data. It bounds what the cache holds, too

_lock = Lock()


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Return the stem of ``word``: as it is if it is very long, or not one word to the index."""
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
    # whichever thread holds the lock
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute(
        f"CREATE VIRTUAL TABLE words USING fts5 (word, content = '', tokenize = '{TOKENIZER}')"
    )
    connection.execute("CREATE VIRTUAL TABLE vocabulary USING fts5vocab (words, row)")
    # never committed: it halves the time of a word
    connection.execute("BEGIN")
    return connection
