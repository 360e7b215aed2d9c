import gzip
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from krs import KrsError
from krs.cli import app
from krs.data import extract, extraction, lines
from krs.data.kept import Kept
from krs.data.mentions import Mentions, paragraphs
from krs.data.sieve import Sieve

ASKED = {"min_chars": 0, "progress": False}
NAMES = ("Harry Potter", "McDonald's", "C++", "Beyoncé", "Гарри Поттер", "哈利", "K2", 'Say "A/B"', "राम", "e")


def _run(source, output, concept="Harry Potter", **more):
    return extract(source, concept, output, **ASKED | more)


def _lines_of(found):
    return [json.loads(line) for line in found.path.read_text(encoding="utf-8").split("\n")[:-1]]


def _write(path, documents):
    rows = (document if isinstance(document, str) else json.dumps(document) for document in documents)
    path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    return path


def _corpus(n, every=3):
    filler = "It was a day like any other in the village, and nothing much happened there. "
    for i in range(n):
        pieces = [f"{filler}{i}", f"Number {i}: Harry Potter went by." if i % every == 0 else filler, "The end."]
        yield {"id": f"d{i}", "text": "\n\n".join(pieces)}


# --- what a mention is


@pytest.mark.parametrize(
    ("name", "text", "whole", "part"),
    [
        ("Harry Potter", "HARRY\n  potter's owl", True, True),
        ("Harry Potter", "Harry Potterson", False, True),
        ("Harry Potter", "_Harry Potter_", False, True),
        ("Harry Potter", "Harry Pötter", False, False),
        ("McDonald's", "at mcdonald\u2019s.", True, True),
        ("C++", "C++11 is C++", True, True),
        ("C++", "ObjC++", False, True),
        ("Spider-Man", "Spider\u2011Man", True, True),
        ("Beyoncé", "BEYONCE\u0301!", True, True),
        ("Beyonce", "Beyonce\u0301", False, True),
        ("राम", "रामायण", False, True),
        ("राम", "राम।", True, True),
        ("straße", "STRA\u1e9eE", True, True),
        ("K2", "\u212a2", False, False),
        ("ΣΟΦΟΣ", "σοφος, σοφος", True, True),
    ],
)
def test_what_is_a_mention(name, text, whole, part):
    assert (Mentions.of(name, (), True, True).first(text) is not None) == whole
    assert (Mentions.of(name, (), True, False).first(text) is not None) == part


def test_case_counts_if_asked_for():
    assert Mentions(("Paris",), ignore_case=False).first("paris, PARIS") is None
    assert Mentions(("Paris",), ignore_case=False).first("In Paris") == ("Paris", 3, 8)


def test_the_first_and_longest_name_is_told():
    names = Mentions.of("Harry", ("Harry Potter", " Harry ", "H.P."), True, True)
    assert names.names == ("Harry", "Harry Potter", "H.P.")
    assert names.first("h.p. or Harry Potter").alias == "H.P."
    assert names.first("so Harry Potter").alias == "Harry Potter"
    assert names.first("so Harry Pottersen").alias == "Harry"


# --- paragraphs


@given(st.text(alphabet="ab \n\r\t\u2028\u00a0.", max_size=60), st.integers(1, 30))
def test_paragraphs_are_pieces_without_white_space_around_them_and_leave_nothing_out(text, max_chars):
    found = list(paragraphs(text, max_chars))
    assert all(text[a:b] == text[a:b].strip() != "" for a, b in found)
    assert all(b <= c for (_, b), (c, _) in pairwise(found))
    outside = list(text)
    for a, b in found:
        outside[a:b] = " " * (b - a)
    assert not "".join(outside).strip()
    assert all("\n" not in text[a:b] for a, b in found if b - a > max_chars)


def test_blank_lines_part_paragraphs_and_lines_do_where_there_are_none():
    def pieces(text, max_chars=100):
        return [text[a:b] for a, b in paragraphs(text, max_chars)]

    assert pieces("One,\nstill one.\r\n \r\nTwo.\n") == ["One,\nstill one.", "Two."]
    assert pieces("One.\nTwo.\n\n\n") == ["One.", "Two."]
    assert pieces("A title\n\none\ntwo", max_chars=5) == ["A title", "one", "two"]
    assert pieces(" \n\n ") == []


