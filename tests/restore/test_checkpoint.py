"""A checkpoint answers for the sweep that it is of and for no other; what was done is not lost."""

import importlib
import json
import shutil
import types
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import krs
from krs import KrsError
from krs.hooks import Family
from krs.metrics.measures import Measure
from krs.restore import execution, plain, storage
from krs.restore.wave import passes
from tests.noise import assert_same
from tests.test_writing import full_disk
from tests.tiny import build, exact_pair, pair, perturbed
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2]]
CHAT = [[{"role": "user", "content": "who wrote the book"}], [{"role": "user", "content": "the cat"}]]


def _sweep(v, u, prompts=PROMPTS, **options):
    given = {"windows": 3, "n_tokens": 4, "progress": False, "settings": ["mlp_coef", "attn_out"]}
    return krs.sweep(v, u, prompts, **(given | options))


@pytest.fixture(scope="module")
def models():
    return pair("llama")


def _with_changed_column(vanilla, layer, column):
    other = build("llama")
    other.load_state_dict(vanilla.state_dict())
    other.model.layers[layer].mlp.down_proj.weight.data[:, column] += 0.1
    return other


def _interrupt(monkeypatch, after):
    """Ctrl-C at a certain forward of the plain engine."""
    real, calls = plain.logits_at, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(plain, "logits_at", interrupted)


def _rewritten(file, change):
    """The file with its arrays and its header changed by hand."""
    with safe_open(file, framework="numpy") as opened:
        header = json.loads(opened.metadata()["krs"])
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(header, arrays)
    save_file(arrays, file, metadata={"krs": json.dumps(header)})


@pytest.mark.parametrize("offload", [None, "disk"])
def test_two_unlearned_models_that_differ_in_one_column_are_two_sweeps(models, offload, tmp_path):
    v = models[0]
    trio = {"v": v, "a": _with_changed_column(v, 2, 17), "b": _with_changed_column(v, 3, 5)}
    options = {"checkpoint": tmp_path / "part.krs", "offload": offload, "answers": [[4, 8], [15, 16]]}
    if offload:
        for name, model in trio.items():
            model.save_pretrained(tmp_path / name)
        trio = {name: str(tmp_path / name) for name in trio}
    first = _sweep(trio["v"], trio["a"], **options)
    with pytest.raises(
        KrsError, match=r"holds another sweep. What differs: the unlearned model \(weights\). Give another"
    ):
        _sweep(trio["v"], trio["b"], **options)
    again = _sweep(trio["v"], trio["a"], **options)
    np.testing.assert_array_equal(again.losses.restored, first.losses.restored)


@pytest.fixture
def named(models, tmp_path):
    """A sweep of a pair given by name; afterwards the vanilla model's weights are gone, so that none can be loaded."""
    v, u = models
    for name, model in {"v": v, "u": u, "w": _with_changed_column(u, 2, 17)}.items():
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    file = tmp_path / "part.krs"
    first = _sweep(str(tmp_path / "v"), str(tmp_path / "u"), ["the cat", "the moon"], checkpoint=file)
    (tmp_path / "v" / "model.safetensors").rename(tmp_path / "away")
    return first, file, tmp_path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": ["the cat", "the book"]}, "prompts .the first is prompt 1: '.*moon.*' there, '.*book.*' here.*"),
        ({"prompts": ["the cat"]}, r"prompts \(2 there, 1 here\)"),
        ({"n_tokens": 3}, r"n_tokens \(4 there, 3 here\)"),
        ({"windows": 1}, "windows.*"),
        ({"settings": "value_vectors"}, "settings.*"),
        ({"answers": ["the moon", "blue"]}, r"answers \(the first is the one to prompt 0\)"),
        ({"measures": "kl"}, "measures.*"),
        ({"direction": "transplant"}, "direction.*"),
        ({"u": "w"}, r"the unlearned model \(weights\)"),
    ],
)
def test_another_sweep_is_refused_before_a_weight_is_loaded(named, change, said):
    _, file, folder = named
    options = {"prompts": ["the cat", "the moon"], "u": "u"} | change
    asked, other = options.pop("prompts"), options.pop("u")
    with pytest.raises(KrsError, match=f"holds another sweep. What differs: {said}. Give another"):
        _sweep(str(folder / "v"), str(folder / other), asked, checkpoint=file, **options)


