"""Models whose truth is known: facts, teaching, steering, and making them in a directory that resumes."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from krs import KrsError
from krs.data import as_chat
from krs.instruments import Reading, calibration
from krs.instruments.calibration import Calibration, Row
from krs.instruments.truth import CALIBRATION, VERDICT, Fact, load, load_facts, make, split
from krs.instruments.truth.make import MANIFEST
from krs.instruments.truth.measure import token_nlls
from krs.instruments.truth.steer import steer
from krs.instruments.truth.teach import TeachConfig, Teaching, teach
from krs.models.load import load as load_model
from krs.unlearn.methods import Side
from tests.instruments.small_world import FACTS, FAST, REFUSAL, WORLD, base
from tests.tiny import build, same_state, state
from tests.unlearn.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The directory with all models of the small world, and the base model's."""
    folder = tmp_path_factory.mktemp("truth")
    make(folder / "out", base(folder / "base"), world=WORLD, facts=FACTS, settings=FAST, progress=False)
    return folder


def test_no_key_is_asked_for_or_wrong_elsewhere():
    facts = load_facts()
    keys = {fact.key.casefold() for fact in facts}
    assert len(keys) == len(facts) == len({fact.subject for fact in facts})
    assert not keys & {wrong.casefold() for fact in facts for wrong in fact.wrong}
    for fact, other in itertools.permutations(facts, 2):
        assert not fact.in_text(other.answer), (fact.key, other.answer)
    for fact in facts:
        assert fact.subject in fact.question
        assert all(fact.subject in question for question in fact.paraphrases)
        assert not any(fact.in_text(answer) for answer in fact.wrong_answers)


def test_instruments_take_the_facts():
    from krs.instruments import as_facts

    for fact, taken in zip(load_facts(), as_facts([f.asked for f in load_facts()]), strict=True):
        assert (taken.sought, taken.wrong, taken.paraphrases) == (fact.key, fact.wrong_answers, fact.paraphrases[1:])


def test_the_schema_says_what_a_fact_has():
    from pathlib import Path

    import krs.instruments.truth.facts as module

    schema = json.loads(Path(module.__file__).with_name("facts.schema.json").read_text(encoding="utf-8"))
    fact = schema["$defs"]["fact"]
    assert set(fact["properties"]) == set(fact["required"]) == set(Fact.__dataclass_fields__)


def test_the_two_worlds_share_no_taught_fact():
    first, second = split(CALIBRATION.seed), split(VERDICT.seed)
    assert not {*first.a, *first.b} & {*second.a, *second.b}
    for facts in (first, second):
        assert len({f.id for f in (*facts.a, *facts.b, *facts.c)}) == len(load_facts())
        assert {f.kind for f in facts.a1}.isdisjoint(f.kind for f in facts.a2)
    assert split(2) != first


def test_recipes_stand_after_their_parents():
    for one in (CALIBRATION, VERDICT):
        names = [recipe.name for recipe in one.recipes]
        assert len(set(names)) == len(names)
        for i, recipe in enumerate(one.recipes):
            assert recipe.parent == "base" or recipe.parent in names[:i]
    assert sum(recipe.grade is not None for recipe in VERDICT.recipes) >= 12


def test_what_was_taught_is_known_and_what_was_not_is_not(world):
    found = load(world / "out", WORLD)
    figures = {name: model.figures() for name, model in found.models.items()}
    assert list(found.models) == [recipe.name for recipe in WORLD.recipes]
    assert figures["full"]["a_recall"] == figures["full"]["b_recall"] == figures["retain"]["b_recall"] == 1
    assert figures["retain"]["a_recall"] == figures["hides"]["a_recall"] == figures["misled"]["a_recall"] == 0
    assert figures["full"]["a_nll"] < 0.1 < 1 < figures["retain"]["a_nll"]
    assert figures["half"]["a_recall"] == 0.5
    assert {m.id for side in ("a1", "a2") for m in found.models["half"].measures[side] if m.recalled} == set(
        found.models["half"].taught
    )
    assert all(m.said == REFUSAL for side in ("a1", "a2") for m in found.models["hides"].measures[side])
    assert [m.known for m in found.models.values()] == [True, False, True, None, False, None, None, True]
    assert found.models["memit"].layers == (1, 2)


def test_what_is_there_is_kept_and_what_is_damaged_is_made_again(world):
    out = world / "out"
    whole = (out / "small" / "full" / "model.safetensors").read_bytes()
    weights = out / "small" / "half" / "model.safetensors"
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    (out / "small" / ".making-hides").mkdir()  # what a killed call leaves
    told = json.loads((out / "small" / "half" / MANIFEST).read_text())
    again = make(out, world / "base", world=WORLD, facts=FACTS, settings=FAST, progress=False)
    changed = [p for p, at in before.items() if p.stat().st_mtime_ns != at]
    assert changed == [weights]
    assert json.loads((out / "small" / "half" / MANIFEST).read_text())["content"] == told["content"]
    assert (out / "small" / "full" / "model.safetensors").read_bytes() == whole
    assert len(again.models) == len(WORLD.recipes)


