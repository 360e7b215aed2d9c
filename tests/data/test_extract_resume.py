"""Extraction that is interrupted goes on to the same result."""

import gzip
import json
import signal
import subprocess
import sys
import time

import pytest

from krs.data import lines
from tests.data.corpus_case import all_but, corpus, interrupt, run, write


def _sources(folder):
    documents = [*corpus(400), "{broken Harry Potter}", "", *corpus(500)]
    write(folder / "a.jsonl", documents)
    packed = gzip.compress((folder / "a.jsonl").read_bytes().replace(b"Number", b"Packed"))
    (folder / "b.jsonl.gz").write_bytes(packed[:-40])
    write(folder / "c.jsonl", [{"text": f"c {i} harry potter"} for i in range(50)])
    return [folder / "a.jsonl", folder / "b.jsonl.gz", folder / "c.jsonl"]


@pytest.mark.parametrize("prefilter", [True, False])
def test_ctrl_c_again_and_again_changes_nothing(tmp_path, monkeypatch, prefilter):
    monkeypatch.setattr(lines, "_BLOCK", 4096)
    sources = _sources(tmp_path)
    whole = run(sources, tmp_path / "whole.jsonl")
    assert whole.malformed == 3
    assert whole.problems[0].startswith("a.jsonl:401: is not valid JSON")
    assert whole.problems[2].endswith("the gzip data ends too early")
    out = tmp_path / "out.jsonl"
    for after in (0, 3, 150, 200, 333):
        interrupt(monkeypatch, after, lambda: run(sources, out, prefilter=prefilter))
        assert not out.exists()
    found = run(sources, out, prefilter=prefilter)
    assert out.read_bytes() == whole.path.read_bytes()
    assert all_but(found) == all_but(whole)
    again = run(sources, out)
    assert again == found


def test_parquet_goes_on_within_a_row_group(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    parquet.write_table(pa.Table.from_pylist([*corpus(3000)]), tmp_path / "a.parquet", row_group_size=1500)
    whole = run(tmp_path / "a.parquet", tmp_path / "whole.jsonl")
    for after in (10, 370, 200):
        interrupt(monkeypatch, after, lambda: run(tmp_path / "a.parquet", tmp_path / "out.jsonl"))
    found = run(tmp_path / "a.parquet", tmp_path / "out.jsonl")
    assert found.path.read_bytes() == whole.path.read_bytes()
    assert all_but(found) == all_but(whole)


def test_a_generator_handed_in_anew_goes_on(tmp_path, monkeypatch):
    whole = run(corpus(100), tmp_path / "whole.jsonl")
    interrupt(monkeypatch, 50, lambda: run(corpus(100), tmp_path / "out.jsonl"))
    assert run(corpus(100), tmp_path / "out.jsonl").path.read_bytes() == whole.path.read_bytes()


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
    source = write(tmp_path / "a.jsonl", corpus(4500))
    whole = run(source, tmp_path / "whole.jsonl")
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
    found = run(source, out)
    assert out.read_bytes() == whole.path.read_bytes()
    assert all_but(found) == all_but(whole)
    assert found.written == 1500
