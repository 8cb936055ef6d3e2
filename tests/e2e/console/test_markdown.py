"""The renderer of streamed Markdown: what becomes of a text, in whatever pieces it comes."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.e2e.console.looking import visiting
from tests.support.server_process import ServerProcess

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]
RENDER = """async (pieces) => {
    const { Markdown } = await import("./console/markdown.js");
    const root = document.createElement("div");
    const stream = new Markdown(root);
    for (const piece of pieces) {
        stream.append(piece);
        if (pieces.length > 1) await new Promise(requestAnimationFrame);
    }
    let before;
    do {
        before = root.innerHTML;
        await new Promise(requestAnimationFrame);
        await new Promise(requestAnimationFrame);
    } while (root.innerHTML !== before || !before);
    return root.innerHTML.replaceAll(/<\\/?div[^>]*>/g, "").replaceAll(' tabindex="0"', "");
}"""
TEXTS = {
    "# One\n## Two *em*\ntext": "<h3>One</h3><h4>Two <em>em</em></h4><p>text</p>",
    "a\nb\n\nc": "<p>a\nb</p><p>c</p>",
    "**b** `c*d*` \\*no\\* snake_case_name _em_": "<p><strong>b</strong> <code>c*d*</code> *no* snake_case_name <em>em</em></p>",
    "- a\n- b\n  - c\n- d": "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "It is:\n- a": "<p>It is:</p><ul><li>a</li></ul>",
    "> a\n> b": "<blockquote><p>a\nb</p></blockquote>",
    "```py\na < b\n\n# c\n```\nd": "<pre><code>a &lt; b\n\n# c</code></pre><p>d</p>",
    "a\n~~~\nb\n~~~": "<p>a</p><pre><code>b</code></pre>",
    "```\nnot closed": "<pre><code>not closed</code></pre>",
    "---\n\n***": "<hr><hr>",
    "|a|b|\n|-|-|\n|c|d|": "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>c</td><td>d</td></tr></tbody></table>",
    "[a](https://x.example/) [b](ftp://x) [c](javascript:x)": '<p><a href="https://x.example/" rel="noopener noreferrer nofollow" target="_blank">a</a> [b](ftp://x) [c](javascript:x)</p>',
    "a <b>c</b> &amp; [1]": "<p>a &lt;b&gt;c&lt;/b&gt; &amp;amp; [1]</p>",
}
HOSTILE = ["*" * 30_000, "`" * 30_000, "[" * 30_000, "_a" * 15_000, "# " + " " * 30_000 + "x",
           "|\n" + "-" * 30_000 + "x", "> " * 15_000, "[a](" * 8_000, "- " * 15_000, "\\" * 30_000,
           "```\n" + "x" * 30_000, "http://" * 4_000]  # fmt: skip


@pytest.fixture(scope="module")
def page(browser: Browser, server: ServerProcess) -> Iterator[Page]:
    """One for all: the renderer writes beside it."""
    with visiting(browser, server) as visit:
        visit.open()
        yield visit.page


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_rendered(page: Page, text):
    """At once, in single characters, and in pieces of any size, they come to the same."""
    chance = random.Random(text)
    assert page.evaluate(RENDER, [text]) == TEXTS[text]
    assert page.evaluate(RENDER, list(text)) == TEXTS[text]
    cut = chance.randrange(1, len(text))
    assert page.evaluate(RENDER, [text[:cut], text[cut:]]) == TEXTS[text]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:4])
def test_no_text_is_too_hard(page: Page, text):
    """What makes others count for ever is shown as it is, in full."""
    page.set_default_timeout(10_000)
    shown = page.evaluate(RENDER, [text])
    assert len(shown) > 0