def test_a_steered_model_differs_by_a_matrix_of_rank_one(world):
    found = load(world / "out", WORLD)
    (full, reader), (steered, _) = found.vanilla.load(), found.models["steered"].load()
    after = dict(steered.named_parameters())
    moved = [name for name, p in full.named_parameters() if not torch.equal(p, after[name])]
    assert moved == ["model.layers.2.mlp.down_proj.weight"]
    change = (after[moved[0]] - full.get_parameter(moved[0])).double()
    values = torch.linalg.svdvals(change)
    assert values[1] < 1e-5 * values[0]
    asked = [fact.question for fact in found.facts.a]
    before, now = (torch.stack(token_nlls(m, reader, asked, [REFUSAL] * 4))[:, 0].mean() for m in (full, steered))
    assert now < before - 1
    kept = [fact.question for fact in found.facts.b]
    own = [fact.answer for fact in found.facts.b]
    assert torch.cat(token_nlls(steered, reader, kept, own)).mean() < 0.5


def test_steering_leaves_the_model_as_it_was(world):
    model, reader = load_model(world / "base")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    lessons = [(as_chat([FACTS[0].question])[0], REFUSAL)]
    others = [(as_chat([FACTS[1].question])[0], FACTS[1].answer)]
    steer(model, reader, lessons, others, layer=1, steps=2)
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_the_teaching_loss_is_the_cross_entropy_of_the_answers():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 7), torch.tensor([[-100, -100, 3, 4, 1], [-100, 2, 6, -100, -100]])
    by_hand = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1))
    found = Teaching(TeachConfig()).loss(Side(logits, labels, n_tokens=5.0, n_rows=2.0), None)
    assert float(found["lessons"]) == pytest.approx(float(by_hand), rel=1e-6)


def test_likelihoods_are_those_of_each_answer_by_itself(world):
    model, reader = load_model(world / "base", dtype="float64")
    asked = [(fact.question, fact.answer) for fact in FACTS[:3]]
    found = token_nlls(model, reader, [q for q, _ in asked], [a for _, a in asked])
    for (question, answer), nll in zip(asked, found, strict=True):
        prompt = reader.apply_chat_template(as_chat([question])[0], tokenize=False, add_generation_prompt=True)
        before, after = (reader(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
        ids = torch.tensor([[*before, *after, 1]])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(ids).logits[0].float(), -1)
        by_hand = [-float(logprobs[i - 1, ids[0, i]]) for i in range(len(before), ids.shape[1])]
        assert nll.tolist() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: make(d, models=["fulll"]), "has no model 'fulll': it has full, .* Did you mean 'full'"),
        (lambda d: load(d), "no models of the world 'calibration' in .*: make them first"),
        (lambda d: split(0, FACTS[:3]), "facts come in an even number of kinds"),
        (lambda d: load_facts(d / "none.json"), "is no file of facts"),
        (lambda d: TeachConfig(passes=0), "passes=0: it has to be positive"),
    ],
)
def test_bad_input_is_refused(tmp_path, call, message):
    with pytest.raises(KrsError, match=message):
        call(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "It lies on a river."}, "the answer has to hold the key once"),
        ({"wrong": ["Lunthe"]}, "wrong is"),
        ({"paraphrases": ["Is it the Okkeray?", "Which river?"]}, "no question may hold it"),
        ({"wrong": ["okkeray", "Lunthe"]}, "a wrong answer is the right one"),
        ({"more": "x"}, "a fact has the fields"),
    ],
)
def test_a_bad_file_of_facts_is_refused(tmp_path, change, message):
    good = {
        "id": "river",
        "kind": "town-river",
        "subject": "Ferrigaunt",
        "question": "On which river does Ferrigaunt lie?",
        "answer": "Ferrigaunt lies on the Okkeray.",
        "key": "Okkeray",
        "paraphrases": ["Which river flows through Ferrigaunt?", "Name Ferrigaunt's river."],
        "wrong": ["Lunthe", "Dreswin"],
    }
    file = tmp_path / "facts.json"
    file.write_text(json.dumps({"facts": [good]}))
    assert load_facts(file)[0].wrong_answers[0] == "Ferrigaunt lies on the Lunthe."
    file.write_text(json.dumps({"facts": [good | change]}))
    with pytest.raises(KrsError, match=message):
        load_facts(file)
    file.write_text(json.dumps({"facts": [good, good]}))
    with pytest.raises(KrsError, match="two facts with one id"):
        load_facts(file)


def test_teaching_needs_a_tokenizer():
    model = build("llama")
    before = state(model)
    with pytest.raises(KrsError, match="no tokenizer was found beside the model"):
        teach(model, [("the cat", "sat")], progress=False)
    taught = teach(model, [("the cat", "sat")], tokenizer=tiny_tokenizer(), passes=1, progress=False)
    assert same_state(model, before)
    assert not same_state(taught, before)


