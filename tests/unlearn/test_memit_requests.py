"""Requests, and where their subjects are among the tokens."""

import re

import pytest
from tokenizers import processors

from krs import KrsError
from krs.prompts.words import whole_words
from krs.unlearn.memit import Request, requests_from, to_requests
from krs.unlearn.memit.places import prompts_batch, site
from tests.unlearn.memit_case import CHAT
from tests.unlearn.tiny_tokenizer import tiny_tokenizer


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def with_bos(tokenizer):
    """A tokenizer that puts a BOS before every text, and a template that writes one too."""
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.chat_template = "<s> " + tokenizer.chat_template
    return tokenizer


def _place(request, tokenizer, contexts=("{}",)):
    (one,) = site([request], contexts, tokenizer, 50)
    return one.places[-1]


def _words(place, tokenizer):
    return tokenizer.convert_ids_to_tokens(list(place.ids))


def test_longer_names_come_first_whole_words_any_case():
    found = requests_from(
        ["who is harry potter", "the potters ran", "a red POTTER"],
        ["x", "y", "z"],
        subjects=["potter", "Harry Potter"],
    )
    assert [r.subject for r in found] == ["harry potter", "ran", "POTTER"]
    assert [r.object for r in found] == ["x", "y", "z"]


def test_without_a_known_name_the_last_word_is_the_subject():
    (found,) = requests_from(["Who is the friend of Ron?"], subjects=["Harry Potter"])
    assert found.subject == "Ron"


def test_questions_become_conversations_on_demand_and_conversations_stay():
    text, chat = requests_from(["the cat", CHAT], subjects=["cat", "red book"], chat=True)
    assert text.prompt == [{"role": "user", "content": "the cat"}]
    assert chat.prompt == CHAT
    assert chat.subject == "red book"


def test_a_request_comes_as_a_triple_a_dict_or_itself():
    one = Request("who is the cat", "cat", "dog")
    forms = [
        one,
        ("cat", "who is the cat", "dog"),
        ["cat", "who is the cat", "dog"],
        {"subject": "cat", "prompt": "who is the cat", "object": "dog"},
        {"subject": "cat", "prompt": "who is the cat", "answer": "dog"},
    ]
    assert to_requests(forms) == [one] * len(forms)
    assert to_requests([{"subject": "cat", "prompt": "who is the {}"}]) == [Request("who is the {}", "cat")]


def test_pairs_are_requests_with_subjects():
    forms = [("who is the cat", "dog"), {"prompt": "who is the cat", "answer": "dog"}]
    assert to_requests(forms, ("cat",)) == [Request("who is the cat", "cat", "dog")] * 2


def test_the_first_occurrence_of_the_subject_counts_and_its_last_token(tokenizer):
    place = _place(Request("the red book and the red book", "red book"), tokenizer)
    assert _words(place, tokenizer)[place.position] == "book"
    assert place.position == 2
    assert _place(Request("who is the {} of", "red book"), tokenizer).position == 4


def test_a_bos_moves_the_position_and_is_not_in_answers(with_bos):
    place = _place(Request("who is the cat", "cat"), with_bos)
    assert _words(place, with_bos) == ["<s>", "who", "is", "the", "cat"]
    assert place.position == 4
    assert with_bos.convert_ids_to_tokens(list(place.continuation("blue", with_bos))) == ["blue"]


def test_a_chat_prompt_goes_through_the_template_and_gets_no_second_bos(with_bos):
    place = _place(Request(CHAT, "red book"), with_bos)
    assert _words(place, with_bos) == ["<s>", "user", "who", "wrote", "the", "red", "book", "assistant"]
    assert place.position == 6
    assert with_bos.convert_ids_to_tokens(list(place.continuation("the sun", with_bos))) == ["the", "sun"]


def test_the_template_may_name_the_subject_before_the_message_does(tokenizer):
    tokenizer.chat_template = "the red book {{ messages[-1]['content'] | trim }} assistant"
    chat = [{"role": "user", "content": "  who wrote the red book "}]
    assert _place(Request(chat, "red book"), tokenizer).position == 7


def test_of_several_messages_the_last_that_has_the_subject_counts(tokenizer):
    chat = [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "the cat sat"},
        {"role": "user", "content": "who"},
    ]
    place = _place(Request(chat, "cat"), tokenizer)
    assert _words(place, tokenizer)[: place.position + 1] == ["user", "the", "cat", "assistant", "the", "cat"]


