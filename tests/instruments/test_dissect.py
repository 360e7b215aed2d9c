import importlib
import json
import re

import numpy as np
import pytest
from pandas.testing import assert_frame_equal

import krs
from krs.instruments import Instrument, load_dissection
from krs.instruments.dissect import _sentences, seconds
from krs.instruments.reading import Reading
from krs.instruments.verdict import Threshold, thresholds, verdict
from tests.adapters import adapted, merged_by_peft
from tests.instruments.case import FACTS, OTHERS, tiny_case
from tests.pages.reading import Seen
from tests.test_writing import full_disk
from tests.tiny import build, perturbed, same_state, state
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

BY = {
    "nll_tail": Threshold(0.5, 1.5, 1.0, "likelihood"),
    "relearn": Threshold(0.8, 0.2, 1.0, "relearning"),
    "uds": Threshold(0.3, 0.7, 1.0, "states"),
}


def _reading(name: str, values: list[float], **nulls: list[float]) -> Reading:
    knows = "high" if name == "relearn" else "low"
    return Reading(name, np.array(values), "", knows, {k: np.array(v) for k, v in nulls.items()})


KNOWN = {"nll_tail": [0.1, 0.2, 0.1], "relearn": [0.9, 1.0, 0.9], "uds": [0.1, 0.1, 0.2]}
NEVER = {"nll_tail": [1.9, 2.2, 1.8], "relearn": [0.0, 0.1, 0.1], "uds": [0.9, 1.0, 0.8]}
HALF = {"nll_tail": [0.9, 1.0, 1.1], "relearn": [0.5, 0.5, 0.6], "uds": [0.5, 0.5, 0.5]}


@pytest.mark.parametrize(("values", "word"), [(KNOWN, "knows"), (NEVER, "does not know"), (HALF, "partly")])
def test_two_kinds_of_instruments_that_agree_decide(values, word):
    found = verdict({name: _reading(name, v) for name, v in values.items()}, BY)
    assert found.word == word
    assert all(not vote.why for vote in found.votes)


def test_instruments_that_contradict_each_other_decide_nothing():
    mixed = {"nll_tail": KNOWN["nll_tail"], "relearn": NEVER["relearn"]}
    found = verdict({name: _reading(name, v) for name, v in mixed.items()}, BY)
    assert str(found).startswith("cannot tell, because nll_tail read as in models that know, and relearn")


def test_what_unlearning_trains_is_not_enough_for_does_not_know():
    by = BY | {"prefix": Threshold(0.4, 0.1, 1.0, "saying")}
    low = {"nll_tail": _reading("nll_tail", NEVER["nll_tail"]), "prefix": _reading("prefix", [0.0, 0.0, 0.0])}
    assert "an instrument of another kind, such as relearn, has to agree" in str(verdict(low, by))
    both = low | {"relearn": _reading("relearn", NEVER["relearn"])}
    assert verdict(both, by).word == "does not know"
    high = {"nll_tail": _reading("nll_tail", KNOWN["nll_tail"]), "prefix": _reading("prefix", [1.0, 0.9, 1.0])}
    assert verdict(high, by).word == "knows"


def test_one_kind_alone_decides_nothing():
    assert "only nll_tail tells" in verdict({"nll_tail": _reading("nll_tail", KNOWN["nll_tail"])}, BY).why


def test_an_instrument_whose_own_control_fails_has_no_vote():
    wrong = _reading("relearn", KNOWN["relearn"], never_knew=[0.9, 0.9, 0.9])
    found = verdict({"nll_tail": _reading("nll_tail", KNOWN["nll_tail"]), "relearn": wrong}, BY)
    assert found.word == "cannot tell"
    assert "it reads the retain model as one that knows" in found.votes[1].why


