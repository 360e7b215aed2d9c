"""What a mention is, and what a paragraph; nothing that is one slips through the sieve."""

import gzip
import json
import os
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krs import KrsError
from krs.data import lines
from krs.data.mentions import Mentions, paragraphs
from krs.data.sieve import Sieve
from tests.data.corpus_case import NAMES, all_but, corpus, lines_of, run, write

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
            found = run(source, tmp_path / "out.jsonl", name, prefilter=prefilter, overwrite=True)
            outcomes.append((found.path.read_bytes(), all_but(found)))
        except KrsError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_twins_agree_on_parquet_and_streams(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    rows = [*corpus(600), {"id": None, "text": None}, {"id": "x", "text": "harry\npotter, in two lines"}]
    table = pa.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=250)
    parquet.write_table(
        table.set_column(1, "text", table["text"].dictionary_encode()), tmp_path / "d.parquet", row_group_size=10_000
    )
    write(tmp_path / "a.jsonl", rows)
    found = [
        run(source, tmp_path / f"{i}.jsonl", prefilter=prefilter)
        for i, (source, prefilter) in enumerate(
            (source, prefilter)
            for source in (tmp_path / "a.parquet", tmp_path / "d.parquet", tmp_path / "a.jsonl", rows)
            for prefilter in (True, False)
        )
    ]
    texts = [[{**line, "source": ""} for line in lines_of(each)] for each in found]
    assert all(lines == texts[0] for lines in texts)
    assert all(all_but(a) == all_but(b) for a, b in zip(found[::2], found[1::2], strict=True))
    assert [(each.documents, each.written) for each in found] == [(602, 200)] * 8
    assert [each.malformed for each in found[::2]] == [1, 1, 0, 1]  # that line of JSON is not looked into
    assert found[0].problems == ("a.parquet:601: its 'text' is missing",)
