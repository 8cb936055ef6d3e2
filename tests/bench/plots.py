"""Bar charts as SVG, written by hand: the same figures give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentsrv.bench.figures import Figure

WIDTH = 720  # of the drawing; all lengths in pixels
LEFT = 170
RIGHT = 110
BAR = 16
GAP = 14
TOP = 56
LEGEND = 26
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")
STYLE = "font-family='sans-serif' font-size='12' fill='#222222'"


@dataclass(frozen=True)
class Bars:
    """A chart: for each group a bar of each series, as long as its median.

    A thin line over a bar goes from the lowest to the highest round.
    """

    title: str
    groups: Mapping[str, Sequence[Figure | None]]
    """By the group's name, a figure for each series; ``None`` where it was not measured."""
    series: Sequence[str]
    digits: int = 0
    """Behind the point, of the numbers at the bars."""

    def draw(self) -> str:
        """The SVG."""
        figures = [figure for row in self.groups.values() for figure in row if figure is not None]
        most = max((max(figure.values) for figure in figures), default=1.0) or 1.0
        scale = (WIDTH - LEFT - RIGHT) / most
        body: list[str] = []
        y = TOP
        for name, row in self.groups.items():
            middle = y + len(row) * BAR / 2 + 4
            body.append(_text(LEFT - 8, middle, name, "end"))
            for place, figure in enumerate(row):
                if figure is not None:
                    body += self._bar(figure, y + place * BAR, scale, COLOURS[place])
            y += len(row) * BAR + GAP
        legend = []
        x = LEFT
        for place, name in enumerate(self.series if len(self.series) > 1 else ()):
            legend.append(_rect(x, TOP - LEGEND, 10, 10, COLOURS[place]))
            legend.append(_text(x + 14, TOP - LEGEND + 10, name))
            x += 30 + 8 * len(name)
        size = f"width='{WIDTH}' height='{y}' viewBox='0 0 {WIDTH} {y}'"
        title = _escape(self.title)
        return "\n".join(
            [
                f"<svg xmlns='http://www.w3.org/2000/svg' {size} role='img' aria-label='{title}'>",
                _rect(0, 0, WIDTH, y, "#ffffff"),
                f"<text x='12' y='20' {STYLE} font-weight='bold'>{title}</text>",
                *legend,
                *body,
                "</svg>\n",
            ]
        )

    def _bar(self, figure: Figure, y: float, scale: float, colour: str) -> list[str]:
        low, high = (LEFT + value * scale for value in (min(figure.values), max(figure.values)))
        middle = y + (BAR - 2) / 2
        return [
            _rect(LEFT, y, figure.median * scale, BAR - 2, colour),
            f"<path d='M{low:.1f} {middle:.1f}H{high:.1f}' stroke='#222222'/>",
            _text(high + 5, y + BAR - 4, f"{figure.median:,.{self.digits}f}"),
        ]


def _rect(x: float, y: float, width: float, height: float, colour: str) -> str:
    return (
        f"<rect x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}' fill='{colour}'/>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {STYLE} text-anchor='{anchor}'>{_escape(text)}</text>"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("'", "&#39;")
