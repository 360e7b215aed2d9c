"""Results that add up: over prompts, over results; and as figures, LaTeX, xarray, words."""

import numpy as np
import pandas as pd
import pytest

import krs
from krs import ATTN_OUT, HEAD_OUT, MLP_COEF, RESID, KrsError, windows
from krs.instruments.reading import Reading
from krs.notebook import as_html
from krs.pages.text import number
from krs.plots import plot_maps, save_figure
from krs.restore.plan import Plan
from krs.restore.reading import to_latex
from tests.noise import assert_same
from tests.restore.test_axes import _rewritten
from tests.tiny import exact_pair, perturbed
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2], [13, 4]]
OPTIONS = {"settings": [MLP_COEF, RESID], "windows": windows.of([[1], [2, 3]]), "n_tokens": 4, "progress": False}


@pytest.fixture(scope="module")
def models():
    return exact_pair("llama")


def _sweep(models, prompts, **options):
    return krs.sweep(*models, prompts, **(OPTIONS | options))


@pytest.fixture(scope="module")
def parts(models):
    return [_sweep(models, part, measures="kl") for part in (PROMPTS[:1], PROMPTS[1:])]


def test_concat_is_the_sweep_of_all_prompts(models, parts, tmp_path):
    together, whole = krs.concat(parts), _sweep(models, PROMPTS, measures="kl")
    for measure in ("logit_mse", "kl"):
        np.testing.assert_allclose(together.recovery(measure), whole.recovery(measure), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(together.table(measure), whole.table(measure), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(together.interval()[0], whole.interval()[0], rtol=1e-9, atol=1e-9)
    assert together.token_ids == whole.token_ids
    assert together.prompts == whole.prompts
    assert (together.part >= 0).all()
    assert len(together.provenance["parts"]) == 2
    again = krs.load_result(together.save(tmp_path / "c.krs"))
    assert again.krs.equals(together.krs)


def test_concat_of_maps_and_of_positions_for_each_prompt(models):
    each = {"settings": RESID, "positions": "each"}
    together = krs.concat([_sweep(models, [p], **each) for p in PROMPTS])
    whole = _sweep(models, PROMPTS, **each)
    assert together.plan == whole.plan
    assert_same(together.krs.to_numpy(), whole.krs.to_numpy())
    assert together.complete
    own = [[0], [2, -1], [1]]
    together = krs.concat([_sweep(models, [p], positions=[where]) for p, where in zip(PROMPTS, own, strict=True)])
    assert_same(together.krs.to_numpy(), _sweep(models, PROMPTS, positions=own).krs.to_numpy())


def test_concat_names_what_differs(models, parts, as_a_user):
    other = (models[0], perturbed(models[1], seed=5))
    for changed, message in [
        (_sweep(models, PROMPTS[1:]), r"different sweeps: measures \(\['logit_mse', 'kl'\], \['logit_mse'\]\)"),
        (_sweep(models, PROMPTS[1:], measures="kl", settings=RESID), "settings"),
        (_sweep(models, PROMPTS[1:], measures="kl", direction="transplant"), r"direction \('restore', 'transplant'\)"),
        (_sweep(models, PROMPTS[1:], measures="kl", positions="prompt"), r"positions \(None, 'prompt'\)"),
        (_sweep(other, PROMPTS[1:], measures="kl"), r"the unlearned model \(weights\)"),
    ]:
        with pytest.raises(KrsError, match=f"krs.concat: results 0 and 1 are of {message}|{message}"):
            krs.concat([parts[0], changed])
    with pytest.raises(KrsError, match="krs.concat got no results"):
        krs.concat([])
    with pytest.raises(KrsError, match="takes a list of results"):
        krs.concat(parts[0])
    with pytest.raises(KrsError, match="item 1 is a MeanResult, no result of krs.sweep"):
        krs.concat([parts[0], krs.mean(parts)])


def test_sweeps_with_other_references_or_donor_prompts_are_not_one(models):
    """Numbers against two references, or of what a donor read elsewhere, are of different questions."""
    ask = OPTIONS | {"answers": [[4, 4], [5, 5], [6, 6]]}
    thirds = [perturbed(models[0], seed=seed, scale=0.2) for seed in (5, 6)]
    one, other = (krs.patch_sweep(*models[::-1], PROMPTS, reference=r, **ask) for r in thirds)
    sham = krs.patch_sweep(*models[::-1], PROMPTS, donor_prompts=[[9] * len(p) for p in PROMPTS], **ask)
    with pytest.raises(KrsError, match=r"different sweeps: the reference model \(weights\)"):
        krs.concat([one, other])
    assert_same(krs.mean([one, other]).recovery(), (one.recovery() + other.recovery()) / 2)
    for together in (krs.concat, krs.mean):
        with pytest.raises(KrsError, match=r"whether there is a reference \(True, False\)"):
            together([one, sham])
    both = krs.concat([sham, sham])
    assert len(both.provenance["donor_prompts"]) == len(both.prompts)


def test_measures_of_one_name_that_are_not_the_same_have_no_mean(models):
    def top(k):
        def mine(logits, reference_logits, target_ids):
            return logits.topk(k).values.sum(-1)

        return mine

    one, five = (_sweep(models, PROMPTS, measures=["kl", top(k)]) for k in (1, 5))
    assert krs.mean([one, one]).measures == ("logit_mse", "kl", "mine")
    assert krs.mean([one, five]).measures == ("logit_mse", "kl")
    with pytest.raises(KrsError, match="'mine' was not measured in every member, by the same function"):
        krs.mean([one, five]).table("mine")


def test_a_mean_weighs_results_alike(models, parts, tmp_path):
    third = _sweep((models[0], perturbed(models[1], seed=7)), PROMPTS[:2], measures="kl")
    several = [*parts, third]
    found = krs.mean(several, names=["a", "b", "c"])
    stacked = np.array([r.recovery("kl").to_numpy() for r in several])
    np.testing.assert_allclose(found.recovery("kl"), stacked.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.sd("kl"), stacked.std(0, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(found.min("kl"), stacked.min(0))
    np.testing.assert_allclose(found.max("kl"), stacked.max(0))
    assert (found.n() == 3).all(axis=None)
    assert found.krs.columns.equals(parts[0].krs.columns)
    row = found.to_frame().set_index(["setting", "window"]).loc[("resid", 1)]
    assert row["mean"] == found.krs.loc[1, "resid"]
    again = krs.load_result(found.save(tmp_path / "m.krs"))
    assert again.names == ("a", "b", "c")
    assert again.krs.equals(found.krs)
    assert again.members[2].krs.equals(third.krs)
    assert repr(again) == repr(found)
    with pytest.raises(KrsError, match="holds a mean of results"):
        _sweep(models, PROMPTS, checkpoint=tmp_path / "m.krs")
    with pytest.raises(KrsError, match="exists already"):
        found.save(tmp_path / "m.krs")
    with pytest.raises(KrsError, match="names= has 1 name for 3 results"):
        krs.mean(several, names=["a"])
    with pytest.raises(KrsError, match="krs.mean: results 0 and 1 are of different sweeps: windows"):
        krs.mean([parts[0], _sweep(models, PROMPTS, windows=1)])
    with pytest.raises(KrsError, match="'kl' was not measured in every member"):
        krs.mean([parts[0], _sweep(models, PROMPTS)]).recovery("kl")


def test_a_mean_of_maps_counts_who_has_the_position(models):
    each = {"settings": RESID, "positions": "each"}
    several = [_sweep(models, [p], **each) for p in PROMPTS]
    found = krs.mean(several)
    assert found.n()["resid"][-6].tolist() == [1, 1]
    assert found.n()["resid"][-1].tolist() == [3, 3]
    np.testing.assert_allclose(found.krs["resid"][-6], several[1].krs["resid"][-6])
    assert found.sd()["resid"][-6].isna().all()


def test_a_broken_mean_is_refused(parts, tmp_path):
    file = krs.mean(parts).save(tmp_path / "m.krs")
    with pytest.raises(KrsError, match="not one name for each"):
        krs.load_result(_rewritten(file, lambda header, arrays: header.update(names=["a"])))


def test_the_figure_of_a_mean_has_a_band_and_its_members(parts, tmp_path):
    found = krs.mean(parts)
    ax = found.plot()
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    np.testing.assert_allclose(lines["Residual stream"], found.krs["resid"])
    thin = [line.get_ydata().tolist() for line in ax.get_lines() if line.get_linewidth() == 0.5]
    assert parts[1].krs["resid"].tolist() in thin
    assert len(thin) == 4
    assert len(ax.collections) == 2
    assert "± 1 SD" in ax.get_title()
    save_figure(found, tmp_path / "mean.svg")
    assert "Residual stream" in (tmp_path / "mean.svg").read_text()


def test_bands_are_the_interval(models):
    result = _sweep(models, PROMPTS, settings=RESID)
    ax = result.plot()
    low, high = result.interval(0.95)
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert min(heights) == pytest.approx(low.to_numpy().min())
    assert max(heights) == pytest.approx(high.to_numpy().max())
    assert "95% interval" in ax.get_title()
    assert all(float(t).is_integer() for t in ax.get_xticks())
    assert not result.plot(level=None).collections


def test_a_map_shows_the_numbers_and_the_tokens(models, tmp_path):
    result = krs.sweep(
        *models, ["who wrote the book"], tokenizer=tiny_tokenizer(), positions="each", **(OPTIONS | {"settings": RESID})
    )
    ax = result.plot()
    (image,) = ax.get_images()
    np.testing.assert_array_equal(np.asarray(image.get_array()), result.krs["resid"])
    ticks = [t.get_text() for t in ax.get_xticklabels()]
    assert ticks[:4] == ["who", "wrote", "the", "book"]
    assert len(ticks) == len(result.plan.places)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["1", "2"]
    save_figure(result, tmp_path / "map.svg")
    assert "wrote" in (tmp_path / "map.svg").read_text()


def test_maps_of_heads_stand_side_by_side(models):
    result = _sweep(models, PROMPTS, settings=[HEAD_OUT.each_head(), MLP_COEF.units(1, 2, 3).each(), ATTN_OUT])
    axes = result.plot().figure.axes
    shapes = [np.asarray(a.get_images()[0].get_array()).shape for a in axes if a.get_images()]
    assert shapes[:3] == [(2, 2), (2, 3), (2, 1)]
    alone = result.plot(setting="head_out")
    assert alone.get_xlabel() == "Head"
    with pytest.raises(KrsError, match="there are 3 maps to draw"):
        result.plot(alone)
    with pytest.raises(KrsError, match="'norms' was not swept"):
        result.plot(setting="norms")


def test_one_cell_does_not_spoil_the_colours():
    import pandas as pd

    values = np.random.default_rng(0).uniform(0.1, 0.6, (6, 5))
    values[2, 3], values[0, 0] = -900.0, np.nan
    ax = plot_maps({"a": pd.DataFrame(values)}, x_label="x", value_label="recovery")
    low, high = ax.get_images()[0].get_clim()
    assert 0.1 <= low < high <= 0.6
    bar = next(a for a in ax.figure.axes if a is not ax)
    assert "percentiles 2 and 98" in bar.get_ylabel()
    assert "grey" in bar.get_ylabel()
    signed = plot_maps({"a": pd.DataFrame([[-1.0, 0.5], [-0.8, 0.2], [0.1, 0.4]])}, x_label="x", value_label="v")
    low, high = signed.get_images()[0].get_clim()
    assert low == -high


def test_which_words_come_back_where(models):
    result = krs.sweep(
        *models, ["who wrote the book", "the cat"], tokenizer=tiny_tokenizer(), measures="answer_logprob", **OPTIONS
    )
    table = result.tokens(1, "resid", "answer_logprob")
    n = int(result.losses.mask[1].sum())
    assert table.shape == (n, 2)
    answer = [tiny_tokenizer().decode([t]) for t in result.token_ids[1][1]]
    assert table.index.get_level_values("text").tolist() == answer[:n]
    np.testing.assert_array_equal(table[1], result.losses.of("answer_logprob").restored[2, 1, :n])
    kept = result.losses.of("answer_logprob")
    wanted = (table[2] - kept.recipient[1, :n]) / (kept.donor[1, :n] - kept.recipient[1, :n])
    np.testing.assert_allclose(result.tokens(1, RESID, "answer_logprob", recovery=True)[2], wanted)
    with pytest.raises(KrsError, match="one table is of one setting: name it with setting=, one of mlp_coef, resid"):
        result.tokens(1)
    with pytest.raises(KrsError, match="there is no prompt 2: this result has 2"):
        result.tokens(2, "resid")
    with pytest.raises(KrsError, match="position=3 is none of this result's: positions are no axis"):
        result.tokens(0, "resid", position=3)


def test_latex_is_escaped_and_ruled(models, parts):
    result = _sweep(models, PROMPTS, settings=["head_out.heads(0)", "mlp_coef"])
    written = result.to_latex(caption="A", label="tab:a")
    assert "\\toprule" in written
    assert "\\bottomrule" in written
    assert f"{result.krs.iloc[0, 0]:.2f}".lstrip("-") in written
    point = krs.hooks.ActivationPoint("mine", role=".mlp.up_proj", label="50 % of W_up & co", side="output")
    mine = _sweep(models, PROMPTS, settings=[point, RESID]).to_latex()
    assert "50 \\% of W\\_up \\& co" in mine
    found = krs.mean(parts)
    assert f"${found.krs.iloc[0, 0]:.3f} \\pm {found.sd().iloc[0, 0]:.3f}$" in found.to_latex(digits=3)


def test_what_rounds_to_zero_has_no_sign_in_any_table():
    plan = Plan.make("mlp_coef", windows=1, n_layers=3)
    table = pd.DataFrame({"mlp_coef": [-1e-9, -0.004, -0.006]}, index=pd.Index(range(3), name="layer"))
    rows = [line.split(" & ")[1] for line in to_latex(plan, table, 2, None, None).splitlines() if line[:1].isdigit()]
    assert rows == ["0.00 \\\\", "0.00 \\\\", "$-$0.01 \\\\"]
    rows = [line for line in to_latex(plan, table, 2, None, None, table.abs()).splitlines() if line[:1].isdigit()]
    assert rows[0] == "0 & $0.00 \\pm 0.00$ \\\\"
    assert "-0.000" not in as_html("", table)
    assert "<td>-0.006</td>" in as_html("", table)
    assert [number(v, 2) for v in table.mlp_coef] == ["0.00", "0.00", "-0.01"]
    reading = Reading("nll", np.array([-0.0, -0.0]), "nats", "low", {"same": np.array([-0.0])})
    assert repr(reading) == "nll: 0 [0, 0] nats; nulls: same 0"


def test_a_caption_names_measure_models_and_windows_and_is_escaped(models, parts):
    result = _sweep(models, PROMPTS, measures="kl", windows=3)
    for side, name in (("vanilla", "out/base_model"), ("unlearned", "out/npo_50%")):
        result.provenance[side]["name_or_path"] = name
    assert (
        "\\caption{Knowledge Recovery Score; npo\\_50\\%, from base\\_model; by layer (centre of a window of up to 3 "
        "layers); 3 prompts, 12 scored tokens.}"
    ) in result.to_latex()
    assert "\\caption{Recovery: KL divergence" in result.to_latex("kl")
    assert "\\caption{50\\%}" in result.to_latex(caption="50\\%")
    assert result.to_latex(caption="").startswith("\\begin{tabular}")
    mean = krs.mean(parts, names=["a_b", "c"]).to_latex()
    assert (
        "by layer (centre of a window of up to 2 layers); mean of 2 sweeps with standard deviation: a\\_b, c.}" in mean
    )
    both = krs.compare({"NPO & co": result, "again": result}).to_latex()
    assert "\\caption{NPO \\& co: Knowledge Recovery Score; npo\\_50\\%, from base\\_model; " in both


def test_xarray_has_every_number(models, tmp_path):
    result = _sweep(models, PROMPTS, settings=[RESID, HEAD_OUT.each_head()], positions="each", measures="kl")
    found = result.to_xarray()
    assert found.logit_mse.dims == ("setting", "window", "position", "prompt", "token")
    wanted = found.kl.sel(setting="resid", window=2, position=-1).mean()
    assert float(wanted) == pytest.approx(result.table("kl")["resid", "all", -1][2])
    assert found.logit_mse.sel(position=-6, prompt=[0, 2]).isnull().all()
    assert found["head"].values.tolist()[1:] == [0, 1]
    again = krs.mean([result, result]).to_xarray()
    assert again.kl_recovery.dims == ("member", "setting", "window", "position")
    np.testing.assert_allclose(
        again.kl_recovery.isel(member=0).sel(setting="resid", position=-1), result.recovery("kl")["resid", "all", -1]
    )


def test_xarray_that_is_not_installed(parts, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "xarray", None)
    for result in (parts[0], krs.mean(parts)):
        with pytest.raises(KrsError, match=r"to_xarray\(\) needs xarray, which is not installed: pip install"):
            result.to_xarray()


def test_one_window_stands_at_its_layer():
    from krs.plots import plot_lines

    ax = plot_lines(pd.DataFrame({"a": [0.5]}, index=pd.Index([17], name="layer")), labels=["a"])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["17"]


def test_panels_of_several_sweeps_share_one_label():
    from krs.plots.compared import plot_compared

    tables = {name: pd.DataFrame({"a": [0.1, 0.2], "b": [0.3, 0.4], "c": [0.0, 0.1]}) for name in ("one", "two")}
    ax = plot_compared(tables, panels={"a": "A", "b": "B", "c": "C"}, y_label="a long name of what is measured")
    assert ax.figure.get_supylabel() == "a long name of what is measured"
    assert not any(axes.get_ylabel() for axes in ax.figure.axes)
