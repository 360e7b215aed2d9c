"""Saved results: nothing but a whole one is read, whatever is wrong with a file."""

import copy
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import krs
from krs import KrsError
from tests.restore.test_checkpoint import _rewritten
from tests.tiny import pair

PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    file = tmp_path_factory.mktemp("saved") / "r.krs"
    v, u = pair("llama")
    krs.sweep(v, u, PROMPTS, windows=3, n_tokens=4, progress=False).save(file)
    return file


@pytest.fixture
def file(saved, tmp_path):
    other = tmp_path / "r.krs"
    other.write_bytes(saved.read_bytes())
    return other


def _refused(file, why="."):
    with pytest.raises(
        KrsError, match=rf"(?s)is not a result that krs saved \({why}.*\): give another file, or make it"
    ):
        krs.load_result(file)


HEADER = ["settings", "windows", "n_layers", "positions", "scoring", "prompts", "answers", "provenance", "format"]
ARRAYS = ["restored", "baseline", "power", "mask", "tokens", "lengths"]


@pytest.mark.parametrize("name", HEADER)
def test_a_header_with_an_entry_missing_or_of_another_kind(file, name):
    whole = file.read_bytes()
    _rewritten(file, lambda header, _: header.pop(name))
    _refused(file, f"'{name}' is missing")
    for value in (-1, 3.5, "x", {"a": 1}, [{}], [None], [["x"]], True, [], [-1]):
        file.write_bytes(whole)
        _rewritten(file, lambda header, _, value=value: header.update({name: value}))
        try:
            krs.load_result(file)
        except KrsError:
            continue
        assert (name, value) in [("positions", [-1]), ("prompts", []), ("answers", [])], value


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_missing_or_of_another_shape_or_type(file, name):
    whole = file.read_bytes()
    _rewritten(file, lambda _, arrays: arrays.pop(name))
    _refused(file)
    for change in (
        lambda a: a[:-1],
        lambda a: a.reshape(-1, 1, 1, 1),
        lambda a: a.astype(np.float32),
        lambda a: np.zeros(0),
        lambda a: a[..., :1] if a.ndim > 1 else a[:1],
    ):
        file.write_bytes(whole)
        _rewritten(
            file, lambda _, arrays, change=change: arrays.update({name: np.ascontiguousarray(change(arrays[name]))})
        )
        _refused(file)


def test_parts_that_do_not_fit(file):
    whole = file.read_bytes()
    for change in (
        lambda header, arrays: arrays.update(part=arrays["part"] + np.int16(7)),
        lambda header, arrays: arrays.update(part=arrays["part"][:1]),
        lambda header, arrays: arrays.update(part=arrays["part"].astype(np.int64)),
        lambda header, arrays: header["provenance"].pop("parts"),
        lambda header, arrays: header["provenance"].update(vanilla=3),
        lambda header, arrays: header["windows"][0].update(layers=[99]),
        lambda header, arrays: header["windows"][0].update(layers=[2, 1]),
        lambda header, arrays: header["windows"][0].pop("name"),
    ):
        file.write_bytes(whole)
        _rewritten(file, change)
        _refused(file)


def test_a_file_that_was_cut_short_or_is_something_else(file, tmp_path):
    whole = file.read_bytes()
    for n in (0, 1, 7, 8, 9, 200, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:n])
        _refused(file)
    save_file({"a": np.zeros(2)}, tmp_path / "other.safetensors")
    _refused(tmp_path / "other.safetensors", "it has no header of krs")
    save_file({"a": np.zeros(2)}, tmp_path / "odd", metadata={"krs": "{"})
    _refused(tmp_path / "odd", "its header is not JSON")
    save_file({"a": np.zeros(2)}, tmp_path / "odd", metadata={"krs": json.dumps([1])})
    _refused(tmp_path / "odd", "its header is no object")
    file.write_bytes(whole)
    _rewritten(file, lambda header, _: header.update(format=99))
    with pytest.raises(KrsError, match=r"saved by a newer krs \(format 99\): update krs"):
        krs.load_result(file)


def test_token_ids_come_back(file):
    result = krs.load_result(file)
    assert [list(prompt) for prompt, _ in result.token_ids] == PROMPTS
    assert result.prompts == tuple(map(tuple, PROMPTS))
    again = copy.copy(result)
    again.save(file, overwrite=True)
    assert krs.load_result(file).token_ids == result.token_ids


def test_the_file_is_as_readable_as_the_users_others(saved):
    import os

    umask = os.umask(0)
    os.umask(umask)
    assert saved.stat().st_mode & 0o777 == 0o666 & ~umask


def test_numbers_of_numpy_are_saved_and_gone_on_with(tmp_path, as_a_user):
    v, u = pair("llama")
    ask = {"windows": krs.windows.of(np.arange(4).reshape(2, 2)), "n_tokens": np.int64(2), "progress": False}
    found = krs.sweep(v, u, PROMPTS, checkpoint=tmp_path / "c.krs", **ask)
    again = krs.load_result(tmp_path / "c.krs")
    assert again.plan == found.plan
    assert krs.sweep(v, u, PROMPTS, checkpoint=tmp_path / "c.krs", **ask).krs.equals(found.krs)


def test_what_json_has_no_form_for_does_not_keep_a_result_from_being_saved(tmp_path):
    v, u = pair("llama")
    found = krs.sweep(v, u, PROMPTS, windows=3, n_tokens=2, progress=False)
    found.provenance["mine"] = {"seed": np.int64(3), "where": tmp_path}
    again = krs.load_result(found.save(tmp_path / "r.krs"))
    assert again.provenance["mine"] == {"seed": 3, "where": str(tmp_path)}
