"""Writes what `krs --help` says into the page on commands: `make commands`.

The page is kept with it, so that it reads in the repository too; `tests/test_docs.py` compares it with the commands.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from krs.cli import app

PAGE = Path(__file__).parent / "commands.md"
BEGIN, END = "<!-- every command: make commands writes what follows -->", "<!-- that was every command -->"


def page(text: str) -> str:
    """The page's text with every command, arguments and options between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{commands()}\n\n{END}{after}"


def commands() -> str:
    """Every command with its arguments and options, as Markdown, behind a list of all."""
    found = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    names = sorted(found)
    listed = [f"| [krs {name}](#krs-{name}) | {_first(found[name])} |" for name in names]
    whole = [line for name in names for line in _command(name, found[name])]
    return "\n".join(["| | |", "| --- | --- |", *listed, "", *whole]).strip()


def _first(command: Any) -> str:
    """The first sentence of a command's help."""
    told = " ".join((command.help or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.?!:;]) (?=[A-Z])|; ", told)[0].rstrip(".;:").replace("|", r"\|")


def _command(name: str, command: Any) -> list[str]:
    parameters = [p for p in command.params if p.name != "help"]
    lines = [f"## krs {name}", "", *(command.help or "").splitlines(), ""]
    lines += ["```text", " ".join([f"krs {name}", *(word for p in parameters for word in _usage(p))]), "```", ""]
    rows = [_row(parameter) for parameter in parameters]
    return lines + (["| | | unless given |", "| --- | --- | --- |", *rows, ""] if rows else [])


def _usage(parameter: Any) -> list[str]:
    """What has to be typed; of options only those that are needed."""
    if parameter.param_type_name != "option":
        bare = _metavar(parameter) + ("…" if parameter.nargs != 1 else "")
        return [bare if parameter.required or bare.startswith("[") else f"[{bare}]"]
    return [parameter.opts[0], str(parameter.name).upper()] if parameter.required else []


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "option":
        both = (
            parameter.secondary_opts if parameter.default is not False else []
        )  # --no-nulls, where that says anything
        names = ", ".join(f"`{n}`" for n in (*parameter.opts, *both))
    else:
        names = f"`{_metavar(parameter)}`".replace("|", r"\|")
    default = parameter.default
    shown = "needed" if parameter.required else "" if default in (None, False) or callable(default) else f"`{default}`"
    return f"| {names} | {(getattr(parameter, 'help', None) or '').replace('|', chr(92) + '|')} | {shown} |"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or str(parameter.name).upper())


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
