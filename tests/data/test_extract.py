"""What extraction writes, and its command."""

import gzip
import json
import sys

import pytest
from typer.testing import CliRunner

from krs.cli import app
from krs.data import extract
from tests.data.corpus_case import corpus, interrupt, lines_of, run, write

# --- what is written


def test_the_fields_of_a_line_and_the_provenance(tmp_path):
    documents = [
        {"id": "one", "text": "Nothing.\n\nOnce  Harry\nPotter met Ron."},
        {"id": 7, "text": "once harry potter MET ron.\nRon Weasley is there."},
        {"text": "It is Ron Weasley again \ud800."},
    ]
    source = write(tmp_path / "a.jsonl", documents)
    found = run(source, tmp_path / "new" / "out.jsonl", aliases=["Ron Weasley"])
    first, second, third = lines_of(found)
    assert first == {
        "text": "Once  Harry\nPotter met Ron.",
        "concept": "Harry Potter",
        "alias": "Harry Potter",
        "source": "a.jsonl",
        "document": "one",
        "start": 10,
        "end": 37,
        "match_start": 16,
        "match_end": 28,
    }
    assert (second["document"], second["alias"], third["document"]) == ("7", "Ron Weasley", 3)
    assert third["text"].endswith("\ud800.")
    for line, document in zip((first, second, third), documents, strict=True):
        assert document["text"][line["start"] : line["end"]] == line["text"]
    assert (found.paragraphs, found.matched, found.duplicates, found.written) == (5, 4, 1, 3)
    assert not found.reached
    assert found.texts() == [first["text"], second["text"], third["text"]]
    meta = json.loads(found.provenance.read_text(encoding="utf-8"))
    assert meta["settings"]["names"] == ["Harry Potter", "Ron Weasley"]
    assert meta["sources"][0]["bytes"] == source.stat().st_size
    assert meta["counts"]["written"] == 3
    assert {"krs", "python"} <= set(meta["versions"])
    assert sorted(p.name for p in found.path.parent.iterdir()) == ["out.jsonl", "out.jsonl.meta.json"]


def test_it_ends_at_the_count_and_says_so(tmp_path):
    source = write(tmp_path / "a.jsonl", corpus(300))
    found = run(source, tmp_path / "out.jsonl", count=5)
    assert (found.written, found.documents, found.reached) == (5, 13, True)
    assert found.bytes < source.stat().st_size / 20
    assert repr(found).startswith(f"5 paragraphs about 'Harry Potter' in {found.path} (target of 5 reached)\nread: 13 ")
    more = run(source, tmp_path / "more.jsonl", count=1000, min_chars=32)
    assert (more.written, more.unfit, more.matched) == (96, 4, 100)
    assert "(target of 1,000 not reached: the sources have no more)" in repr(more)


def test_many_files_folders_and_patterns(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    write(tmp_path / "in" / "b.ndjson", [{"text": "b Harry Potter"}])
    write(tmp_path / "in" / "a.json", [{"text": "a Harry Potter"}])
    (tmp_path / "in" / "sub" / "a.json.gz").write_bytes(gzip.compress(b'{"text": "c Harry Potter"}'))
    (tmp_path / "in" / "README").write_text("no corpus")
    whole = run(tmp_path / "in", tmp_path / "out.jsonl")
    assert [line["source"] for line in lines_of(whole)] == ["a.json", "b.ndjson", "sub/a.json.gz"]
    pattern = run(str(tmp_path / "in" / "**" / "*.json*"), tmp_path / "p.jsonl")
    assert [line["text"][0] for line in lines_of(pattern)] == ["a", "c"]
    listed = run([tmp_path / "in" / "b.ndjson", str(tmp_path / "in" / "a.json")], tmp_path / "l.jsonl")
    assert [line["text"][0] for line in lines_of(listed)] == ["b", "a"]


def test_a_datasets_stream(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    stream = datasets.IterableDataset.from_generator(corpus, gen_kwargs={"n": 60})
    whole = run(stream, tmp_path / "whole.jsonl", count=15)
    assert (whole.documents, whole.bytes, lines_of(whole)[0]["source"]) == (43, 0, "generator")
    interrupt(monkeypatch, 20, lambda: run(stream, tmp_path / "out.jsonl", count=15))
    assert json.loads((tmp_path / "out.jsonl.state.json").read_text())["counts"]["documents"] == 20
    assert run(stream, tmp_path / "out.jsonl", count=15).path.read_bytes() == whole.path.read_bytes()


# --- the command


def test_the_command(tmp_path):
    write(
        tmp_path / "a.jsonl",
        [{"body": f"{i}: Hogwarts is the school of Harry Potter and of his friends."} for i in (1, 2)],
    )
    write(tmp_path / "b.jsonl", [{"body": "3: harry potter, in lower case, does not count if case does, for once."}])
    arguments = [
        "corpus",
        tmp_path / "a.jsonl",
        tmp_path / "b.jsonl",
        "--concept",
        "Harry Potter",
        "--alias",
        "Hogwarts",
    ]
    arguments += ["-o", tmp_path / "out.jsonl", "--text-field", "body", "--quiet"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--case-sensitive"])
    assert done.exit_code == 0, done.exception
    assert "2 paragraphs about 'Harry Potter'" in done.output
    other = CliRunner().invoke(app, [*map(str, arguments)])
    assert "ignore_case is False there and True here" in str(other.exception)
    over = CliRunner().invoke(app, [*map(str, arguments), "--overwrite", "--count", "3"])
    assert "target of 3 reached" in over.output
    narrow = ["corpus", tmp_path / "a.jsonl", "--concept", "Hogwart", "--text-field", "body", "--quiet", "-o"]
    none = CliRunner().invoke(app, [*map(str, narrow), str(tmp_path / "none.jsonl")])
    assert "nothing was found: look at the spelling" in none.output
    part = CliRunner().invoke(app, [*map(str, narrow), str(tmp_path / "part.jsonl"), "--part-of-word"])
    assert "2 paragraphs about 'Hogwart'" in part.output
    for limit in (["--min-chars", "500"], ["--max-chars", "60"]):
        cut = CliRunner().invoke(
            app, [*map(str, narrow), str(tmp_path / f"{limit[1]}.jsonl"), "--part-of-word", *limit]
        )
        assert "0 paragraphs about 'Hogwart'" in cut.output


def test_bars_show_rates(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    extract(write(tmp_path / "a.jsonl", corpus(30)), "Harry Potter", tmp_path / "out.jsonl", min_chars=0, count=5)
    shown = capsys.readouterr().err
    assert "reading" in shown
    assert "B/s" in shown
    assert "5/5" in shown
