"""Value vectors as tokens, against products written out by hand on each layout."""

import copy
import json

import numpy as np
import pytest
import torch

import krs
from krs import KrsError
from krs.data import Concept
from krs.metrics import load_vocabulary, vocabulary
from tests.adapters import adapted, merged_by_peft
from tests.noise import assert_same, float64_throughout
from tests.packed import Packed
from tests.tiny import build, exact_pair, pair, perturbed, same_state, state
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

PLACES = [(2, 7), (0, 3), (3, 0)]
BY_HAND = {
    "llama": lambda m, layer, unit: m.lm_head.weight @ m.model.layers[layer].mlp.down_proj.weight[:, unit],
    "phi3": lambda m, layer, unit: m.lm_head.weight @ m.model.layers[layer].mlp.down_proj.weight[:, unit],
    "gpt2": lambda m, layer, unit: m.lm_head.weight @ m.transformer.h[layer].mlp.c_proj.weight[unit],
    "gptj": lambda m, layer, unit: m.lm_head.weight @ m.transformer.h[layer].mlp.fc_out.weight[:, unit],
    "gpt_neox": lambda m, layer, unit: m.lm_head.weight @ m.gpt_neox.layers[layer].mlp.dense_4h_to_h.weight[:, unit],
    "olmo2": lambda m, layer, unit: m.lm_head.weight @ m.model.layers[layer].mlp.down_proj.weight[:, unit],
}
"""Without the head's bias (GPT-J) and without what follows the MLP (OLMo2): the vector alone."""


def _read(v, u=None, where="moved", **options):
    return vocabulary(v, u, where, **({"tokenizer": tiny_tokenizer(), "top": 5} | options))


@pytest.mark.parametrize("family", BY_HAND)
def test_scores_are_the_vector_times_the_unembedding(family):
    models = exact_pair(family)
    before = [state(m) for m in models]
    found = _read(*models, where=PLACES)
    assert all(same_state(m, b) for m, b in zip(models, before, strict=True))
    for row, (layer, unit) in enumerate(PLACES):
        scores = [BY_HAND[family](m, layer, unit).detach() for m in models]
        for side, by_hand in zip(("vanilla", "unlearned"), scores, strict=True):
            told = found.tokens[(found.tokens.vector == row) & (found.tokens.side == side)]
            assert told.token_id.tolist() == by_hand.topk(5).indices.tolist()
            assert_same(told.score.to_numpy(), by_hand.topk(5).values)
            assert_same(told.probability.to_numpy(), by_hand.softmax(0)[told.token_id.tolist()])
            assert told.token.tolist() == [tiny_tokenizer().decode([i]) for i in told.token_id]
        p, q = (s.softmax(0) for s in scores)
        assert_same(found.vectors.tv[row], float((p - q).abs().sum() / 2))
        both = [set(s.topk(5).indices.tolist()) for s in scores]
        assert found.vectors.kept[row] == len(both[0] & both[1]) / 5
    assert list(zip(found.vectors.layer, found.vectors.unit, strict=True)) == PLACES


