"""Commands as they are typed, and what a figure's file says of it."""

import re
from xml.etree import ElementTree

from PIL import Image
from typer.testing import CliRunner

from krs.cli import app

SVG, DC = "http://www.w3.org/2000/svg", "http://purl.org/dc/elements/1.1/"


QUESTIONS = ["who wrote the book", "the cat sat on"]


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def told_by(file):
    """The title and the description in a figure's file."""
    if file.suffix == ".png":
        with Image.open(file) as image:
            return image.info["Title"], image.info["Description"]
    if file.suffix == ".pdf":
        found = [_pdf_string(file.read_bytes(), name) for name in (b"Title", b"Subject")]
        return found[0], found[1]
    root = ElementTree.parse(file).getroot()
    title, description = list(root)[:2]
    assert (title.tag, description.tag) == (f"{{{SVG}}}title", f"{{{SVG}}}desc")
    assert root.get("role") == "img"
    assert root.get("aria-labelledby").split() == [title.get("id"), description.get("id")]
    assert len(root.findall(f"{{{SVG}}}title")) == 1
    about = [
        root.findtext(f".//{{http://creativecommons.org/ns#}}Work/{{{DC}}}{name}") for name in ("title", "description")
    ]
    assert about == [title.text, description.text]
    return title.text, description.text


def _pdf_string(content, name):
    text = re.search(rb"/%b \(((?:\\.|[^\\)])*)\)" % name, content, re.S)[1]
    text = re.sub(rb"\\(.)", lambda m: {b"n": b"\n", b"r": b"\r"}.get(m[1], m[1]), text, flags=re.S)
    return text.decode("utf-16" if text.startswith((b"\xff\xfe", b"\xfe\xff")) else "ascii")


def ends(curve):
    low, high = (f"{curve[at]:z.2f} at layer {at}" for at in (curve.idxmin(), curve.idxmax()))
    return f"highest {high}, lowest {low}, last {curve.iloc[-1]:z.2f}"


def shown(*files):
    """In a terminal so wide that no line is broken."""
    done = CliRunner().invoke(app, ["show", *map(str, files)], env={"COLUMNS": "1000"})
    assert done.exit_code == 0, done.exception
    return done.stdout
