import pytest

from agentsrv.knowledge.markup import Block, html_blocks, markdown_blocks, plain, text_blocks

MARKDOWN = """\
---
title: ignored
---
# Guide to *queues*

A [bounded](https://example.org "x") queue
waits. <!-- not
shown --> It is **safe**.

```python
code = "never quoted"
```

- First point of `the` list.
- Second point
  goes on.

| a | b |
|---|---|
| 1 | 2 |

+---+---+
| 1 | 2 |
+---+---+

    indented_code()

Limits
------

> Quoted words stay.

[ref]: https://example.org
"""


def test_markdown_becomes_headings_and_paragraphs():
    """Code, tables, comments and front matter are gone; the others keep their lines."""
    assert markdown_blocks(MARKDOWN) == [
        Block("Guide to queues", 4, 1),
        Block("A bounded queue waits. It is safe.", 6),
        Block("First point of the list.", 14),
        Block("Second point goes on.", 15),
        Block("Limits", 28, 2),
        Block("Quoted words stay.", 31),
    ]


def test_html_in_markdown_is_read_as_html():
    """Its headings and paragraphs keep their lines; of a tag among words only the tag goes."""
    text = """\
<h1 align="center">Kettle</h1>

<p align="center"><a href="x">All</a> <a href="y">badges</a></p>

<details>

Water <b>boils</b>
here.

</details>

<pre>code()</pre>
"""
    assert markdown_blocks(text) == [Block("Kettle", 1, 1), Block("Water boils here.", 7)]


def test_the_structure_of_markdown_is_that_of_its_standard():
    """Code in a list is code, a reference is a link, and a list may begin without an empty line."""
    text = """\
As [the manual][m] says:
* Boil &amp; pour.

      code()

  See [more](https://example.org/a_(b) "t").

[m]: <https://example.org>
  'The manual'
"""
    assert markdown_blocks(text) == [
        Block("As the manual says:", 1),
        Block("Boil & pour.", 2),
        Block("See more.", 6),
    ]


def test_restructured_text_drops_directives_and_literal_blocks():
    """What follows ``::`` or a directive by indentation is code; notes are prose."""
    text = """\
Title
=====

An example::

    code()

.. code-block:: c

   more code

.. note::

   Notes are prose.

See :func:`open` and `the docs <https://example.org>`_ now.
"""
    assert text_blocks(text) == [
        Block("Title", 1, 1),
        Block("An example:", 4),
        Block("Notes are prose.", 14),
        Block("See open and the docs now.", 16),
    ]


def test_plain_text_has_headings_in_capitals_and_on_lone_lines():
    """A short line of its own without a full stop is a heading, a sentence is not."""
    text = "DEBUGGING PROGRAMS\n\nWhy it is hard\n\nIt depends.\n\nA short sentence.\n"
    assert [block.level for block in text_blocks(text)] == [2, 3, 0, 0]


def test_fields_and_full_stops_alone_divide_control_files():
    """The fields of a header do not run into one sentence."""
    text = "Upstream-Name: bash\nComment: This is a package.\n .\n It has a second part.\n"
    assert [block.text for block in text_blocks(text)] == [
        "Upstream-Name: bash",
        "Comment: This is a package.",
        "It has a second part.",
    ]


def test_html_gives_prose_without_navigation():
    """Navigation, scripts, tables and link lists are left out, entities are resolved."""
    text = """<html><head><title>Pools</title><script>x = "<p>no</p>"</script></head><body>
<nav><a href="/">Home</a></nav>
<div class="sidebar"><div>Nested menu</div> Still menu</div>
<h2>Why &amp; how</h2>
<p>Opening costs <b>round</b>
trips.<p>Unclosed paragraphs work.
<ul><li><a href="a">Only a link</a></li><li>A point.</li></ul>
<pre>code()</pre><table><tr><td>cell</td></tr></table>
<footer>Imprint</footer></body></html>"""
    assert html_blocks(text) == [
        Block("Pools", 1, 1),
        Block("Why & how", 4, 2),
        Block("Opening costs round trips.", 5),
        Block("Unclosed paragraphs work.", 6),
        Block("A point.", 7),
    ]


@pytest.mark.parametrize("text", ["<![if x]>a", "<p", "</b></b>", "<table>", "&#xffffffff;", "<!["])
def test_malformed_html_raises_nothing(text):
    """Whatever a page contains, there is an answer."""
    assert isinstance(html_blocks(text), list)


@pytest.mark.parametrize("rest", ["", "<!-- a", "</p a", "<p class='a", "<p title", "<?a", "<!a"])
def test_html_may_end_in_the_middle(rest):
    """What was begun and does not end is not shown; the text before it is whole."""
    assert html_blocks(f"<p>Fish &amp; chips{rest}") == [Block("Fish & chips", 1)]
    assert html_blocks(f"Fish & chips{rest}") == [Block("Fish & chips", 1)]


def test_a_listing_of_one_endless_paragraph_is_dropped():
    """Text without an end is no prose; long prose is divided at the ends of sentences."""
    assert text_blocks("word word word\n" * 5000) == []
    assert len(text_blocks("A sentence has an end here.\n" * 1000)) > 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("![logo](x.png) Text", "Text"),
        ("a `b` *c* **d** _e_ f", "a b c d e f"),
        ("snake_case_name and 2 * 3 * 4", "snake_case_name and 2 * 3 * 4"),
        (r"literal \*stars\*", "literal *stars*"),
        ("[text][ref] &lt;tag&gt; <br/>end", "text <tag> end"),
    ],
)
def test_inline_markup_is_removed(text, expected):
    """What stays is what a reader of the rendered text sees."""
    assert plain(text) == expected