@pytest.mark.parametrize("where", ["u", "moved"])
def test_the_same_weights_go_on_wherever_they_are(named, where):
    first, file, folder = named
    (folder / "away").rename(folder / "v" / "model.safetensors")
    shutil.copytree(folder / "u", folder / "moved")
    again = _sweep(str(folder / "v"), str(folder / where), ["the cat", "the moon"], checkpoint=file)
    np.testing.assert_array_equal(again.losses.restored, first.losses.restored)
    assert again.provenance["time"] == first.provenance["time"]
    shutil.copy(folder / "w" / "model.safetensors", folder / where)
    with pytest.raises(KrsError, match=r"What differs: the unlearned model \(weights\). Give another"):
        _sweep(str(folder / "v"), str(folder / where), ["the cat", "the moon"], checkpoint=file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v, u: {"v": perturbed(v, seed=9)}, r"the vanilla model \(weights\)"),
        (lambda v, u: u.config.__setattr__("rms_norm_eps", 1e-3), r"the unlearned model \(config.rms_norm_eps\)"),
        (lambda v, u: {"prompts": PROMPTS[:1]}, r"prompts \(2 there, 1 here\)"),
        (
            lambda v, u: {"prompts": [PROMPTS[0], [7, 3]]},
            r"prompt 1: \(7, 3, 22, 8, 40, 2\) there, \(7, 3\) here",
        ),
        (lambda v, u: {"answers": [[4], [5]]}, r"answers \(the first is the one to prompt 0\)"),
        (lambda v, u: {"n_tokens": 5}, r"n_tokens \(4 there, 5 here\)"),
        (lambda v, u: {"positions": "prompt"}, r"positions \(None there, 'prompt' here\)"),
        (lambda v, u: {"settings": ["mlp_coef"]}, "settings"),
        (lambda v, u: {"windows": 1}, "windows"),
        (lambda v, u: {"measures": "kl"}, "measures"),
        (lambda v, u: {"direction": "transplant"}, r"direction \('restore' there, 'transplant' here\)"),
        (lambda v, u: {"family": "llama"}, r"family \(None there, 'llama' here\)"),
        (
            lambda v, u: {"v": v.double(), "u": u.double()},
            r"the vanilla model \(weights\); the unlearned model \(weights\)",
        ),
        (lambda v, u: {"scoring": "paper-code", "tokenizer": tiny_tokenizer()}, r"scoring \('next-token' there"),
    ],
)
def test_whatever_is_asked_otherwise_is_named(models, change, said, tmp_path):
    v, u = pair("llama")
    _sweep(v, u, checkpoint=tmp_path / "part.krs")
    other = {"v": v, "u": u} | (change(v, u) or {})
    with pytest.raises(KrsError, match=f"holds another sweep. What differs: .*{said}"):
        _sweep(other.pop("v"), other.pop("u"), other.pop("prompts", PROMPTS), checkpoint=tmp_path / "part.krs", **other)


def test_versions_under_which_numbers_may_differ_are_not_joined(models, tmp_path, monkeypatch):
    file = tmp_path / "part.krs"
    _sweep(*models, checkpoint=file)
    _rewritten(file, lambda header, _: header["provenance"]["versions"].update(torch="2.1.0", numpy="1.0"))
    with pytest.raises(KrsError, match=r"What differs: torch \(2.1 there, 2.\d+ here\). Give another file"):
        _sweep(*models, checkpoint=file)
    _rewritten(file, lambda header, _: header["provenance"]["versions"].pop("torch"))
    monkeypatch.setattr(importlib.import_module("krs.restore.call"), "NUMBERS", 99)
    with pytest.raises(KrsError, match=r"krs's way to its numbers \(\d+ there, 99 here\)"):
        _sweep(*models, checkpoint=file)


