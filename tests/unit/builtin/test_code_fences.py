import pytest

from agentsrv.builtin.code_fences import FenceFilter


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("```markdown\n# A\n\nb\n```", "# A\n\nb\n"),
        ("```\n# A\n```\n", "# A\n"),
        ("\n```md\nA\n```python\nx = 1\n```\nB\n```\nC", "A\n```python\nx = 1\n```\nB\nC"),
        ("```md\nA", "A"),
        ("```python\nx\n```\nA", "```python\nx\n```\nA"),
        ("A\n```\nx\n```\n", "A\n```\nx\n```\n"),
        ("``` is a fence", "``` is a fence"),
        ("`a` b", "`a` b"),
        ("```markdown\na ``` b\n``\n```", "a ``` b\n``\n"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_a_fence_around_a_text_is_taken_off(text, shown, size):
    """Fences inside it stay."""
    unfenced = FenceFilter()
    parts = [unfenced.feed(text[at : at + size]) for at in range(0, len(text), size)]
    assert "".join(parts) + unfenced.end() == shown
