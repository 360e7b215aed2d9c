"""What a page is made of: frozen values of plain tables and texts. Nothing in them is HTML, but for pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from krs._typing import DataFrame

Keys: TypeAlias = Mapping[str, str]
"""By axis of a switch, the value that something belongs to: it is hidden where that is switched off."""


@dataclass(frozen=True)
class Switch:
    """Something whose values a reader can switch on and off, everywhere on the page.

    Attributes:
        axis: its name in `keys` and tables.
        label: what it is called on the page.
        values: in order.
        lines: whether these are the names of lines, so that a sample stands beside each.
    """

    axis: str
    label: str
    values: tuple[str, ...]
    lines: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph; a verdict stands out, and is read out first."""

    text: str
    kind: Literal["plain", "note", "verdict"] = "plain"


@dataclass(frozen=True)
class Listed:
    """A list of texts."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Text as it is, folded away unless `unfolded`."""

    title: str
    text: str
    unfolded: bool = False


@dataclass(frozen=True, eq=False)
class Table:
    """A table that can be copied as CSV and as LaTeX.

    Attributes:
        caption: what it shows; copies carry it too.
        frame: without an index that matters.
        heads: how many of its first columns name the row.
        keys: by axis of a switch, the column with its values.
        axis: of a switch whose values are names of columns.
        digits: behind the point; four that count if not given.
        folded: whether it is folded away.
        texts: whether its cells are long texts, which stand below each other on a narrow screen.
        belongs: what the whole of it belongs to.
        about: what a copy's caption says beside it, which stands elsewhere on the page: models, windows.
    """

    caption: str
    frame: DataFrame
    heads: int = 1
    keys: Mapping[str, str] = field(default_factory=dict)
    axis: str = ""
    digits: int | None = None
    folded: bool = False
    texts: bool = False
    belongs: Keys = field(default_factory=dict)
    about: str = ""


@dataclass(frozen=True, eq=False)
class Lines:
    """A line a column over the rows of a table, as in the paper's Fig. 1.

    Attributes:
        caption: below it.
        told: for a screen reader, in the place of the picture.
        table: rows by their place on the x axis, in order; columns by the names of the lines.
        low: lower edges of bands, as `table`; a standard deviation below if not given.
        high: upper edges.
        n: of how many the numbers are means, as `table`; for `Average`, and for bands.
        sd: their standard deviations, as `table`; likewise.
        x_label: what rows are.
        y_label: what the numbers are.
        axis: of the switch whose values the columns are.
        keys: what it belongs to.
        whole: draw lines at none (0) and all (1).
    """

    caption: str
    told: str
    table: DataFrame
    low: DataFrame | None = None
    high: DataFrame | None = None
    n: DataFrame | None = None
    sd: DataFrame | None = None
    x_label: str = "Layer"
    y_label: str = "Knowledge Recovery Score"
    axis: str = ""
    keys: Keys = field(default_factory=dict)
    whole: bool = True


@dataclass(frozen=True, eq=False)
class Average:
    """The mean, with a standard deviation, of those of several `Lines` that are switched on; the page works it out.

    Attributes:
        caption: below it.
        told: for a screen reader.
        of: figures on the same page, with `n` and `sd`.
        keys: what it belongs to.
    """

    caption: str
    told: str
    of: tuple[Lines, ...]
    keys: Keys = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Map:
    """A heat map of a table.

    Attributes:
        caption: below it.
        told: for a screen reader.
        table: rows over columns.
        x_label: what columns are.
        y_label: what rows are.
        label: of the numbers.
        middle: the number in the middle of a scale of two colours; one of one colour if not given.
        ends: where the colours end; at the percentiles 2 and 98 if not given.
        keys: what it belongs to.
    """

    caption: str
    told: str
    table: DataFrame
    x_label: str
    y_label: str
    label: str
    middle: float | None = None
    ends: tuple[float, float] | None = None
    keys: Keys = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Points:
    """The paper's Fig. 2: points with a line through those of one series.

    Attributes:
        caption: below it.
        told: for a screen reader.
        frame: columns `series`, `name`, `x` and `y`, in order.
        x_label: of the one axis.
        y_label: of the other.
        limits: the ceiling of either axis.
        axis: of the switch whose values the series are.
    """

    caption: str
    told: str
    frame: DataFrame
    x_label: str
    y_label: str
    limits: tuple[float, float]
    axis: str = ""


@dataclass(frozen=True, eq=False)
class Intervals:
    """A dot with its interval for each row, between 0 and 1.

    Attributes:
        caption: below it.
        told: for a screen reader.
        frame: columns `name`, `mean`, `low` and `high`.
        ends: what 0 and 1 are.
    """

    caption: str
    told: str
    frame: DataFrame
    ends: tuple[str, str]


@dataclass(frozen=True)
class Picture:
    """A picture that is drawn already, as SVG text, which is trusted."""

    caption: str
    told: str
    svg: str


Figure: TypeAlias = Lines | Average | Map | Points | Intervals
Block: TypeAlias = Text | Listed | Code | Table | Picture | Figure


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it."""

    title: str
    blocks: tuple[Block, ...] = ()
    sections: tuple[Section, ...] = ()
    keys: Keys = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: its heading.
        lead: below that.
        sections: in order.
        switches: at its top, of those that have more than one value.
        name: in the browser's list of tabs; the title if not given.
    """

    title: str
    lead: tuple[Block, ...]
    sections: tuple[Section, ...]
    switches: tuple[Switch, ...] = ()
    name: str = ""
