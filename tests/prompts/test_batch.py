import pytest
import torch

from krs import KrsError
from krs.prompts import TokenBatch, check_prompts, check_reach, encode, next_token_batch, paper_code_batch


class Words:
    """A tokenizer of single letters, with a BOS of its own."""

    chat_template = "yes"

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": ([0] if add_special_tokens else []) + [ord(c) - 96 for c in text]}

    def apply_chat_template(self, messages, add_generation_prompt, tokenize):
        assert add_generation_prompt
        assert not tokenize
        return "z" + "".join(m["content"] for m in messages) + "y"

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(i + 96) for i in ids)


def test_the_three_kinds_of_prompt():
    prompts = ["ab", [{"role": "user", "content": "ab"}], [1, 2], torch.tensor([3, 4])]
    assert encode(prompts, Words()) == ((0, 1, 2), (26, 1, 2, 25), (1, 2), (3, 4))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompts"),
        ("abc", "prompts is one string"),
        ([1, 2], "one list of token ids"),
        ([{"role": "user", "content": "a"}], "one conversation"),
        (["a", "  "], "prompt 1 is empty"),
        ([[1], []], "prompt 1 is empty"),
        ({"a": 1}, "a dict"),
    ],
)
def test_bad_prompts(prompts, message):
    with pytest.raises(KrsError, match=message):
        check_prompts(prompts)


def test_a_missing_tokenizer_or_template_is_said():
    with pytest.raises(KrsError, match="no tokenizer was found.*or give the prompts as lists of token ids"):
        encode(["ab"], None)
    plain = Words()
    plain.chat_template = None
    with pytest.raises(KrsError, match="no chat template"):
        encode([[{"role": "user", "content": "ab"}]], plain)


def test_next_token_scores_the_logits_that_predict_the_answer_eos_included():
    batch = next_token_batch(((5, 6, 7), (8,)), ((10, 11, 1), (12,)))
    assert batch.tokens == ((5, 6, 7, 10, 11), (8,))
    assert batch.scored == ((2, 3, 4), (0,))
    assert batch.mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.n_scored == 3


def test_inputs_are_padded_on_the_right_and_positions_start_at_zero():
    inputs = next_token_batch(((5, 6, 7), (8,)), ((10, 11), (12, 13))).inputs()
    assert inputs["input_ids"].tolist() == [[5, 6, 7, 10], [8, 12, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]


def test_paper_code_scores_at_the_answer_and_is_short_by_the_left_padding():
    batch = paper_code_batch(((5, 6, 7), (8,)), ((10, 11, 12, 1), (13, 14, 15, 16)), Words(), frozenset([1]))
    assert batch.tokens == ((5, 6, 7, 10, 11, 12), (8, 13, 14, 15, 16))
    assert batch.scored == ((3, 4, 5), (3, 4))  # the second prompt is shorter by 2, so 4 - 2 of its tokens


def test_paper_code_never_scores_nothing():
    batch = paper_code_batch(((5, 6, 7), (8,)), ((10,), (1,)), Words(), frozenset([1]))
    assert [len(s) for s in batch.scored] == [1, 1]
    with pytest.raises(KrsError, match="it needs a tokenizer"):
        paper_code_batch(((5,),), ((6,),), None, frozenset())


def test_positions_are_named_or_counted_in_each_prompts_own_tokens():
    batch = TokenBatch(((5, 6, 7, 10), (8, 12)), (3, 1), ((2, 3), (0, 1)))
    assert batch.where(None) is None
    assert batch.where("prompt").tolist() == [[True, True, True, False], [True, False, False, False]]
    assert batch.where("answer").tolist() == [[False, False, False, True], [False, True, False, False]]
    assert batch.where((-1,)).tolist() == [[False, False, True, False], [True, False, False, False]]
    assert batch.where((2,)).tolist() == [[False, False, True, False], [False, False, False, False]]
    check_reach((2, -1), ((5, 6, 7), (8,)), 3)
    with pytest.raises(KrsError, match="position -2 is out of range for prompt 1, which has 1 tokens and up to 3 more"):
        check_reach((-2,), ((5, 6, 7), (8,)), 3)


def test_the_digest_follows_ids_and_scored_positions():
    a = next_token_batch(((5, 6),), ((7, 8),))
    assert a.digest == next_token_batch(((5, 6),), ((7, 8),)).digest
    assert a.digest != next_token_batch(((5, 6),), ((7, 9, 8),)).digest
