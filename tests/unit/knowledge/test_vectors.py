import pytest

from agentsrv.errors import ModelError
from agentsrv.knowledge.documents import read_document
from agentsrv.knowledge.folder import scan
from agentsrv.knowledge.index import Index

TEXTS = {
    "a.md": "The first of three texts says something about threads and their costs.",
    "b.md": "The second of three texts says something about queues and their limits.",
    "c.md": "The third of three texts says nothing about anything that was said before.",
}


@pytest.fixture
def folder(tmp_path):
    """A folder with three documents."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def index(folder, tmp_path):
    """The index that is written."""
    index = Index(tmp_path / "index.db")
    index.read(folder, scan(folder), 10.0, read_document)
    yield index
    index.close()


@pytest.fixture
def reader(index, tmp_path):
    """A second connection, as a search has one."""
    reader = Index(tmp_path / "index.db")
    yield reader
    reader.close()


def rows(index):
    """The rows of the passages, by their order in the folder."""
    return sorted(row for row, _ in index.vectors("none of them").missing(10))


def test_passages_without_a_vector_are_missing(index):
    """With title and text, as many as are asked for, by the name of the model."""
    missing = index.vectors("m").missing(2)
    assert [text for _, text in missing] == [f"a\n{TEXTS['a.md']}", f"b\n{TEXTS['b.md']}"]
    index.vectors("m").add({missing[0][0]: [1.0, 0.0]})
    assert [text.partition("\n")[0] for _, text in index.vectors("m").missing(10)] == ["b", "c"]
    assert len(index.vectors("other").missing(10)) == 3
    assert (index.vectors("m").count(), index.vectors("other").count()) == (1, 0)


def test_the_nearest_have_the_greatest_cosine(index, reader):
    """Whatever their length; equals keep their order."""
    a, b, c = rows(index)
    index.vectors("m").add({a: [10.0, 0.0], b: [1.0, 1.0], c: [0.0, 0.1]})
    nearest = reader.vectors("m").nearest
    assert nearest([3.0, 0.1], 3) == [a, b, c]
    assert nearest([0.0, 2.0], 2) == [c, b]
    assert nearest([0.0, 0.0], 3) == [a, b, c]


def test_what_another_connection_commits_is_seen(index, reader):
    """Also that a passage is gone, or has another vector."""
    a, b, _ = rows(index)
    vectors = reader.vectors("m")
    assert vectors.nearest([1.0, 0.0], 3) == []
    index.vectors("m").add({a: [1.0, 0.0], b: [0.9, 0.1]})
    assert vectors.nearest([1.0, 0.0], 3) == [a, b]
    index.vectors("m").add({a: [0.0, 1.0]})
    assert vectors.nearest([1.0, 0.0], 3) == [b, a]
    index.remove(["b.md"])
    assert vectors.nearest([1.0, 0.0], 3) == [a]


def test_a_passage_that_is_gone_gets_no_vector(index):
    """The folder may change between the question and the answer."""
    a, *_ = rows(index)
    index.remove(["a.md"])
    index.vectors("m").add({a: [1.0]})
    assert index.vectors("m").count() == 0


def test_an_empty_vector_is_none_to_be_had(index, reader):
    """It is not missing, not counted and never near."""
    a, b, c = rows(index)
    index.vectors("m").add({a: (), b: [1.0], c: ()})
    assert index.vectors("m").missing(10) == []
    assert index.vectors("m").count() == 1
    assert reader.vectors("m").nearest([1.0], 3) == [b]


def test_another_dimension_is_an_error(index, reader):
    """The numbers of two models cannot be compared."""
    a, *_ = rows(index)
    index.vectors("m").add({a: [1.0, 0.0]})
    with pytest.raises(ModelError, match="a vector of 3 numbers; the index has 2"):
        reader.vectors("m").nearest([1.0, 0.0, 0.0], 3)