def test_a_result_of_an_earlier_version_is_read_and_no_checkpoint(models, tmp_path):
    file = tmp_path / "part.krs"
    now = _sweep(*models, checkpoint=file)

    def as_before(header, arrays):
        for side in ("vanilla", "unlearned"):
            header["provenance"][side]["weights_sample_sha256"] = header["provenance"][side].pop("identity")["weights"]
        header["provenance"].pop("parts")
        for name in ("part", "tokens", "lengths"):
            arrays.pop(name)

    _rewritten(file, as_before)
    assert krs.load_result(file).krs.equals(now.krs)
    with pytest.raises(
        KrsError, match=r"is of an earlier version of krs, which did not look at every byte.*remove this"
    ):
        _sweep(*models, checkpoint=file)


def test_a_template_that_renders_the_date_is_named_as_the_reason(models, tmp_path):
    tokenizer, file = tiny_tokenizer(), tmp_path / "part.krs"
    body = tokenizer.chat_template
    tokenizer.chat_template = "one {{ strftime_now('') }}" + body
    _sweep(*models, CHAT, tokenizer=tokenizer, checkpoint=file)
    tokenizer.chat_template = "two {{ strftime_now('') }}" + body
    with pytest.raises(
        KrsError, match=r"the first is prompt 0: 'one.*' there, 'two.*' here; the chat template renders today"
    ):
        _sweep(*models, CHAT, tokenizer=tokenizer, checkpoint=file)
    tokenizer.chat_template = "two" + body
    with pytest.raises(KrsError, match="the first is prompt 0: 'one") as refused:
        _sweep(*models, CHAT, tokenizer=tokenizer, checkpoint=file)
    assert "today" not in str(refused.value)


def test_parts_of_both_engines_are_joined_and_each_is_named(models, tmp_path, monkeypatch):
    file = tmp_path / "part.krs"
    expected = _sweep(*models, engine="plain")
    _interrupt(monkeypatch, after=5)
    with pytest.raises(KeyboardInterrupt) as stop:
        _sweep(*models, checkpoint=file, engine="plain")
    monkeypatch.undo()
    assert stop.value.__notes__ == [
        f"what was done, 6 of 16 restorations, is in {str(file)!r}; the same call goes on from there"
    ]
    assert stop.value.partial.provenance["parts"][0]["restorations"] == 3
    monkeypatch.setattr(
        importlib.import_module("krs.restore.sweep"), "greedy", None
    )  # the checkpoint has the vanilla answers
    result = _sweep(*models, checkpoint=file)
    assert result.complete
    np.testing.assert_allclose(result.losses.restored, expected.losses.restored, rtol=1e-4)
    parts = result.provenance["parts"]
    assert [(p["engine"], p["restorations"], p["prompts"]) for p in parts] == [("plain", 3, 2), ("wavefront", 5, 2)]
    assert result.provenance["engine"] == "plain and wavefront"
    assert result.part.tolist() == [[0, 0]] * 3 + [[1, 1]] * 5
    assert {"time", "seconds", "versions", "devices"} <= parts[0].keys()
    assert krs.load_result(file).part.tolist() == result.part.tolist()
    stamp = file.stat().st_mtime_ns
    again = _sweep(*models, checkpoint=file)
    assert again.provenance["parts"] == krs.load_result(file).provenance["parts"]
    assert again.provenance["engine"] == "plain and wavefront"
    assert file.stat().st_mtime_ns == stamp


def test_an_engine_that_is_not_exact_is_joined_with_nothing(models, tmp_path):
    file = tmp_path / "part.krs"
    _sweep(*models, checkpoint=file)
    _rewritten(file, lambda header, _: header["provenance"]["parts"][0].update(engine="estimate"))
    with pytest.raises(KrsError, match=r"the engine \(estimate is not an exact one\)"):
        _sweep(*models, checkpoint=file)


