"""Pages of plain tables: what is in them, that texts stay texts, that nothing is loaded, the same twice."""

import re
import sys
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from krs import KrsError
from krs.pages import (
    Average,
    Code,
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
    document,
)
from tests.pages.reading import Seen

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "\"'><img src=x onerror=alert(1)>",
    "</td></table></main><svg onload=alert(1)>",
    "&lt;b&gt; & \u2028 \u2029 \u202e \x00",
    "]]>`${alert(1)}`",
    "javascript:alert(1)",
    "http://example.org/x.png",
]
WINDOWS = ["0", "1", "2"]


def _lines(name="npo", values=((0.1, 0.5, 0.9), (0.0, np.nan, 0.1)), n=2, sd=0.1, **keys):
    table = pd.DataFrame(np.array(values).T, index=WINDOWS, columns=["coefficients", "values"])
    spread = pd.DataFrame(sd, index=table.index, columns=table.columns)
    many = pd.DataFrame(float(n), index=table.index, columns=table.columns)
    edges = {"low": table - spread, "high": table + spread}
    return Lines(f"{name}: mean", f"told of {name}", table, **edges, n=many, sd=spread, axis="setting", keys=keys)


def every_block(word="plain"):
    """A page with every kind of block, in which every text is or has the word."""
    a, b = _lines(word, method=word), _lines("ga", method="ga")
    frame = pd.DataFrame({"method": [word, "ga"], "said": [word, "x"], "krs": [0.12345, np.nan]})
    heat = pd.DataFrame([[0.1, 0.2], [np.nan, -0.4]], index=[word, "b"], columns=["0", word])
    dots = pd.DataFrame({"name": [word], "mean": [0.4], "low": [0.1], "high": [0.9]})
    points = pd.DataFrame({"series": [word, "ga"], "name": [word, "y"], "x": [1.0, 50.0], "y": [80.0, 90.0]})
    blocks = (
        Text(word, "verdict"),
        Text(word, "note"),
        Listed((word,)),
        Code(word, word),
        Average(word, word, (a, b)),
        a,
        b,
        Map(word, word, heat, word, word, word, 0.0),
        Points(word, word, points, word, word, (100.0, 100.0), "method"),
        Intervals(word, word, dots, (word, word)),
        Table(f"of {word}", frame, keys={"method": "method"}, digits=2, texts=True),
    )
    switches = (
        Switch("method", word, (word, "ga")),
        Switch("setting", "put back", ("coefficients", "values"), lines=True),
    )
    return Page(
        word, (Text(word),), (Section(word, blocks, (Section(word, (), (), {"method": word}),)),), switches, word
    )


def test_a_table_has_its_numbers_its_heads_and_what_it_belongs_to():
    page = Seen(document(every_block("npo")))
    assert page.tables["of npo"] == [["method", "said", "krs"], ["npo", "npo", "0.12"], ["ga", "x", "–"]]  # noqa: RUF001
    assert page.attributes.count("data-method") == 5  # two figures, two rows, a section


def test_figures_have_the_numbers_of_their_tables():
    data = Seen(document(every_block("npo"))).data
    average, first, second, heat, points, dots = data["figures"]
    assert first["v"] == [[0.1, 0.5, 0.9], [0.0, None, 0.1]]
    assert (first["low"][0], first["keys"], second["keys"]) == ([0.0, 0.4, 0.8], {"method": 0}, {"method": 1})
    assert average["of"] == [first["id"], second["id"]]
    assert heat["v"] == [[0.1, 0.2], [None, -0.4]]
    assert heat["ends"][0] == -heat["ends"][1]
    assert points["rows"] == [[0, "npo", 1.0, 80.0], [1, "y", 50.0, 90.0]]
    assert dots["rows"] == [["npo", 0.4, 0.1, 0.9]]
    assert len({tuple(dash) for dash in data["looks"]["dashes"]}) == 8
    assert len(set(data["looks"]["marks"])) == len(set(data["looks"]["colours"])) == 8


@pytest.mark.parametrize("word", HOSTILE)
def test_whatever_a_model_says_stays_text(word):
    text = document(every_block(word))
    page, plain = Seen(text), Seen(document(every_block("plain")))
    assert [kind for kind, _ in page.scripts] == ["application/json", "", ""]
    assert page.running == plain.running
    assert page.attributes == plain.attributes  # none more, so none of the text's
    assert [place for place in page.loads if not place[2].startswith("#")] == []
    said = word.replace("\x00", "\ufffd")
    cells = [c.replace("\x00", "\ufffd") for row in page.tables[f"of {word}"] for c in row]
    assert cells.count(said) == 2
    assert page.data["switches"][0]["values"] == [word, "ga"]


def test_nothing_is_loaded_and_only_the_pages_own_scripts_may_run():
    text = document(every_block())
    page = Seen(text)
    assert all(value.startswith("#") for _, _, value in page.loads)
    assert not re.search(r"@import|url\(", text[: text.index("</style>")])
    assert page.policy.startswith("default-src 'none'; ")
    assert "http" not in page.policy
    assert page.policy.count("'sha256-") == 2
    assert "unsafe-inline" not in page.policy.split("script-src")[1]


def test_a_page_is_the_same_twice_and_small():
    assert document(every_block()) == document(every_block())
    assert len(document(every_block())) < 1_000_000


def test_headings_are_in_order_tables_have_captions_and_what_scrolls_can_be_reached():
    text = document(every_block("npo"))
    page = Seen(text)
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    body = text[text.index("<body>") : text.index("<script")]
    assert body.count("<table") == body.count("<caption>") == 1
    assert body.count("scroll") == body.count('tabindex="0" role="region" aria-label=') == 2
    assert len([1 for tag, role, label in page.labels if role == "img" and label]) == 6
    assert len(set(page.ids)) == len(page.ids)
    assert '<html lang="en">' in text


def test_without_a_script_there_is_none_and_pictures_stay():
    page = Page("a", (), (Section("b", (Picture("c", "told", "<svg></svg>"), Table("d", pd.DataFrame({"x": [1]})))),))
    text = document(page, interactive=False)
    assert "<script" not in text
    assert "<button" not in text
    assert 'role="img" aria-label="told"' in text
    assert "script-src" not in Seen(text).policy


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(KrsError, match=r"needs vl_convert, which is not installed: pip install 'krs\[report\]'"):
        document(every_block())
