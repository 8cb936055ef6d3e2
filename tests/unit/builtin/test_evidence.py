import pytest

from agentsrv.builtin.evidence import MIN_SUPPORT, Evidence

PASSAGE = {
    "title": "What threads cost",
    "source": "cost_of/threads.md",
    "text": (
        "Creating a thread costs 20 to 50 microseconds on most machines. A pool of threads is"
        " faster than new threads for short operations. It is not safe to share a connection"
        " between two threads. Each thread\nkeeps a stack of 8 MB in virtual memory."
    ),
}


@pytest.fixture(scope="module")
def evidence():
    """The passage above."""
    return Evidence(PASSAGE)


def test_a_quote_stands_in_the_passage(evidence):
    """White space aside; any other change makes it none."""
    assert evidence.quotes("Each thread keeps a stack of 8 MB  in virtual memory.")
    assert not evidence.quotes("Each thread keeps a stack of 8 GB in virtual memory.")


@pytest.mark.parametrize(
    "text",
    [
        "On most machines, the creation of a thread costs 20 to 50 microseconds.",
        "For short operations a pool is faster than new threads.",
        "Sharing a connection between two threads is never safe.",
        "A thread's stack takes 8 MB of virtual memory.",
        "The costs of creating a thread are microseconds, and a pool is faster.",
    ],
)
def test_a_paraphrase_is_supported(evidence, text):
    """In another order, with other small words, over two sentences."""
    assert evidence.support(text) >= MIN_SUPPORT


@pytest.mark.parametrize(
    "text",
    [
        "Creating a thread costs 20 to 500 microseconds on most machines.",
        "Creating a thread never costs microseconds on most machines.",
        "It is safe to share a connection between two threads.",
        "A pool of threads is slower than new threads for short operations.",
        "Each process keeps a heap of 8 MB in physical caches.",
        "Bread needs flour, water and salt.",
        "And so it is.",
    ],
)
def test_what_is_said_otherwise_is_not(evidence, text):
    """Another number, a denial, its lack, an opposite, other words, or none at all."""
    assert evidence.support(text) < MIN_SUPPORT
