"""How well the search finds what is known to be there, measured on a real collection.

The collection is the part of Python's language reference that comes with every CPython, cut into
its sections, as reStructuredText. Each section's title is a question whose answer is that section
("known items"), once with the titles standing above the texts, and once with the titles taken out
of them.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from agentsrv.agents.llm import Embedder, Endpoint
from agentsrv.knowledge.search import KnowledgeBase
from agentsrv.knowledge.text import terms
from tests.support.fake_model import fake_model

HEADING = re.compile(r"^(\S.*)\n([*=\-~])\2{2,}$", re.MULTILINE)
MIN_WORDS = 40  # of a section, so that there is something to find
LIMIT = 10
DIMENSIONS = 512


def sections() -> dict[str, str]:
    """The sections by title; of those with the same title the first, none that is a stub."""
    found: dict[str, str] = {}
    for text in topics.values():
        places = [*HEADING.finditer(text)]
        ends = [*(place.start() for place in places[1:]), len(text)]
        for place, end in zip(places, ends, strict=True):
            body = text[place.end() : end].strip()
            if len(body.split()) >= MIN_WORDS and terms(place[1]):
                found.setdefault(place[1], body)
    return found


ITEMS = sections()


def misspelt(title: str, seed: int) -> str:
    """The title with two neighbouring letters exchanged in each word of four or more."""
    draw = random.Random(seed)

    def exchange(match: re.Match[str]) -> str:
        word = match[0]
        place = draw.randrange(1, len(word) - 2)
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]

    return re.sub(r"[^\W\d_]{4,}", exchange, title)


def trigrams(text: str) -> list[float]:
    """A vector of the text's groups of three letters: likeness in spelling, none in meaning."""
    vector = [0.0] * DIMENSIONS
    folded = f" {' '.join(text.lower().split())} "
    for place in range(len(folded) - 2):
        vector[zlib.crc32(folded[place : place + 3].encode()) % DIMENSIONS] += 1.0
    return [math.sqrt(value) for value in vector] if any(vector) else [1.0] * DIMENSIONS


def fill(folder: Path, *, titled: bool) -> dict[str, str]:
    """Write a file for each section; return the titles by file."""
    folder.mkdir()
    names = {}
    for number, (title, body) in enumerate(ITEMS.items()):
        name = f"{number:03}.rst"
        head = f"{title}\n{'=' * len(title)}\n\n" if titled else ""
        (folder / name).write_text(head + body, encoding="utf-8")
        names[name] = title
    return names


async def ranks(base: KnowledgeBase, wanted: dict[str, str]) -> list[int | None]:
    """At which place each question finds its file; None if not among the first."""
    found: list[int | None] = []
    for name, question in wanted.items():
        sources = [passage.source for passage in await base.search(question, LIMIT)]
        found.append(sources.index(name) + 1 if name in sources else None)
    return found


def measures(found: Sequence[int | None]) -> tuple[float, float]:
    """The part of questions that find their file, and the mean reciprocal rank."""
    hits = [rank for rank in found if rank is not None]
    return len(hits) / len(found), sum(1 / rank for rank in hits) / len(found)


def table(rows: dict[str, tuple[float, float]]) -> Iterator[str]:
    """The lines to print."""
    yield f"\n\n{len(ITEMS)} known items in Python's language reference  hit@{LIMIT}   MRR"
    for name, (hit, reciprocal) in rows.items():
        yield f"  {name:48} {hit:6.3f} {reciprocal:6.3f}"


@pytest.mark.parametrize(
    ("titled", "hit_floor", "mrr_floor"), [(True, 0.92, 0.8), (False, 0.8, 0.55)]
)
async def test_known_items_are_found(tmp_path, capsys, titled, hit_floor, mrr_floor):
    """By their titles, where these stand above the text and where they do not."""
    wanted = fill(tmp_path / "docs", titled=titled)
    base = KnowledgeBase(tmp_path / "docs", tmp_path / "index.db")
    await base.refresh()
    hit, reciprocal = measures(await ranks(base, wanted))
    await base.close()
    name = f"words, titles {'in' if titled else 'taken out of'} the text"
    with capsys.disabled():
        print(*table({name: (hit, reciprocal)}), sep="\n")
    assert hit >= hit_floor
    assert reciprocal >= mrr_floor


async def test_the_fusion_keeps_the_better_of_two_rankings(tmp_path, capsys):
    """With vectors that know spelling and no meaning: they find misspelt titles, which words do
    not, and correct titles are found about as well as by words alone. This measures the fusion;
    how good a real embedding model is, it does not tell.
    """
    wanted = fill(tmp_path / "docs", titled=True)
    wrong = {name: misspelt(title, number) for number, (name, title) in enumerate(wanted.items())}
    rows = {}
    async with fake_model() as fake, Endpoint(fake.url, None, 30.0) as client:
        fake.embed = trigrams
        words = KnowledgeBase(tmp_path / "docs", tmp_path / "words.db")
        hybrid = KnowledgeBase(tmp_path / "docs", tmp_path / "both.db", Embedder(client, "letters"))
        for kind, base in (("words", words), ("words and vectors of spelling", hybrid)):
            await base.refresh()
            await base.embed()
            rows[kind] = measures(await ranks(base, wanted))
            rows[f"{kind}, misspelt"] = measures(await ranks(base, wrong))
            await base.close()
    with capsys.disabled():
        print(*table(rows), sep="\n")
    both, both_wrong = (
        rows["words and vectors of spelling"],
        rows["words and vectors of spelling, misspelt"],
    )
    assert both[0] >= rows["words"][0] - 0.03
    assert both_wrong[0] >= rows["words, misspelt"][0] + 0.2
