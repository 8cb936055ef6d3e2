import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentsrv.knowledge.documents import read_document
from agentsrv.knowledge.folder import scan
from agentsrv.knowledge.index import Index
from agentsrv.knowledge.ranking import find, fuse, match_any, match_pairs
from agentsrv.knowledge.text import terms

THREADS = "Creating a thread costs tens of microseconds on most machines."
QUEUES = "A bounded queue makes the producer wait until there is room."


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """An index of a small folder, for searches in the test's own thread."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "a.md").write_text(f"# Threads\n\n{THREADS}\n\n# Queues\n\n{QUEUES}\n")
    index = Index(tmp_path_factory.mktemp("index") / "knowledge.db")
    index.read(folder, scan(folder), 10.0, read_document)
    yield index
    index.close()


HOSTILE = st.text(
    alphabet=st.sampled_from("thread queue\"'*()^:-+{}\\ANDORNEAR\0\n;é/_I"), max_size=60
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(HOSTILE, st.text(max_size=200)))
def test_no_query_is_a_syntax_error(index, query):
    """Whatever a user types is searched for, never interpreted or refused."""
    assert isinstance(find(index, query, 3), list)
    found = terms(query)
    if found:
        index.match(match_any(found), 3)
    if len(found) > 1:
        index.match(match_pairs(found), 3)


@pytest.mark.parametrize("query", ['thread" OR body:x', "NEAR(thread queue)", "thread*", "-thread"])
def test_operators_are_only_words(index, query):
    """The words around an operator are found as they would be without it."""
    assert THREADS in [passage.text for passage in find(index, query, 5)]


def test_the_fused_score_is_the_sum_of_the_reciprocal_ranks():
    """Of 60 and the rank, in each ranking that has the row."""
    scores = fuse([[7, 8, 9], [9, 7]])
    assert scores == {
        7: pytest.approx(1 / 61 + 1 / 62),
        8: pytest.approx(1 / 62),
        9: pytest.approx(1 / 63 + 1 / 61),
    }
    assert fuse([[], []]) == {}


def test_rows_that_are_near_but_gone_are_passed_over(index):
    """A passage may be forgotten between the two rankings."""
    first = find(index, "thread", 3)
    assert find(index, "thread", 3, [first[0].passage_id, 999])[0].text == first[0].text
    assert [passage.text for passage in find(index, "producer", 3, [first[0].passage_id])] == [
        THREADS,
        QUEUES,
    ]  # of the same score, and in the order of the file
