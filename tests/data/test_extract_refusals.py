"""Malformed records are counted; bad arguments, files and outputs are refused."""

import gzip
import json
import os
import sys
from pathlib import Path

import pytest

from krs import KrsError, files
from krs.data import extract, extraction, lines
from tests.data.corpus_case import ASKED, all_but, corpus, interrupt, run, write

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
    found = run(tmp_path / "a.jsonl", tmp_path / "out.jsonl")
    assert (found.documents, found.malformed, found.written) == (9, 6, 1)
    assert found.problems == (
        "a.jsonl:2: holds a list, not an object with fields",
        "a.jsonl:3: has no field 'text'; its fields are 'content'",
        "a.jsonl:4: its 'text' is None, not a text",
        "a.jsonl:5: is not UTF-8",
        "a.jsonl:6: is not valid JSON (Extra data at character 26)",
    )
    assert "malformed: 6 records, the first at a.jsonl:2: holds a list" in repr(found)


def test_a_line_longer_than_what_fits_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_LONGEST", 1000)
    for block in (64, 700, 2**19):
        monkeypatch.setattr(lines, "_BLOCK", block)
        rows = [{"text": "a"}, {"text": "Harry Potter" * 90}, {"text": "b Harry Potter"}, {"text": "c" * 5000}]
        found = run(write(tmp_path / "a.jsonl", rows), tmp_path / "out.jsonl", overwrite=True)
        if block < 2**19:
            assert (found.documents, found.malformed, found.written) == (4, 2, 1)
            assert found.problems[0] == "a.jsonl:2: is longer than 64 MiB"


def test_a_damaged_row_group_is_passed_over(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    path = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist([*corpus(300)]), path, row_group_size=100, write_page_checksum=True)
    column = parquet.ParquetFile(path).metadata.row_group(1).column(1)
    raw = bytearray(path.read_bytes())
    middle = column.dictionary_page_offset or column.data_page_offset
    raw[middle + 60 : middle + column.total_compressed_size - 10] = b"x" * (column.total_compressed_size - 70)
    path.write_bytes(raw)
    counts = []
    for prefilter in (True, False):
        found = run(path, tmp_path / "out.jsonl", prefilter=prefilter, overwrite=True)
        assert (found.documents, found.malformed, found.written) == (300, 100, 67)
        assert found.problems[0].startswith(
            "a.parquet:101: cannot be read, nor the rows behind it in row group 1, 100 in"
        )
        counts.append(all_but(found))
    assert counts[0] == counts[1]