def test_a_place_that_takes_no_checkpoint_is_refused_before_any_model_runs(models, tmp_path):
    (tmp_path / "file").write_text("x")
    ran = [model.register_forward_pre_hook(lambda *_: pytest.fail("ran")) for model in models]
    with pytest.raises(KrsError, match=r"checkpoint: '.*' cannot be written \(.*\): give another place"):
        _sweep(*models, checkpoint=tmp_path / "file" / "part.krs")
    with pytest.raises(KrsError, match=r"checkpoint: '.*' is a directory"):
        _sweep(*models, checkpoint=tmp_path)
    with pytest.raises(KrsError, match=r"checkpoint: '.*' cannot be written \(.*\)"):
        _sweep("smollm2-is-not-loaded/for-this", models[1], checkpoint=tmp_path / "file" / "part.krs")
    for handle in ran:
        handle.remove()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failing_call_leaves_no_file_and_no_folder(models, tmp_path):
    with pytest.raises(KrsError, match="out of range"):
        _sweep(*models, checkpoint=tmp_path / "new" / "part.krs", positions=[99])
    assert not list(tmp_path.iterdir())


def _take_the_folder_away(monkeypatch, folder):
    """While the sweep runs, its folder becomes a file."""
    real = plain.logits_at

    def gone(*args):
        if folder.is_dir():
            shutil.rmtree(folder)
            folder.write_text("")
        return real(*args)

    monkeypatch.setattr(plain, "logits_at", gone)


