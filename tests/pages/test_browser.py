"""A page in a real browser: no message on its console, every switch, every copy. Needs a Chromium (CONTRIBUTING.md)."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest

from krs.pages import Average, Lines, Map, Page, Section, Switch, Table, Text, document
from tests.pages.test_document import HOSTILE, every_block

pytestmark = pytest.mark.long

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
METHODS, SETTINGS = ("npo", "ga"), ("coefficients", "values")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        place = CHROMIUM or play.chromium.executable_path  # where `playwright install chromium` puts its own
        if not os.path.exists(place):
            pytest.skip("there is no Chromium on this machine: playwright install --with-deps chromium")
        found = play.chromium.launch(executable_path=place, args=QUIET)
        yield found
        found.close()


@pytest.fixture(params=[(1200, "light"), (400, "dark")], ids=["wide", "phone"])
def opened(request, browser, tmp_path):
    """Opens a page, and fails if anything was on its console or went out to a network."""
    width, scheme = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, permissions=["clipboard-read", "clipboard-write"]
    )
    tab, told, asked = context.new_page(), [], []
    tab.on("console", lambda message: told.append(message.text))
    tab.on("pageerror", lambda error: told.append(str(error)))
    tab.on("dialog", lambda dialog: (told.append(f"dialog {dialog.message}"), dialog.dismiss()))
    tab.on("request", lambda request: asked.append(request.url))

    def opens(page):
        (tmp_path / "page.html").write_text(document(page), encoding="utf-8", errors="backslashreplace")
        tab.goto((tmp_path / "page.html").as_uri())
        for at in range(0, tab.evaluate("document.documentElement.scrollHeight"), 600):
            tab.evaluate(f"scrollTo(0, {at})")
            tab.wait_for_timeout(60)
        tab.evaluate("scrollTo(0, 0)")
        return tab

    yield opens
    assert told == []
    assert [url for url in asked if not url.startswith(("file:", "blob:"))] == []
    context.close()


def numbers():
    """A page as a study's: two methods with curves of two settings, their average, a map and a table."""
    random = np.random.default_rng(3)
    panels = []
    for method, n in zip(METHODS, (3, 2), strict=True):
        values = pd.DataFrame(random.normal(size=(6, 2)), index=[str(i) for i in range(6)], columns=list(SETTINGS))
        spread, many = values.abs() / 3, pd.DataFrame(float(n), index=values.index, columns=values.columns)
        keys = {"method": method}
        panels.append(Lines(method, f"about {method}", values, n=many, sd=spread, axis="setting", keys=keys))
    rows = pd.concat([p.table.rename_axis("layer").reset_index().assign(method=p.caption) for p in panels])
    table = Table(
        "numbers", rows[["method", "layer", *SETTINGS]], 2, {"method": "method"}, "setting", 3, about="of npo_50%"
    )
    heat = Map("map", "a map", pd.DataFrame([[1.0, 2.0]], index=["a"], columns=["0", "1"]), "x", "y", "n")
    switches = (Switch("method", "Methods", METHODS), Switch("setting", "Put back", SETTINGS, lines=True))
    blocks = (Average("average", "an average", tuple(panels)), *panels, heat, table)
    return Page("Numbers", (Text("lead"),), (Section("All", blocks),), switches), panels


def drawn(tab, figure):
    """The texts that hovering over a figure's points would show."""
    tab.wait_for_timeout(250)
    what = "e => [...new Set([...e.querySelectorAll('path')].map(p => p.__data__?.datum?.tip).filter(Boolean))]"
    return tab.eval_on_selector(f"#f{figure}", what)


