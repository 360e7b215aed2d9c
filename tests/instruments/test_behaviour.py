import numpy as np
import pytest
import torch

from krs.instruments import Case, instrument
from krs.instruments.logprobs import AnswerTokens, holds
from tests.instruments.case import FACTS, logprobs, sequence, tiny_case
from tests.noise import assert_same
from tests.tiny import build
from tests.unlearn.tiny_tokenizer import tiny_tokenizer


def test_likelihoods_are_those_of_a_forward_by_hand():
    case = tiny_case()
    scores = [logprobs(case.unlearned, *sequence(case, fact)) for fact in FACTS]
    assert_same(instrument("nll").measure(case).values, [-float(s.mean()) for s in scores])
    assert_same(instrument("nll_tail").measure(case).values, [-float(s[3:].mean()) for s in scores])


def test_the_truth_ratio_is_that_of_its_formula():
    case, expected = tiny_case(), []
    for fact in FACTS:
        ids, start = sequence(case, fact)
        right = float(logprobs(case.unlearned, ids, start).mean())
        wrong = []
        for answer in fact.wrong:
            others = ids[:start] + case.target.wording.tokenizer(answer)["input_ids"] + [1]
            wrong.append(np.exp(float(logprobs(case.unlearned, others, start).mean())))
        expected.append(np.log(np.mean(wrong)) - right)
    assert_same(instrument("truth_ratio").measure(case).values, expected)


def test_paraphrases_are_asked_in_place_of_the_question_and_their_lack_is_nan():
    case = tiny_case()
    tokenizer = case.target.wording.tokenizer
    found = instrument("paraphrase").measure(case)
    for i in (0, 1):
        ids, start = sequence(case, FACTS[i])
        other = tokenizer(FACTS[i].paraphrases[0])["input_ids"]
        assert_same(found.values[i], -float(logprobs(case.unlearned, other + ids[start:], len(other))[3:].mean()))
    assert np.isnan(found.values[2:]).all()


def _hits(rows):
    hit = np.array([[c == "1" for c in row] for row in rows])
    return AnswerTokens(np.where(np.array([[c != "." for c in row] for row in rows]), -1.0, np.nan), hit)


def test_memorisation_counts_hits_and_extraction_the_suffix_that_is_right(monkeypatch):
    rows = ["1011", "111.", "0000", "110."]
    monkeypatch.setattr("krs.instruments.behaviour.answer_tokens", lambda *_: _hits(rows))
    case = tiny_case()
    assert instrument("exact_memorisation").measure(case).values.tolist() == pytest.approx([0.75, 1, 0, 2 / 3])
    assert instrument("extraction_strength").measure(case).values.tolist() == pytest.approx([0.5, 1, 0, 0])


def _taught(case: Case, steps: int = 60) -> torch.nn.Module:
    """A tiny model that has learnt the facts by heart."""
    model = build("llama", seed=3)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        for fact in FACTS:
            ids, start = sequence(case, fact)
            logits = model(torch.tensor([ids])).logits[0, start - 1 : -1]
            torch.nn.functional.cross_entropy(logits, torch.tensor(ids[start:])).backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


def test_a_model_that_learnt_the_facts_recalls_them_and_one_that_declines_ends_them_when_begun():
    case = tiny_case()
    knows = _taught(case)
    case = Case.make(build("llama"), knows, tiny_tokenizer(), FACTS, chat=False)
    assert instrument("recall").measure(case).values.tolist() == [1, 1, 1, 1]
    assert instrument("prefix").measure(case).values.tolist() == [1, 1, 1, 1]
    assert instrument("extraction_strength").measure(case).values.tolist() == [1, 1, 1, 1]
    read = instrument("recall").read(case)
    assert read.nulls["same"].tolist() == [0, 0, 0, 0]  # the vanilla model of this case is a random one
    assert "prefix" not in repr(read)


def test_a_key_is_a_whole_word():
    assert holds("the RED sun.", "red")
    assert not holds("scared", "red")
    assert holds("日本の首都は東京です。", "東京")  # scripts without blanks between words
    assert holds("la Place d'E\u0301toile.", "\u00c9toile")  # an accent as a mark, and as a part of its letter
    assert not holds("रामायण", "राम")


def test_wrong_answers_of_next_to_no_probability_do_not_make_the_right_one_infinitely_likely():
    """Logits of a model that diverged: a wrong answer's probability is too small for a float64."""
    case = tiny_case()
    with torch.no_grad():
        for parameter in case.unlearned.parameters():
            parameter.mul_(40)
    expected = []
    for fact in FACTS:
        ids, start = sequence(case, fact)
        answers = [case.target.wording.tokenizer(a)["input_ids"] + [1] for a in fact.wrong]
        wrong = torch.stack([logprobs(case.unlearned, ids[:start] + a, start).mean() for a in answers])
        ratio = torch.logsumexp(wrong, 0) - np.log(len(wrong)) - logprobs(case.unlearned, ids, start).mean()
        expected.append(float(ratio))
    assert max(map(abs, expected)) > 745  # below exp(-745) there is no float64
    assert_same(instrument("truth_ratio").measure(case).values, expected)