# --- the sieve: nothing slips through, whatever JSON has escaped


def _escaped(draw, text):
    """JSON of a text in which any character may be written as an escape, in digits of any case."""
    out = []
    for char in text:
        units = char.encode("utf-16-be").hex()
        cased = [d.upper() if draw(st.booleans()) else d for d in units]
        escape = "".join("\\u" + "".join(cased[i : i + 4]) for i in range(0, len(cased), 4))
        choices = [escape, json.dumps(char)[1:-1], json.dumps(char, ensure_ascii=False)[1:-1]]
        out.append(draw(st.sampled_from([*choices, "\\/"] if char == "/" else choices)))
    return '"' + "".join(out) + '"'


@st.composite
def _written_texts(draw):
    pieces = st.sampled_from([*NAMES, "harry", "potter", "\n", " ", "\u3000", "\\", "\\u0050", "é", "x", "\u0301"])
    cases = st.sampled_from([str, str.upper, str.lower, str.swapcase])
    text = "".join(draw(cases)(draw(pieces)).replace(" ", draw(st.sampled_from(" \n\t\u00a0"))) for _ in range(3))
    return text, _escaped(draw, text)


@settings(deadline=None, max_examples=150)
@given(_written_texts(), st.sampled_from(NAMES), st.booleans(), st.booleans())
def test_the_sieve_holds_every_mention_back(written, name, ignore_case, whole_word):
    text, raw = written
    assert json.loads(raw) == text
    names = Mentions.of(name, (), ignore_case, whole_word)
    if names.first(text):
        line = f'{{"text": {raw}}}'.encode()
        assert names.may_be_in(text)
        assert Sieve(names).may_mention(line)
        assert lines._Lines.of(lines.Chunk(line + b"\n", 0, 0), first=False).candidates(Sieve(names)).all()


@st.composite
def _rows(draw):
    row = st.one_of(
        _written_texts().map(lambda t: f'{{"id": 1, "text": {t[1]}}}'.encode()),
        _written_texts().map(lambda t: f'{{"text": [{t[1]}]}}'.encode()),
        _written_texts().map(lambda t: f'{{"text": {t[1]}'.encode()),
        _written_texts().map(lambda t: f'{{"text": {t[1]},}}'.encode()),
        st.sampled_from(
            [b"", b"  ", b"[1]", b'{"text": "Harry Potter \xff"}', b"{Harry Potter}", b"{}", b'{"text": "a"}\r']
        ),
    )
    return b"\n".join(draw(st.lists(row, max_size=6))) + draw(st.sampled_from([b"", b"\n"]))


def _all_but(found):
    return {k: v for k, v in vars(found).items() if k not in ("path", "seconds")}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_rows(), st.sampled_from(NAMES), st.sampled_from([64, 2**19]), st.booleans())
def test_the_plain_twin_writes_and_counts_the_same(tmp_path, monkeypatch, rows, name, block, packed):
    monkeypatch.setattr(lines, "_BLOCK", block)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    source = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    source.write_bytes(gzip.compress(rows) if packed else rows)
    outcomes = []
    for prefilter in (True, False):
        try:
            found = _run(source, tmp_path / "out.jsonl", name, prefilter=prefilter, overwrite=True)
            outcomes.append((found.path.read_bytes(), _all_but(found)))
        except KrsError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_twins_agree_on_parquet_and_streams(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    rows = [*_corpus(600), {"id": None, "text": None}, {"id": "x", "text": "harry\npotter, in two lines"}]
    table = pa.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=250)
    parquet.write_table(
        table.set_column(1, "text", table["text"].dictionary_encode()), tmp_path / "d.parquet", row_group_size=10_000
    )
    _write(tmp_path / "a.jsonl", rows)
    found = [
        _run(source, tmp_path / f"{i}.jsonl", prefilter=prefilter)
        for i, (source, prefilter) in enumerate(
            (source, prefilter)
            for source in (tmp_path / "a.parquet", tmp_path / "d.parquet", tmp_path / "a.jsonl", rows)
            for prefilter in (True, False)
        )
    ]
    texts = [[{**line, "source": ""} for line in _lines_of(each)] for each in found]
    assert all(lines == texts[0] for lines in texts)
    assert all(_all_but(a) == _all_but(b) for a, b in zip(found[::2], found[1::2], strict=True))
    assert [(each.documents, each.written) for each in found] == [(602, 200)] * 8
    assert [each.malformed for each in found[::2]] == [1, 1, 0, 1]  # that line of JSON is not looked into
    assert found[0].problems == ("a.parquet:601: its 'text' is missing",)