def test_a_mean_whose_interval_reaches_the_other_side_is_no_vote():
    assert BY["nll_tail"].vote(np.array([0.0, 0.0, 1.6, 0.1, 0.1])) == "knows"
    assert BY["nll_tail"].vote(np.array([0.0, 0.0, 0.0, 2.4])) == "unsure"


def test_a_vanilla_model_beyond_those_that_never_knew_fails_the_control_too():
    by = BY | {"nll_tail": Threshold(0.5, 1.5, 1.0, "likelihood", furthest=2.0)}
    lost = {"nll_tail": _reading("nll_tail", [4.0, 4.1, 3.9], same=[3.9, 4.0, 3.8])}
    assert (
        verdict(lost, by).votes[0].why == "its control fails: it reads the vanilla model itself as one that never knew"
    )
    rest = {name: _reading(name, KNOWN[name]) for name in ("relearn", "uds")}
    assert verdict(lost | rest, by).word == "knows"


def test_two_instruments_of_one_kind_are_one_vote_for_partly_too():
    by = {"nll_tail": BY["nll_tail"], "paraphrase": BY["nll_tail"]}
    values = {"nll_tail": HALF["nll_tail"], "paraphrase": KNOWN["nll_tail"]}
    found = verdict({name: _reading(name, v) for name, v in values.items()}, by)
    assert str(found) == "cannot tell, because only paraphrase tells, and two kinds of instruments have to agree"


def test_a_model_that_answers_knows():
    found = verdict({"recall": _reading("recall", [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0])}, BY)
    assert found.word == "knows"
    assert "when asked" in found.why


def test_a_reading_counts_as_it_is_and_as_added_to_what_the_vanilla_model_reads():
    tells = Threshold(0.5, 1.5, 1.0, "likelihood", same=0.0, furthest=2.0)
    assert tells.vote(np.array([1.6, 1.7, 1.6])) == "never"
    assert tells.vote(np.array([1.6, 1.7, 1.6]), np.array([0.4, 0.5, 0.3])) == "never"  # within half the distance
    assert tells.vote(np.array([1.6, 1.7, 1.6]), np.array([1.0, 1.1, 0.9])) == "unsure"  # 0.6 is added
    assert tells.vote(np.array([0.3, 0.3, 0.4]), np.array([1.0, 1.1, 0.9])) == "knows"


def test_what_reads_further_from_knowing_than_not_knowing_can_decides_nothing():
    by = BY | {"nll_tail": Threshold(0.5, 1.5, 1.0, "likelihood", same=0.0, furthest=2.0)}
    for far, word in (([2.5, 2.7, 2.6], "does not know"), ([2.9, 3.1, 2.9], "cannot tell")):  # 2.75 is the limit
        found = verdict({name: _reading(name, NEVER[name] if name != "nll_tail" else far) for name in NEVER}, by)
        assert found.word == word
    assert "nll_tail read further from knowing than models that never knew do" in found.why
    assert found.votes[0].says == "beyond"
    high = {name: _reading(name, KNOWN[name] if name != "nll_tail" else [2.9, 3.1, 2.9]) for name in KNOWN}
    assert verdict(high, by).word == "knows"
    shared = Threshold(0.8, 0.2, 1.0, "saying", same=1.0, furthest=0.1)  # the same the other way up
    assert [shared.vote(np.array([v, v])) for v in (-0.3, -0.2, 0.1, 0.9)] == ["beyond", "never", "never", "knows"]


def _dissect(tmp_path=None, **options):
    vanilla = build("llama")
    models = (vanilla, perturbed(vanilla))
    return models, krs.dissect(
        *models,
        FACTS,
        tokenizer=tiny_tokenizer(),
        n_tokens=8,
        chat=False,
        progress=False,
        output_dir=tmp_path,
        **options,
    )


