import pytest

from tests.support.terminal import in_terminal


@pytest.fixture
def texts(tmp_path):
    """A folder of some texts."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.md").write_text(f"# Tea {number}\n\nTea is made of leaves.\n" * 20)
    return folder


def test_index_shows_a_bar_that_is_gone_behind_it(texts, tmp_path):
    """And what it has found stays."""
    arguments = ("index", str(texts), "--out", str(tmp_path / "i.db"))
    with in_terminal(*arguments, columns=200) as terminal:  # the line with the path is one
        assert terminal.end() == 0
        assert "━" in terminal.written
        assert "━" not in terminal.text
        assert "40 files" in terminal.text
        assert not terminal.is_cursor_hidden


def test_a_terminal_that_can_draw_nothing_is_told_in_lines(texts, tmp_path):
    """One for each step."""
    arguments = ["index", str(texts), "--out", str(tmp_path / "i.db")]
    with in_terminal(*arguments, env={"TERM": "dumb"}) as terminal:
        assert terminal.end() == 0
        assert "\x1b" not in terminal.written
        assert "agentsrv: read 40 of 40 files" in terminal.lines


@pytest.mark.parametrize("to_file", [False, True], ids=["terminal", "file"])
def test_bench_shows_how_many_probes_are_behind_it(tmp_path, to_file):
    """The figures stand above the bar, or in the file that stdout is."""
    path = tmp_path / "figures" if to_file else None
    arguments = ["bench", "commit", "--quick", "--store", "memory:", "--loop", "asyncio"]
    with in_terminal(*arguments, stdout=path, columns=100) as terminal:
        terminal.wait_for("0/1", "commit")
        assert terminal.end() == 0
        assert "0/1" not in terminal.text
    told = path.read_text() if path is not None else terminal.text
    assert "create to reply p50, ms" in told
