"""Runs the notebooks of examples/ and writes each as a page with its outputs: `make notebooks`.

The pages are kept, so that the site is built without running anything; `tests/test_examples.py` compares them with the
notebooks. Names of notebooks as arguments run these alone.
"""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "examples"
PAGES = ROOT / "docs" / "examples"


def run(path: Path) -> Any:
    """The notebook with its outputs."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    at_root = {"metadata": {"path": str(ROOT)}}  # where this krs is found, installed or not
    NotebookClient(book, timeout=600, kernel_name="python3", resources=at_root).execute()
    return book


def source(cell: Any) -> str:
    """What a page shows of a cell, without what it puts out."""
    if cell.cell_type == "code":
        return f"```python\n{cell.source}\n```\n"
    text = re.sub(r"\]\((\w+)\.ipynb", r"](\1.md", cell.source.replace("](../docs/", "](../"))
    return f"{text}\n"


def outputs(cell: Any, stem: str) -> Iterator[str]:
    """What a cell puts out, as Markdown; pictures are written beside the page, as `stem-…png`.

    Raises `ValueError` for pictures that do not say what they show.
    """
    import base64

    for number, output in enumerate(cell.get("outputs", [])):
        data = output.get("data", {})
        if output.get("name") == "stderr":  # tqdm's, where Jupyter's widgets are not installed, for one
            sys.stderr.write(f"{stem}, {cell.id} warns, which is left out: {output.text}\n")
            continue
        if "image/png" in data:
            if "alt" not in cell.metadata:
                raise ValueError(f"{stem}, {cell.id} draws a picture: say what it shows in the cell's metadata, alt")
            file = f"{stem}-{cell.id}-{number}.png"
            (PAGES / file).write_bytes(base64.b64decode(data["image/png"]))
            yield f"![{cell.metadata['alt']}]({file})\n"
        elif "text/html" in data:
            lines = (line for line in data["text/html"].splitlines() if line.strip())
            yield "\n".join(['<div class="output">', *lines, "</div>\n"])
        else:
            text = output.get("text", data.get("text/plain", ""))
            yield f"```text\n{text.rstrip()}\n```\n"


def page(path: Path) -> str:
    """Runs a notebook; its page."""
    import torch

    import krs

    book = run(path)
    made = f"krs {krs.__version__}, torch {torch.__version__}, {datetime.date.today()}"
    blocks = []
    for cell in book.cells:
        blocks += [source(cell), *(outputs(cell, path.stem) if cell.cell_type == "code" else ())]
    first, *rest = blocks
    return "\n".join([first, f"*The notebook `examples/{path.name}`, run with {made}.*\n", *rest])


def main(names: list[str]) -> None:
    """Writes the pages of these notebooks, or of all."""
    PAGES.mkdir(exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not names or path.stem in names:
            for old in PAGES.glob(f"{path.stem}-*.png"):
                old.unlink()
            (PAGES / f"{path.stem}.md").write_text(page(path), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
