"""What a sweep is given in other forms gives the numbers of the plain ones, and what is not meant is said."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import krs
from krs import KrsError, KrsWarning, windows
from tests.prompts.tokenizers import tokenizer_with
from tests.tiny import build, pair, perturbed
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

TEXTS = ["who wrote the book", "the cat"]
ASKED = [[{"role": "user", "content": text}] for text in TEXTS]


@pytest.fixture(scope="module")
def models():
    return tuple(model.double() for model in pair("llama"))


def _sweep(models, prompts=TEXTS, tokenizer=None, **options):
    options = {"windows": windows.of([[1, 2]]), "n_tokens": 4, "progress": False} | options
    return krs.sweep(*models, prompts, tokenizer=tokenizer or tiny_tokenizer(), **options)


def test_what_a_tokenizer_returned_scores_as_the_texts_do(models):
    tokenizer = tiny_tokenizer()
    expected = _sweep(models).krs.to_numpy()
    for given in (
        tokenizer(TEXTS),
        tokenizer(TEXTS, padding=True, return_tensors="pt"),
        dict(tokenizer(TEXTS, padding="max_length", max_length=20, return_tensors="np")),
        pd.Series(TEXTS),
        (text for text in TEXTS),
        np.array(TEXTS),
    ):
        np.testing.assert_allclose(_sweep(models, given).krs, expected, rtol=0, atol=1e-9)
    with pytest.raises(KrsError, match="looks like padding, and padding would be read and scored"):
        _sweep(models, tokenizer(TEXTS, padding=True, return_tensors="pt").input_ids)
    with pytest.raises(KrsError, match="token-id prompt 1 ends with the pad token 1, 2 times"):
        _sweep(models, tokenizer(TEXTS, padding=True).input_ids)


def test_an_end_behind_the_prompts_changes_nothing(models):
    expected = _sweep(models, tokenizer=tokenizer_with("$A")).krs.to_numpy()
    with pytest.warns(KrsWarning, match="leaves it out of prompts"):
        found = _sweep(models, tokenizer=tokenizer_with("$A </s>"))
    np.testing.assert_array_equal(found.krs, expected)


def test_a_rendered_template_scores_as_the_messages_do(models):
    tokenizer = tokenizer_with("<s> $A")
    rendered = [tokenizer.apply_chat_template(a, tokenize=False, add_generation_prompt=True) for a in ASKED]
    expected = _sweep(models, ASKED, tokenizer)
    with pytest.warns(KrsWarning, match="went through the chat template"):
        found = _sweep(models, rendered, tokenizer)
    np.testing.assert_array_equal(found.krs, expected.krs)
    assert not any("bare text" in note for note in found.notes)


def test_template_arguments_change_the_prompts_and_are_kept(models, tmp_path):
    tokenizer = tokenizer_with()
    plain = _sweep(models, ASKED, tokenizer)
    thinking = _sweep(models, ASKED, tokenizer, chat_template_kwargs={"enable_thinking": True})
    assert plain.provenance["chat_template_kwargs"] == {}
    assert thinking.prompts[0].endswith("assistant blue")
    assert thinking.provenance["tokens_sha256"] != plain.provenance["tokens_sha256"]
    again = krs.load_result(thinking.save(tmp_path / "r.krs"))
    assert again.provenance["chat_template_kwargs"] == {"enable_thinking": True}
    with pytest.raises(KrsError, match="chat template does not use"):
        _sweep(models, ASKED, tokenizer, chat_template_kwargs={"thinking": True})
    with pytest.raises(KrsError, match="is for chat messages, and no prompt is one"):
        _sweep(models, TEXTS, tokenizer, chat_template_kwargs={"enable_thinking": True})


def test_given_answers_end_as_the_model_ends_its_own():
    v = build("llama")
    v.generation_config.eos_token_id = [23, 2]
    result = _sweep((v, perturbed(v)), ASKED, tokenizer_with(), answers=["the sun", "the moon"])
    assert result.answers == ("the sun three", "the moon three")
    np.testing.assert_array_equal(
        _sweep((v, perturbed(v)), ASKED, tokenizer_with(), answers=result.answers).losses.mask, result.losses.mask
    )


def test_bare_text_for_a_chat_model_is_noted_and_shown(models, capsys):
    result = _sweep(models, progress=True)
    (note,) = [n for n in result.notes if "bare text" in n]
    assert note.startswith("2 of 2 prompts are bare text, though the tokenizer has a chat template")
    shown = capsys.readouterr().err
    assert f"note: {note}" in shown
    assert f"scored, for one: … 'who wrote the book' -> {result.answers[0]!r}" in shown
    assert not _sweep(models, ASKED).notes
    base = tiny_tokenizer()
    base.chat_template = None
    assert not _sweep(models, TEXTS, base).notes
    assert capsys.readouterr().err == ""


def test_answers_that_are_only_an_end_are_warned_of(models, tmp_path):
    """A model that says its end at once: one end a prompt would be scored."""
    v = build("llama")
    ids = torch.tensor([tiny_tokenizer()(TEXTS[0])["input_ids"]])
    v.generation_config.eos_token_id = int(v(ids).logits[0, -1].argmax())
    both = v, perturbed(v)
    with pytest.warns(KrsWarning, match="1 of 1 scored answers are empty, the first to prompt 0: is the chat template"):
        result = _sweep(both, TEXTS[:1])
    assert any("scored answers are empty" in note for note in result.notes)
    assert any("scored answers are empty" in note for note in krs.load_result(result.save(tmp_path / "r")).notes)
    with pytest.warns(KrsWarning, match="1 of 1 vanilla answers are empty"):
        found = krs.metrics.answers(*both, TEXTS[:1], tokenizer=tiny_tokenizer(), n_tokens=4, progress=False)
    assert found.table.ceiling["target"] == 100
    assert "note: 1 of 1 vanilla answers are empty" in repr(found)


def test_given_answers_that_the_vanilla_model_would_not_give_are_noted(models):
    said = krs.generate(models[0], None, TEXTS, n_tokens=4, tokenizer=tiny_tokenizer(), progress=False)
    same = _sweep(models, answers=said)
    np.testing.assert_allclose(same.krs, _sweep(models).krs, rtol=0, atol=1e-9)
    assert not any("given answers" in note for note in same.notes)
    other = _sweep(models, answers=[said.token_ids[0], "red red red red"])
    assert any("1 of 2 given answers are not what the vanilla model says" in note for note in other.notes)
    assert any("the first to prompt 1" in note for note in other.notes)


def test_notes_are_json(models, tmp_path):
    file = _sweep(models).save(tmp_path / "r.krs")
    assert json.loads(json.dumps(krs.load_result(file).provenance["notes"]))
