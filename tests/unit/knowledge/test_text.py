import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from string import ascii_lowercase

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentsrv.knowledge.stemmer import TOKENIZER, stem
from agentsrv.knowledge.text import (
    SPELLINGS,
    content_stem,
    fold,
    sentences,
    shorten,
    stems,
    terms,
    words,
)

PROSE = st.text(alphabet=st.sampled_from('aB e.g. !?"”()\n\t1…é-'), max_size=80)


@given(st.one_of(PROSE, st.text(max_size=200)))
def test_splitting_loses_nothing_but_white_space(text):
    """The sentences hold the same characters in the same order, stripped and non-empty."""
    found = sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(sentence and sentence == " ".join(sentence.split()) for sentence in found)


@given(PROSE)
def test_a_sentence_is_not_split_again(text):
    """Splitting a sentence gives the sentence."""
    for sentence in sentences(text):
        assert sentences(sentence) == [sentence]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("See e.g. Fig. 3 by J. Smith. Then go.", ["See e.g. Fig. 3 by J. Smith.", "Then go."]),
        ('He said "Stop." She did.', ['He said "Stop."', "She did."]),
        ("Version 3.11. is old", ["Version 3.11. is old"]),
        ("A title\n\nA text\nin two lines.", ["A title", "A text in two lines."]),
        ("Call foo.bar() now. Done.", ["Call foo.bar() now.", "Done."]),
        ("The answer is no. The end.", ["The answer is no.", "The end."]),
        ("1. First point. 2. Second point.", ["1. First point.", "2. Second point."]),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text, expected):
    """Abbreviations, initials, numbers and quotes do not end a sentence; empty lines do."""
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("caresses", "caress"),
        ("ponies", "poni"),
        ("agreed", "agre"),
        ("hopping", "hop"),
        ("hoping", "hope"),
        ("relational", "relat"),
        ("conditional", "condit"),
        ("oscillators", "oscil"),
        ("generalizations", "gener"),
        ("adoption", "adopt"),
        ("sky", "sky"),
        ("is", "is"),
        ("naïve", "naiv"),
    ],
)
def test_the_stemmer_gives_the_published_stems(word, expected):
    """The examples of Porter's paper come out as printed there."""
    assert stem(word) == expected


@given(st.text(st.sampled_from("aeionrstlydgbzé'й"), max_size=70))
@example("eed")
@example("technologies")
@example("i/o")
@example("a'a")
def test_a_stem_is_what_the_index_has(word):
    """What a search finds is counted, too; a word that the index splits stays as it is."""
    with closing(sqlite3.connect(":memory:")) as index:
        index.execute(f"CREATE VIRTUAL TABLE t USING fts5 (a, tokenize = '{TOKENIZER}')")
        index.execute("CREATE VIRTUAL TABLE v USING fts5vocab (t, instance)")
        index.execute("INSERT INTO t VALUES (?)", (word,))
        indexed = [term for (term,) in index.execute("SELECT term FROM v")]
    assert stem(word) == (indexed[0] if len(indexed) == 1 else word)


def test_threads_stem_words_side_by_side():
    """Each gets the stem of its own word."""
    bases = [f"relat{letter}{other}" for letter in ascii_lowercase for other in ascii_lowercase]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(stem, [f"{base}ths" for base in bases])) == [
            f"{base}th" for base in bases
        ]


def test_forms_of_a_word_are_one_term():
    """Plural, participle and capital letters share a stem, accents do not matter."""
    assert len({content_stem(word) for word in ("thread", "Threads", "threading", "threaded")}) == 1
    assert fold("Café’s") == "cafe's"


@pytest.mark.parametrize("group", SPELLINGS, ids=lambda group: group[0])
def test_all_spellings_of_a_term_share_its_stem(group):
    """Short forms and hyphens make no difference."""
    assert len({tuple(stems(f"one {spelling} two"))[:1] for spelling in group}) == 1


def test_questions_are_reduced_to_their_content():
    """Question words and function words are no terms, ``I/O`` is one."""
    found = terms("How does async I/O affect the throughput of a server?")
    assert [term.surface for term in found] == ["async", "I/O", "throughput", "server"]


def test_words_keep_apostrophes_and_split_at_hyphens():
    """A hyphenated compound is found by its parts."""
    assert words("don't use non-blocking I/O") == ["don't", "use", "non", "blocking", "I/O"]


def test_long_texts_are_cut_at_a_word():
    """A shortened text is one line with an ellipsis, within its limit."""
    assert shorten("one\n two three", 40) == "one two three"
    assert shorten("one two, three four", 12) == "one two…"
