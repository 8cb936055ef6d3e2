from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import orjson

from agentsrv.bench.figures import Figure
from tests.bench import page
from tests.bench.plots import LEFT, RIGHT, WIDTH, Bars

SVG = "{http://www.w3.org/2000/svg}"


def test_the_page_is_made_of_its_json(tmp_path: Path):
    """Tables and plots are those of the committed figures, to the byte; nobody edits them."""
    for path in (page.FIGURES, page.PAGE):
        shutil.copy(path, tmp_path)
    page.main(tmp_path / page.FIGURES.name, tmp_path / page.PAGE.name)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text() for path in page.DOCS.glob("performance*")}
    assert made == committed
    assert len([name for name in made if name.endswith(".svg")]) >= 4


def test_what_postgres_was_measured_with_has_rows_of_its_own():
    """And is left out where it was not: the committed figures may be older than these rows."""
    report = orjson.loads(page.FIGURES.read_bytes())
    kept = [each for each in report["figures"] if ".postgres." not in f"{each['key']}."]
    added = [
        {**each, "key": each["key"].replace(".sqlite", ".postgres"), "values": [4321.0]}
        for each in kept
        if ".sqlite" in each["key"] and each["key"].startswith("yardstick.")
    ]
    without, beside = (
        page.Found({**report, "figures": figures}) for figures in (kept, [*kept, *added])
    )
    assert "| postgres |" not in "\n".join(page.sections(without))
    told = "\n".join(page.sections(beside))
    assert told.count("| postgres | 50 | 4,321 |") == 1
    assert told.count("| postgres | 200 | 4,321 |") == 1
    for name in ("ratio", "cancel"):
        assert "4,321" not in page.plots(without)[name].draw()
        assert "4,321" in page.plots(beside)[name].draw()


def test_only_what_stands_between_the_marks_is_written_anew(tmp_path: Path):
    """The words around the figures stay."""
    target = tmp_path / "performance.md"
    target.write_text(f"before\n{page.BEGIN}to be replaced\n{page.END}after\n")
    page.main(page.FIGURES, target)
    text = target.read_text()
    assert text.startswith(f"before\n{page.BEGIN}")
    assert text.endswith(f"{page.END}after\n")
    assert "to be replaced" not in text


def test_every_figure_is_told():
    """None is measured in vain."""
    found = page.Found(orjson.loads(page.FIGURES.read_bytes()))
    text = "\n".join(page.sections(found))
    for key, figure in found.figures.items():
        assert figure.told() in text, key


def test_bars_are_as_long_as_their_figures():
    """The longest round ends where the numbers begin; markup in names is escaped."""
    few, many = Figure("a", "a", (10.0,)), Figure("b", "b", (30.0, 40.0, 50.0))
    drawn = Bars("a < b", {"x & y": [few, many], "z": [None, few]}, ("one", "two")).draw()
    tree = ET.fromstring(drawn)  # noqa: S314 - our own
    bars = [rect for rect in tree.iter(f"{SVG}rect") if rect.get("x") == f"{LEFT:.1f}"]
    widths = [float(bar.get("width", "")) for bar in bars if bar.get("height") != "10.0"]
    scale = (WIDTH - LEFT - RIGHT) / 50
    assert widths == [10 * scale, 40 * scale, 10 * scale]
    told = [text.text for text in tree.iter(f"{SVG}text")]
    assert {"a < b", "x & y", "one", "two", "10", "40"} <= set(told)