def test_a_dissection_runs_what_fits_says_what_it_left_out_and_goes_on(tmp_path):
    before = state(build("llama"))
    models, found = _dissect(tmp_path, budget=None, unrelated=OTHERS)
    assert same_state(models[0], before)
    assert set(found.left_out) == {"uds", "uds_inner"}
    assert found.left_out["uds"] == "needs retain"
    assert found.evidence.loc["nll", "null: same"] == pytest.approx(found.readings["nll"].nulls["same"].mean())
    again = load_dissection(tmp_path / "report.json")
    assert repr(again) == repr(found)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert found.verdict.word in page
    between = re.search(r'aria-label="What each instrument reads, as a share of the way from models ([^"]*)"', page)
    told = dict(re.findall(r"(\w+) (-?\d+\.\d\d)(?=[,.])", between[1].partition(". The figure ends")[0] + "."))
    assert between[1].startswith("that never knew the facts, 0, to models that know them, 1: nll_tail ")
    for name, threshold in thresholds().items():
        if name in told:
            share = (found.readings[name].mean - threshold.never) / (threshold.knows - threshold.never)
            assert float(told[name]) == pytest.approx(share, abs=0.006), name
    assert set(told) & set(found.readings) == set(told) >= {"nll_tail"}
    assert 'aria-label="account, share by layer: ' in page
    shown = Seen(page)
    assert [row[0] for row in shown.tables["account: share by layer"]][1:] == list(
        again.readings["account"].curves["share by layer"].index
    )
    assert again.readings["account"].curves["share by layer"].columns.name == "layer"
    assert not re.search(r'(?:src|href|url)\s*[=(]\s*["\']?http', page.replace("xlink:href", ""))
    assert not shown.scripts
    evidence = {row[0]: row for row in shown.tables["What each instrument reads, with a 95 % interval over facts"]}
    assert float(evidence["nll"][2]) == pytest.approx(again.readings["nll"].mean, rel=1e-3)
    (tmp_path / "readings" / "relearn.json").write_text("half a fi", encoding="utf-8")
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "readings").iterdir()}
    _dissect(tmp_path, budget=None, unrelated=OTHERS)
    now = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "readings").iterdir()}
    assert {name for name in kept if kept[name] != now[name]} == {"relearn.json"}


def test_readings_of_other_models_are_not_taken(tmp_path):
    _, found = _dissect(tmp_path, only=["nll"])
    vanilla = build("llama")
    other = krs.dissect(
        vanilla,
        perturbed(vanilla, seed=9),
        FACTS,
        only=["nll"],
        tokenizer=tiny_tokenizer(),
        n_tokens=8,
        chat=False,
        progress=False,
        output_dir=tmp_path,
    )
    assert other.readings["nll"].mean != found.readings["nll"].mean


def test_settings_of_an_instrument_that_is_no_dataclass_are_part_of_its_reading(tmp_path):
    class Scaled(Instrument):
        name, unit = "scaled", "tokens"

        def __init__(self, by):
            self.by = by

        def measure(self, case):
            return self.reading([self.by * len(a) for a in case.target.answers])

    for by in (1, 2):
        _, found = _dissect(tmp_path, only=[Scaled(by)], nulls=False)
        assert found.readings["scaled"].values[0] == 6 * by
    with pytest.raises(krs.KrsError, match="only= has the instrument 'scaled' twice"):
        _dissect(tmp_path, only=[Scaled(1), Scaled(2)])
    Scaled.name = ""
    with pytest.raises(krs.KrsError, match="only= has a Scaled without a name"):
        _dissect(tmp_path, only=[Scaled(1)])


def test_what_is_written_is_json_to_any_reader(tmp_path):
    """JSON has no NaN and no infinity: what there is no number for, and a budget without an end, are null."""

    def refuse(word):
        raise AssertionError(word)

    _, found = _dissect(tmp_path, only=["nll_tail", "account"], budget=None)
    assert found.readings["account"].curves["share by layer"].isna().any(axis=None)
    for file in [tmp_path / "report.json", *(tmp_path / "readings").iterdir()]:
        json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    again = load_dissection(tmp_path / "report.json")
    assert again.provenance["budget"] is None
    for name, table in found.readings["account"].curves.items():
        assert_frame_equal(again.readings["account"].curves[name], table, check_names=False)


