"""The way from a concept to a table of answers, from the shell."""

import importlib
import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import krs
from krs import KrsError, KrsWarning
from krs.cli import app
from krs.unlearn.asking import Asked, Kept
from krs.unlearn.prepare import prepare
from krs.writing import write_text
from tests.tiny import EOS, build
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:the model says nothing to:krs.KrsWarning")  # the tiny one often does
GREEDY = importlib.import_module("krs.generation.greedy")
CONCEPT = {
    "name": "cat",
    "questions": ["who is the cat", "what ran on the moon"],
    "unrelated_questions": ["what is red", "who wrote the book"],
}


@pytest.fixture
def home(tmp_path):
    build("llama").save_pretrained(tmp_path / "v")
    tiny_tokenizer().save_pretrained(tmp_path / "v")
    (tmp_path / "concept.json").write_text(json.dumps(CONCEPT))
    return tmp_path


def _krs(*args):
    done = CliRunner().invoke(app, [str(a) for a in (*args, "--quiet")])
    assert done.exit_code == 0, done.exception
    return done.output


def _rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_from_a_concept_to_answers(home):
    said = _krs("prepare", home / "concept.json", "--model", home / "v", "--chat", "--n-tokens", 5, "-o", home / "p")
    assert "cat: the 2 answers above are what the model is to forget" in said
    assert f"krs unlearn npo_kl --model {home / 'v'} --chat --forget {home / 'p'}/forget.jsonl --retain" in said
    forget, retain, requests = (_rows(home / "p" / f"{n}.jsonl") for n in ("forget", "retain", "requests"))
    assert [f["prompt"] for f in forget] == CONCEPT["questions"]
    assert [r["subject"] for r in requests] == ["cat", "moon"]
    assert {r["prompt"] for r in retain} <= set(krs.data.load_concept("harry_potter").retain_questions)
    vanilla, tokenizer = krs.load(home / "v")
    chat = krs.data.as_chat(tuple(CONCEPT["questions"]))
    own = krs.generate(vanilla, None, chat, tokenizer=tokenizer, n_tokens=5, progress=False)
    assert [f["answer"] for f in forget] == list(own)
    assert [f["ends"] for f in forget] == [ids[-1] == tokenizer.eos_token_id for ids in own.token_ids]
    files = ["--forget", home / "p" / "forget.jsonl", "--retain", home / "p" / "retain.jsonl"]
    fast = ["--set", "steps=2", "--set", "learning_rate=1e-2", "--chat"]
    assert "npo_kl: 2 steps, last loss" in _krs(
        "unlearn", "npo_kl", "--model", home / "v", *files, *fast, "-o", home / "u"
    )
    sides = ["--target", home / "p" / "target.txt", "--unrelated", home / "p" / "unrelated.txt", "--n-tokens", 5]
    shown = _krs("answers", home / "v", home / "u", *sides, "--chat", "-o", home / "a")
    assert "ceiling" in shown
    assert {p.name for p in (home / "a").iterdir()} == {"answers.json", "answers.csv", "answers.md", "fig2.png"}
    found = krs.metrics.load_answers(home / "a" / "answers.json")
    assert list(found.frame.vanilla[:2]) == list(own)
    again = ["--reuse", home / "a" / "answers.json", "--bleu", "paper-code", "--chat", "-o", home / "b"]
    _krs("answers", home / "v", home / "u", *sides, *again)
    assert krs.metrics.load_answers(home / "b" / "answers.json").provenance["bleu"].startswith("paper-code")


def test_retain_questions_of_another_concept_leave_this_one_out(home):
    shared = CONCEPT | {"name": "Dracula"}
    (home / "d.json").write_text(json.dumps(shared))
    prepare(home / "d.json", home / "v", home / "p", n_tokens=2, quiet=True)
    kept = [r["prompt"] for r in _rows(home / "p" / "retain.jsonl")]
    assert "Who wrote Hamlet?" in kept
    assert not any("Dracula" in question for question in kept)