def test_every_switch_hides_what_it_names_and_the_average_follows(opened):
    page, panels = numbers()
    tab = opened(page)
    assert tab.locator(".plot svg").count() == 4
    tab.evaluate("document.querySelector('.switches').open = true")
    assert len(drawn(tab, 0)) == 12
    n = np.array([3, 2])
    means = np.array([p.table.to_numpy() for p in panels])
    want = (n[:, None, None] * means).sum(0) / 5
    shown = {tuple(tip.split("\n")[:2]): float(tip.split("\n")[2]) for tip in drawn(tab, 0)}
    for i in range(6):
        for j, setting in enumerate(SETTINGS):
            assert shown[setting, f"Layer: {i}"] == pytest.approx(want[i, j], rel=1e-3, abs=1e-4)
    sds = np.array([p.sd.to_numpy() for p in panels])
    spread = np.sqrt((((n - 1)[:, None, None] * sds**2) + n[:, None, None] * (means - want) ** 2).sum(0) / 4)
    low = float(
        next(t for t in drawn(tab, 0) if t.startswith("coefficients\nLayer: 0\n")).split("\n")[3].split(" … ")[0]
    )
    assert low == pytest.approx(want[0, 0] - spread[0, 0], rel=1e-3, abs=1e-4)

    tab.get_by_role("checkbox", name="npo", exact=True).uncheck()
    assert tab.locator("#f1").is_hidden()
    assert tab.locator("#f2").is_visible()
    assert tab.locator("tbody tr:visible").count() == 6
    shown = {tuple(tip.split("\n")[:2]): float(tip.split("\n")[2]) for tip in drawn(tab, 0)}
    assert shown["values", "Layer: 5"] == pytest.approx(panels[1].table.iat[5, 1], rel=1e-3, abs=1e-4)
    tab.get_by_role("checkbox", name="values", exact=True).uncheck()
    assert {tip.split("\n")[0] for tip in drawn(tab, 0)} == {"coefficients"}
    assert tab.locator("thead th:visible").all_inner_texts() == ["method", "layer", "coefficients"]
    assert "Methods: 1 of 2; Put back: 1 of 2" in tab.locator("#shown").inner_text()
    tab.get_by_label("Methods: none").click()
    assert tab.locator("#f2").is_hidden()
    assert tab.locator("#f0 svg").is_hidden()
    assert tab.locator("#f0 .empty").is_visible()
    for group in ("Methods: all", "Put back: all"):
        tab.get_by_label(group).click()
    assert len(drawn(tab, 0)) == 12


def test_hovering_shows_the_value(opened):
    page, panels = numbers()
    tab = opened(page)
    tab.locator("#f1").scroll_into_view_if_needed()
    tab.wait_for_timeout(300)
    box = tab.locator("#f1").bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + 80)
    tab.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + 84)
    tab.wait_for_timeout(200)
    name, _, value, *_ = tab.locator(".tip:visible").inner_text().split("\n")
    assert float(value) in [float(f"{v:.4g}") for v in panels[0].table[name]]


def test_a_table_is_copied_as_it_is_shown(opened):
    page, panels = numbers()
    tab = opened(page)
    tab.evaluate("document.querySelector('.switches').open = true")
    tab.get_by_role("checkbox", name="ga", exact=True).uncheck()
    tab.get_by_label("Copy as CSV: numbers").click()
    tab.wait_for_timeout(100)
    first = f"npo,0,{panels[0].table.iat[0, 0]:.3f},{panels[0].table.iat[0, 1]:.3f}"
    copied = tab.evaluate("navigator.clipboard.readText()").splitlines()
    assert copied[:2] == ["method,layer,coefficients,values", first]
    assert len(copied) == 7
    tab.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')) }")
    tab.get_by_label("Copy as LaTeX: numbers").click()
    tab.wait_for_timeout(100)
    latex = tab.evaluate("navigator.clipboard.readText()")
    assert latex.startswith(
        "\\begin{table}\n\\caption{numbers; of npo\\_50\\%}\n\\begin{tabular}{llrr}\n\\toprule\nmethod & layer & "
    )
    assert tab.locator(".said").inner_text() == "Copied."


@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_texts_do_nothing_and_are_shown(opened, word):
    tab = opened(every_block(word))
    assert tab.locator(".plot svg").count() == 6
    assert tab.locator("main img, main iframe, main script, main svg[onload]").count() == 0
    if "\x00" not in word:
        assert tab.locator("h1").evaluate("e => e.textContent") == word


def test_a_page_fits_its_screen_and_prints_unfolded(opened):
    tab = opened(every_block("npo"))
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.locator("details:not([open])").count() == 0
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement !== document.body")
