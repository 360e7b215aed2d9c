"""Special tokens around texts, and arguments of chat templates."""

import warnings

import pytest

from krs import KrsError, KrsWarning
from krs.prompts import check_template_arguments, encode, prompt_length, tokenise, with_template_arguments
from krs.prompts.tokens import dated
from tests.prompts.tokenizers import CHAT, tokenizer_with
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

ASKED = [{"role": "user", "content": "the cat"}]


def test_an_end_that_the_tokenizer_puts_behind_a_text_is_left_out_with_a_warning():
    for around, expected in (("<s> $A </s>", (0, 5, 14)), ("$A </s>", (5, 14))):
        tokenizer = tokenizer_with(around)
        assert tokenizer("the cat")["input_ids"][-1] == 1
        with pytest.warns(KrsWarning, match="puts '</s>' behind a text; krs leaves it out of prompts"):
            assert encode(["the cat"], tokenizer) == (expected,)
        assert tokenise("the cat", tokenizer, keep_end=True) == (*expected, 1)


def test_an_end_that_the_text_itself_has_stays():
    assert encode(["the cat </s>"], tokenizer_with("<s> $A")) == ((0, 5, 14, 1),)


def test_a_rendered_template_gets_no_second_bos():
    tokenizer = tokenizer_with("<s> $A")
    text = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    assert tokenizer(text)["input_ids"][:2] == [0, 0]
    with pytest.warns(KrsWarning, match="begins with '<s>', as one does that went through the chat template"):
        as_text = encode([text], tokenizer)
    assert as_text == encode([ASKED], tokenizer)
    assert as_text[0][:2] == (0, 3)
    with pytest.warns(KrsWarning) as seen:
        assert encode([text], tokenizer_with("<s> $A </s>")) == as_text
    assert len(seen) == 2


def test_a_warning_is_given_once_for_many_prompts():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        encode(["the cat", "the dog", "the sun"], tokenizer_with("$A </s>"))
    assert len(seen) == 1


def test_a_message_that_went_through_the_template_already_is_warned_of():
    twice = [{"role": "user", "content": "<s>user the cat assistant"}]
    with pytest.warns(KrsWarning, match="contains '<s>', as if it had gone through the chat template already"):
        encode([twice], tokenizer_with())


def test_token_ids_are_taken_as_they_are_and_looked_at():
    tokenizer = tokenizer_with()
    with pytest.warns(KrsWarning, match="begins with two BOS"):
        assert encode([(0, 0, 5)], tokenizer) == ((0, 0, 5),)
    with pytest.warns(KrsWarning, match="ends with an end-of-text token"):
        assert encode([(5, 1), (5, 6, 7)], tokenizer) == ((5, 1), (5, 6, 7))
    with pytest.warns(KrsWarning, match="ends with an end-of-text token"):
        encode([(5, 9)], None, ends=[9])


@pytest.mark.parametrize("rows", [[(5, 6, 7), (5, 1, 1)], [(1, 5, 6), (5, 6, 7)], [(5, 6, 7), (5, 6, 1)], [(5, 1, 1)]])
def test_rows_with_the_models_pad_at_an_edge_are_refused(rows):
    with pytest.raises(KrsError, match="token-id prompt . (begins|ends) with the pad token 1.*looks like padding"):
        encode(rows, None, pads=[1])
    with pytest.raises(KrsError, match="looks like padding"):
        encode(rows, tiny_tokenizer())


def test_a_bos_that_is_the_pad_too_may_begin_every_prompt():
    assert encode([(1, 5, 6), (1, 6, 7)], None, pads=[1]) == ((1, 5, 6), (1, 6, 7))
    assert encode([(1, 5), (6, 7, 8)], None, pads=[1]) == ((1, 5), (6, 7, 8))


def test_what_stays_of_a_prompt_whose_offsets_are_needed():
    for around, n in (("<s> $A </s>", 3), ("$A", 2), ("<s> $A", 3)):
        tokenizer = tokenizer_with(around)
        ids = tuple(tokenizer("the cat")["input_ids"])
        assert prompt_length(ids, "the cat", tokenizer) == n


def test_template_arguments_reach_the_template_and_leave_the_callers_tokenizer_alone():
    tokenizer = tokenizer_with()
    (plain,) = encode([ASKED], tokenizer)
    (thinking,) = encode([ASKED], with_template_arguments(tokenizer, {"enable_thinking": True}))
    assert tokenizer.decode(plain[-1]) == "green"
    assert tokenizer.decode(thinking[-1]) == "blue"
    assert encode([ASKED], tokenizer) == (plain,)


@pytest.mark.parametrize(
    ("arguments", "used", "message"),
    [
        ("thinking", True, "no dict of names: pass one, such as"),
        ({1: 2}, True, "no dict of names"),
        ({"tokenize": True}, True, "has 'tokenize', which krs sets itself"),
        ({"add_generation_prompt": False}, True, "has 'add_generation_prompt', which krs sets itself"),
        ({"enable_thinking": False}, False, "is for chat messages, and no prompt is one"),
    ],
)
def test_template_arguments_that_cannot_be(arguments, used, message):
    with pytest.raises(KrsError, match=message):
        check_template_arguments(arguments, used)


def test_a_template_argument_that_the_template_does_not_know_is_refused():
    with pytest.raises(KrsError, match="has 'enable_thinkin', which the tokenizer's chat template does not use"):
        with_template_arguments(tokenizer_with(), {"enable_thinkin": False})
    assert check_template_arguments(None, False) == {}


def test_a_template_that_writes_the_date_is_known():
    tokenizer = tokenizer_with(template="{{ date_string or strftime_now('%d %b %Y') }}" + CHAT)
    assert dated(tokenizer, None)
    assert not dated(tokenizer, {"date_string": "26 Jul 2024"})
    assert not dated(tokenizer_with(), None)


def test_a_template_that_refuses_the_messages_says_why():
    strict = tokenizer_with(template="{{ raise_exception('roles have to alternate') }}")
    with pytest.raises(KrsError, match="prompt 0: the tokenizer's chat template .*roles have to alternate"):
        encode([ASKED], strict)