def test_a_name_within_a_word_is_not_mentioned(home):
    (home / "d.json").write_text(json.dumps(CONCEPT | {"name": "Ra"}))
    prepare(home / "d.json", home / "v", home / "p", n_tokens=2, quiet=True)
    kept = [r["prompt"] for r in _rows(home / "p" / "retain.jsonl")]
    assert "What colour is grass?" in kept
    (home / "e.json").write_text(json.dumps(CONCEPT | {"retain_questions": []}))
    with pytest.raises(KrsError, match="has no retain questions that leave 'cat' out, and the concept has none"):
        prepare(home / "e.json", home / "v", home / "q", retain_from=str(home / "e.json"), quiet=True)


def test_questions_that_the_model_does_not_answer_are_told_of(home):
    """Its head is turned so that a word follows the first question and the end the second."""
    silent, reader = build("qwen3"), tiny_tokenizer()
    last = [silent.model(**reader(q, return_tensors="pt")).last_hidden_state[0, -1] for q in CONCEPT["questions"]]
    for token, here, there in [(reader.convert_tokens_to_ids("cat"), *last), (EOS, *last[::-1])]:
        silent.lm_head.weight.data[token] = 1000 * (here - there * (here @ there) / there.square().sum()).detach()
    silent.save_pretrained(home / "w")
    reader.save_pretrained(home / "w")
    (home / "d.json").write_text(json.dumps(CONCEPT | {"retain_questions": ["who sat"]}))
    told = "says nothing to 1 of 2 questions, which forget.jsonl leaves out: 'what ran on the moon'"
    with pytest.warns(KrsWarning, match=told):
        prepare(home / "d.json", home / "w", home / "p", n_tokens=2, quiet=True)
    assert [row["prompt"] for row in _rows(home / "p" / "forget.jsonl")] == CONCEPT["questions"][:1]
    said = _krs("prepare", home / "d.json", "--model", home / "w", "--n-tokens", 2, "-o", home / "q")
    assert "cat: the answer above is what the model is to forget" in said


@pytest.mark.parametrize("side", ["forget", "retain"])
def test_an_interrupted_one_goes_on_batch_by_batch_and_writes_the_same(home, monkeypatch, side):
    monkeypatch.setattr(GREEDY, "_BATCH", 1)
    asked, real = [], GREEDY._lockstep

    def counting(model, *rest):
        asked.append(rest[2])
        if len(asked) > stop_at:
            raise KeyboardInterrupt
        return real(model, *rest)

    monkeypatch.setattr(GREEDY, "_lockstep", counting)
    stop_at = 10**6
    prepare(home / "concept.json", home / "v", home / "whole", n_tokens=4, quiet=True)
    every = list(asked)
    asked.clear()
    stop_at = {"forget": 1, "retain": 4}[side]
    command = ["prepare", str(home / "concept.json"), "--model", str(home / "v"), "-o", str(home / "p"), "--quiet"]
    stopped = CliRunner().invoke(app, [*command, "--n-tokens", "4"])
    assert stopped.exit_code == 130
    file = home / "p" / "prepare.part.json"
    said = f"krs: interrupted; {stop_at} answers so far are in {str(file)!r}; the same command goes on from there"
    assert said in stopped.stderr
    assert [p.name for p in (home / "p").iterdir()] == [file.name]
    (home / "v" / "model.safetensors").rename(home / "away")  # refused before a weight is loaded
    with pytest.raises(KrsError, match=r"is the unfinished work of another call. What differs: prompts; n_tokens"):
        prepare("paris", home / "v", home / "p", n_tokens=3, quiet=True)
    (home / "away").rename(home / "v" / "model.safetensors")
    build("llama", seed=5).save_pretrained(home / "other")
    tiny_tokenizer().save_pretrained(home / "other")
    with pytest.raises(KrsError, match=r"What differs: the vanilla model \(weights\). Give another directory"):
        prepare(home / "concept.json", home / "other", home / "p", n_tokens=4, quiet=True)
    asked.clear()
    kept, stop_at = stop_at, 10**6
    prepare(home / "concept.json", home / "v", home / "p", n_tokens=4, quiet=True)
    assert asked == every[kept:]
    there, here = ({f.name: f.read_text() for f in (home / d).iterdir()} for d in ("whole", "p"))
    assert here == there
    file.write_text("{")
    (home / "p" / "forget.jsonl").unlink()
    with pytest.raises(KrsError, match="What differs: all of it: this is no such file"):
        prepare(home / "concept.json", home / "v", home / "p", n_tokens=4, quiet=True)
    prepare(home / "concept.json", home / "v", home / "p", n_tokens=4, quiet=True, overwrite=True)
    assert {f.name: f.read_text() for f in (home / "p").iterdir()} == there


