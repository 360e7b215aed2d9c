"""The demo's unlearned model is used again only if it is the one that the demo made, of the same vanilla model."""

import html
import shutil
import signal

import pytest

from krs import KrsError, demo
from krs.data.concepts import as_chat, load_concept
from krs.generation import Generated, generate
from krs.instruments import load_dissection
from krs.unlearn.grad_diff import GradDiff
from tests.tiny import build, perturbed, same_state, state
from tests.unlearn.tiny_tokenizer import tiny_tokenizer


@pytest.fixture
def unlearned(tmp_path, monkeypatch):
    monkeypatch.setitem(demo.SETTINGS, "steps", 1)
    said = []
    monkeypatch.setattr(demo, "_say", said.append)
    concept, tokenizer = load_concept("harry_potter"), tiny_tokenizer()

    def made(vanilla):
        said.clear()
        answers = generate(vanilla, None, as_chat(concept.questions), tokenizer=tokenizer, n_tokens=2, progress=False)
        model = demo._unlearned(vanilla, tokenizer, concept, answers, tmp_path / "unlearned", False)
        return model, "earlier run" in " ".join(said[0].split())

    return made


def _vanilla():
    return build("llama", max_position_embeddings=256)


def test_it_is_loaded_again_for_the_same_vanilla_model_only(unlearned, tmp_path):
    first, loaded = unlearned(_vanilla())
    assert not loaded
    second, loaded = unlearned(_vanilla())
    assert loaded
    assert same_state(second, state(first))
    (tmp_path / "sweep.krs").write_text("of the first")
    other = _vanilla()
    other.model.layers[2].mlp.down_proj.weight.data[:, 17] += 1e-3
    third, loaded = unlearned(other)
    assert not loaded
    assert not same_state(third, state(first))
    assert not (tmp_path / "sweep.krs").exists()


@pytest.mark.parametrize("step", [2, 4])
def test_an_interrupted_one_goes_on_as_if_it_had_not_been(unlearned, tmp_path, monkeypatch, step):
    """After the last step Ctrl-C waits until the model is saved."""
    monkeypatch.setitem(demo.SETTINGS, "steps", 4)
    whole = state(unlearned(_vanilla())[0])
    shutil.rmtree(tmp_path / "unlearned")
    real, steps = GradDiff.loss, []

    def pressed(self, forget, retain):
        steps.append(1)
        if len(steps) == step:
            signal.raise_signal(signal.SIGINT)
        return real(self, forget, retain)

    monkeypatch.setattr(GradDiff, "loss", pressed)
    with pytest.raises(KeyboardInterrupt):
        unlearned(_vanilla())
    assert len(steps) == step
    resumed, loaded = unlearned(_vanilla())
    assert len(steps) == 4
    assert loaded == (step == 4)
    assert same_state(resumed, whole)
    again, loaded = unlearned(_vanilla())
    assert loaded
    assert same_state(again, whole)


def test_one_that_was_changed_is_refused(unlearned, tmp_path):
    model, _ = unlearned(_vanilla())
    model.model.layers[2].mlp.down_proj.weight.data[:, 17] += 1e-3
    model.save_pretrained(tmp_path / "unlearned")
    with pytest.raises(KrsError, match=r"unlearned' is not as the demo left it \(weights\): remove it, or give"):
        unlearned(_vanilla())


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(KrsError, match=r"output: '.*file' is a file: give a directory"):
        demo.demo(tmp_path / "file")


@pytest.fixture
def dissected(tmp_path, monkeypatch):
    """The demo's last step on tiny models; what it wrote, and what it said."""
    said = []
    monkeypatch.setattr(demo, "_say", said.append)
    monkeypatch.setattr(demo, "_PAGE_SECONDS", 1)
    vanilla, concept = build("llama", max_position_embeddings=256), load_concept("harry_potter")
    sides = [[(q, "the cat sat on the moon") for q in concept.questions], [("what is blue", "the moon is blue")]]

    def run():
        written = demo._dissected(vanilla, perturbed(vanilla), tiny_tokenizer(), *sides, tmp_path, False)
        return written, " ".join("".join(said).split())

    return run


def test_it_ends_with_a_page_about_its_pair(dissected, tmp_path):
    made, said = dissected()
    assert made is not None, said
    page = (tmp_path / "dissect" / "report.html").read_text(encoding="utf-8")
    found = load_dissection(tmp_path / "dissect" / "report.json")
    assert [fact.question for fact in found.facts] == list(load_concept("harry_potter").questions)
    assert found.provenance["budget"] == 1
    assert {"nll", "nll_tail", "recall"} <= set(found.readings)
    assert str(found.verdict) == str(made.verdict)
    assert demo.answer(made).endswith(f"the page in dissect/: {found.verdict}")
    assert html.escape(str(found.verdict)) in page


def test_a_page_that_cannot_be_made_is_said_and_loses_nothing(dissected, tmp_path):
    (tmp_path / "dissect").write_text("in its place")
    made, said = dissected()
    assert made is None
    assert "The page is left out: " in said
    assert "is a file: give a directory" in said


def test_an_answer_that_stops_for_want_of_tokens_is_told_from_one_that_ends():
    said = {"vanilla": Generated(((5, 9), (5, 0)), (" It was\nwritten ", "By Austen."))}
    text = demo._side_by_side("Emma", ("Who?", "By whom?"), said, frozenset({0}))
    assert "- vanilla:   It was written…\n" in text
    assert "- vanilla:   By Austen.\n" in text


@pytest.mark.parametrize(("columns", "width"), [(None, 80), ("60", 60), ("200", 100)])
def test_prose_ends_where_the_terminal_does_and_at_a_hundred_columns(monkeypatch, columns, width):
    said = []
    monkeypatch.setattr(demo, "_say", said.append)
    monkeypatch.setattr("sys.__stdout__", None)  # a pipe has no width
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    long = Generated(((5,),), (" ".join(["Hogwarts"] * 60),))
    text = demo._side_by_side("Emma", ("Who?",), {"vanilla": long, "unlearned": long}, frozenset({0}))
    demo._tell(text)
    (shown,) = said
    assert max(map(len, text.splitlines())) > 500
    assert width - 9 < max(map(len, shown.splitlines())) <= width
    assert shown.split() == text.split()
    assert "\n## Emma\n\n**Who?**\n\n- vanilla:   Hogwarts" in shown
    assert "\n  Hogwarts" in shown
