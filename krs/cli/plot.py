"""`krs plot`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from krs import saved
from krs.cli.shell import app
from krs.errors import KrsError
from krs.extras import require
from krs.wording import wrapped
from krs.writing import check_writable, write_text

_PICTURES = (".pdf", ".svg", ".png")
_TABLES = ("latex", "csv", "json")
_MEASURE = "logit_mse"
_DRAWN = ("sweep", "answers", "account", "drift")


@app.command()
def plot(
    file: Annotated[list[Path], typer.Argument(help="sweep.krs, answers.json, account.krs or drift.csv, or a mean")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="a .pdf, .svg or .png; for a table any")] = None,
    name: Annotated[list[str] | None, typer.Option(help="of each file in turn, for the legend")] = None,
    setting: Annotated[str | None, typer.Option(help="of sweeps: this one alone, such as mlp_coef")] = None,
    measure: Annotated[str, typer.Option(help="of sweeps: whose recovery, such as kl")] = _MEASURE,
    format: Annotated[str | None, typer.Option(help="a table instead: latex, csv or json; without -o printed")] = None,
    overwrite: Annotated[bool, typer.Option(help="replace the output that is there")] = False,
) -> None:
    """Draw saved results: several sweeps in one figure, a panel a setting and a line a sweep; or write them as tables.

    In PDF and SVG text is text. What the figure shows is in the file in words, and is printed.
    """
    results = saved.found(file)
    _check(results, output, format, overwrite)
    _check_options(results, setting, measure)
    called = _names(results, name or [])
    found = {label: one.read() for label, one in zip(called, results, strict=True)}
    if format is None:
        assert output is not None
        description = _draw(found, results[0].kind, output, setting, measure)
        print(f"written: {output}")
        print("\n".join(wrapped(description)))
    else:
        text = _table(found, results[0].kind, format, setting, measure).rstrip("\n")
        for label, one in found.items():
            if said := getattr(one, "interrupted", ""):
                print(f"note: {label} was {said} are there, the rest is empty", file=sys.stderr)
        if output is None:
            print(text)
            return
        write_text(output, f"{text}\n")
        print(f"written: {output}")


def _check(results: Sequence[saved.Saved], output: Path | None, table: str | None, overwrite: bool) -> None:
    """Everything that can be wrong, before torch and matplotlib are imported."""
    kinds = {one.kind for one in results}
    if len(kinds) > 1:
        raise KrsError(f"these files hold {' and '.join(sorted(kinds))}: one figure or table is of one kind")
    (kind,) = kinds
    if kind not in _DRAWN:
        raise KrsError(f"a {kind} has no figure of its own: krs show says what it holds")
    if len(results) > 1 and kind in ("account", "drift"):
        raise KrsError(f"{len(results)} files hold one {kind} each, which is a map of its own: give one")
    if table is not None and table not in _TABLES:
        raise KrsError(f"--format {table!r}: give one of {', '.join(_TABLES)}, or leave it out for a figure")
    if table == "latex" and kind != "sweep":
        raise KrsError(f"--format latex is for sweeps: give csv or json for {'answers' if kind == 'answers' else kind}")
    if output is None:
        if table is None:
            raise KrsError(f"a figure needs a file: -o fig.pdf ({', '.join(e[1:] for e in _PICTURES)})")
        return
    if table is None and output.suffix.lower() not in _PICTURES:
        raise KrsError(f"--output {str(output)!r}: give a name that ends in {', '.join(_PICTURES)}")
    if output.exists() and not output.is_dir() and not overwrite:
        raise KrsError(f"{str(output)!r} is there already: give another name, or overwrite=True")
    check_writable(output, "--output")
    if table is None:
        require("matplotlib", "plot", "a figure")


def _check_options(results: Sequence[saved.Saved], setting: str | None, measure: str) -> None:
    """Raise `KrsError` for an option that says nothing about such a result."""
    given = {"--setting": setting is not None, "--measure": measure != _MEASURE}
    for option, there in given.items():
        if there and results[0].kind != "sweep":
            raise KrsError(f"{option} is of sweeps, and this is {results[0].kind}: leave it out")


def _names(results: Sequence[saved.Saved], given: Sequence[str]) -> list[str]:
    """What each result is called: as was said, else as its file, or as the directory where a command named the file."""
    if given and len(given) != len(results):
        raise KrsError(f"--name was given {len(given)} times for {len(results)} results: give it once for each")
    if given and len(results) == 1 and results[0].kind != "answers":
        raise KrsError(f"--name tells several results apart, and this is one {results[0].kind}: leave it out")
    if given and len(set(given)) == len(given):
        return list(given)
    if given:
        raise KrsError("--name was given twice alike: give each result a name of its own")
    ways: list[Callable[[Path], str]] = [_own, lambda p: f"{p.parent.name}/{p.stem}", lambda p: str(p.with_suffix(""))]
    paths = [one.path.resolve() for one in results]
    for way in ways:
        found = [way(path) for path in paths]
        if max(Counter(found).values()) == 1:
            return found
    raise KrsError("a file was given twice: give each once")


def _own(path: Path) -> str:
    return path.parent.name if path.name in saved.NAMES and path.parent.name else path.stem


def _draw(results: Mapping[str, Any], kind: str, output: Path, setting: str | None, measure: str) -> str:
    """Write the figure; returns what it shows in words."""
    from krs.cli.alt import in_words
    from krs.plots import save_drawn, save_figure

    told = in_words(results, kind, measure, setting)
    (first, *others) = results.values()
    if kind == "answers":
        save_figure({name: [answers] for name, answers in results.items()}, output, *told)
    elif kind != "sweep":
        save_drawn(lambda figure: first.plot(ax=figure.add_subplot()), output, *told)
    elif others:
        from krs.restore import compare

        save_drawn(lambda figure: compare(results).plot(ax=figure, setting=setting, measure=measure), output, *told)
    else:
        save_drawn(lambda figure: first.plot(ax=figure, setting=setting, measure=measure), output, *told)
    return told[1]


def _table(results: Mapping[str, Any], kind: str, table: str, setting: str | None, measure: str) -> str:
    if table == "latex":
        return _latex(results, setting, measure)
    frame = _frame(results, kind, setting, measure)
    if table == "csv":
        return str(frame.to_csv(index=False))
    states = {label: said for label, one in results.items() if (said := getattr(one, "interrupted", ""))}
    if states and len(results) == 1:
        frame = frame.assign(state=next(iter(states.values())))
    elif states:
        frame = frame.assign(state=frame["sweep"].map(states))
    return str(frame.to_json(orient="records", indent=1))


def _latex(results: Mapping[str, Any], setting: str | None, measure: str) -> str:
    if len(results) == 1:
        (only,) = results.values()
        return str(only.to_latex(measure, setting=setting))
    from krs.restore import compare

    return compare(results).to_latex(measure, setting=setting)


def _frame(results: Mapping[str, Any], kind: str, setting: str | None, measure: str) -> Any:
    (first, *others) = results.values()
    if kind == "sweep":
        from krs.restore import compare

        frame = compare(results).to_frame(setting, measure)
        return frame if others else frame.drop(columns="sweep")
    if kind == "answers" and others:
        import pandas as pd

        return pd.concat([a.frame.assign(answers=name) for name, a in results.items()], ignore_index=True)
    return first.to_frame() if kind == "account" else first.frame