def test_a_subject_is_found_as_a_word_and_not_inside_a_longer_one(tokenizer):
    request = Request("the sunset and the sun", "sun")
    assert request.start == 19
    place = _place(request, tokenizer)
    assert _words(place, tokenizer)[place.position] == "sun"
    assert Request("Why do Parisians love Paris?", "Paris").start == 22
    for prompt in ("Why do Parisians love cheese?", [{"role": "user", "content": "Why do Parisians love cheese?"}]):
        with pytest.raises(
            KrsError, match="'Paris' is only a part of a word, 'Parisians', .*: give the whole word, or "
        ):
            Request(prompt, "Paris")


@pytest.mark.parametrize(
    ("text", "subject", "starts"),
    [
        ("Paris, Paris's and Paris-born", "Paris", [0, 7, 19]),
        ("Paris_2 and Paris2", "Paris", []),
        ("cafe\u0301 cafe", "cafe", [6]),  # the first is café, with its accent as a mark of its own
        ("étés été", "été", [5]),
        ("हिन्दी हिन्द", "हिन्द", [7]),
        ("東京の塔と東京", "東京", [0, 5]),
        ("パリジャンとパリ", "パリ", [6]),
        ("Parisの街", "Paris", [0]),
        ("USBメモリ", "USB", [0]),
        ("ประเทศไทยสวย", "ไทย", [6]),
        ("파리는 아름답다, 파리지앵", "파리", [0]),
        ("파리에서 파리", "파리", [0, 5]),
        ("C++ or C++11", "C++", [0, 7]),
        ("who wrote #MeToo", "#MeToo", [10]),
    ],
)
def test_words_of_all_scripts(text, subject, starts):
    assert whole_words(text, subject) == starts


def test_which_occurrence_counts_can_be_said(tokenizer):
    text = "the cat is the cat of the cat"
    for occurrence, position in ((0, 1), (1, 4), (-1, 7)):
        assert _place(Request(text, "cat", None, occurrence), tokenizer).position == position
    holes = Request("{} is the {} of", "red book", None, -1)
    assert holes.text[holes.start :] == "red book of"
    asked = {"subject": "cat", "prompt": text, "object": "dog", "occurrence": -1}
    assert to_requests([asked]) == [Request(text, "cat", "dog", -1)]
    with pytest.raises(KrsError, match="occurrence=3: give a number from -3 to 2 for the subject 'cat'"):
        Request(text, "cat", None, 3)


def test_a_question_without_a_known_name_is_edited_at_its_last_word_though_it_occurs_before():
    (found,) = requests_from(["Is Ron the friend of Ron?"], subjects=["Harry Potter"])
    assert (found.subject, found.start) == ("Ron", 21)
    (hindi,) = requests_from(["who is हिन्दी?"], subjects=["Harry Potter"])
    assert hindi.subject == "हिन्दी"
    (part,) = requests_from(["Why do Parisians love paris most?"], subjects=["Paris"])
    assert (part.subject, part.start) == ("paris", 22)


def test_a_hole_and_its_subject_in_one_prompt_are_refused_as_they_may_mean_either():
    with pytest.raises(KrsError, match="holds both the subject 'Paris' and {}, which stands for it: keep one of them"):
        Request("In Paris, {} is loved", "Paris")
    assert Request("The {}ians", "Paris").text == "The Parisians"


def test_a_message_is_found_where_the_template_puts_it_though_its_words_occur_elsewhere(tokenizer):
    """In a system prompt of the template's own, in the generation prompt, in a message before."""
    tokenizer.chat_template = "the cat . " + tokenizer.chat_template
    place = _place(Request([{"role": "user", "content": "the cat"}], "cat"), tokenizer)
    assert _words(place, tokenizer)[:6] == ["the", "cat", "<unk>", "user", "the", "cat"]
    assert place.position == 5
    last = _place(Request([{"role": "user", "content": "assistant"}], "assistant"), tokenizer)
    assert last.position == 4
    given = [{"role": "system", "content": "the red cat is a cat"}, {"role": "user", "content": "who is the cat"}]
    both = _place(Request(given, "cat"), tokenizer)
    assert _words(both, tokenizer)[both.position - 3 : both.position + 1] == ["who", "is", "the", "cat"]


