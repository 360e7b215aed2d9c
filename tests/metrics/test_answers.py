import json

import pandas as pd
import pytest
import torch

import krs
from krs import KrsError
from krs.data.concepts import as_chat
from krs.metrics import answers, load_answers
from krs.metrics.answers_result import Answers
from tests.noise import assert_same, float64_throughout
from tests.tiny import build, exact_pair, pair, perturbed, same_state, state
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

TARGET = ["who wrote the book", [{"role": "user", "content": "what is red"}], [5, 9, 8]]
UNRELATED = ["the cat sat on", "one two three"]


def _ask(v, u, **options):
    given = {"target": TARGET, "unrelated": UNRELATED, "tokenizer": tiny_tokenizer(), "n_tokens": 6, "progress": False}
    return answers(v, u, **(given | options))


@pytest.fixture(scope="module")
def models():
    return pair("llama")


@pytest.fixture(scope="module")
def found(models):
    return _ask(*models)


def test_the_table_says_how_each_side_fares_and_the_models_stay_as_they_were(models, found):
    before = [state(m) for m in models]
    _ask(*models)
    assert all(same_state(m, b) for m, b in zip(models, before, strict=True))
    assert found.table.questions.to_dict() == {"target": 3, "unrelated": 2}
    assert list(found.frame.question) == ["who wrote the book", "what is red", "the what who", *UNRELATED]
    assert found.frame.bleu.between(0, 100.0001).all()
    assert "ceiling" in repr(found)
    assert "<table" in found._repr_html_()
    assert found.provenance["bleu"].startswith("sacrebleu|")


def test_a_model_against_its_copy_is_at_the_ceiling(models):
    import copy

    for kind in ("sacrebleu", "paper-code"):
        same = _ask(models[0], copy.deepcopy(models[0]), bleu=kind).frame
        assert (same.bleu == same.ceiling).all()
        assert (same.vanilla == same.unlearned).all()
        assert (same.nll == same.nll_vanilla).all()


