import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentsrv.builtin.report import (
    Citations,
    ReportBlock,
    Statement,
    cited,
    escape,
    open_questions,
    read,
    render,
    unescape,
)

REPORT = """# Threads

Threads cost memory. [1] They switch often. They switch slowly. [2][3]

## Details

- An item says so. [1]
- Another one.

```python
x[1] = "no statement"
```

| a [1] | b |
|---|---|

| row [1] | without a head |

## Sources

1. `a.md`: Of threads. [9]

## Not covered

Nothing at all is missing here.
"""


def statements(markdown):
    """The statements of a report with what they cite."""
    return [(one.text, one.cites) for block in read(markdown) for one in block.statements]


def test_a_report_is_read_into_blocks():
    """Headings, paragraphs, items and the rest, up to the sources."""
    assert [block.kind for block in read(REPORT)] == [
        "heading", "paragraph", "heading", "item", "item", "other", "other", "other",
    ]  # fmt: skip
    assert statements(REPORT) == [
        ("Threads cost memory.", (1,)),
        ("They switch often.", (2, 3)),
        ("They switch slowly.", (2, 3)),
        ("An item says so.", (1,)),
        ("Another one.", ()),
    ]
    assert cited(read(REPORT)) == [1, 2, 3]


@pytest.mark.parametrize(
    "text",
    [
        "It is so [1].",
        "It is so. [1]",
        "It is so.[1]",
        "* It is so [1].",
        "1. It is so [1].",
        "It\nis so [1].",
        "It is so [1][1].",
    ],
)
def test_a_citation_may_stand_where_authors_put_it(text):
    """Before the full stop or behind it, in a paragraph or an item."""
    assert statements(text) == [("It is so.", (1,))]


def test_several_sources_may_be_cited():
    """In one bracket or in several."""
    assert statements("So it is [1, 3] [2].") == [("So it is.", (1, 3, 2))]


def test_escaped_brackets_cite_nothing():
    """A list of Python is not a source."""
    assert statements(r"The value x\[1\] is set.") == [(r"The value x\[1\] is set.", ())]


@pytest.mark.parametrize(
    ("text", "is_claim"),
    [
        ("Threads cost much memory. [1]", True),
        ("Threads cost much memory.", True),
        ("In short: [1]", True),
        ("In short:", False),
        ("Here are threads, memory and costs:", False),
        ("What do threads cost in memory?", False),
        ("That is it.", False),
    ],
)
def test_only_some_sentences_state_something(text, is_claim):
    """Those that cite, and those that say enough to be wrong."""
    (block,) = read(text)
    assert [one.is_claim for one in block.statements] == [is_claim]


def test_what_is_read_is_rendered_alike():
    """As far as the sources, which are another's to write."""
    assert render(read(REPORT)) == REPORT.partition("## Sources")[0]


def test_nothing_is_left_of_empty_blocks():
    """Headings over nothing go too; the title stays."""
    blocks = [
        ReportBlock("heading", "# Title"),
        ReportBlock("heading", "## One"),
        ReportBlock("heading", "### Deeper"),
        ReportBlock("paragraph"),
        ReportBlock("heading", "## Two"),
        ReportBlock("heading", "### Deeper"),
        ReportBlock("item", "", (Statement("It is so.", (1,)),)),
        ReportBlock("heading", "## Three"),
    ]
    assert render(blocks) == "# Title\n\n## Two\n\n### Deeper\n\n- It is so. [1]\n\n"


def test_the_preface_of_an_indirect_answer_is_no_statement():
    """It comes back when the report is rendered."""
    text = "No source answers this directly. The closest statements: It is so. [1]\n\n"
    assert statements(text) == [("It is so.", (1,))]
    assert render(read(text)) == text


@given(st.text(alphabet=st.sampled_from("ab. \n#-*[]1,`|\\_<~"), max_size=80))
@example("-[1]")
@example("[1]1. [2]")
@example("[1]# [2]")
@example("[1]> a [2]")
@example("[1]``` [2]")
def test_any_text_is_a_report(text):
    """And rendering what was read changes nothing that is read."""
    blocks = read(text)
    again = read(render(blocks))
    assert cited(again) == cited(blocks)


@given(st.text(max_size=40))
def test_escaping_is_undone(text):
    """Whatever the characters, as long as no backslash was there before."""
    text = text.replace("\\", "")
    assert unescape(escape(text)) == text


def test_sources_are_numbered_as_they_are_cited():
    """From 1; a line is shown where there is one."""
    passages = {
        7: {"source": "a.md", "title": "A_B_", "line": 3},
        9: {"source": "b.pdf", "title": "B", "line": 0},
    }
    citations = Citations(passages)
    assert [citations.number(source) for source in (9, 7, 9)] == [1, 2, 1]
    lines = "".join(citations.section())
    assert lines == "## Sources\n\n1. `b.pdf`: B\n2. `a.md`, line 3: A_B\\_\n\n"
    assert citations.listed()[1] == {
        "number": 2, "id": 7, "source": "a.md", "title": "A_B_", "line": 3,
    }  # fmt: skip


def test_open_questions_have_three_degrees():
    """Or there are none."""
    gaps = {"not_covered": ["a"], "single_source": ["b", "c"], "apart": ["d"]}
    text = "".join(open_questions(gaps))
    assert all(line in text for line in ("nothing on: a.", "mentions: b, c.", "the rest: d."))
    assert "Nothing: " in "".join(open_questions({kind: [] for kind in gaps}))
