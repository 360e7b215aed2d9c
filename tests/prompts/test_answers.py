"""Given answers: their forms, and what ends them."""

import numpy as np
import pandas as pd
import pytest
import torch

from krs import KrsError
from krs.generation import Generated
from krs.prompts import encode_answers, end_of_answer
from tests.prompts.tokenizers import tokenizer_with
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

THREE = 23  # the token with which the tests' template ends an assistant's turn
PROMPTS = ((5, 6), (7,))


def test_the_token_of_the_tests_template():
    assert tokenizer_with().convert_tokens_to_ids("three") == THREE


@pytest.mark.parametrize(
    ("tokenizer", "ends", "expected"),
    [
        (tokenizer_with(), {1, THREE}, 1),  # the tokenizer's EOS where the model ends with it
        (tokenizer_with(), {2, THREE}, THREE),  # else the template's end of turn
        (tokenizer_with(), {2, 9}, 2),  # else the smallest
        (tiny_tokenizer(), {9, 2}, 2),  # a template that writes nothing behind an answer
        (tokenizer_with(template=None), {4, 2}, 2),
        (tokenizer_with(template="{{ raise_exception('no') }}"), {4, 2}, 2),
        (tokenizer_with(), set(), 1),  # a model that names no end leaves it to the tokenizer
        (None, {4}, 4),
        (None, set(), None),
    ],
)
def test_what_ends_an_answer(tokenizer, ends, expected):
    assert end_of_answer(tokenizer, frozenset(ends)) == expected


def test_a_text_ends_as_the_model_ends_it_and_once():
    given = encode_answers(["the cat", "the cat three"], PROMPTS, tokenizer_with(), 9, frozenset({THREE}))
    assert given == ((5, 14, THREE), (5, 14, THREE))


@pytest.mark.parametrize(
    "answers",
    [
        ["the cat", "one"],
        (text for text in ("the cat", "one")),
        pd.Series(["the cat", "one"]),
        np.array(["the cat", "one"]),
        [(5, 14, 1), torch.tensor([21, 1])],
        [np.array([5, 14, 1]), [21, 1]],
        {"input_ids": [[5, 14, 1], [21, 1, 1]], "attention_mask": [[1, 1, 1], [1, 1, 0]]},
        Generated(((5, 14, 1), (21, 1)), ("the cat", "one")),
    ],
)
def test_forms_of_answers(answers):
    assert encode_answers(answers, PROMPTS, tiny_tokenizer(), 9, frozenset({1})) == ((5, 14, 1), (21, 1))


def test_a_cut_generated_answer_gets_no_end_that_it_had_not():
    cut = Generated(((5, 14), (21, 1)), ("the cat", "one"))
    assert encode_answers(cut, PROMPTS, tiny_tokenizer(), 9, frozenset({1})) == ((5, 14), (21, 1))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (None, "answers is None: pass a list of answers"),
        (["a", None], "answer 1 is None"),
        (["the", " "], "answer 1 is empty: leave its prompt out, or give it an answer"),
        (["the", b"cat"], "answer 1 is bytes"),
        (
            ["the", [{"role": "assistant", "content": "cat"}]],
            "answer 1 is chat messages: give the text that is",
        ),
        (["the", {"role": "assistant", "content": "cat"}], "answer 1 is a dict: give text or token ids"),
        ([5, 6], "answers is one list of token ids"),
        ({"the", "cat"}, "answers is a set"),
        (["the"], "answers= has 1 answer for 2 prompts: give one for each"),
        (torch.tensor([[5, 12, 4], [6, 1, 1]]), "row 1 ends with the token 1, 2 times, which looks like padding"),
        ([[5, 12, 4], [6, 1, 1]], "answer 1 ends with the pad token 1, 2 times"),
    ],
)
def test_answers_that_cannot_be(answers, message):
    with pytest.raises(KrsError, match=message):
        encode_answers(answers, PROMPTS, tiny_tokenizer(), 9, frozenset({1}))
