"""Segments: whole paragraphs joined to a length, wherever extraction is interrupted."""

import json

import pytest
from typer.testing import CliRunner

from krs import KrsError
from krs.cli import app
from krs.data.mentions import paragraphs
from krs.data.segments import n_words, segments
from tests.data.corpus_case import all_but, interrupt, lines_of, run, write

SIZES = [3, 4, 12, 2, 2, 2, 30, 1]


def _text(sizes=SIZES, mention=()):
    """A paragraph of each size; the first two words of those in `mention` are the concept's name."""
    named = [("Harry Potter " if i in mention else "a b ") + "c " * (n - 2) for i, n in enumerate(sizes)]
    return "\n\n".join(text.strip() for text in named)


def _sizes(text, words):
    found = [text[start:end] for start, end in segments(text, paragraphs(text, 4000), words)]
    assert "\n\n".join(found) == text  # nothing is lost, nothing is cut
    return [n_words(piece) for piece in found]


def test_the_next_paragraph_is_joined_while_that_comes_nearer():
    sizes = [3, 4, 12, 2, 2, 2, 30, 2]
    assert _sizes(_text(sizes), 8) == [7, 12, 6, 30, 2]
    assert _sizes(_text(sizes), 1) == sizes
    assert _sizes(_text(sizes), 10**6) == [sum(sizes)]
    assert _sizes(_text([5, 5]), 10) == [10]
    assert _sizes(_text([5, 6]), 8) == [11]  # as near as 5: the longer one
    assert list(segments("", [], 5)) == []


def test_what_mentions_the_concept_and_fits_is_kept_as_it_stands_in_the_document(tmp_path):
    text = _text([4, 5, 40, 6, 4, 3], mention=(1, 2, 4, 5))
    source = write(tmp_path / "a.jsonl", [{"id": "d", "text": text}, {"text": "Harry Potter alone"}])
    found = run(source, tmp_path / "out.jsonl", words=10)
    first, second = lines_of(found)
    assert [n_words(line["text"]) for line in (first, second)] == [9, 10]  # 40 words are too many, 3 too few
    for line in (first, second):
        assert text[line["start"] : line["end"]] == line["text"]
        assert text[line["match_start"] : line["match_end"]] == "Harry Potter"
    assert (found.matched, found.unfit, found.written, found.words, found.mean_words) == (5, 3, 2, 19, 9.5)
    assert "2 segments about 'Harry Potter'" in repr(found)
    assert "words: 9.5 a segment on average; 10 were asked for" in repr(found)
    again = run(source, tmp_path / "out.jsonl", words=10)
    assert again == found
    assert json.loads(found.provenance.read_text())["settings"]["words"] == 10
    with pytest.raises(KrsError, match="words is 10 there and None here"):
        run(source, tmp_path / "out.jsonl")
    with pytest.raises(KrsError, match="words=0: ask for segments of at least 1 word"):
        run(source, tmp_path / "other.jsonl", words=0)


def test_paragraphs_are_counted_in_words_too(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"text": _text([4, 5, 6], mention=(0, 2))}])
    found = run(source, tmp_path / "out.jsonl")
    assert (found.words, found.mean_words) == (10, 5)
    assert "words: 5.0 a paragraph on average" in repr(found)
    assert "asked for" not in repr(found)


def _documents(n):
    for i in range(n):
        yield {"id": i, "text": f"number {i}\n\n" + _text([5 + (i + k) % 7 for k in range(9)], mention=(i % 9,))}


def test_interrupted_it_comes_to_the_same_segments_and_numbers(tmp_path, monkeypatch):
    source = write(tmp_path / "a.jsonl", _documents(200))
    whole = run(source, tmp_path / "whole.jsonl", words=20)
    assert 15 < whole.mean_words < 25
    out = tmp_path / "out.jsonl"
    for after in (3, 70):
        interrupt(monkeypatch, after, lambda: run(source, out, words=20))
    found = run(source, out, words=20, prefilter=False)
    assert out.read_bytes() == whole.path.read_bytes()
    assert all_but(found) == all_but(whole)


def test_from_the_shell(tmp_path):
    source = write(tmp_path / "a.jsonl", _documents(40))
    run_it = [
        "corpus",
        str(source),
        "--concept",
        "Harry Potter",
        "--words",
        "20",
        "-q",
        "-o",
        str(tmp_path / "o.jsonl"),
    ]
    done = CliRunner().invoke(app, run_it)
    assert done.exit_code == 0, done.exception
    assert repr(run(source, tmp_path / "p.jsonl", words=20)).splitlines()[-1] in done.output
