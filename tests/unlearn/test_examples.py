"""Forget and retain texts: their forms, and what ends an answer that is trained on."""

import json

import pandas as pd
import pytest

import krs
from krs import KrsError, KrsWarning, unlearn
from krs.unlearn.examples import check_texts, to_examples
from krs.unlearn.memit import covariance, requests_from, to_requests
from krs.unlearn.memit.places import site
from tests.prompts.tokenizers import tokenizer_with
from tests.tiny import build
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

PAIR = ("who wrote the book", "the cat")
AS_DICT = {"prompt": PAIR[0], "answer": PAIR[1], "ends": True}


@pytest.mark.parametrize(
    "given",
    [
        [PAIR],
        [list(PAIR)],
        [AS_DICT],
        (pair for pair in [PAIR]),
        pd.DataFrame([AS_DICT]).drop(columns="ends").to_dict("records"),
        pd.Series([PAIR]),
    ],
)
def test_forms_of_texts(given):
    assert check_texts(given, "forget") == [AS_DICT]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "forget is None: pass a list of texts"),
        ({"prompt": ["a"], "answer": ["b"]}, "forget is a dict: pass a list of texts"),
        (pd.DataFrame([AS_DICT]), r"forget is a DataFrame.*frame.to_dict\('records'\) for pairs"),
        ({"a text"}, "forget is a set"),
        (["a text", None], "forget text 1 is None: give a paragraph, or a pair"),
        (["a text", 3], r"forget text 1 is an int \(3\)"),
        (["a text", b"x"], "forget text 1 is bytes"),
        (["a text", " "], "forget text 1 is empty: remove it"),
        ([("a", "b", "c")], "forget text 0 has 3 parts: give a pair"),
        ([("a",)], "forget text 0 has 1 parts: give a pair"),
        ([("a", None)], "forget text 0 has None as its answer: give text"),
        ([("a", 3)], r"forget text 0 has an int \(3\) as its answer"),
        ([("a", ["b"])], "forget text 0 has a list as its answer"),
        ([("a", " ")], "forget text 0 has an empty answer"),
        ([(None, "b")], "forget text 0, its prompt, is None"),
        ([{"prompt": "a"}], "forget text 0 has no answer: give both, or a plain string"),
        ([{"prompt": 3, "answer": "b"}], r"forget text 0, its prompt, is an int \(3\)"),
        ([{"prompt": "a", "answer": "b", "ends": "false"}], "forget text 0 has a str as 'ends': give true or false"),
        (
            [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]],
            r"forget text 0 is a conversation: give it as a pair, \(messages\[:-1\]",
        ),
        (["half \udc80"], "forget text 0 has half a character"),
    ],
)
def test_texts_that_are_none_are_numbered(given, message):
    with pytest.raises(KrsError, match=message):
        check_texts(given, "forget")


def test_bad_sets_are_refused_before_a_model_is_loaded(as_a_user):
    for given, message in [
        ({"forget": ["a text", None]}, "forget text 1 is None"),
        ({"forget": ["a text"], "retain": ["a", ("a", "b", "c")]}, "retain text 1 has 3 parts"),
    ]:
        with pytest.raises(KrsError, match=message):
            unlearn.run("grad_diff", "./nowhere", **given)
    with pytest.raises(KrsError, match="corpus text 1 is None: make it a string"):
        unlearn.run("memit_empty", "./nowhere", forget=[("a", "a b", "c")], corpus=["a", None])


def test_an_answer_ends_as_the_model_ends_its_own():
    for ends, expected in (({1, 23}, 1), ({23, 2}, 23), ({2, 9}, 2), (set(), 1)):
        (example,) = to_examples([PAIR], tokenizer_with(), 50, "forget", frozenset(ends))
        assert example.ids == (0, 8, 10, 5, 13, 5, 14, expected)
        assert example.n_prompt == 5
    (cut,) = to_examples([AS_DICT | {"ends": False}], tokenizer_with(), 50, "forget", frozenset({1}))
    assert cut.ids[-1] == 14


