"""What the tests of corpus extraction share."""

import json

import pytest

from krs.data import extract
from krs.data.kept import Kept

ASKED = {"min_chars": 0, "progress": False}
NAMES = ("Harry Potter", "McDonald's", "C++", "Beyoncé", "Гарри Поттер", "哈利", "K2", 'Say "A/B"', "राम", "e")


def run(source, output, concept="Harry Potter", **more):
    return extract(source, concept, output, **ASKED | more)


def lines_of(found):
    return [json.loads(line) for line in found.path.read_text(encoding="utf-8").split("\n")[:-1]]


def write(path, documents):
    rows = (document if isinstance(document, str) else json.dumps(document) for document in documents)
    path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    return path


def corpus(n, every=3):
    filler = "It was a day like any other in the village, and nothing much happened there. "
    for i in range(n):
        pieces = [f"{filler}{i}", f"Number {i}: Harry Potter went by." if i % every == 0 else filler, "The end."]
        yield {"id": f"d{i}", "text": "\n\n".join(pieces)}


def all_but(found):
    return {k: v for k, v in vars(found).items() if k not in ("path", "seconds")}


def interrupt(monkeypatch, after, running):
    """Ctrl-C behind so many steps, a half-written line being on its way."""
    commit, calls = Kept.commit, []

    def commit_or_stop(kept, *progress):
        calls.append(progress)
        if len(calls) > after:
            kept.write({"text": "half"})
            raise KeyboardInterrupt
        commit(kept, *progress)

    with monkeypatch.context() as patched:
        patched.setattr(Kept, "commit", commit_or_stop)
        with pytest.raises(KeyboardInterrupt):
            running()