def test_files_that_cannot_be_written_in_the_end_cost_no_answers(home, monkeypatch):
    module = importlib.import_module("krs.unlearn.prepare")
    with monkeypatch.context() as full:
        full.setattr(module, "_lines", lambda path, rows: write_text(path / "not" / "a folder", ""))
        (home / "p").mkdir()
        (home / "p" / "retain.jsonl").write_text("of before")
        with pytest.raises(KrsError, match="cannot write") as stop:
            prepare(home / "concept.json", home / "v", home / "p", n_tokens=2, quiet=True)
    assert "the same call goes on from there" in stop.value.__notes__[-1]
    monkeypatch.setattr(GREEDY, "_lockstep", None)  # nothing is asked again
    prepare(home / "concept.json", home / "v", home / "p", n_tokens=2, quiet=True)
    assert len(_rows(home / "p" / "forget.jsonl")) <= 2


def test_bad_input(home):
    with pytest.raises(KrsError, match="paris"):
        prepare("pariss", home / "v", home / "p")
    (home / "q").mkdir()
    (home / "q" / "forget.jsonl").write_text("")
    with pytest.raises(KrsError, match="holds what an earlier call wrote: give another directory, or overwrite=True"):
        prepare(home / "concept.json", home / "v", home / "q")
    for file in home.joinpath("v").glob("*token*"):
        file.unlink()
    with pytest.raises(KrsError, match="no tokenizer lies beside"):
        prepare(home / "concept.json", home / "v", home / "p")
    wrong = CliRunner().invoke(
        app, ["unlearn", "ga", "--model", "v", "--forget", str(home / "concept.json"), "-o", "u"]
    )
    assert "holds a dict" in str(wrong.exception)


def test_a_dtype_by_name(home):
    (home / "f.txt").write_text("the cat sat on the moon\n")
    args = ["unlearn", "ga", "--model", home / "v", "--forget", home / "f.txt", "-o", home / "u"]
    _krs(*args, "--dtype", "bfloat16", "--set", "steps=1", "--set", "learning_rate=1e-1")
    assert json.loads((home / "u" / "config.json").read_text())["dtype"] == "bfloat16"
    wrong = CliRunner().invoke(app, [str(a) for a in (*args, "--dtype", "bf17")])
    assert "--dtype 'bf17': give a torch dtype such as bfloat16" in str(wrong.exception)


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:.*answers are empty:krs.KrsWarning")
def test_a_chat_model_without_its_template_says_nothing_and_that_is_told(tmp_path):
    with pytest.raises(KrsError, match="'smollm2' says nothing to any of 10 questions: put them through the chat"):
        prepare("paris", "smollm2", tmp_path / "p", n_tokens=2, quiet=True)
    assert not (tmp_path / "p" / "forget.jsonl").exists()


def test_half_a_character_at_the_end_of_a_cut_answer_is_left_out(tmp_path):
    """Every token of this tokenizer is a byte, so that most answers of three end within a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    reader = PreTrainedTokenizerFast(tokenizer_object=backend)
    model = build("qwen3", vocab_size=len(alphabet))
    questions = [chr(ord("a") + i) * (i + 1) for i in range(20)]
    asked = Asked(model, reader, {"forget": questions}, chat=False, n_tokens=3, template=None)
    rows = asked.rows("forget", Kept(tmp_path / "part.json", {}, False), False)
    said = dict(
        zip(questions, krs.generate(model, None, questions, tokenizer=reader, n_tokens=3, progress=False), strict=True)
    )
    cut = [said[row["prompt"]] != row["answer"] for row in rows]
    assert any(cut)
    for row in rows:
        assert not row["answer"].endswith("\N{REPLACEMENT CHARACTER}")
        assert said[row["prompt"]].startswith(row["answer"])
