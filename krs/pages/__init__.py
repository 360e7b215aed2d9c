"""Pages of plain tables: one HTML file that needs no network. The only room that knows HTML and Vega-Lite."""

from krs.pages.document import document
from krs.pages.looks import COLOURS
from krs.pages.text import NOTHING, peaks
from krs.pages.values import (
    Average,
    Block,
    Code,
    Figure,
    Intervals,
    Lines,
    Listed,
    Map,
    Page,
    Picture,
    Points,
    Section,
    Switch,
    Table,
    Text,
)

__all__ = [
    "COLOURS",
    "NOTHING",
    "Average",
    "Block",
    "Code",
    "Figure",
    "Intervals",
    "Lines",
    "Listed",
    "Map",
    "Page",
    "Picture",
    "Points",
    "Section",
    "Switch",
    "Table",
    "Text",
    "document",
    "peaks",
]