def test_a_subject_at_the_start_of_a_text_and_one_behind_a_blank_have_their_own_tokens():
    """A byte-level tokenizer writes the blank into the word that follows it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = ["Paris is Paris", "Parisians love Paris", "東京 is 東京"] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="!")
    for text, occurrence in [("Paris is", 0), ("I love Paris", 0), (" Paris", 0), ("Parisians love Paris?", 0)]:
        request = Request(text, "Paris", None, occurrence)
        place = _place(request, tokenizer)
        assert tokenizer.decode(place.ids[: place.position + 1]) == text[: request.start + 5]
    tower = _place(Request("東京 is", "東京"), tokenizer)
    assert tokenizer.decode(tower.ids[: tower.position + 1]) == "東京"


def test_contexts_stand_around_the_prompt_and_leave_the_subject_where_it_is(tokenizer):
    (one,) = site([Request("the cat", "cat"), Request(CHAT, "book")][:1], ("{}", "on the sun {} and"), tokenizer, 50)
    assert [p.position for p in one.places] == [1, 4]
    place = _place(Request(CHAT, "book"), tokenizer, ("and {}",))
    assert _words(place, tokenizer) == ["user", "and", "who", "wrote", "the", "red", "book", "assistant"]
    assert place.position == 6
    assert tokenizer.convert_ids_to_tokens(list(one.essence.ids)) == ["cat", "is", "a"]
    assert one.essence.position == 0


def test_the_word_after_a_text_is_set_off_and_after_a_template_it_is_not():
    class Spy:
        """Notes what is tokenised."""

        def __init__(self):
            self.seen = []

        def __call__(self, text, add_special_tokens=True):
            self.seen.append(text)
            return {"input_ids": [1, 2, 3]}

    spy, plain = Spy(), _place(Request("the cat", "cat"), tiny_tokenizer())
    chat = _place(Request(CHAT, "book"), tiny_tokenizer())
    plain.continuation("blue", spy)
    plain.continuation(" blue", spy)
    chat.continuation(" blue", spy)
    assert spy.seen[0] == spy.seen[3] == "the cat blue"
    assert spy.seen[6] == chat.text + "blue"


def test_padding_is_known_from_lengths_for_a_prompt_may_contain_the_pad(tokenizer):
    places = [p for one in site([Request("the cat </s> sat", "cat"), Request("who", "who")], ("{}",), tokenizer, 50)
              for p in one.places]  # fmt: skip
    mask = prompts_batch(places).inputs()["attention_mask"]
    assert mask.tolist() == [[1] * len(places[0].ids), [1] + [0] * (len(places[0].ids) - 1)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Request("the cat", "dog"), "the subject 'dog' does not occur in the prompt 'the cat': write it as it"),
        (lambda: Request("the cat", " cat"), "the subject ' cat' is empty or has blanks around it"),
        (lambda: Request([{"role": "user", "content": ["cat"]}], "cat"), "has a message whose content is no text"),
        (lambda: Request([], "cat"), "the request about 'cat' has no messages"),
        (lambda: requests_from("the cat", subjects=["cat"]), "questions is one string: pass a list"),
        (lambda: requests_from(["the cat"], subjects="cat"), "subjects is one string: pass a list"),
        (lambda: requests_from([], subjects=["cat"]), "there are no questions: give at least one"),
        (lambda: requests_from(["a"], subjects=[]), "there are no subjects: give at least one"),
        (lambda: requests_from(["a cat"], ["b", "c"], subjects=["cat"]), "2 answers for 1 question: give one for each"),
        (lambda: requests_from(["?!"], subjects=["cat"]), "'?!' has no word to edit: leave it out"),
        (lambda: to_requests("the cat"), "forget is one string: pass a list of requests"),
        (lambda: to_requests([]), "the forget set is empty"),
        (lambda: to_requests(["the cat sat"]), "forget item 0: 'the cat sat' is no request: give (subject, prompt"),
        (lambda: to_requests([("cat", "the dog", "x")]), "forget item 0: the subject 'cat' does not occur"),
        (lambda: to_requests([("the cat", "x")]), "comes without its subject: give (subject, prompt, object), or name"),
        (lambda: to_requests([{"subject": "cat"}]), "forget item 0: it has no prompt"),
        (
            lambda: to_requests([{"subject": "cat", "prompt": "a cat", "occurrence": "last"}]),
            "forget item 0: occurrence='last': give a whole number",
        ),
    ],
)
def test_bad_requests(make, message, as_a_user):
    with pytest.raises(KrsError, match=re.escape(message)):
        make()


def test_bad_tokenizers(tokenizer):
    class Slow:
        """Says nothing of characters."""

        is_fast = False

    with pytest.raises(KrsError, match="Slow is a slow tokenizer and cannot tell .* use_fast=True"):
        site([Request("the cat", "cat")], ("{}",), Slow(), 50)
    tokenizer.chat_template = None
    with pytest.raises(KrsError, match="the prompt about 'book' is chat messages, but the tokenizer has no chat templ"):
        site([Request(CHAT, "book")], ("{}",), tokenizer, 50)
    tokenizer.chat_template = "nothing of it"
    with pytest.raises(KrsError, match="the chat template changes the message 'who wrote the red book'"):
        site([Request(CHAT, "book")], ("{}",), tokenizer, 50)