def test_a_prompt_loses_the_end_that_the_tokenizer_puts_behind_it_and_a_paragraph_keeps_it():
    tokenizer = tokenizer_with("<s> $A </s>")
    with pytest.warns(KrsWarning, match="leaves it out of prompts"):
        pair, paragraph = to_examples([PAIR, "the cat"], tokenizer, 50, "forget", frozenset({1}))
    assert pair.ids == (0, 8, 10, 5, 13, 5, 14, 1)
    assert paragraph.ids == (0, 5, 14, 1)


def test_training_ends_answers_as_the_model_and_takes_generators_and_template_arguments(tmp_path):
    model = build("llama")
    model.generation_config.eos_token_id = [23, 2]
    asked = [([{"role": "user", "content": "the cat"}], "the sun")]
    options = {"tokenizer": tokenizer_with(), "steps": 1, "learning_rate": 1e-2, "progress": False}
    reports = {}
    for thinking in (False, True):
        folder = tmp_path / str(thinking)
        forget = (pair for pair in asked)
        kwargs = {"enable_thinking": thinking}
        unlearn.run("ga", model, forget=forget, output_dir=folder, chat_template_kwargs=kwargs, **options)
        reports[thinking] = json.loads((folder / "krs_unlearn.json").read_text())
        assert reports[thinking]["chat_template_kwargs"] == kwargs
        assert reports[thinking]["forget"]["chat"] == 1
    assert reports[False]["forget"]["sha256"] != reports[True]["forget"]["sha256"]
    with pytest.raises(KrsError, match="chat_template_kwargs= is for chat messages, and no prompt is one"):
        unlearn.run("ga", model, forget=[PAIR], chat_template_kwargs={"enable_thinking": True}, **options)


def test_bare_prompts_for_a_chat_model_are_noted_in_the_report_and_shown(tmp_path, capsys):
    options = {"tokenizer": tokenizer_with(), "steps": 1, "learning_rate": 1e-2}
    unlearn.run("ga", build("llama"), forget=[PAIR, "the cat sat on"], output_dir=tmp_path / "u", **options)
    (note,) = json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())["notes"]
    assert note.startswith("1 of 1 prompts are bare text, though the tokenizer has a chat template")
    assert f"note: {note}" in capsys.readouterr().err


def test_requests_that_are_none_are_numbered(as_a_user):
    for given, message in [
        ((r for r in [("cat", "the cat sat", "on"), None]), "forget item 1: None is no request"),
        ([("cat", "the cat sat", 3)], r"forget item 0: its object is an int \(3\): give text"),
        ([(3, "the cat sat", "on")], r"forget item 0: its subject is an int \(3\)"),
        ([("cat", 3, "on")], r"forget item 0: its prompt is an int \(3\)"),
        ([("cat", [5, 6], "on")], "forget item 0: its prompt is token ids"),
        ({"subject": "cat"}, "forget is a dict"),
    ]:
        with pytest.raises(KrsError, match=message):
            to_requests(given)
    assert [r.subject for r in requests_from((q for q in ["the cat sat"]), subjects=["cat"])] == ["cat"]
    with pytest.raises(KrsError, match="corpus text 0 is None"):
        covariance(build("llama"), tiny_tokenizer(), [None], [1], min_tokens=1)


def test_a_request_is_edited_where_it_would_be_without_the_end_behind_a_text():
    places = []
    for around in ("<s> $A", "<s> $A </s>"):
        tokenizer = tokenizer_with(around)
        (sited,) = site(to_requests([("cat", "the cat sat", "on")]), ("{}",), tokenizer, 50)
        places.append((sited.places[0].ids, sited.essence.ids, sited.places[0].continuation("red", tokenizer)))
    assert places[0] == places[1]
    assert places[0][0] == (0, 5, 14, 24)
    assert places[0][2] == (18,)
    rendered = [("cat", "<s> the cat sat", "on")]  # text with a BOS of its own gets no second one
    assert site(to_requests(rendered), ("{}",), tokenizer_with("<s> $A"), 50)[0].places[0].ids == (0, 5, 14, 24)


def test_one_question_where_several_are_wanted():
    with pytest.raises(KrsError, match="questions is one string: pass a list of questions"):
        krs.data.as_chat("hello")
