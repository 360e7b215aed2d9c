"""Each position, each head, each unit as an axis: the numbers of sweeps of each alone, in structure."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import krs
from krs import ATTN_KEY, ATTN_OUT, ATTN_VALUE, HEAD_OUT, MLP_COEF, RESID, KrsError, windows
from tests.noise import assert_same
from tests.tiny import exact_pair

PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2], [13, 4]]
OPTIONS = {"windows": windows.of([[1], [2, 3]]), "n_tokens": 4, "progress": False, "measures": ["answer_logprob"]}
ENGINES = ["wavefront", "plain"]
PAIRS = {
    "gqa": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "fused": ("gpt2", {}),
}


@pytest.fixture(scope="module", params=PAIRS)
def models(request):
    name, options = PAIRS[request.param]
    return exact_pair(name, **options)


def _same(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_each_position_is_the_sweep_of_that_position_alone(models, engine):
    """Aligned at the answers: a position that a prompt does not have leaves that prompt out."""
    whole = krs.sweep(*models, PROMPTS, settings=[RESID, ATTN_OUT], positions="each", engine=engine, **OPTIONS)
    lengths = [(len(p), len(p) + len(a) - 1) for p, a in whole.token_ids]
    places = range(-max(p for p, _ in lengths), max(end - p for p, end in lengths))
    assert list(whole.krs["resid"].columns) == list(places) == list(whole.plan.places)
    frame = whole.to_frame()
    for place in places:
        having = [i for i, (p, end) in enumerate(lengths) if 0 <= p + place < end]
        alone = krs.sweep(
            *models,
            [PROMPTS[i] for i in having],
            settings=[RESID, ATTN_OUT],
            positions=[[lengths[i][0] + place] for i in having],
            engine=engine,
            **OPTIONS,
        )
        for setting in ("resid", "attn_out"):
            _same(whole.krs[setting][place], alone.krs[setting])
            for measure in ("logit_mse", "answer_logprob"):
                _same(whole.table(measure)[setting][place], alone.table(measure)[setting])
                _same(whole.recovery(measure)[setting][place], alone.recovery(measure)[setting])
        if len(having) > 1:
            for ours, theirs in zip(whole.interval(), alone.interval(), strict=True):
                _same(ours["resid"][place], theirs["resid"])
        else:
            assert whole.interval()[0]["resid"][place].isna().all()
        assert (frame[frame.position == place].prompts == len(having)).all()
    by_prompt = whole.to_frame(per_prompt=True)
    nobody = by_prompt[(by_prompt.position == -6) & (by_prompt.prompt != 1)]
    assert len(nobody) > 0
    assert nobody.krs.isna().all()
    assert by_prompt[by_prompt.position == -1].krs.notna().all()


def test_a_map_larger_than_the_memory_is_made_in_parts():
    v, u = exact_pair("llama")
    options = OPTIONS | {"settings": [RESID, ATTN_OUT], "positions": "each", "windows": 1, "engine": "wavefront"}
    whole, parts = (krs.sweep(v, u, PROMPTS, memory=memory, **options) for memory in ("auto", 1))
    assert len(whole.plan) > 65
    _same(whole.krs, parts.krs)
    _same(whole.table("answer_logprob"), parts.table("answer_logprob"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("point", [HEAD_OUT, ATTN_KEY, ATTN_VALUE], ids=repr)
def test_each_head_is_the_sweep_of_that_head_alone(models, point, engine):
    config = models[0].config
    many = config.num_attention_heads
    if point is not HEAD_OUT:
        many = getattr(config, "num_key_value_heads", many)
    whole = krs.sweep(*models, PROMPTS, settings=[point.each_head(), ATTN_OUT], engine=engine, **OPTIONS)
    assert whole.krs.columns.names == ["setting", "head"]
    assert list(whole.krs[point.name].columns) == list(range(many))
    for head in range(many):
        alone = krs.sweep(*models, PROMPTS, settings=point.heads(head), engine=engine, **OPTIONS)
        _same(whole.krs[point.name][head], alone.krs.iloc[:, 0])
        _same(whole.recovery("answer_logprob")[point.name][head], alone.recovery("answer_logprob").iloc[:, 0])
        assert whole.sel(point, head=head).krs.tolist() == whole.krs[point.name][head].tolist()
    plain = krs.sweep(*models, PROMPTS, settings=ATTN_OUT, engine=engine, **OPTIONS)
    _same(whole.krs["attn_out", "all"], plain.krs["attn_out"])


def test_units_positions_and_heads_together(models):
    both = [
        krs.sweep(
            *models,
            PROMPTS[:2],
            settings=[MLP_COEF.units(1, 7).each(), "head_out.heads(0, 1).each()"],
            positions="each",
            engine=engine,
            **OPTIONS,
        )
        for engine in ENGINES
    ]
    _same(both[0].krs, both[1].krs)
    found = both[0]
    assert found.krs.columns.names == ["setting", "part", "position"]
    one = krs.sweep(*models, PROMPTS[:2], settings=MLP_COEF.units(7), positions=[-1], **OPTIONS)
    _same(found.krs["mlp_coef", 7, -1], one.krs.iloc[:, 0])
    frame = found.to_frame()
    assert set(frame[frame.setting == "mlp_coef.units(7)"].unit) == {7}
    assert found.sel("mlp_coef", 1, unit=7, position=-1).krs.item() == found.krs["mlp_coef", 7, -1][1]
    assert found.sel(MLP_COEF.units(1, 7).each()).equals(found.sel("mlp_coef"))
    with pytest.raises(KrsError, match="there is no unit 2 of mlp_coef: there are 1"):
        found.sel("mlp_coef", unit=2)


@pytest.fixture(scope="module")
def mapped():
    v, u = exact_pair("llama", num_attention_heads=4, num_key_value_heads=2)
    return krs.sweep(v, u, PROMPTS, settings=[RESID, HEAD_OUT.each_head()], positions="each", **OPTIONS)


def test_the_file_keeps_the_axes(mapped, tmp_path):
    again = krs.load_result(mapped.save(tmp_path / "m.krs"))
    assert again.plan == mapped.plan
    assert again.plan.axes[0].numbers == (0, 1, 2, 3)
    assert again.krs.equals(mapped.krs)
    assert again.recovery("answer_logprob").equals(mapped.recovery("answer_logprob"))
    assert again.to_frame().equals(mapped.to_frame())
    assert repr(again) == repr(mapped)


def _rewritten(file, change):
    with safe_open(file, framework="numpy") as opened:
        header = json.loads(opened.metadata()["krs"])
    arrays = load_file(file)
    change(header, arrays)
    save_file(arrays, file, metadata={"krs": json.dumps(header)})
    return file


def test_a_file_of_before_there_were_axes_loads(tmp_path):
    v, u = exact_pair("llama")
    result = krs.sweep(v, u, PROMPTS, settings=[RESID, "head_out.heads(1)"], **OPTIONS)

    def as_before(header, arrays):
        for name in ("axes", "places", "pieces"):
            del header[name]
        del arrays["reach"]

    old = krs.load_result(_rewritten(result.save(tmp_path / "old.krs"), as_before))
    assert old.plan == result.plan
    assert old.krs.equals(result.krs)
    assert old.tokens(0, "resid").equals(result.tokens(0, "resid"))


def test_axes_that_do_not_fit_their_file(mapped, tmp_path):
    def without(name):
        return _rewritten(mapped.save(tmp_path / "x.krs", overwrite=True), lambda header, arrays: name(header, arrays))

    for change, message in [
        (lambda h, a: h["axes"][0].update(first=3), "settings that there are not"),
        (lambda h, a: h.update(places=[]), "its places are"),
        (lambda h, a: a.pop("reach"), "'reach' is missing"),
    ]:
        with pytest.raises(KrsError, match=message):
            krs.load_result(without(change))


def test_a_checkpoint_of_a_map_is_gone_on_with(tmp_path, monkeypatch):
    v, u = exact_pair("llama")
    file = tmp_path / "part.krs"
    options = OPTIONS | {"settings": RESID, "positions": "each", "engine": "plain", "checkpoint": file}
    whole = krs.sweep(v, u, PROMPTS, **options)
    losses = whole.losses
    losses.restored[5:] = np.nan
    losses.measured["answer_logprob"].restored[5:] = np.nan
    whole.part[5:] = -1
    replace(whole).save(file, overwrite=True)
    again = krs.sweep(v, u, PROMPTS, **options)
    assert again.complete
    assert_same(again.krs.to_numpy(), krs.sweep(v, u, PROMPTS, **(options | {"checkpoint": None})).krs.to_numpy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": None, "positions": "each"}, "positions='each' does not go with value_vectors"),
        ({"settings": "mlp_coef.each_head()"}, "mlp_coef is not made of heads"),
        ({"settings": "keys.each_head()"}, "keys is not made of heads"),
        ({"settings": "mlp_coef.each()"}, "has nothing to go through: choose units first"),
        ({"settings": [HEAD_OUT.each_head(), HEAD_OUT.heads(1)]}, "the same setting twice"),
        ({"settings": HEAD_OUT.heads(0, 9).each()}, "head 9 is out of range"),
    ],
)
def test_axes_that_cannot_be(options, message, as_a_user):
    v, u = exact_pair("llama")
    with pytest.raises(KrsError, match=message):
        krs.sweep(v, u, PROMPTS, **(OPTIONS | options))


def test_an_axis_is_a_setting_by_itself(as_a_user):
    with pytest.raises(KrsError, match="is an axis, which does not go into a sum"):
        MLP_COEF + HEAD_OUT.each_head()
    with pytest.raises(KrsError, match="is an axis, which does not go into a sum"):
        HEAD_OUT.each_head() + MLP_COEF
    with pytest.raises(KrsError, match="has its heads chosen already"):
        HEAD_OUT.heads(1).each_head()
    with pytest.raises(KrsError, match="depends on the model"):
        krs.Plan.make(HEAD_OUT.each_head(), n_layers=3)
    plan = krs.Plan.make(HEAD_OUT.each_head(), 1, n_layers=3, n_heads=2, positions="each")
    assert "head_out" in repr(plan)
    assert "at each position" in repr(plan)
    assert len(plan) == 0
    assert len(plan.at_places(range(-2, 1))) == 18