def test_nothing_usable_is_an_error_that_names_the_fields(tmp_path, monkeypatch):
    source = write(tmp_path / "a.jsonl", [{"id": 1, "content": "Harry Potter"}] * 3)
    with pytest.raises(
        KrsError, match="none of the 3 records can be used, the first: a.jsonl:1: has no field 'text'; its"
    ):
        run(source, tmp_path / "out.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    assert run(source, tmp_path / "out.jsonl", text_field="content").written == 1
    monkeypatch.setattr(extraction, "_GIVE_UP", 100)
    endless = ({"content": "x"} for _ in iter(int, 1))
    with pytest.raises(KrsError, match="none of the 100 records can be used, the first: stream:1: has no field 'text'"):
        run(endless, tmp_path / "new.jsonl")


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
    source = write(tmp_path / "a.jsonl", [{"text": "Harry Potter"}])
    arguments = {"source": source, "concept": "Harry Potter", "output": tmp_path / "out.jsonl"} | ASKED | changed
    with pytest.raises(KrsError, match=message):
        extract(**arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_bad_files(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "p.parquet").write_text("PAR1 or not")
    good = write(tmp_path / "a.jsonl", [{"text": "Harry Potter"}])
    for source, message in [
        (tmp_path / "a.txt", "a.txt' has an ending that krs does not know: it reads .jsonl, .ndjson, .json, .jsonl.gz"),
        (tmp_path / "empty", "there is no corpus file in .*empty': krs reads .jsonl"),
    ]:
        with pytest.raises(KrsError, match=message):
            run(source, tmp_path / "o.jsonl")
    with pytest.raises(KrsError, match="the output .* is one of the sources: write to another file"):
        run(good, good, overwrite=True)
    with pytest.raises(KrsError, match="lies in the folder of the sources: write to another folder"):
        run(tmp_path, tmp_path / "o.jsonl")
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(KrsError, match="d.jsonl' is a folder: name a file"):
        run(good, tmp_path / "d.jsonl")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        with pytest.raises(KrsError, match=r"a.jsonl' cannot be read \(Permission denied\): leave it out"):
            run(good, tmp_path / "o.jsonl")
    pytest.importorskip("pyarrow")
    with pytest.raises(KrsError, match="p.parquet' cannot be read as Parquet .*: leave it out"):
        run(tmp_path / "p.parquet", tmp_path / "o.jsonl")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(
            KrsError, match=r"reading Parquet needs pyarrow, which is not installed: pip install 'krs\[data\]'"
        ):
            run(tmp_path / "p.parquet", tmp_path / "o.jsonl")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_wide_encodings_are_named_before_any_work(tmp_path, encoding, ending):
    """Read as bytes, every line of such a file is malformed, and the names of the concept are nowhere in it."""
    good = write(tmp_path / "a.jsonl", [{"text": "Harry Potter"}])
    wide = tmp_path / f"b.{ending}"
    text = good.read_text().encode(encoding)
    wide.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    with pytest.raises(KrsError, match=rf"b.{ending}' is UTF-16 or UTF-32 text: save it as UTF-8"):
        run([good, wide], tmp_path / "o.jsonl")
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_other_separators_split_neither_documents_nor_paragraphs(tmp_path, mark):
    text = "Harry\u2028Potter\u2029is\x85Harry Potter\x0cstill\x0b.\x1e"
    (tmp_path / "a.jsonl").write_bytes(mark + json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
    found = run(tmp_path / "a.jsonl", tmp_path / "o.jsonl")
    assert (found.written, found.malformed) == (1, 0)
    assert found.texts() == [text.strip()]
    assert files.texts(found.path) == [text.strip()]


def test_parquet_without_the_column(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    parquet.write_table(pa.table({"id": [1], "content": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(
        KrsError, match="has no field 'text', its fields are 'content', 'id': name one with text_field="
    ):
        run(tmp_path / "a.parquet", tmp_path / "o.jsonl")
    with pytest.raises(KrsError, match="'id' of .* is int64, not text: name another field with text_field="):
        run(tmp_path / "a.parquet", tmp_path / "o.jsonl", text_field="id")


def test_outputs_of_others_and_of_other_settings_are_kept(tmp_path, monkeypatch):
    source, out = write(tmp_path / "a.jsonl", corpus(60)), tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(
        KrsError, match="out.jsonl' exists, and krs.data.extract did not make it: write to another file"
    ):
        run(source, out)
    found = run(source, out, overwrite=True)
    assert found.written == 20
    with pytest.raises(KrsError, match="holds another extraction: count is 6000 there and 7 here. Write to another"):
        run(source, out, count=7)
    out.write_text("mine again")
    with pytest.raises(KrsError, match="has changed since it was made"):
        run(source, out)
    found.provenance.write_text("{}")
    with pytest.raises(KrsError, match="out.jsonl.meta.json' was not written by krs.data.extract"):
        run(source, out)


def test_an_interrupted_one_goes_on_only_as_it_was_begun(tmp_path, monkeypatch):
    source, out = write(tmp_path / "a.jsonl", corpus(60)), tmp_path / "out.jsonl"
    interrupt(monkeypatch, 10, lambda: run(source, out))
    with pytest.raises(
        KrsError, match=r"names is \['Harry Potter'\] there and \['Ron'\] here; ignore_case is True there"
    ):
        run(source, out, "Ron", ignore_case=False)
    with pytest.raises(KrsError, match="its sources are a.jsonl there and stream here"):
        run(corpus(60), out)
    stamp = source.stat()
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    with pytest.raises(KrsError, match=r"source 'a.jsonl' has changed \(modified_ns\). Write to another file, or pass"):
        run(source, out)
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    part = tmp_path / "out.jsonl.part"
    length = json.loads((tmp_path / "out.jsonl.state.json").read_text())["length"]
    part.write_bytes(part.read_bytes()[: length - 1])
    with pytest.raises(
        KrsError, match=f"has {length - 1} bytes where its state file speaks of {length}: pass overwrite"
    ):
        run(source, out)
    (tmp_path / "out.jsonl.state.json").unlink()
    with pytest.raises(
        KrsError, match="out.jsonl.part' exists without its state file: remove it, or pass overwrite=True"
    ):
        run(source, out)
    assert run(source, out, overwrite=True).written == 20