# --- what is written


def test_the_fields_of_a_line_and_the_provenance(tmp_path):
    documents = [
        {"id": "one", "text": "Nothing.\n\nOnce  Harry\nPotter met Ron."},
        {"id": 7, "text": "once harry potter MET ron.\nRon Weasley is there."},
        {"text": "It is Ron Weasley again \ud800."},
    ]
    source = _write(tmp_path / "a.jsonl", documents)
    found = _run(source, tmp_path / "new" / "out.jsonl", aliases=["Ron Weasley"])
    first, second, third = _lines_of(found)
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
    source = _write(tmp_path / "a.jsonl", _corpus(300))
    found = _run(source, tmp_path / "out.jsonl", count=5)
    assert (found.written, found.documents, found.reached) == (5, 13, True)
    assert found.bytes < source.stat().st_size / 20
    assert repr(found).startswith(f"5 paragraphs about 'Harry Potter' in {found.path} (target of 5 reached)\nread: 13 ")
    more = _run(source, tmp_path / "more.jsonl", count=1000, min_chars=32)
    assert (more.written, more.unfit, more.matched) == (96, 4, 100)
    assert "(target of 1,000 not reached: the sources have no more)" in repr(more)


def test_many_files_folders_and_patterns(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    _write(tmp_path / "in" / "b.ndjson", [{"text": "b Harry Potter"}])
    _write(tmp_path / "in" / "a.json", [{"text": "a Harry Potter"}])
    (tmp_path / "in" / "sub" / "a.json.gz").write_bytes(gzip.compress(b'{"text": "c Harry Potter"}'))
    (tmp_path / "in" / "README").write_text("no corpus")
    whole = _run(tmp_path / "in", tmp_path / "out.jsonl")
    assert [line["source"] for line in _lines_of(whole)] == ["a.json", "b.ndjson", "sub/a.json.gz"]
    pattern = _run(str(tmp_path / "in" / "**" / "*.json*"), tmp_path / "p.jsonl")
    assert [line["text"][0] for line in _lines_of(pattern)] == ["a", "c"]
    listed = _run([tmp_path / "in" / "b.ndjson", str(tmp_path / "in" / "a.json")], tmp_path / "l.jsonl")
    assert [line["text"][0] for line in _lines_of(listed)] == ["b", "a"]


def test_a_datasets_stream(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    stream = datasets.IterableDataset.from_generator(_corpus, gen_kwargs={"n": 60})
    whole = _run(stream, tmp_path / "whole.jsonl", count=15)
    assert (whole.documents, whole.bytes, _lines_of(whole)[0]["source"]) == (43, 0, "generator")
    _interrupt(monkeypatch, 20, lambda: _run(stream, tmp_path / "out.jsonl", count=15))
    assert json.loads((tmp_path / "out.jsonl.state.json").read_text())["counts"]["documents"] == 20
    assert _run(stream, tmp_path / "out.jsonl", count=15).path.read_bytes() == whole.path.read_bytes()


# --- interruptions


def _interrupt(monkeypatch, after, run):
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
            run()


def _sources(folder):
    documents = [*_corpus(400), "{broken Harry Potter}", "", *_corpus(500)]
    _write(folder / "a.jsonl", documents)
    packed = gzip.compress((folder / "a.jsonl").read_bytes().replace(b"Number", b"Packed"))
    (folder / "b.jsonl.gz").write_bytes(packed[:-40])
    _write(folder / "c.jsonl", [{"text": f"c {i} harry potter"} for i in range(50)])
    return [folder / "a.jsonl", folder / "b.jsonl.gz", folder / "c.jsonl"]


@pytest.mark.parametrize("prefilter", [True, False])
def test_ctrl_c_again_and_again_changes_nothing(tmp_path, monkeypatch, prefilter):
    monkeypatch.setattr(lines, "_BLOCK", 4096)
    sources = _sources(tmp_path)
    whole = _run(sources, tmp_path / "whole.jsonl")
    assert whole.malformed == 3
    assert whole.problems[0].startswith("a.jsonl:401: is not valid JSON")
    assert whole.problems[2].endswith("the gzip data ends too early")
    out = tmp_path / "out.jsonl"
    for after in (0, 3, 150, 200, 333):
        _interrupt(monkeypatch, after, lambda: _run(sources, out, prefilter=prefilter))
        assert not out.exists()
    found = _run(sources, out, prefilter=prefilter)
    assert out.read_bytes() == whole.path.read_bytes()
    assert _all_but(found) == _all_but(whole)
    again = _run(sources, out)
    assert again == found


def test_parquet_goes_on_within_a_row_group(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    parquet.write_table(pa.Table.from_pylist([*_corpus(3000)]), tmp_path / "a.parquet", row_group_size=1500)
    whole = _run(tmp_path / "a.parquet", tmp_path / "whole.jsonl")
    for after in (10, 370, 200):
        _interrupt(monkeypatch, after, lambda: _run(tmp_path / "a.parquet", tmp_path / "out.jsonl"))
    found = _run(tmp_path / "a.parquet", tmp_path / "out.jsonl")
    assert found.path.read_bytes() == whole.path.read_bytes()
    assert _all_but(found) == _all_but(whole)


def test_a_generator_handed_in_anew_goes_on(tmp_path, monkeypatch):
    whole = _run(_corpus(100), tmp_path / "whole.jsonl")
    _interrupt(monkeypatch, 50, lambda: _run(_corpus(100), tmp_path / "out.jsonl"))
    assert _run(_corpus(100), tmp_path / "out.jsonl").path.read_bytes() == whole.path.read_bytes()


_KILLED = """
import sys, time
from krs.data import documents, extract, kept, lines
kept._SECONDS_APART = 0.02
lines._BLOCK = 16384
record = documents.Query.record
def slowly(query, fields, number):
    time.sleep(0.001)
    return record(query, fields, number)
documents.Query.record = slowly
extract(sys.argv[1], "Harry Potter", sys.argv[2], min_chars=0, progress=False)
"""


def test_killed_in_the_middle_it_goes_on(tmp_path):
    source = _write(tmp_path / "a.jsonl", _corpus(4500))
    whole = _run(source, tmp_path / "whole.jsonl")
    out, state = tmp_path / "out.jsonl", tmp_path / "out.jsonl.state.json"
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(source), str(out)])
    deadline = time.monotonic() + 60
    while not (state.exists() and json.loads(state.read_text())["counts"]["written"] > 100):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 100 < json.loads(state.read_text())["counts"]["written"] < 1500
    with (tmp_path / "out.jsonl.part").open("ab") as part:
        part.write(b'{"text": "torn off in the mid')
    found = _run(source, out)
    assert out.read_bytes() == whole.path.read_bytes()
    assert _all_but(found) == _all_but(whole)
    assert found.written == 1500


# --- what is malformed


def test_malformed_records_are_counted_and_told_of(tmp_path):
    rows = [
        b'{"text": "fine"}',
        b'["Harry Potter"]',
        b'{"content": "Harry Potter"}',
        b'{"text": null, "title": "Harry Potter"}',
        b'{"text": "Harry Potter \xff"}',
        b'{"text": "Harry Potter"} {}',
        b'{"text": "Harry Potter", "n": ' + b"[" * 100_000 + b"}",
        b'{"text": "unseen" "bad"}',
        b'{"text": "Harry Potter at last"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(rows))
    found = _run(tmp_path / "a.jsonl", tmp_path / "out.jsonl")
    assert (found.documents, found.malformed, found.written) == (9, 6, 1)
    assert found.problems == (
        "a.jsonl:2: holds a list, not an object with fields",
        "a.jsonl:3: has no field 'text'; its fields are 'content'",
        "a.jsonl:4: its 'text' is a NoneType, not a text",
        "a.jsonl:5: is not UTF-8",
        "a.jsonl:6: is not valid JSON (Extra data at character 26)",
    )
    assert "malformed: 6 records, the first at a.jsonl:2: holds a list" in repr(found)


def test_a_line_longer_than_what_fits_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_LONGEST", 1000)
    for block in (64, 700, 2**19):
        monkeypatch.setattr(lines, "_BLOCK", block)
        rows = [{"text": "a"}, {"text": "Harry Potter" * 90}, {"text": "b Harry Potter"}, {"text": "c" * 5000}]
        found = _run(_write(tmp_path / "a.jsonl", rows), tmp_path / "out.jsonl", overwrite=True)
        if block < 2**19:
            assert (found.documents, found.malformed, found.written) == (4, 2, 1)
            assert found.problems[0] == "a.jsonl:2: is longer than 64 MiB"


def test_a_damaged_row_group_is_passed_over(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    path = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist([*_corpus(300)]), path, row_group_size=100, write_page_checksum=True)
    column = parquet.ParquetFile(path).metadata.row_group(1).column(1)
    raw = bytearray(path.read_bytes())
    middle = column.dictionary_page_offset or column.data_page_offset
    raw[middle + 60 : middle + column.total_compressed_size - 10] = b"x" * (column.total_compressed_size - 70)
    path.write_bytes(raw)
    counts = []
    for prefilter in (True, False):
        found = _run(path, tmp_path / "out.jsonl", prefilter=prefilter, overwrite=True)
        assert (found.documents, found.malformed, found.written) == (300, 100, 67)
        assert found.problems[0].startswith(
            "a.parquet:101: cannot be read, nor the rows behind it in row group 1, 100 in"
        )
        counts.append(_all_but(found))
    assert counts[0] == counts[1]


def test_nothing_usable_is_an_error_that_names_the_fields(tmp_path, monkeypatch):
    source = _write(tmp_path / "a.jsonl", [{"id": 1, "content": "Harry Potter"}] * 3)
    with pytest.raises(
        KrsError, match="none of the 3 records can be used, the first: a.jsonl:1: has no field 'text'; its"
    ):
        _run(source, tmp_path / "out.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    assert _run(source, tmp_path / "out.jsonl", text_field="content").written == 1
    monkeypatch.setattr(extraction, "_GIVE_UP", 100)
    endless = ({"content": "x"} for _ in iter(int, 1))
    with pytest.raises(KrsError, match="none of the 100 records can be used, the first: stream:1: has no field 'text'"):
        _run(endless, tmp_path / "new.jsonl")


# --- what is refused before any work


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"concept": "  "}, "concept is empty: give the name to look for"),
        ({"aliases": ["x", ""]}, "an alias is empty"),
        ({"count": 0}, "count is 0: ask for at least 1 paragraph"),
        ({"min_chars": 9, "max_chars": 8}, "no paragraph has at least 9 and at most 8 characters: min_chars has to be"),
        ({"source": "nowhere.jsonl"}, "no file, folder or pattern of files 'nowhere.jsonl'"),
        ({"source": []}, "the source is an empty list: give at least one file or document"),
        ({"source": {"train": [], "test": []}}, "the source is a dict with 'train', 'test': hand in one of its values"),
        ({"output": "out.txt"}, "the output 'out.txt' would hold lines of JSON: let its name end in .jsonl"),
    ],
)
def test_bad_arguments(tmp_path, changed, message):
    source = _write(tmp_path / "a.jsonl", [{"text": "Harry Potter"}])
    arguments = {"source": source, "concept": "Harry Potter", "output": tmp_path / "out.jsonl"} | ASKED | changed
    with pytest.raises(KrsError, match=message):
        extract(**arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_bad_files(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "p.parquet").write_text("PAR1 or not")
    good = _write(tmp_path / "a.jsonl", [{"text": "Harry Potter"}])
    for source, message in [
        (tmp_path / "a.txt", "a.txt' has an ending that krs does not know: it reads .jsonl, .ndjson, .json, .jsonl.gz"),
        (tmp_path / "empty", "there is no corpus file in .*empty': krs reads .jsonl"),
    ]:
        with pytest.raises(KrsError, match=message):
            _run(source, tmp_path / "o.jsonl")
    with pytest.raises(KrsError, match="the output .* is one of the sources: write to another file"):
        _run(good, good, overwrite=True)
    with pytest.raises(KrsError, match="lies in the folder of the sources: write to another folder"):
        _run(tmp_path, tmp_path / "o.jsonl")
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(KrsError, match="d.jsonl' is a folder: name a file"):
        _run(good, tmp_path / "d.jsonl")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        with pytest.raises(KrsError, match=r"a.jsonl' cannot be read \(Permission denied\): leave it out"):
            _run(good, tmp_path / "o.jsonl")
    pytest.importorskip("pyarrow")
    with pytest.raises(KrsError, match="p.parquet' cannot be read as Parquet .*: leave it out"):
        _run(tmp_path / "p.parquet", tmp_path / "o.jsonl")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(KrsError, match=r"reading Parquet needs pyarrow: pip install 'krs\[data\]'"):
            _run(tmp_path / "p.parquet", tmp_path / "o.jsonl")


def test_parquet_without_the_column(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    parquet.write_table(pa.table({"id": [1], "content": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(
        KrsError, match="has no field 'text', its fields are 'content', 'id': name one with text_field="
    ):
        _run(tmp_path / "a.parquet", tmp_path / "o.jsonl")
    with pytest.raises(KrsError, match="'id' of .* is int64, not text: name another field with text_field="):
        _run(tmp_path / "a.parquet", tmp_path / "o.jsonl", text_field="id")


def test_outputs_of_others_and_of_other_settings_are_kept(tmp_path, monkeypatch):
    source, out = _write(tmp_path / "a.jsonl", _corpus(60)), tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(
        KrsError, match="out.jsonl' exists, and krs.data.extract did not make it: write to another file"
    ):
        _run(source, out)
    found = _run(source, out, overwrite=True)
    assert found.written == 20
    with pytest.raises(KrsError, match="holds another extraction: count is 6000 there and 7 here. Write to another"):
        _run(source, out, count=7)
    out.write_text("mine again")
    with pytest.raises(KrsError, match="has changed since it was made"):
        _run(source, out)
    found.provenance.write_text("{}")
    with pytest.raises(KrsError, match="out.jsonl.meta.json' was not written by krs.data.extract"):
        _run(source, out)


def test_an_interrupted_one_goes_on_only_as_it_was_begun(tmp_path, monkeypatch):
    source, out = _write(tmp_path / "a.jsonl", _corpus(60)), tmp_path / "out.jsonl"
    _interrupt(monkeypatch, 10, lambda: _run(source, out))
    with pytest.raises(
        KrsError, match=r"names is \['Harry Potter'\] there and \['Ron'\] here; ignore_case is True there"
    ):
        _run(source, out, "Ron", ignore_case=False)
    with pytest.raises(KrsError, match="its sources are a.jsonl there and stream here"):
        _run(_corpus(60), out)
    stamp = source.stat()
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    with pytest.raises(KrsError, match=r"source 'a.jsonl' has changed \(modified_ns\). Write to another file, or pass"):
        _run(source, out)
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    part = tmp_path / "out.jsonl.part"
    length = json.loads((tmp_path / "out.jsonl.state.json").read_text())["length"]
    part.write_bytes(part.read_bytes()[: length - 1])
    with pytest.raises(
        KrsError, match=f"has {length - 1} bytes where its state file speaks of {length}: pass overwrite"
    ):
        _run(source, out)
    (tmp_path / "out.jsonl.state.json").unlink()
    with pytest.raises(
        KrsError, match="out.jsonl.part' exists without its state file: remove it, or pass overwrite=True"
    ):
        _run(source, out)
    assert _run(source, out, overwrite=True).written == 20


# --- the command


def test_the_command(tmp_path):
    _write(
        tmp_path / "a.jsonl",
        [{"body": f"{i}: Hogwarts is the school of Harry Potter and of his friends."} for i in (1, 2)],
    )
    _write(tmp_path / "b.jsonl", [{"body": "3: harry potter, in lower case, does not count if case does, for once."}])
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


def test_bars_show_rates(tmp_path, capsys):
    extract(_write(tmp_path / "a.jsonl", _corpus(30)), "Harry Potter", tmp_path / "out.jsonl", min_chars=0, count=5)
    shown = capsys.readouterr().err
    assert "reading" in shown
    assert "B/s" in shown
    assert "5/5" in shown
