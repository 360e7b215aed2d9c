"""For `make docs`: the doctests of docstrings are code, so that no list in them is read as a link."""

from __future__ import annotations

import inspect
from typing import Any

from griffe import Extension, Object


class Doctests(Extension):
    """Puts each run of examples and what they print into a block of code."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called by griffe once for each module, class and function."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(inspect.cleandoc(obj.docstring.value))


def fenced(text: str) -> str:
    """
    >>> print(fenced("Adds.\\n\\n>>> 1 + 1\\n2\\n\\nNothing else."))
    Adds.
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    <BLANKLINE>
    Nothing else.
    """
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        begins = line.lstrip().startswith(">>>")
        indent = line[: len(line) - len(line.lstrip())]
        if begins and not inside:
            inside = True
            before = indent
            lines.append(f"{before}```pycon")
        elif inside and not line.strip():
            inside = False
            lines.append(f"{before}```")
        lines.append(line)
    return "\n".join(lines + ([f"{before}```"] if inside else []))