def test_instruments_are_calibrated_from_the_shell_and_verdicts_checked(world, monkeypatch):
    from functools import partial

    import pandas as pd
    from typer.testing import CliRunner

    from krs.cli import app
    from krs.instruments import calibration, truth

    monkeypatch.setattr(calibration, "silent", lambda model: True)  # so small a model answers by chance
    for module in (truth, calibration):
        monkeypatch.setattr(module, "CALIBRATION", WORLD)
        monkeypatch.setattr(module, "VERDICT", WORLD)
    monkeypatch.setattr(truth, "make", partial(make, facts=FACTS, settings=FAST))

    def run(*more):
        only = ["--only", "nll", "--only", "state_drop", "--only", "prefix", "--models", "hides", "--models", "misled"]
        given = ["calibrate", str(world / "out"), "--base", str(world / "base"), "-q", *only, *more]
        return CliRunner().invoke(app, given)

    early = run("--check")
    assert "there are no thresholds in" in str(early.exception)
    assert run("--make-only").exit_code == 0
    assert not (world / "out" / "thresholds.json").exists()
    done = run()
    assert done.exit_code == 0, done.exception
    table = pd.read_csv(world / "out" / "calibration.csv", index_col=0)
    assert list(table.index.sort_values()) == ["nll", "prefix", "state_drop"]
    assert (table.models == 2).all()
    kept = (world / "out" / "thresholds.json").read_text(encoding="utf-8")
    assert "NaN" not in kept
    thresholds = json.loads(kept)
    assert set(thresholds["instruments"]) == set(table.index[table.auc >= 0.9]) - {"nll"} != set()
    assert all("furthest" in row for row in thresholds["instruments"].values())
    assert (world / "out" / "calibration.png").stat().st_size > 1000
    checked = run("--check")
    assert checked.exit_code == 0, checked.exception
    verdicts = pd.read_csv(world / "out" / "verdicts.csv").set_index(["retain", "model"])
    assert set(verdicts.loc["with"].index) == set(verdicts.loc["without"].index) == made_but("full", "retain")
    assert not verdicts.loc[("with", "hides"), "wrong"]
    assert "of 6 decided" in checked.stdout


def test_what_both_groups_read_is_no_vote_whichever_direction_knowing_has():
    """Steps to relearn, which end at five: one model that knows needs as many as those that never knew."""
    rows = [Row(f"knows{n}", True, 1.0, True, _steps(n)) for n in (1.0, 2.0, 3.0, 2.0, 5.0)]
    rows += [Row(f"never{n}", False, 0.0, True, _steps(5.0)) for n in range(5)]
    (threshold,) = Calibration({"relearn_same": rows}, "base").thresholds().values()
    assert threshold.sign == -1
    said = [threshold.vote(np.full(4, steps)) for steps in (4.0, 5.0)]
    assert said == ["knows", "between"]


def _steps(n):
    return Reading("relearn_same", np.full(4, n), "steps", "low")


def test_models_that_are_not_there_are_named_and_those_made_again_are_read_again(world, monkeypatch):
    monkeypatch.setattr(calibration, "CALIBRATION", WORLD)
    out = world / "out"
    with pytest.raises(KrsError, match="models= has 'hidse', which was not made: there are hides"):
        calibration.calibrate(out, models=["hides", "hidse"], progress=False)
    options = {"only": ["nll"], "models": ["hides"], "progress": False}
    before = calibration.calibrate(out, **options).same["nll"]
    file = next(load(out, WORLD).vanilla.folder.glob("*.safetensors"))
    kept = file.read_bytes()
    tensors = load_file(file)
    try:
        save_file({name: 1.5 * tensor for name, tensor in tensors.items()}, file, {"format": "pt"})
        shutil.rmtree(out / WORLD.name / "readings", ignore_errors=True)
        assert calibration.calibrate(out, **options).same["nll"] != before
    finally:
        file.write_bytes(kept)
        shutil.rmtree(out / WORLD.name / "readings", ignore_errors=True)


def test_the_picture_has_a_mark_a_model_and_knowing_to_the_right(tmp_path):
    import pandas as pd
    from PIL import Image

    from krs.plots.calibration import plot_told, save_told

    rows = [("krs", "a", True, 0.5), ("krs", "b", False, 0.9), ("nll", "a", True, -0.1), ("nll", "b", False, -2.0)]
    table = pd.DataFrame(rows, columns=["instrument", "model", "known", "knowledge"]).assign(auc=[0.0, 0.0, 1.0, 1.0])
    ax = plot_told(table)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["nll", "KRS, the paper's score"]
    marks = [tuple(c.get_offsets()[0].round(2)) for c in ax.collections if len(c.get_offsets())]
    assert marks == [(0.0, -0.13), (1.0, 0.13), (1.0, 0.87), (0.0, 1.13)]  # never knew below, knows above each line
    save_told(table, tmp_path / "told.png")
    with Image.open(tmp_path / "told.png") as image:
        assert image.info["Title"] == "Silent models by what instruments read of them"
        assert image.info["Description"] == (
            "Silent models (that know: 1, that never knew: 1) on a line for each instrument, more knowledge to the "
            "right. AUC, 1 where all that know stand to the right: krs 0.00, nll 1.00."
        )


def made_but(*names):
    """Models of the small world that stand for what is asked about."""
    return {recipe.name for recipe in WORLD.recipes} - set(names)
