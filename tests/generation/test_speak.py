"""The same question to three models, in pieces and in words."""

import re
from io import StringIO

import pytest
from typer.testing import CliRunner

import krs
from krs import ATTN_OUT, MLP_COEF, KrsError
from krs.cli import app
from krs.cli.speak import _numbers, _table
from krs.generation.pieces import TextStream
from tests.tiny import build, pair
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

QUESTION = "who wrote the book"


def test_the_three_answers_are_generates_own_and_come_in_pieces():
    v, u = build("llama"), build("llama", seed=1)
    options = {"n_tokens": 6, "tokenizer": tiny_tokenizer()}
    heard = []
    restore = (MLP_COEF + ATTN_OUT).at(0, 1, 2, 3)
    found = krs.speak(v, u, QUESTION, restore=restore, hear=lambda who, piece: heard.append((who, piece)), **options)
    more = {"progress": False, **options}
    expected = [
        krs.generate(v, None, [QUESTION], **more)[0],
        krs.generate(v, u, [QUESTION], **more)[0],
        krs.generate(v, u, [QUESTION], restore=restore, **more)[0],
    ]
    assert [found.vanilla, found.unlearned, found.restored] == expected
    assert expected[0] != expected[1]
    for who, text in zip(("vanilla", "unlearned", "restored"), expected, strict=True):
        assert "".join(piece for speaker, piece in heard if speaker == who) == text
    assert len(heard) > 3
    assert found.restore == (restore,)
    assert str(found).splitlines()[0] == f"vanilla: {expected[0].strip()}"


def test_by_default_the_last_three_layers_are_restored():
    v, u = pair("llama")
    found = krs.speak(v, u, QUESTION, n_tokens=1, tokenizer=tiny_tokenizer())
    assert found.restore == ((MLP_COEF + ATTN_OUT).at(1, 2, 3),)


def test_a_character_of_several_tokens_comes_when_it_is_whole():
    class Bytes:
        def decode(self, ids, **_):
            return bytes(ids).decode("utf-8", errors="replace")

    heard = []
    pieces = TextStream(lambda prompt, piece: heard.append((prompt, piece)), Bytes())
    said = "aé".encode() + b"\xe2"
    for n in range(1, len(said) + 1):
        pieces(0, tuple(said[:n]))
    assert heard == [(0, "a"), (0, "é")]
    pieces.finish(["aé\N{REPLACEMENT CHARACTER}"])
    assert heard[-1] == (0, "\N{REPLACEMENT CHARACTER}")


def test_pieces_need_a_tokenizer():
    v, u = pair("llama")
    with pytest.raises(KrsError, match="hear= gets pieces of text"):
        krs.generate(v, u, [[5, 9]], n_tokens=2, progress=False, hear=print)
    with pytest.raises(KrsError, match="answers are texts: pass tokenizer="):
        krs.speak(v, u, [5, 9], n_tokens=2)


def test_the_command_prints_one_after_the_other_into_a_log(tmp_path):
    for name, model in zip("vu", pair("llama"), strict=True):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    names = [str(tmp_path / "v"), str(tmp_path / "u")]
    done = CliRunner().invoke(app, ["speak", *names, QUESTION, "--layers", "1-2,3", "--n-tokens", "4"])
    assert done.exit_code == 0, done.output
    found = krs.speak(*names, QUESTION, restore=(MLP_COEF + ATTN_OUT).at(1, 2, 3), n_tokens=4)
    said = dict(re.findall(r"^(\w+):\n(.*)$", done.output, flags=re.MULTILINE))
    assert said == {who: getattr(found, who).strip() or "(nothing)" for who in ("vanilla", "unlearned", "restored")}


def test_in_a_terminal_of_80_columns_the_answers_stand_side_by_side():
    from rich.console import Console

    console = Console(width=80, record=True, file=StringIO())
    answers = {"vanilla": "J. K. Rowling wrote it " * 3, "unlearned": "I do not know [b]", "restored": "x" * 60}
    console.print(_table(answers))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert re.match(r"vanilla +unlearned +restored", lines[0])
    assert "J. K. Rowling" in lines[1]
    assert "I do not know [b]" in lines[1]
    assert sum(line.count("x") for line in lines) == 60


@pytest.mark.parametrize("given", ["a", "3-1", "1-", "1,,2"])
def test_layers_that_are_none_are_refused(given):
    with pytest.raises(KrsError, match="write layers as 20-29 or 3,7"):
        _numbers(given)
