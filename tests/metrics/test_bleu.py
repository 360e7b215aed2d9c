import math

import pytest

from krs import KrsError
from krs.metrics.bleu import bleu, distinct, is_refusal, signature

# Computed with NLTK 3.10.4: sentence_bleu([unlearned], vanilla, smoothing_function=SmoothingFunction().method3).
NLTK = [
    ("the cat sat on the mat", "the cat sat on the mat", 1.0),
    ("the cat", "the cat", 0.5946035575013605),
    ("a dog ran in the sun all day", "the cat sat on the mat in the sun", 0.17747405280050263),
    ("x y z", "a b c d", 0.0),
    ("the the the the", "the cat is here now today", 0.08116697886877472),
    ("one two three four five six", "one two three four five six seven eight nine", 0.5873949094699213),
    ("", "a b", 0.0),
    ("a", "a b c", 0.2259005009024612),
]


@pytest.mark.parametrize(("unlearned", "vanilla", "expected"), NLTK)
def test_paper_code_is_nltk_with_the_unlearned_answer_as_reference(unlearned, vanilla, expected):
    assert bleu(vanilla, unlearned, "paper-code") == pytest.approx(100 * expected, abs=1e-9)


def test_sacrebleu_has_the_vanilla_answer_as_reference(as_a_user):
    from sacrebleu.metrics import BLEU

    vanilla, unlearned = "Jane Austen wrote Emma in 1815.", "Jane Austen wrote it."
    assert bleu(vanilla, unlearned) == BLEU(effective_order=True).sentence_score(unlearned, [vanilla]).score
    assert bleu("the cat", "the cat") == pytest.approx(100)
    assert bleu("the cat", "") == bleu("", "the cat") == 0
    assert signature("sacrebleu").startswith("sacrebleu|nrefs:1|case:mixed|eff:yes|tok:13a|smooth:exp|version:")
    assert "ref:unlearned" in signature("paper-code")
    with pytest.raises(KrsError, match="bleu='rouge': choose 'sacrebleu' or 'paper-code'"):
        bleu("a", "a", "rouge")


@pytest.mark.parametrize("kind", ["sacrebleu", "paper-code"])
def test_two_empty_answers_are_the_same_answer(kind):
    for empty in ("", " ", "\n"):
        assert bleu(empty, "", kind) == bleu("", empty, kind) == 100
        assert bleu("the cat", empty, kind) == bleu(empty, "the cat", kind) == 0
    assert bleu("the cat sat on it", "the cat sat on it", kind) == pytest.approx(100)
    for odd in ("\u200b", ".", "…", "\x00"):
        assert 0 <= bleu(odd, odd, kind) <= 100


def test_the_refusals_that_a_method_trains_are_counted_and_answers_are_not():
    from krs.unlearn.dpo import REFUSALS

    assert all(is_refusal(answer) for answer in REFUSALS)
    assert is_refusal("I\u2019m sorry, but I can\u2019t help.")
    assert not any(map(is_refusal, ["J.K. Rowling wrote it.", "I know: Hogwarts.", "He cannot fly.", ""]))


def test_distinct():
    assert distinct("a b a b", 2) == pytest.approx(2 / 3)
    assert math.isnan(distinct("a", 2))