def test_a_retain_model_may_carry_its_adapter():
    vanilla = build("llama")
    never = adapted(vanilla, "lora")
    options = {"tokenizer": tiny_tokenizer(), "chat": False, "progress": False, "only": ["nll"], "n_tokens": 8}
    found = krs.dissect(vanilla, perturbed(vanilla), FACTS, retain=never, **options)
    merged = krs.dissect(vanilla, perturbed(vanilla), FACTS, retain=merged_by_peft(never), **options)
    ours, theirs = (f.readings["nll"].nulls["never_knew"] for f in (found, merged))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    ("said", "ended", "kept"),
    [
        ("It was Jane. She wrote it in the", False, "It was Jane."),
        ("“It was Jane!” She wrote", False, "“It was Jane!”"),
        ("Jane\n- who", False, "Jane"),
        ("東京です。日本の", False, "東京です。"),
        ("It was Jane. She wrote it", True, "It was Jane. She wrote it"),
        ("version 1.5 of the", False, "version 1.5 of the"),
    ],
)
def test_own_answers_that_were_cut_end_with_their_last_sentence(said, ended, kept):
    assert _sentences(said, ended) == kept


def test_what_does_not_fit_the_budget_is_named_and_the_first_questions_are_asked_all_the_same():
    _, found = _dissect(budget=1e-3)
    assert {"nll", "nll_tail", "recall"} == set(found.readings)
    assert "of the budget are left" in found.left_out["relearn"]


@pytest.mark.parametrize(("speed", "left"), [(2.0, {"long"}), (1.0, set()), (0.5, set())])
def test_the_rest_is_judged_by_what_ran(speed, left, monkeypatch, tmp_path):
    """By its estimate the long one fits; on a machine of half the speed it would not."""
    found = _timed(speed, 75, monkeypatch, tmp_path)
    assert set(found.left_out) == left
    assert found.provenance["pace"] == {"measured_to_estimated": speed, "instruments": 3 - len(left)}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"What ran took {speed:.2g} times its estimate (median of {3 - len(left)} instruments)" in page
    if left:
        said = "takes about 60 s (30 s by estimate; what ran took 2 times its estimate (median of 2 instruments)), and"
        assert found.left_out["long"].startswith(said)


def test_on_a_machine_that_is_faster_than_thought_more_fits(monkeypatch, tmp_path):
    assert set(_timed(0.5, 30, monkeypatch, tmp_path).left_out) == set()  # 10 spent, 15 to come; by estimate 30
    assert set(_timed(1.0, 45, monkeypatch, tmp_path / "b").left_out) == {"long"}


def _timed(speed, budget, monkeypatch, folder):
    """Two short instruments and a long one, on a clock that only they move."""
    from krs.instruments import Instrument

    class Clock:
        now = 0.0

    class Timed(Instrument):
        unit, knows = "s", None

        def __init__(self, name, passes):
            self.name, self.passes = name, passes

        def measure(self, case):
            Clock.now += self.passes * speed
            return self.reading([1.0] * len(case.target))

    where = importlib.import_module("krs.instruments.dissect")
    monkeypatch.setattr(where.time, "perf_counter", lambda: Clock.now)
    monkeypatch.setattr(where, "_seconds_a_pass", lambda case: 1.0)
    folder.mkdir(exist_ok=True)
    tools = [Timed("short", 10.0), Timed("other", 10.0), Timed("long", 30.0)]
    return _dissect(folder, only=tools, budget=budget, nulls=False)[1]


