"""`krs methods`."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any

import typer

from krs.cli.shell import app
from krs.extras import require


@app.command()
def methods(name: Annotated[str | None, typer.Argument(help="of one: its settings and their defaults")] = None) -> None:
    """List the unlearning methods, installed packages' too; or what `krs unlearn` takes by `--set`, with defaults."""
    require("accelerate", "unlearn", "unlearning")

    from krs import unlearn
    from krs.unlearn.methods import method

    if name is not None:
        for line in _method(name, method(name)):
            print(line)
        return
    for known in unlearn.methods():
        print(f"{known}: {_first(method(known))}")


def _method(name: str, found: Any) -> Iterator[str]:
    yield f"{name}: {_first(found)}"
    yield f"needs {' and '.join(f'--{side}' for side in _sides(found))}; settings, each --set NAME=VALUE:"
    meant = _meant(found.config_class)
    for setting in fields(found.config_class):
        yield f"- {setting.name}={_shown(setting)}: {meant.get(setting.name, 'see its documentation')}"


def _sides(found: Any) -> tuple[str, ...]:
    wanted = getattr(found, "needs_retain", False) and not getattr(found, "makes_retain", False)
    return ("forget", "retain") if wanted else ("forget",)


def _shown(setting: Field[Any]) -> str:
    """A default as `--set` takes it: text as it is, all else as JSON."""
    value = setting.default if setting.default_factory is MISSING else setting.default_factory()
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _first(found: Any) -> str:
    """The first paragraph of its docstring, on one line."""
    return " ".join((inspect.getdoc(found) or "").split("\n\n")[0].split())


def _meant(config: type) -> dict[str, str]:
    """What the docstrings of a config class and of those it is made of say about each setting."""
    meant: dict[str, str] = {}
    for kind in reversed(config.__mro__):
        _, _, listed = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): (.+?)(?=^    \w|^\S|\Z)", listed, re.M | re.S):
            meant[name] = " ".join(text.split())
    return meant