def test_the_likelihood_is_that_of_the_vanilla_answer():
    models = exact_pair("llama")
    with float64_throughout():
        found = _ask(*models)
    for model, column in zip(models, ("nll_vanilla", "nll"), strict=True):
        prompt, answer = tiny_tokenizer()(TARGET[0])["input_ids"], found.token_ids["vanilla"][0]
        with torch.no_grad(), float64_throughout():
            logits = model(torch.tensor([prompt + list(answer)])).logits[0, len(prompt) - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()
        assert_same(found.frame[column][0], expected)


def test_saved_answers_are_read_back_and_reused(tmp_path, models, found):
    found.save(tmp_path / "a.json")
    again = load_answers(tmp_path / "a.json")
    assert again.frame.equals(found.frame)
    assert again.token_ids == found.token_ids
    reused = _ask(*models, reuse=again)
    assert reused.table.equals(found.table)
    with pytest.raises(KrsError, match="reuse= is of other answers. What differs: prompts; n_tokens. Leave it out"):
        _ask(*models, unrelated=(), n_tokens=3, reuse=again)
    with pytest.raises(KrsError, match="reuse= is of other answers. What differs: the vanilla model .weights"):
        _ask(models[1], build("llama"), reuse=again)
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(KrsError, match="does not hold answers"):
        load_answers(tmp_path / "b.json")
    with pytest.raises(KrsError, match="cannot read"):
        load_answers(tmp_path / "none.json")
    (tmp_path / "c.json").write_text(json.dumps({"krs_answers": 9}))
    with pytest.raises(KrsError, match=r"another version of krs \(format 9\)"):
        load_answers(tmp_path / "c.json")


def test_bad_input(models, as_a_user):
    with pytest.raises(KrsError, match="bleu='rouge': choose"):
        _ask(*models, bleu="rouge")
    with pytest.raises(KrsError, match="no tokenizer was found beside the models"):
        _ask(*models, tokenizer=None)
    with pytest.raises(KrsError, match="no prompts: pass at least one"):
        _ask(*models, target=[])
    with pytest.raises(KrsError, match="do not belong together"):
        _ask(models[0], build("gpt2"))


def test_questions_in_other_forms(models, as_a_user):
    with pytest.raises(KrsError, match="target is one string: pass a list of prompts"):
        _ask(*models, target="hello")
    with pytest.raises(KrsError, match="unrelated is one string: pass a list of prompts"):
        _ask(*models, unrelated="hello")
    with pytest.raises(KrsError, match="unrelated prompt 1 is None"):
        _ask(*models, unrelated=["the cat", None])
    with pytest.raises(KrsError, match="refusals is one string: pass a list of regular expressions"):
        _ask(*models, refusals="I don't know")
    with pytest.raises(KrsError, match=r"refusals has no regular expression as item 1 .'\('.: missing"):
        _ask(*models, refusals=["no", "("])
    with pytest.raises(KrsError, match="prompt 3 has 70 tokens"):
        _ask(*models, unrelated=["the " * 70])
    given = {"target": (t for t in TARGET), "unrelated": iter(UNRELATED)}
    assert _ask(*models, **given).frame.question.tolist() == _ask(*models).frame.question.tolist()
    for none in ((), [], None, iter(())):
        assert _ask(*models, unrelated=none).table.questions.to_dict() == {"target": 3}
    padded = tiny_tokenizer()(UNRELATED, padding=True, return_tensors="pt")
    assert _ask(*models, target=padded).frame.vanilla.equals(_ask(*models, target=UNRELATED).frame.vanilla)


@pytest.mark.filterwarnings("ignore:.*vanilla answers are empty:krs.KrsWarning")
def test_template_arguments_are_kept(models):
    from tests.prompts.tokenizers import tokenizer_with

    asked = as_chat(["the cat"])
    kwargs = {"enable_thinking": True}
    found = _ask(*models, target=asked, unrelated=(), tokenizer=tokenizer_with(), chat_template_kwargs=kwargs)
    plain = _ask(*models, target=asked, unrelated=(), tokenizer=tokenizer_with())
    assert found.provenance["chat_template_kwargs"] == kwargs
    assert found.provenance["prompts_sha256"] != plain.provenance["prompts_sha256"]


def test_figure_2(models, found, tmp_path):
    from krs.plots import plot_tradeoff, save_figure

    axes = plot_tradeoff({"npo": [found, found], "ga": [found]})
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["npo", "ga"]
    target, unrelated = found.table.bleu["target"], found.table.bleu["unrelated"]
    assert axes.collections[1].get_offsets().tolist() == [[target, unrelated]]
    assert found.plot() is not None
    save_figure({"npo": [found]}, tmp_path / "fig2.png")
    assert (tmp_path / "fig2.png").stat().st_size > 5000
    with pytest.raises(KrsError, match="no unrelated questions"):
        plot_tradeoff({"npo": [_ask(*models, unrelated=())]})
    with pytest.raises(KrsError, match="of different kinds"):
        plot_tradeoff({"npo": [found, _ask(*models, bleu="paper-code")]})
    with pytest.raises(KrsError, match="nothing to draw"):
        plot_tradeoff({})
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.mark.real
def test_a_batch_answers_as_its_questions_do_one_by_one_on_the_real_model(smollm2):
    model, tokenizer = smollm2
    questions = as_chat(krs.data.load_concept("harry_potter").questions[:4])
    together = krs.generate(model, None, questions, tokenizer=tokenizer, n_tokens=12, progress=False)
    alone = [krs.generate(model, None, [q], tokenizer=tokenizer, n_tokens=12, progress=False)[0] for q in questions]
    assert list(together) == alone


def test_an_answer_that_was_cut_is_shown_as_cut_and_kept_as_it_is():
    said = {"vanilla": ["It was ", "By Austen."], "unlearned": ["No", None]}
    frame = pd.DataFrame({"side": ["target"] * 2, "question": ["Who?", "By whom?"]} | said)
    found = Answers(frame, {"vanilla": [(5, 9), (5, 0)], "unlearned": [(7, 8)]}, {"ends": [0], "bleu": "x"})
    assert found.shown.vanilla.tolist() == ["It was…", "By Austen."]
    assert found.shown.unlearned.tolist()[0] == "No…"
    assert found.shown.unlearned.isna().tolist() == [False, True]
    assert found.frame.vanilla[0] == "It was "


@pytest.mark.filterwarnings("ignore:.*answers are empty:krs.KrsWarning")
def test_answers_over_other_ids_are_not_reused():
    """The first pair shares 61 ids, the second 40: what vanilla says over the ones it would not say over the others."""
    vanilla, smaller = build("gpt2", tie_word_embeddings=False), build("gpt2", vocab_size=40)
    vanilla.lm_head.weight.data[45:] *= 5
    unlearned = perturbed(vanilla)
    whole = _ask(vanilla, unlearned)
    shared = _ask(vanilla, smaller, vocabulary="shared")
    assert whole.token_ids["vanilla"] != shared.token_ids["vanilla"]
    with pytest.raises(KrsError, match=r"What differs: how many ids both models have .61 there, 40 here.\. Leave it"):
        _ask(vanilla, smaller, vocabulary="shared", reuse=whole)
    with pytest.raises(KrsError, match=r"What differs: how many ids both models have .40 there, 61 here.\. Leave it"):
        _ask(vanilla, unlearned, reuse=shared)
    whole.provenance.pop("n_ids")
    with pytest.raises(KrsError, match="how many ids both models have"):
        _ask(vanilla, smaller, vocabulary="shared", reuse=whole)
