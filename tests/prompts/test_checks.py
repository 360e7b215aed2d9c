"""Everything that can stand where prompts are wanted: taken rightly, or refused with what to pass instead."""

import array
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from krs import KrsError
from krs.data import load_concept
from krs.prompts import check_prompts, check_strings
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

TEXTS = ["who wrote the book", "the cat"]
IDS = [(8, 10, 5, 13), (5, 14)]


def _encoded(**options):
    return tiny_tokenizer()(TEXTS, **options)


def _left(**options):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    return tokenizer(TEXTS, padding=True, **options)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (lambda: (text for text in TEXTS), TEXTS),
        (lambda: map(str, TEXTS), TEXTS),
        (lambda: tuple(TEXTS), TEXTS),
        (lambda: dict.fromkeys(TEXTS).keys(), TEXTS),
        (lambda: pd.Series(TEXTS), TEXTS),
        (lambda: np.array(TEXTS), TEXTS),
        (lambda: np.array(TEXTS, dtype=object), TEXTS),
        (lambda: _encoded(), IDS),
        (lambda: dict(_encoded()), IDS),
        (lambda: _encoded(padding=True), IDS),
        (lambda: _encoded(padding=True, return_tensors="pt"), IDS),
        (lambda: _encoded(padding=True, return_tensors="np"), IDS),
        (lambda: _left(return_tensors="pt"), IDS),
        (lambda: tiny_tokenizer()(TEXTS[0]), IDS[:1]),
        (lambda: [tiny_tokenizer()(text) for text in TEXTS], IDS),
        (lambda: [tiny_tokenizer()(text, return_tensors="pt") for text in TEXTS], IDS),
        (lambda: [torch.tensor(ids) for ids in IDS], IDS),
        (lambda: [np.array(ids) for ids in IDS], IDS),
        (lambda: [array.array("q", ids) for ids in IDS], IDS),
        (lambda: [[torch.tensor(t) for t in ids] for ids in IDS], IDS),
        (lambda: [[np.int64(t) for t in ids] for ids in IDS], IDS),
        (lambda: [range(3, 6)], [(3, 4, 5)]),
        (lambda: pd.Series([list(ids) for ids in IDS]), IDS),
        (lambda: torch.tensor([[6, 8, 5], [5, 12, 7]]), [(6, 8, 5), (5, 12, 7)]),
        (lambda: np.array([[6, 8, 5], [5, 12, 7]]), [(6, 8, 5), (5, 12, 7)]),
        (lambda: torch.nested.nested_tensor([torch.tensor(ids) for ids in IDS]), IDS),
        (lambda: [({"role": "user", "content": "hi"},)], [[{"role": "user", "content": "hi"}]]),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype:UserWarning")