def test_distances_are_those_of_the_vectors_and_the_largest_come_first():
    v, u = exact_pair("gpt2")
    weights = [torch.stack([layer.mlp.c_proj.weight.detach() for layer in m.transformer.h]) for m in (v, u)]
    change = (weights[1] - weights[0]).norm(dim=-1) / weights[0].norm(dim=-1)
    found = _read(v, u, count=6).vectors
    order = change.flatten().argsort(descending=True)[:6]
    n = change.shape[1]
    assert list(zip(found.layer, found.unit, strict=True)) == [(int(i) // n, int(i) % n) for i in order]
    assert_same(found.relative_change.to_numpy(), change.flatten()[order])
    a, b = (w.reshape(-1, w.shape[-1])[order] for w in weights)
    assert_same(found.cosine.to_numpy(), torch.nn.functional.cosine_similarity(a, b))


def test_only_vectors_that_moved_have_moved():
    v = build("llama")
    u = copy.deepcopy(v)
    with pytest.raises(KrsError, match="no value vector differs between the two models"):
        _read(v, u)
    with torch.no_grad():
        u.model.layers[1].mlp.down_proj.weight[:, 5] *= -1
        u.model.layers[3].mlp.down_proj.weight[:, 2] *= 1.25
    found = _read(v, u)
    table = found.table(1)
    assert table[["layer", "unit"]].to_numpy().tolist() == [[1, 5], [3, 2]]
    assert table.relative_change.tolist() == pytest.approx([2, 0.25])
    assert table.cosine.tolist() == pytest.approx([-1, 1])
    assert found.vectors.kept.tolist()[1] == 1
    assert "note" not in repr(found)
    with torch.no_grad():
        u.lm_head.weight = torch.nn.Parameter(1.5 * v.lm_head.weight.detach())
    assert "the unembeddings differ too" in repr(_read(v, u))


def test_the_final_norm_may_come_before_the_head():
    v, u = exact_pair("llama")
    with float64_throughout(), torch.no_grad():
        found = _read(v, u, where=[(1, 4)], norm=True)
        expected = v.lm_head(v.model.norm(v.model.layers[1].mlp.down_proj.weight[:, 4][None]))[0]
    told = found.tokens[found.tokens.side == "vanilla"]
    assert_same(told.score.to_numpy(), expected.topk(5).values)
    assert "behind the final norm" in repr(found)


def test_one_model_alone_and_concepts_that_name_a_vector():
    v = build("llama").double()
    emma = Concept("Emma", ("Who?",), layer=2, unit=7)
    found = _read(v, where=[emma, (0, 3)])
    both = _read(v, perturbed(v), where=emma)
    assert found.vectors.concept.tolist() == ["Emma", ""]
    assert found.tokens.side.unique().tolist() == ["vanilla"]
    assert "relative_change" not in found.table()
    assert found.vectors.tv.isna().all()
    mine, other = (f.tokens[(f.tokens.vector == 0) & (f.tokens.side == "vanilla")] for f in (found, both))
    assert_same(mine.score.to_numpy(), other.score.to_numpy())
    assert found.to_frame().shape == (10, 13)


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_an_adapter_writes_the_tokens_of_its_merged_self(kind):
    v = build("llama-bias", tie_word_embeddings=False)
    u = adapted(v, kind)
    found, wanted = _read(v, u), _read(v, merged_by_peft(u))
    assert found.vectors.equals(wanted.vectors)
    assert found.tokens.equals(wanted.tokens)


def test_packed_weights_write_what_they_are_unpacked_to_or_nothing():
    v, u = pair("llama")
    plain = []
    for model in (v, u):
        plain.append(copy.deepcopy(model))
        for mine, other in zip(model.model.layers, plain[-1].model.layers, strict=True):
            mine.mlp.down_proj = Packed(mine.mlp.down_proj).eval()
            other.mlp.down_proj.weight = torch.nn.Parameter(mine.mlp.down_proj.unpacked())
    assert _read(v, u, where=PLACES).vectors.equals(_read(*plain, where=PLACES).vectors)
    u.model.layers[2].mlp.down_proj.rounds = True
    with pytest.raises(KrsError, match="does not apply one weight to every input"):
        _read(v, u, where=PLACES)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_that_stay_on_the_disk_write_the_same_tokens(family, tmp_path):
    for name, model in zip("vu", exact_pair(family), strict=True):
        model.save_pretrained(tmp_path / name)
    off, on = ([krs.load(tmp_path / n, **options)[0] for n in "vu"] for options in ({"offload": "disk"}, {}))
    with float64_throughout():
        for options in ({"count": 4}, {"where": PLACES, "norm": True}):
            found, wanted = (_read(*models, **options) for models in (off, on))
            assert found.vectors.equals(wanted.vectors)
            assert found.tokens.equals(wanted.tokens)
    assert any(p.device.type == "meta" for p in off[0].parameters())


def test_added_rows_are_no_tokens_of_both():
    v = build("llama", tie_word_embeddings=False)
    u = perturbed(v)
    u.resize_token_embeddings(70, mean_resizing=False)
    u.eval()
    with pytest.raises(KrsError, match="vocabulary='shared' scores the rows that both have"):
        _read(v, u)
    with torch.no_grad():
        u.lm_head.weight[61:] = 100
    found = _read(v, u, where=PLACES, vocabulary="shared", top=61)
    assert found.tokens.token_id.max() == 60


def test_it_is_saved_whole_and_read_back(tmp_path):
    found = _read(*pair("llama"), where=[Concept("Emma", ("Who?",), layer=1, unit=3), (0, 0)])
    alone = _read(build("llama"), where=[(0, 1)])
    for name, one in (("two", found), ("one", alone)):
        file = one.save(tmp_path / f"{name}.json")
        again = load_vocabulary(file)
        assert again.vectors.equals(one.vectors)
        assert again.tokens.equals(one.tokens)
        assert repr(again) == repr(one)
        assert "<table" in again._repr_html_()
    assert json.loads(found.to_json())["krs_vocabulary"] == 1
    with pytest.raises(KrsError, match="exists already"):
        found.save(tmp_path / "two.json")
    told = json.loads((tmp_path / "two.json").read_text())
    del told["tokens"][0]["score"]
    for content, why in (("[]", "it is a list"), ("{}", "'krs_vocabulary' is missing"), (json.dumps(told), "row 0 of")):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(KrsError, match=f"does not hold value vectors as tokens .{why}"):
            load_vocabulary(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text(json.dumps(json.loads(found.to_json()) | {"krs_vocabulary": 9}))
    with pytest.raises(KrsError, match=r"another version of krs \(format 9\)"):
        load_vocabulary(tmp_path / "bad.json")
    with pytest.raises(KrsError, match="cannot read"):
        load_vocabulary(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"where": "moves"}, "where='moves': give 'moved', "),
        ({"where": []}, "where= names no value vector"),
        ({"where": [(1, 2, 3)]}, "is no value vector: give .layer, unit."),
        ({"where": [(1, 24)]}, "there is no value vector 24 at layer 1: it has 24, 0 to 23"),
        ({"where": [(4, 0)]}, "layer 4 is out of range"),
        ({"where": Concept("Emma", ("Who?",))}, "the concept 'Emma' does not say which value vector carries it"),
        ({"count": 0}, "count=0: ask for at least one"),
        ({"top": 62}, "top=62: the vocabulary has 61 tokens"),
        ({"tokenizer": None}, "no tokenizer was found beside the models"),
    ],
)
def test_bad_input(options, says, as_a_user):
    with pytest.raises(KrsError, match=says):
        _read(*pair("llama"), **options)