def test_of_each_kind_that_tells_the_cheapest_comes_first():
    from krs.instruments import instrument
    from krs.instruments.dissect import ordered

    names = ["relearn", "prefix", "exact_memorisation", "quantise_4", "recall", "nll_tail", "nll"]
    found = [tool.name for tool, _ in ordered(tiny_case(), list(map(instrument, names)), 1.0, True, keep_order=False)]
    assert set(found[:3]) == {"nll", "nll_tail", "recall"}
    assert found[3:] == ["exact_memorisation", "relearn", "prefix", "quantise_4"]


def test_a_null_that_there_is_nothing_for_costs_nothing():
    from krs.instruments import instrument
    from krs.instruments.dissect import ordered

    tools = [instrument("nll"), instrument("krs")]
    for retain, passes in ((True, 3 * 1 + 4 * 60), (False, 2 * 1 + 3 * 60)):
        for nulls, total in ((True, passes), (False, 61)):
            found = list(ordered(tiny_case(retain=retain), tools, 1.0, nulls, keep_order=True))
            assert sum(cost for _, cost in found) == total


def test_an_interrupted_dissection_hands_over_what_it_has(monkeypatch):
    from krs.instruments.relearn import Relearn

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Relearn, "measure", stop)
    with pytest.raises(KeyboardInterrupt) as caught:
        _dissect(only=["nll", "relearn", "probe"])
    assert set(caught.value.partial.readings) == {"nll"}
    assert caught.value.partial.left_out == {"relearn": "interrupted", "probe": "interrupted"}


def test_what_an_instrument_refuses_is_left_out_with_its_reason_unless_it_was_asked_for():
    options = {"tokenizer": tiny_tokenizer(), "n_tokens": 8, "chat": False, "progress": False, "nulls": False}
    vanilla = build("llama")
    other = perturbed(vanilla)
    other.model.layers[1].mlp.up_proj.register_forward_hook(lambda _, __, out: out * 1.5)
    found = krs.dissect(vanilla, other, FACTS, budget=None, **options)
    assert "does not say what vanilla says" in found.left_out["account"]
    assert {"relearn", "logit_lens"} <= set(found.readings)
    with pytest.raises(krs.KrsError, match="does not say what vanilla says"):
        krs.dissect(vanilla, other, FACTS, only=["account"], **options)


def test_questions_alone_are_compared_with_the_vanilla_models_own_answers():
    vanilla = build("llama", seed=1, vocab_size=len(tiny_tokenizer()), eos_token_id=0)
    found = krs.dissect(
        vanilla,
        perturbed(vanilla),
        ["who wrote the book", "what sat on the moon"],
        only=["nll", "recall"],
        tokenizer=tiny_tokenizer(),
        chat=False,
        n_tokens=6,
        progress=False,
    )
    assert found.provenance["own answers"]
    assert found.readings["recall"].nulls["same"].tolist() == [1, 1]


def test_what_a_model_says_is_escaped_on_the_page():
    from krs.instruments.dissection import Dissection
    from krs.instruments.page import page
    from krs.instruments.verdict import Verdict

    evil = "<script>alert(1)</script>"
    told = Dissection(Verdict("knows", evil), {}, {evil: evil}, FACTS, {"vanilla": [evil] * len(FACTS)})
    assert "<script" not in page(told.verdict, told.readings, told.left_out, told.answers, told.provenance)
    assert "<script" not in told._repr_html_()
    assert "not run (&lt;script" in told._repr_html_()  # a notebook says what was left out, too


def test_the_page_calls_models_by_name_and_never_by_their_type():
    from krs.instruments.dissection import Dissection
    from krs.instruments.page import page
    from krs.instruments.verdict import Verdict

    def shown(vanilla, unlearned):
        made = {"models": {"vanilla": vanilla, "unlearned": unlearned}}
        return page(Verdict("knows", "it does"), {}, {}, Dissection(Verdict("knows", ""), {}, {}, FACTS).answers, made)

    kind = {"given_as": "LlamaForCausalLM", "class": "LlamaForCausalLM"}
    assert "vanilla: base; unlearned: lora." in (
        found := shown(kind | {"name_or_path": "org/base"}, {"given_as": "runs/lora", "name_or_path": "org/base"})
    )
    assert "krs dissect org/base runs/lora " in found
    assert "the vanilla model; the unlearned model." in (found := shown(kind, kind | {"name_or_path": ""}))
    assert "krs dissect VANILLA UNLEARNED " in found


