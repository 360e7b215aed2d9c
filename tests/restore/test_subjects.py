"""Positions of the subject: which tokens they are, and that both engines restore there and nowhere else."""

import pytest

import krs
from krs import ATTN_OUT, MLP_COEF, KrsError, windows
from krs.prompts import check_subjects, encode, subject_positions
from tests.noise import assert_same
from tests.prompts.tokenizers import tokenizer_with
from tests.tiny import exact_pair
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

PROMPTS = ["who wrote the red book", "the cat sat on the cat", [{"role": "user", "content": "what is the sun"}]]
SUBJECTS = ["red book", "cat", "sun"]
OPTIONS = {
    "settings": [MLP_COEF, ATTN_OUT],
    "windows": windows.of([[1], [2, 3]]),
    "n_tokens": 4,
    "progress": False,
    "tokenizer": tiny_tokenizer(),
}


@pytest.mark.parametrize("engine", ["wavefront", "plain"])
@pytest.mark.parametrize(("name", "where"), [("subject", [[3, 4], [5], [4]]), ("last_subject", [[4], [5], [4]])])
def test_the_subject_is_its_tokens(name, where, engine):
    models = exact_pair("llama")
    found = krs.sweep(*models, PROMPTS, positions=name, subjects=SUBJECTS, engine=engine, **OPTIONS)
    assert [list(p) for p in found.plan.positions] == where
    assert_same(
        found.krs.to_numpy(), krs.sweep(*models, PROMPTS, positions=where, engine=engine, **OPTIONS).krs.to_numpy()
    )
    assert found.provenance["positions"] == name


@pytest.mark.parametrize("around", ["$A", "<s> $A", "<s> $A </s>"])
@pytest.mark.filterwarnings("ignore:the tokenizer puts:krs.KrsWarning")
def test_special_tokens_and_templates_move_it(around):
    reader = tokenizer_with(around)
    ids = encode(PROMPTS, reader)
    found = subject_positions(PROMPTS, ids, SUBJECTS, reader, "subject")
    texts = [reader.decode([row[p] for p in where]) for row, where in zip(ids, found, strict=True)]
    assert texts == SUBJECTS


@pytest.mark.real
def test_on_a_real_tokenizer(smollm2):
    _, reader = smollm2
    prompts = ["Hermione's friend Harry Potter, the Potter", [{"role": "user", "content": " Who is Tom Riddle? "}]]
    ids = encode(prompts, reader)
    found = subject_positions(prompts, ids, ["Harry Potter", "Tom Riddle"], reader, "subject")
    texts = [reader.decode([row[p] for p in where]).strip() for row, where in zip(ids, found, strict=True)]
    assert texts == ["Harry Potter", "Tom Riddle"]


@pytest.mark.parametrize(
    ("subjects", "positions", "message"),
    [
        (None, "subject", "positions='subject' needs to know the subject of each prompt"),
        (SUBJECTS, "prompt", "subjects are given, and positions='prompt' uses none"),
        (SUBJECTS[:2], "subject", "there are 2 subjects for 3 prompts"),
        (["red book", "dog", "sun"], "subject", "prompt 1: the subject 'dog' does not occur in it"),
        (["red boo", "cat", "sun"], "subject", "prompt 0: the subject 'red boo' is there only as a part of the word"),
    ],
)
def test_subjects_that_are_not_there(subjects, positions, message):
    with pytest.raises(KrsError, match=message):
        check_subjects(subjects, positions, PROMPTS)
    with pytest.raises(KrsError, match=message):
        krs.sweep("no/such", "no/such", PROMPTS, positions=positions, subjects=subjects)


def test_token_ids_and_slow_tokenizers_are_refused():
    with pytest.raises(KrsError, match="prompt 0 is token ids, in which no subject can be found"):
        check_subjects(["cat"], "subject", [(3, 4)])

    class Slow:
        is_fast = False

    with pytest.raises(KrsError, match="Slow is a slow tokenizer and cannot tell which tokens are a subject's"):
        subject_positions(["the cat"], [(3, 4)], ["cat"], Slow(), "subject")
