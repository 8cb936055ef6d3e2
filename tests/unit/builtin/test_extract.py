import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsrv.builtin.extract import (
    CONTEXT_FACTOR,
    REDUNDANT_SIMILARITY,
    Graph,
    Sentence,
    quality,
    relevance,
    specificity,
)
from agentsrv.knowledge.text import stems


def sentence(text, context="", nearby=""):
    """Return a sentence with the stems of its text, its headings and its passage."""
    own = tuple(stems(text))
    return Sentence(text, 1, 0, own, frozenset(stems(context)), frozenset(stems(nearby)), 1.0)


@pytest.mark.parametrize(
    "text",
    [
        "Asynchronous I/O raises throughput when requests wait.",
        "asyncio.to_thread runs a blocking function in a worker thread.",
        'Nystrom calls it "the colour" of functions (since 2015).',
    ],
)
def test_whole_statements_have_full_quality(text):
    """A sentence that stands on its own loses nothing."""
    assert quality(text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "Too short.",
        "What does the server do in this case?",
        "The options are the following ones here:",
        "and so on until the end of it.",
        "The bracket (is never closed in this sentence.",
        "word " * 60 + ".",
    ],
)
def test_fragments_and_questions_are_no_statements(text):
    """What cannot be quoted alone has no quality at all."""
    assert quality(text) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "However, the queue grows without any limit.",
        "This makes the queue grow without any limit.",
        "It grows without any limit until memory ends.",
        "The queue grows as shown below in memory.",
    ],
)
def test_sentences_that_lean_on_others_count_less(text):
    """Pronouns and connectives at the beginning point outside the sentence."""
    assert quality(text) == pytest.approx(CONTEXT_FACTOR)


def test_relevance_counts_own_words_most_then_headings_then_neighbours():
    """A word in the sentence counts one, above it a half, around it a quarter."""
    weights = {"thread": 1.0, "cost": 1.0}
    both = relevance(sentence("Threads have costs."), weights)
    headed = relevance(sentence("Threads take memory.", context="Costs"), weights)
    near = relevance(sentence("Threads take memory.", nearby="costs"), weights)
    assert (both, headed, near) == (1.0, 0.75, 0.625)
    assert relevance(sentence("Nothing."), {}) == 0.0


def test_rare_words_of_the_question_weigh_more():
    """A word that most sentences have says little, one that none has says nothing."""
    pool = [
        sentence("A server waits."),
        sentence("A server runs."),
        sentence("The server freezes."),
    ]
    weights = specificity(pool, ["server", "freez", "absent"])
    assert weights["freez"] > weights["server"] > weights["absent"] == 0.0


def test_similarity_is_the_idf_modified_cosine():
    """Two sentences computed by hand: common word ``a``, each one word of its own."""
    graph = Graph([sentence("aa bb"), sentence("aa cc")])
    common, own = math.log(1 + 2 / 2) ** 2, math.log(1 + 2 / 1) ** 2
    assert graph.similarity(0, 1) == pytest.approx(common / (common + own))
    assert graph.similarity(0, 0) == pytest.approx(1.0)


WORDS = st.lists(st.sampled_from("alpha beta gamma delta omega".split()), min_size=1, max_size=6)
POOL = st.lists(WORDS.map(" ".join), min_size=1, max_size=12)


@given(POOL)
def test_centrality_is_a_fixed_point(texts):
    """The ranks solve the equation of topic-sensitive LexRank, up to their common scale."""
    pool = [sentence(text) for text in texts]
    bias = [1.0 + number % 3 for number in range(len(pool))]
    graph = Graph(pool)
    ranks = graph.centrality(bias, damping=0.7)
    assert max(ranks) == 1.0
    total = sum(ranks)
    spread = [0.0] * len(pool)
    for number in range(len(pool)):
        row = {
            other: graph.similarity(number, other)
            for other in range(len(pool))
            if other != number and graph.similarity(number, other) > 0
        } or {number: 1.0}
        for other, weight in row.items():
            spread[other] += weight / sum(row.values()) * ranks[number] / total
    for number, value in enumerate(ranks):
        expected = 0.7 * bias[number] / sum(bias) + 0.3 * spread[number]
        assert value / total == pytest.approx(expected, abs=1e-5)


def test_without_relevance_nothing_is_central():
    """A question that no sentence touches ranks none of them."""
    assert Graph([sentence("One thing.")]).centrality([0.0]) == [0.0]
    assert Graph([]).centrality([]) == []


@given(POOL, st.integers(0, 6))
def test_chosen_sentences_differ_from_each_other(texts, limit):
    """No two of them are redundant, none is taken twice, and there are no more than asked for."""
    graph = Graph([sentence(text) for text in texts])
    chosen = graph.diversify([1.0] * len(texts), limit)
    assert len(chosen) == len(set(chosen)) <= limit
    for place, number in enumerate(chosen):
        assert all(
            graph.similarity(number, other) < REDUNDANT_SIMILARITY for other in chosen[:place]
        )


def test_the_best_comes_first_and_what_was_said_is_not_said_again():
    """Relevance decides the first, novelty the second, and a score of 0 excludes."""
    texts = ["queue limit memory", "queue limit memory grows", "thread stack", "event loop"]
    graph = Graph([sentence(text) for text in texts])
    assert graph.diversify([0.9, 1.0, 0.5, 0.0], 4) == [1, 2]
    assert graph.diversify([0.9, 1.0, 0.5, 0.0], 4, chosen=[2]) == [1]


def test_a_spread_choice_draws_on_more_passages():
    """A little less relevance from elsewhere beats a second sentence of one passage."""
    pool = [sentence("queue limit"), sentence("thread stack"), sentence("event loop")]
    pool[2] = replace(pool[2], passage=2)
    assert Graph(pool).diversify([1.0, 0.9, 0.8], 2) == [0, 1]
    assert Graph(pool).diversify([1.0, 0.9, 0.8], 2, spread=0.5) == [0, 2]
