"""Reports: whatever krs has found, as one HTML page that answers and needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from krs import saved
from krs.errors import KrsError
from krs.extras import require
from krs.pages import Code, Page, Section, Switch, Table, Text, document
from krs.writing import check_writable, write_text

_STUDY = "study.json"


def report(
    what: Any, output: str | Path | None = None, *, texts: Iterable[str | Path] = (), overwrite: bool = False
) -> Path:
    """Write a page about results: figures that answer, tables to copy, what made it all. One file, under 5 MB.

    >>> import tempfile
    >>> import krs
    >>> vanilla, _ = krs.load("smollm2")
    >>> unlearned, _ = krs.load("smollm2")       # stands in for one that was unlearned: its last layer is disturbed
    >>> _ = unlearned.model.layers[29].mlp.up_proj.weight.data.mul_(1.5)
    >>> last = krs.windows.of([[29]])
    >>> result = krs.sweep(vanilla, unlearned, ["Hogwarts is a"], windows=last, n_tokens=3, progress=False)
    >>> report(result, tempfile.mkdtemp() + "/hp.html").name
    'hp.html'

    Args:
        what: a study (its directory, or a `krs.study.Study`), a saved result (a `.krs` file, answers, a dissection's
            `report.json`, `drift.csv`, or the directory of a command), a result, or several sweeps by name.
        output: the page, a name that ends in `.html`. If not given, `report.html` in the directory, or the file's own
            name with that ending; needed for results that are no files.
        texts: files of concepts, or names of bundled ones, whose questions are put back into a study that was exported
            without them.
        overwrite: replace a page that is there.

    Needs the extra `krs[report]`. Nothing in a result is executed, on the page either: what models have said is text.

    Raises `KrsError` for what holds no result, and where the page cannot be written.
    """
    place = _place(what, output, overwrite)
    require("vl_convert", "report", "a report")
    write_text(place, document(page_of(_with_texts(what, list(texts)))))
    return place


def _with_texts(what: Any, texts: list[str | Path]) -> Any:
    if not texts:
        return what
    if not isinstance(what, str | Path) or Path(what).is_dir() or saved.found([Path(what)])[0].kind != "study":
        raise KrsError("texts= (--texts) puts questions back into an exported study: leave it out, or give its file")
    from krs.study import load_exported

    return load_exported(what, texts)


def _place(what: Any, output: str | Path | None, overwrite: bool) -> Path:
    """Where the page goes, tried before anything is read."""
    if output is None:
        if not isinstance(what, str | Path):
            raise KrsError("a report of a result that is no file needs a name: krs.report(result, 'report.html')")
        output = Path(what) / "report.html" if Path(what).is_dir() else Path(what).with_suffix(".html")
    place = Path(output)
    if place.suffix.lower() not in (".html", ".htm"):
        raise KrsError(f"{str(place)!r}: a report is a page, give a name that ends in .html")
    if isinstance(what, str | Path) and not Path(what).exists():
        raise KrsError(f"there is nothing in {str(what)!r}: give a study's directory or a result that krs has saved")
    if place.exists() and not place.is_dir() and not overwrite:
        raise KrsError(f"{str(place)!r} is there already: give another name, or overwrite=True")
    check_writable(place, "the report")
    return place


def page_of(what: Any) -> Page:
    """The page of results as plain tables; see `report`."""
    if not isinstance(what, str | Path):
        return _of_value(what)
    place = Path(what)
    if (place / _STUDY).is_file():
        from krs import study

        return _of_value(study.load(place))
    found = saved.found([place])
    if len(found) == 1:
        (one,) = found
        return _of_report(one.read()) if one.kind == "report" else _of_value(one.read(), one.path.name)
    return _together(
        {
            one.path.name: _of_report(one.read()) if one.kind == "report" else _of_value(one.read(), one.path.name)
            for one in found
        }
    )


def _of_value(what: Any, name: str = "sweep") -> Page:
    """The page of one value; whoever made it knows its tables."""
    room, kind = type(what).__module__.split(".")[1:2], type(what).__name__
    if room == ["study"]:
        from krs.study.page import page_of as of_study

        return of_study(what)
    if kind == "Dissection":
        from krs.instruments.page import page_of as of_dissection

        return of_dissection(what.verdict, what.readings, what.left_out, what.answers, what.provenance)
    if room == ["metrics"]:
        from krs.metrics.page import sections

        return Page(f"What krs found: {name}", (), tuple(sections(what)))
    from krs.restore.averaging import MeanResult
    from krs.restore.compared import Compared
    from krs.restore.page import page_of as of_sweeps
    from krs.restore.result import SweepResult

    several = what.results if isinstance(what, Compared) else what
    if isinstance(several, SweepResult | MeanResult):
        return of_sweeps({name: several})
    if (
        isinstance(several, Mapping)
        and several
        and all(isinstance(r, SweepResult | MeanResult) for r in several.values())
    ):
        return of_sweeps({str(n): r for n, r in several.items()})
    raise KrsError(f"there is no report of a {kind}: give a study, a result of krs, or sweeps by name")


def _of_report(made: Mapping[str, Any]) -> Page:
    """How an unlearned model was made."""
    import json

    import pandas as pd

    rows = [(name, str(value)) for name, value in made["config"].items()]
    settings = Table("Settings", pd.DataFrame(rows, columns=["setting", "value"]))
    told = Code("All of it", json.dumps(made, indent=1, ensure_ascii=False, default=str))
    lead = Text(f"Unlearned by {made['method']}.")
    return Page("How the unlearned model was made", (lead,), (Section("Settings", (settings, told)),))


def _together(pages: Mapping[str, Page]) -> Page:
    """Pages below each other, with the switches of all of them."""
    axes: dict[str, Switch] = {}
    for page in pages.values():
        for switch in page.switches:
            old = axes.get(switch.axis, switch)
            axes[switch.axis] = replace(old, values=tuple(dict.fromkeys((*old.values, *switch.values))))
    sections = [Section(f"{name}: {page.title}", page.lead, page.sections) for name, page in pages.items()]
    return Page("What krs found", (), tuple(sections), tuple(axes.values()))