def test_a_result_that_its_place_does_not_take_is_put_elsewhere(models, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _take_the_folder_away(monkeypatch, folder)
    said = r"the sweep is complete, but cannot write .*`partial`, and it was saved to '.*' instead"
    with pytest.raises(KrsError, match=said) as stop:
        _sweep(*models, checkpoint=folder / "part.krs", engine="plain")
    assert stop.value.partial.complete
    (spare,) = tmp_path.glob("part-*.krs")
    assert str(spare) in str(stop.value)
    assert krs.load_result(spare).krs.equals(stop.value.partial.krs)


def test_a_full_disk_costs_no_numbers(models, tmp_path):
    _sweep(*models, checkpoint=tmp_path / "there.krs")
    with (
        full_disk(2000),
        pytest.raises(KrsError, match=r"the directory for temporary .* does not take it either") as stop,
    ):
        _sweep(*models, checkpoint=tmp_path / "part.krs")
    assert stop.value.partial.complete
    assert [p.name for p in tmp_path.iterdir()] == ["there.krs"]


def test_a_checkpoint_that_fails_on_the_way_is_said_once_and_the_sweep_goes_on(models, tmp_path, monkeypatch):
    monkeypatch.setattr("krs.restore.checkpoint.SAVE_EVERY", -1.0)
    real, saves = krs.SweepResult.save, []

    def save(result, path, overwrite=False):
        saves.append(path)
        if len(saves) < 5:
            with full_disk(2000):
                return real(result, path, overwrite)
        return real(result, path, overwrite)

    monkeypatch.setattr(krs.SweepResult, "save", save)
    with pytest.warns(UserWarning, match="the sweep goes on, but its checkpoint is not kept: cannot write") as told:
        result = _sweep(*models, checkpoint=tmp_path / "part.krs", engine="plain")
    assert len(told) == 1
    assert krs.load_result(tmp_path / "part.krs").krs.equals(result.krs)


@pytest.mark.parametrize("by", ["layer", "measure"])
def test_a_small_sweep_that_is_interrupted_goes_on_in_its_middle(tmp_path, monkeypatch, by):
    """A group of prompts that one pass takes is no longer all or nothing, and nothing done is done again."""
    for name, value in {"_CHUNK_TOKENS": {"cpu": 40, "cuda": 40}, "_LONG": 0, "_SHARE": 0}.items():
        monkeypatch.setattr(passes, name, value)
    written, real = [], execution.write
    monkeypatch.setattr(execution, "write", lambda c, *a: (written.append(list(c.restorations)), real(c, *a)))
    v, u = exact_pair("llama")
    file, after, ran = tmp_path / "part.krs", 10**9, []

    def counted(*_):
        ran.append(1)
        if len(written) >= after:
            raise KeyboardInterrupt if by == "layer" else ValueError("a measure of mine")

    def mine(tokens):
        counted()
        return (tokens.logits - tokens.reference_logits).abs().mean(-1)

    options = {"settings": None, "windows": krs.windows.each(), "n_tokens": 4}
    handle = None
    if by == "layer":
        handle = u.model.layers[3].register_forward_hook(counted)
        monkeypatch.setattr("krs.restore.wavefront.acting_hooks", lambda model: [])  # it only counts
    else:
        options["measures"] = Measure("mine", "Mine", mine, version="1")  # what it counts is no part of what it is
    whole = _sweep(v, u, **options)
    calls, after = len(ran), 2
    assert len(written) > 3
    ran.clear()
    written.clear()
    with pytest.raises((KeyboardInterrupt, ValueError)) as stopped:
        _sweep(v, u, checkpoint=file, **options)
    kept, after = [r for chunk in written for r in chunk], 10**9
    part = stopped.value.partial.part
    done = (part >= 0).mean()
    assert done == len(kept) / 16 > 0.2
    assert stopped.value.__notes__ == [
        f"what was done, {len(kept) * part.shape[1]} of {part.size} restorations, is in {str(file)!r}; the same call "
        "goes on from there"
    ]
    ran.clear()
    written.clear()
    resumed = _sweep(v, u, checkpoint=file, **options)
    if handle is not None:
        handle.remove()
    assert sorted(r for chunk in written for r in chunk) == sorted(set(range(16)) - set(kept))
    assert len(ran) < calls
    assert resumed.complete
    for name in ("restored", "baseline", "power"):
        ours, theirs = (getattr(r.losses, name) for r in (resumed, whole))
        assert_same(ours[~np.isnan(ours)], theirs[~np.isnan(theirs)])
    assert_same(resumed.krs.to_numpy(float), whole.krs.to_numpy(float))
    assert [p["engine"] for p in resumed.provenance["parts"]] == ["wavefront", "wavefront"]


def test_room_for_the_whole_result_is_asked_for_before_any_model_runs(models, tmp_path, monkeypatch):
    many = PROMPTS * 20
    options = {"windows": krs.windows.each(), "settings": None, "measures": ["kl", "rank", "top1"]}
    asked, real = [], storage.size_of
    sweep = importlib.import_module("krs.restore.sweep")
    monkeypatch.setattr(sweep, "size_of", lambda *args: asked.append(real(*args)) or asked[-1])
    _sweep(*models, many, checkpoint=tmp_path / "part.krs", **options)
    size = (tmp_path / "part.krs").stat().st_size - 200_000
    assert asked[0] - 200_000 > size  # the header is what those bytes more are for
    (tmp_path / "part.krs").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=asked[0] - 1))
    ran = models[0].register_forward_pre_hook(lambda *_: pytest.fail("ran"))
    with pytest.raises(KrsError, match=r"checkpoint: '.*' will take .* MB, and .* MB are free there: free some space"):
        _sweep(*models, many, checkpoint=tmp_path / "part.krs", **options)
    ran.remove()
    assert not list(tmp_path.iterdir())


def test_a_family_that_is_described_otherwise_is_another_sweep(tmp_path):
    """The same name, the same models, and another module that the coefficients are taken at."""
    v, u = pair("llama")
    roles = {"mlp_out_proj": "mlp.down_proj", "attn_out_proj": "self_attn.o_proj"}
    family = Family("mine", ("mine",), layers="model.layers", roles=roles, final_norm="model.norm")
    other = replace(family, roles=roles | {"mlp_out_proj": "mlp.up_proj"})
    ask = {"settings": ["mlp_coef"], "checkpoint": tmp_path / "part.krs"}
    found = _sweep(v, u, family=family, **ask)
    with pytest.raises(KrsError, match="What differs: where a family keeps its modules"):
        _sweep(v, u, family=other, **ask)
    assert _sweep(v, u, family=family, **ask).krs.equals(found.krs)
    with pytest.raises(KrsError, match="krs.concat: .* where a family keeps its modules"):
        krs.concat([found, _sweep(v, u, settings=["mlp_coef"], family=other)])
