"""Figures as data that the page's script draws, beside a place for each."""

from __future__ import annotations

from typing import Any

from krs._typing import DataFrame
from krs.pages.blocks import Marks, legend
from krs.pages.looks import look
from krs.pages.text import html, rounded
from krs.pages.values import Average, Figure, Intervals, Lines, Map, Points, Switch


class Figures:
    """Takes figures in the page's order; `data` has what the script needs."""

    def __init__(self, switches: tuple[Switch, ...]) -> None:
        self.marks = Marks(switches)
        self.places = self.marks.places
        self.data: list[dict[str, Any]] = []
        self._numbers: dict[int, int] = {}

    def number(self, figure: Figure) -> int:
        """A figure's number on the page, the same whenever it is asked."""
        return self._numbers.setdefault(id(figure), len(self._numbers))

    def add(self, figure: Figure) -> str:
        """The place of a figure, as HTML."""
        number_ = self.number(figure)
        self.data.append({"id": number_, **_DATA[type(figure)](self, figure)})
        keys = self.marks.of(getattr(figure, "keys", {}))
        save = html(f"Save as SVG: {figure.caption}")
        button = f'<button type="button" data-save="{number_}" aria-label="{save}">SVG</button>'
        place = f'<div class="plot" id="f{number_}" role="img" aria-label="{html(figure.told)}"></div>'
        return f"<figure{keys}><figcaption>{html(figure.caption)} {button}</figcaption>{place}</figure>"

    def legend(self, figure: Any) -> tuple[Any, str]:
        """What tells figures with one legend from others, and that legend."""
        if isinstance(figure, Average):
            return self.legend(figure.of[0]) if figure.of else (None, "")
        if isinstance(figure, Points):
            names = list(dict.fromkeys(map(str, figure.frame.series)))
            return names, legend(self._looks(figure.axis, names))
        if not isinstance(figure, Lines):
            return None, ""
        names = [str(c) for c in figure.table.columns]
        return names, legend(self._looks(figure.axis, names))

    def _looks(self, axis: str, names: list[str]) -> dict[str, int]:
        """Which kind of line each name has: its place in the switch, else its own place."""
        places = self.places.get(axis, {})
        return {name: look(places.get(name, i)) for i, name in enumerate(names)}

    def _lines(self, figure: Lines) -> dict[str, Any]:
        table = figure.table
        names = [str(c) for c in table.columns]
        several: dict[str, Any] = {
            key: _columns(found)
            for key, found in (("low", figure.low), ("high", figure.high), ("n", figure.n), ("sd", figure.sd))
            if found is not None and not bool(found.isna().to_numpy().all())
        }
        if figure.n is not None and len(set(figure.n.to_numpy().ravel())) == 1:
            several["n"] = int(figure.n.to_numpy().flat[0])
        return {
            "kind": "lines",
            "axis": figure.axis,
            "series": names,
            "looks": list(self._looks(figure.axis, names).values()),
            "x": [str(x) for x in table.index],
            "v": _columns(table),
            "labels": [figure.x_label, figure.y_label],
            "whole": figure.whole,
            "keys": self._keys(figure.keys),
            **several,
        }

    def _average(self, figure: Average) -> dict[str, Any]:
        first = self._lines(figure.of[0]) if figure.of else {}
        kept: dict[str, Any] = {key: first[key] for key in ("axis", "labels", "whole") if key in first}
        return {"kind": "lines", "of": [self.number(one) for one in figure.of], **kept}

    def _map(self, figure: Map) -> dict[str, Any]:
        table = figure.table
        values = table.to_numpy(dtype=float)
        return {
            "kind": "map",
            "x": [str(c) for c in table.columns],
            "y": [str(i) for i in table.index],
            "v": [[rounded(v) for v in row] for row in values],
            "labels": [figure.x_label, figure.y_label, figure.label],
            "ends": list(figure.ends or _ends(values, figure.middle)),
            "middle": figure.middle,
        }

    def _points(self, figure: Points) -> dict[str, Any]:
        frame = figure.frame
        names = list(dict.fromkeys(map(str, frame.series)))
        return {
            "kind": "points",
            "axis": figure.axis,
            "series": names,
            "looks": list(self._looks(figure.axis, names).values()),
            "rows": [
                [names.index(str(s)), str(name), rounded(x), rounded(y)]
                for s, name, x, y in frame[["series", "name", "x", "y"]].itertuples(index=False, name=None)
            ],
            "labels": [figure.x_label, figure.y_label],
            "limits": [rounded(v) for v in figure.limits],
        }

    def _intervals(self, figure: Intervals) -> dict[str, Any]:
        rows = figure.frame[["name", "mean", "low", "high"]].itertuples(index=False, name=None)
        return {
            "kind": "intervals",
            "rows": [[str(name), *map(rounded, numbers)] for name, *numbers in rows],
            "labels": list(figure.ends),
        }

    def _keys(self, keys: Any) -> dict[str, int]:
        found = {axis: self.places.get(axis, {}).get(value) for axis, value in keys.items()}
        return {axis: i for axis, i in found.items() if i is not None}


_DATA: dict[type, Any] = {
    Lines: Figures._lines,
    Average: Figures._average,
    Map: Figures._map,
    Points: Figures._points,
    Intervals: Figures._intervals,
}


def _columns(table: DataFrame) -> list[list[float | None]]:
    return [[rounded(v) for v in column] for column in table.to_numpy(dtype=float).T]


def _ends(values: Any, middle: float | None) -> list[float]:
    """Where the colours end: at the percentiles 2 and 98, so that one cell does not make all others alike."""
    import numpy as np

    there = values[np.isfinite(values)]
    if not len(there):
        return [0.0, 1.0]
    if middle is None:
        low, high = (float(v) for v in np.percentile(there, [2, 98]))
        return [low, high if high > low else low + 1.0]
    most = float(np.percentile(np.abs(there - middle), 98)) or 1.0
    return [middle - most, middle + most]
