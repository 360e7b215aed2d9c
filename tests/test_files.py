"""Files of prompts and texts in the encodings and with the separators that files have."""

import codecs
import json

import pytest

from krs import KrsError
from krs.files import questions, read_prompts, template_arguments, texts

ODD = "one\u2028still one\x85and\u2029here\x0band\x0cthere\x1ctoo"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_a_prompt_stays_one_prompt_in_every_encoding(tmp_path, encoding, line_end):
    path = tmp_path / "p.txt"
    path.write_bytes(line_end.join([ODD, "", "Émile", ""]).encode(encoding))
    assert read_prompts(path) == [ODD, "Émile"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSONL"])
def test_json_files_likewise(tmp_path, encoding, suffix):
    rows = [ODD, [{"role": "user", "content": ODD}]]
    dumped = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = tmp_path / f"p{suffix}"
    path.write_bytes((f"[{','.join(dumped)}]" if suffix == ".json" else "\r\n".join(dumped)).encode(encoding))
    assert read_prompts(path) == rows


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_utf_16_of_either_order(tmp_path, mark):
    order = "utf-16-le" if mark == codecs.BOM_UTF16_LE else "utf-16-be"
    (tmp_path / "p.txt").write_bytes(mark + "one\ntwo\n".encode(order))
    assert read_prompts(tmp_path / "p.txt") == ["one", "two"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("one\ntwo\n".encode("utf-16-le"), "has a NUL byte in line 1, so it is no UTF-8 text .UTF-16 without a mark"),
        (b"one\ntw\x00o\n", "has a NUL byte in line 2"),
        ("one\nÉmile\n".encode("latin-1"), "is not UTF-8 text .byte 0xc9 in line 2.: save it as UTF-8"),
        (codecs.BOM_UTF16_LE + b"a", "is not UTF-16 text"),
        (b"\xef\xbb\xbf\n \n", "holds nothing: give at least one line"),
    ],
)
def test_what_is_no_text(tmp_path, data, message):
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(KrsError, match=message):
        read_prompts(tmp_path / "p.txt")


def test_directories_and_the_line_of_a_mistake(tmp_path):
    with pytest.raises(KrsError, match="is a directory: give a file"):
        read_prompts(tmp_path)
    (tmp_path / "p.jsonl").write_text('"one"\n\n{"two"\n')
    with pytest.raises(KrsError, match="is not valid JSON: .* in line 3, column 7"):
        read_prompts(tmp_path / "p.jsonl")


def test_questions_and_texts_are_read_by_the_same_reader(tmp_path):
    (tmp_path / "p.txt").write_bytes(ODD.encode("utf-16"))
    assert questions(tmp_path / "p.txt", chat=True) == [[{"role": "user", "content": ODD}]]
    assert texts(tmp_path / "p.txt") == [ODD]


def test_arguments_of_the_chat_template():
    assert template_arguments(None) is None
    given = ["enable_thinking=false", "date_string=26 Jul 2024"]
    assert template_arguments(given) == {"enable_thinking": False, "date_string": "26 Jul 2024"}
    with pytest.raises(KrsError, match="--template-arg 'thinking': write it as name=value, such as enable"):
        template_arguments(["thinking"])
