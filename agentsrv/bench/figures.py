"""Figures: what was measured, with its spread, and how it is told."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

SMALL: Final = 10  # below, a figure is told with two decimals
LABEL_WIDTH: Final = 58  # columns


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured, once a round."""

    key: str
    """Names it for programs: ``probe.what.size``."""
    label: str
    """Names it for people, with its unit."""
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one of the rounds."""
        return statistics.median(self.values)

    def as_json(self) -> dict[str, Any]:
        """The figure as a JSON object, to four digits."""
        return {
            "key": self.key,
            "label": self.label,
            "median": _rounded(self.median),
            "low": _rounded(min(self.values)),
            "high": _rounded(max(self.values)),
            "values": list(map(_rounded, self.values)),
        }

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> Figure:
        """The reverse of ``as_json``, but for the digits that mean nothing."""
        return cls(value["key"], value["label"], tuple(value["values"]))

    def told(self) -> str:
        """The median; behind it the lowest and the highest where there were several rounds."""
        if len(self.values) == 1:
            return _number(self.median)
        low, high = _number(min(self.values)), _number(max(self.values))
        return f"{_number(self.median)} [{low} .. {high}]"


@dataclass(slots=True)
class Report:
    """What a run has found so far; each line is told as soon as it is there."""

    tell: Callable[[str], None]
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was measured otherwise than asked for, or not at all, and why."""

    def title(self, text: str) -> None:
        """Begin a group of figures."""
        self.tell(f"\n{text}")

    def add(self, key: str, label: str, values: Iterable[float]) -> None:
        """Take a figure; see ``Figure``."""
        figure = Figure(key, label, tuple(values))
        self.figures.append(figure)
        self.tell(f"  {figure.label:{LABEL_WIDTH}} {figure.told()}")

    def add_spread(self, key: str, label: str, rounds: Iterable[Sequence[float]]) -> None:
        """Take the median and the 99th percentile of each round, of seconds as milliseconds."""
        rounds = list(rounds)
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            found = (percentile(values, share) * 1000 for values in rounds)
            self.add(f"{key}.{name}", f"{label} {name}, ms", found)

    def note(self, text: str) -> None:
        """Take a note."""
        self.notes.append(text)
        self.tell(f"  ({text})")


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values are; not a number where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else math.nan


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _number(value: float) -> str:
    if abs(value) >= SMALL * SMALL:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= SMALL else f"{value:.2f}"
