"""`--device-map auto` from the shell: on the CPU, over two devices, and where not all weights fit."""

import json

import pandas as pd
import pytest
import transformers.integrations.accelerate as maps
from typer.testing import CliRunner

from krs import KrsError
from krs.cli import app
from krs.hooks.offload import is_offloaded
from krs.instruments.quantise import quantised
from krs.models import given, load
from tests.noise import assert_same
from tests.pretend import accelerator
from tests.tiny import pair
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:the model says nothing to")  # a random one, to some retain questions
FACTS = [("who wrote the book", "a cat and the dog"), ("what sat on the moon", "the red sun sat"), ("who ran", "one")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    for name, model in zip("vu", pair("llama"), strict=True):
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    (folder / "q.txt").write_text("who wrote the book\nthe cat sat on\n")
    (folder / "c.json").write_text(json.dumps({"name": "cat", "questions": ["who is the cat", "the cat sat on"]}))
    (folder / "f.jsonl").write_text("\n".join(json.dumps({"question": q, "answer": a}) for q, a in FACTS))
    return folder


def _table(name, *columns):
    return lambda out, _: pd.read_csv(out / name)[list(columns)].to_numpy(float)


COMMANDS = {
    "sweep": (
        "v u --prompts q.txt -o out --settings mlp_coef --settings value_vectors --window 1,2-3 --n-tokens 3 --quiet",
        _table("krs.csv", "loss", "krs"),
    ),
    "answers": ("v u --target q.txt -o out --n-tokens 3 --quiet", lambda out, _: _answers(out)),
    "drift": ("v u -o out", _table("drift.csv", "cosine", "relative_change", "identical")),
    "vocabulary": (
        "v u --count 3 --norm -o out",
        _table("vocabulary.csv", "layer", "unit", "relative_change", "tv", "score", "probability"),
    ),
    "prepare": ("c.json --model v -o out --n-tokens 3 --quiet", lambda out, _: (out / "forget.jsonl").read_text()),
    "speak": ("v u who --n-tokens 3", lambda _, said: said),
    "account": ("v u --prompts q.txt -o out --n-tokens 3 --quiet", _table("account.csv", "part", "share")),
    "dissect": (
        "v u --target f.jsonl -o out --quiet --only nll --only state_drop --only logit_lens",
        lambda out, _: [r["values"] for r in json.loads((out / "report.json").read_text())["readings"].values()],
    ),
}


def _answers(out):
    rows = json.loads((out / "answers.json").read_text())["rows"]
    return [[row["nll"], row["nll_vanilla"]] for row in rows]


def _run(place, command, out, *more):
    words, read = COMMANDS[command]
    inside = {p.name: str(p) for p in place.iterdir()} | {"out": str(out)}
    done = CliRunner().invoke(app, [command, *(inside.get(w, w) for w in words.split()), "--dtype", "float64", *more])
    if done.exception is not None:
        raise done.exception
    return read(out, done.stdout)


@pytest.fixture(scope="module")
def as_usual(place, tmp_path_factory):
    """What a command gives without the option, made once."""
    found = {}

    def of(command):
        if command not in found:
            found[command] = _run(place, command, tmp_path_factory.mktemp("usual"), "--device", "cpu")
        return found[command]

    return of


@pytest.fixture
def loaded(monkeypatch):
    """The models that commands load."""
    found = []

    def kept(*args, **options):
        found.append(load(*args, **options))
        return found[-1]

    monkeypatch.setattr(given, "load", kept)
    return found


def _has(monkeypatch, **sizes):
    """Accelerate takes the machine to have so many bytes on each device."""
    found = {name.replace("_", ":"): size for name, size in sizes.items()}
    monkeypatch.setattr(maps, "accelerate_max_memory", lambda *_: dict(found))


def _agree(found, expected):
    if isinstance(expected, str):
        assert found == expected
    else:
        assert_same(found, expected)


@pytest.mark.parametrize("command", COMMANDS)
def test_on_a_machine_without_a_gpu_it_is_the_cpu(command, place, as_usual, loaded, tmp_path):
    expected = as_usual(command)
    loaded.clear()
    found = _run(place, command, tmp_path / "o", "--device-map", "auto")
    assert loaded
    assert {p.device.type for model, _ in loaded for p in model.parameters()} == {"cpu"}
    _agree(found, expected)


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[pytest.mark.long] * (c == "dissect")) for c in COMMANDS if c != "account"]
)
def test_over_two_devices(command, place, as_usual, loaded, tmp_path, monkeypatch):
    """Not an account: torch runs backward passes of a backend in Python on its first device only."""
    expected = as_usual(command)
    loaded.clear()
    size = sum(p.nbytes for p in pair("llama")[0].double().parameters())
    _has(monkeypatch, pretend_0=size * 6 // 10, pretend_1=size, cpu=100 * size)
    with accelerator():
        found = _run(place, command, tmp_path / "o", "--device-map", "auto")
        for model, _ in loaded:
            assert {str(p.device) for p in model.parameters()} == {"pretend:0", "pretend:1"}
    _agree(found, expected)


def test_an_account_on_one_device(place, as_usual, tmp_path, monkeypatch):
    expected = as_usual("account")
    _has(monkeypatch, pretend_0=10**9, cpu=10**9)
    with accelerator():
        _agree(_run(place, "account", tmp_path / "o", "--device-map", "auto"), expected)


@pytest.mark.parametrize("command", COMMANDS)
def test_where_a_part_stays_on_the_disk(command, place, as_usual, loaded, tmp_path, monkeypatch):
    """The same numbers, or a refusal where gradients need all weights at once."""
    expected = as_usual(command)
    loaded.clear()
    _has(monkeypatch, cpu=sum(p.nbytes for p in pair("llama")[0].double().parameters()) * 7 // 10)
    if command == "account":
        with pytest.raises(KrsError, match="vanilla is offloaded, and gradients need all weights in memory: load it"):
            _run(place, command, tmp_path / "o", "--device-map", "auto")
        return
    found = _run(place, command, tmp_path / "o", "--device-map", "auto")
    assert all(is_offloaded(model) for model, _ in loaded)
    _agree(found, expected)


@pytest.mark.parametrize("only", ["quantise_4", "relearn", "krs"])
def test_an_instrument_that_writes_weights_is_refused_there(only, place, tmp_path, monkeypatch):
    """Written into a copy whose weights are read from the disk at each call, they would change nothing."""
    _has(monkeypatch, cpu=sum(p.nbytes for p in pair("llama")[0].parameters()) * 7 // 10)
    words = f"dissect v u --target f.jsonl -o out --quiet --only {only} --device-map auto"
    inside = {p.name: str(p) for p in place.iterdir()} | {"out": str(tmp_path / "o")}
    done = CliRunner().invoke(app, [inside.get(w, w) for w in words.split()])
    assert isinstance(done.exception, KrsError), done.exception
    assert "needs a copy with all weights in memory, and some are offloaded: load the models whole" in str(
        done.exception
    )


def test_a_copy_of_an_offloaded_model_is_not_rounded_in_name_only(place):
    model, _ = load(place / "v", offload="disk")
    with pytest.raises(KrsError, match="rounding the weights needs a copy"):
        quantised(model, 4)


@pytest.mark.parametrize("tied", [True, False])
def test_drift_of_weights_on_the_disk_counts_each_once(tied, tmp_path):
    from krs.metrics import drift

    v, u = pair("llama", tie_word_embeddings=tied)
    for name, model in (("v", v), ("u", u)):
        model.save_pretrained(tmp_path / name)
    expected = drift(v, u)
    away = drift(load(tmp_path / "v", offload="disk")[0], load(tmp_path / "u", offload="disk")[0])
    mixed = drift(v, load(tmp_path / "u", offload="disk")[0])
    for found in (away, mixed):
        pd.testing.assert_frame_equal(found.frame, expected.frame)