def test_models_that_have_no_such_vectors(as_a_user):
    with pytest.raises(KrsError, match="which value vectors moved is known of two models"):
        _read(build("llama"))
    with pytest.raises(KrsError, match="each token goes through several experts"):
        _read(*pair("moe"))
    with pytest.raises(KrsError, match="with a projection between"):
        _read(build("opt", word_embed_proj_dim=8), where=[(0, 0)])
    v, u = pair("llama")
    with torch.no_grad():
        u.model.layers[1].mlp.down_proj.weight[3, 5] = float("nan")
    for where in ("moved", [(1, 5)]):
        with pytest.raises(KrsError, match="unlearned is broken: its weight 'model.layers.1.mlp.down_proj' has"):
            _read(v, u, where=where)
    assert np.isfinite(_read(v, u, where=[(1, 4)]).vectors.tv).all()
    with pytest.raises(KrsError, match="the weight is offloaded"):
        _read(build("llama").to("meta"), where=[(0, 0)])


@pytest.mark.real
def test_the_real_models_tokens_are_words(smollm2):
    model, tokenizer = smollm2
    found = krs.metrics.vocabulary(model, where=[(20, 7)], tokenizer=tokenizer, top=3)
    weight = model.model.layers[20].mlp.down_proj.weight[:, 7].detach().double()
    expected = (model.lm_head.weight.detach().double() @ weight).topk(3)
    assert found.tokens.token_id.tolist() == expected.indices.tolist()
    assert found.tokens.token.tolist() == [tokenizer.decode([i]) for i in expected.indices.tolist()]