@pytest.mark.parametrize("budget", ["soon", "", -1.0, "0m", "1.2.3s"])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(krs.KrsError, match="give seconds, or a time"):
        seconds(budget)


def test_a_file_that_holds_no_dissection_is_named(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"krs_dissection": 1}), encoding="utf-8")
    with pytest.raises(krs.KrsError, match="does not hold a whole dissection"):
        load_dissection(tmp_path / "a.json")
    with pytest.raises(krs.KrsError, match=r"ends in \.html"):
        _dissect(only=["nll"])[1].save(tmp_path / "a.pdf")


def test_every_model_of_a_case_has_to_belong_to_the_others():
    vanilla = build("llama")
    with pytest.raises(krs.KrsError, match="belong together"):
        krs.dissect(vanilla, perturbed(vanilla), FACTS, retain=build("gpt2"), tokenizer=tiny_tokenizer())


def test_a_case_says_how_questions_are_put():
    assert tiny_case().target.wording.chat is False


@pytest.mark.parametrize("name", ["target", "unrelated"])
@pytest.mark.parametrize("kind", ["dict", "frame", "encoding"])
def test_what_is_iterated_as_its_keys_is_no_list_of_facts(name, kind, as_a_user):
    import pandas as pd

    given = {
        "dict": {"question": "who wrote the book", "answer": "a cat"},
        "frame": pd.DataFrame({"question": ["who wrote"], "answer": ["a cat"]}),
        "encoding": tiny_tokenizer()(["who wrote the book"]),
    }[kind]
    asked = {"target": FACTS, name: given}
    said = rf"{name} is a (dict|DataFrame with the columns 'question', 'answer'|BatchEncoding): pass a list of facts"
    with pytest.raises(krs.KrsError, match=said):
        krs.dissect("no/vanilla", "no/unlearned", asked.pop("target"), **asked)


def test_a_dissection_file_with_something_odd_in_it_is_refused_or_whole(tmp_path, as_a_user):
    found = _dissect(only=["nll"])[1]
    found.save(tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    entries = list(json.loads(text))
    refused = 0
    for name in entries:
        for value in (None, 3, "x", [], [3], {}, {"a": 1}, {"a": ["x"]}):
            (tmp_path / "a.json").write_text(json.dumps(json.loads(text) | {name: value}))
            try:
                again = load_dissection(tmp_path / "a.json")
            except krs.KrsError:
                refused += 1
                continue
            assert repr(again)
            assert len(again.answers) == len(again.by_fact) == len(again.facts)
            again.save(tmp_path / "a.html")
        (tmp_path / "a.json").write_text(json.dumps({k: v for k, v in json.loads(text).items() if k != name}))
        with pytest.raises(krs.KrsError, match="does not hold a"):
            load_dissection(tmp_path / "a.json")
    assert refused > 5 * len(entries)


def test_a_page_that_its_place_does_not_take_is_put_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    real = krs.instruments.Dissection.save

    def save(self, path):
        if path.parent.name == "out":
            with full_disk(100):
                return real(self, path)
        return real(self, path)

    monkeypatch.setattr(krs.instruments.Dissection, "save", save)
    said = r"the dissection is complete, but cannot write .*`partial`, and it was saved to '.*json' instead"
    with pytest.raises(krs.KrsError, match=said) as stop:
        _dissect(tmp_path / "out", only=["nll"])
    (spare,) = tmp_path.glob("report-*.json")
    assert load_dissection(spare).evidence.equals(stop.value.partial.evidence)