def test_what_is_taken(given, expected):
    assert check_prompts(given()) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: None, "prompts is None: pass a list of prompts"),
        (lambda: b"text", "prompts is bytes: decode them to text, and pass a list"),
        (lambda: 3, r"prompts is an int \(3\): pass a list"),
        (lambda: Path("p.txt"), "prompts is a path: read the file first"),
        (lambda: set(TEXTS), r"prompts is a set, which has no order: pass a list of prompts, such as sorted"),
        (
            lambda: load_concept("paris"),
            r"is a Concept: pass a list of prompts, such as krs.data.as_chat\(concept",
        ),
        (lambda: {"a": "b"}, "prompts is a dict: pass a list of prompts"),
        (
            lambda: pd.DataFrame({"question": TEXTS}),
            r"the columns 'question':.*list\(frame\['question'\]",
        ),
        (lambda: pd.Series([1, 2]), "prompts is one list of token ids"),
        (lambda: torch.tensor([1, 2]), "prompts is one list of token ids"),
        (lambda: np.array([1, 2]), "prompts is one list of token ids"),
        (lambda: [torch.tensor(1), torch.tensor(2)], "prompts is one list of token ids"),
        (
            lambda: torch.tensor(1),
            r"a tensor of \[\] \(int64\): token ids are whole numbers, \[prompt, token\]",
        ),
        (lambda: torch.zeros(1, 2, 3), r"prompts is a tensor of \[1, 2, 3\] \(float32\): token ids are whole numbers"),
        (lambda: torch.ones(2, 2, dtype=torch.bool), r"\[2, 2\] \(bool\): token ids are whole numbers"),
        (lambda: np.zeros((2, 2)), r"an array of \[2, 2\] \(float64\): token ids are whole numbers"),
        (lambda: torch.nn.Linear(2, 2), "prompts is a Linear: pass a list of prompts; models come first"),
        (lambda: tiny_tokenizer(), "and a tokenizer goes to tokenizer="),
        (
            lambda: _encoded(padding=True, return_tensors="pt").input_ids,
            "row 1 ends with the token 1, 2 times.*pad",
        ),
        (
            lambda: _left(return_tensors="np").input_ids,
            "row 1 begins with the token 1, 2 times, which looks",
        ),
        (lambda: {"input_ids": torch.tensor([[5, 1, 1]])}, "looks like padding.*pass the attention mask too"),
        (lambda: {"input_ids": [[5, 6]], "attention_mask": [[1]]}, "have other shapes"),
        (lambda: {"input_ids": [[5, 6, 7]], "attention_mask": [[1, 0, 1]]}, "row 0, has a hole in it"),
        (lambda: {"input_ids": [[5, None]]}, r"row 0 has None as token 1: token ids are whole numbers"),
        (lambda: {"input_ids": torch.zeros(1, 2)}, r"\[1, 2\] \(float32\)"),
        (lambda: ["a", None], "prompt 1 is None: give text, chat messages or token ids"),
        (lambda: ["a", float("nan")], r"prompt 1 is a float \(nan\)"),
        (lambda: ["a", 3], r"prompt 1 is an int \(3\)"),
        (lambda: [b"a"], "prompt 0 is bytes: decode them to text"),
        (lambda: [{"question": "a", "answer": "b"}], "prompt 0 is a dict .*keys 'question', 'answer'"),
        (lambda: [("a", "b")], r"prompt 0 is a tuple of 2 items \(str\)"),
        (lambda: [{1, 2}], "prompt 0 is a set"),
        (lambda: [[1, 2.5]], r"prompt 0 has a float \(2.5\) as token 1"),
        (lambda: [[1, True]], r"prompt 0 has a bool \(True\) as token 1"),
        (lambda: [[1, -1]], "prompt 0 has the token id -1 at 1"),
        (lambda: [torch.tensor([1.0])], r"prompt 0 is a tensor of \[1\] \(float32\)"),
        (
            lambda: [torch.tensor([[1, 2]])],
            r"a tensor of \[1, 2\] \(int64\): one prompt is one-dimensional",
        ),
        (lambda: [[{"user": "hi"}]], "prompt 0, message 0 has no role .its keys are 'user'.: write"),
        (lambda: [[{"role": "user", "content": None}]], "prompt 0, message 0 has None as its content: give text"),
        (lambda: [[{"role": "user", "content": "hi"}, "you"]], r"prompt 0 is a list of 2 items \(dict, str\)"),
        (lambda: ["a\ud83d"], r"prompt 0 has half a character .the lone surrogate U\+D83D at 1"),
        (lambda: iter(()), "no prompts: pass at least one"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(KrsError, match=message):
        check_prompts(given())


def test_the_name_it_was_passed_as_is_the_name_in_the_message():
    with pytest.raises(KrsError, match="target is one string: pass a list of prompts"):
        check_prompts("hello", "target")
    with pytest.raises(KrsError, match="target prompt 1 is None"):
        check_prompts(["a", None], "target")


def test_a_corpus_is_texts_and_nothing_else():
    assert check_strings((t for t in TEXTS), "corpus") == TEXTS
    for given, message in [
        ([], "the corpus set is empty: give at least one text"),
        (["a", None], "corpus text 1 is None: make it a string"),
        (["a", ("q", "a")], "corpus text 1 is a tuple"),
        ("text", "corpus is one string: pass a list of texts"),
    ]:
        with pytest.raises(KrsError, match=message):
            check_strings(given, "corpus")
