"""Writes what `krs --help` says into the page on commands, each time the site is built."""

from __future__ import annotations

from typing import Any

import typer

from krs.cli import app

MARK = "<!-- every command -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page; changes the one that has the mark."""
    return markdown.replace(MARK, commands()) if MARK in markdown else markdown


def commands() -> str:
    """Every command with its arguments and options, as Markdown."""
    found = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return "\n".join(line for name in sorted(found) for line in _command(name, found[name]))


def _command(name: str, command: Any) -> list[str]:
    lines = [f"## krs {name}", "", *(command.help or "").splitlines(), ""]
    rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
    if rows:
        lines += ["| | | unless given |", "| --- | --- | --- |", *rows, ""]
    return lines


def _row(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    names = ", ".join(f"`{n}`" for n in parameter.opts) if is_option else f"`{str(parameter.name).upper()}`"
    default = parameter.default
    shown = "needed" if parameter.required else "" if default in (None, False) or callable(default) else f"`{default}`"
    return f"| {names} | {(getattr(parameter, 'help', None) or '').replace('|', chr(92) + '|')} | {shown} |"
