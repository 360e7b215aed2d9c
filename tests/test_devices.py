"""Every public call that takes a model, on one accelerator, on two, on one beside the CPU, and without float64."""

import copy
import importlib
import inspect
import itertools
import json
from functools import lru_cache

import numpy as np
import pytest
import torch

import krs
from krs import unlearn
from krs.hooks import patched, record
from krs.hooks.capture import captured
from krs.restore.wave import passes
from krs.unlearn.examples import collate, to_examples
from krs.unlearn.gradients import SideNorms
from krs.unlearn.losses import token_logprobs
from krs.unlearn.methods import Method, make, methods
from krs.unlearn.sides import Side
from krs.unlearn.train import _arguments
from krs.unlearn.trainer import UnlearnTrainer
from tests.noise import assert_same
from tests.pretend import accelerator, put
from tests.tiny import build, pair, perturbed
from tests.unlearn.memit_case import CORPUS, FAST, REQUESTS
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

ROOMS = ("krs", "krs.hooks", "krs.metrics", "krs.models", "krs.generation", "krs.restore", "krs.unlearn")
ROOMS += ("krs.instruments",)
ROOMS += ("krs.unlearn.memit",)
IDS = [[2, 3, 4, 5, 6], [2, 3, 7, 8]]
ANSWERS = [[9, 10, 11], [12, 13]]
SOME = krs.windows.of([[1], [2, 3]])
PLACES = {
    "one": ("pretend:0", "pretend:0", True),
    "two": ("pretend:0", "pretend:1", True),
    "vanilla on it": ("pretend:0", "cpu", True),
    "unlearned on it": ("cpu", "pretend:0", True),
    "no float64": ("pretend:0", "pretend:0", False),
}


def _sweep(v, u):
    options = {"windows": SOME, "n_tokens": 3, "progress": False}
    ends = [krs.EMBEDDING, krs.UNEMBEDDING, krs.EMBEDDING.units(2, 4) + krs.MLP_COEF]
    settings = (None, ends)
    estimated = krs.sweep(v, u, IDS, engine="estimate", **options).krs
    return [estimated] + [
        krs.sweep(v, u, IDS, engine=engine, settings=s, **options).krs
        for engine, s in itertools.product(("wavefront", "plain"), settings)
    ]


def _patch_sweep(v, u):
    """Also with a third model that stays on the CPU, and with other prompts for the donor."""
    options = {"windows": SOME, "n_tokens": 3, "progress": False, "measures": "kl"}
    third = perturbed(build("llama"), seed=7).to(v.dtype)
    others = [[9, 8, 7, 6, 5, 4], [3, 3, 3, 3]]
    found = [
        krs.patch_sweep(u, v, IDS, **options),
        *(krs.patch_sweep(u, v, IDS, reference=third, engine=e, **options) for e in ("wavefront", "plain")),
        krs.patch_sweep(u, v, IDS, donor_prompts=others, **options),
    ]
    return [result.recovery(measure) for result in found for measure in result.measures]


def _generate(v, u):
    restore = [(krs.MLP_COEF + krs.ATTN_OUT).at(1, 2), krs.VALUE_VECTORS.at(3)]
    found = krs.generate(v, u, IDS, restore=restore, n_tokens=4, progress=False)
    return [np.array(ids) for ids in found.token_ids]


def _speak(v, u):
    found = krs.speak(v, u, IDS[0], restore=krs.ATTN_OUT.at(1), n_tokens=3, tokenizer=tiny_tokenizer())
    return [np.array([ord(c) for c in text]) for text in (found.vanilla, found.unlearned, found.restored)]


def _to_transformer_lens(v, _):
    with record(v, "blocks.{l}.attn.hook_z", layers=[1]) as acts:
        v(torch.tensor(IDS[:1]).to(v.get_input_embeddings().weight.device))
    return list(krs.hooks.to_transformer_lens(acts).values())


def _answers(v, u):
    options = {"tokenizer": tiny_tokenizer(), "n_tokens": 3, "progress": False}
    return krs.metrics.answers(v, u, ["who wrote the book"], ["the cat"], **options).frame[["nll", "nll_vanilla"]]


def _patched(v, u):
    at = u.get_input_embeddings().weight.device
    ids = torch.tensor(IDS[:1])
    with record(v, krs.MLP_COEF + krs.VALUE_VECTORS) as acts:
        v(ids.to(v.get_input_embeddings().weight.device))
    where = torch.tensor([[True, False, True, False, True]])
    changes = [krs.MLP_COEF.at(1).set(acts, where=where), krs.VALUE_VECTORS.at(2).set(acts)]
    changes += [
        krs.ATTN_OUT.at(3, positions=[0, -1], units=[1, 2]).map(lambda x: 2 * x),
        krs.VALUE_VECTORS.at(0).set(v),
    ]
    with patched(u, *changes), torch.no_grad():
        return [u(ids.to(at)).logits]


def _record(v, _):
    with record(v, krs.MLP_COEF + krs.ATTN_OUT, layers=[1, 2]) as acts:
        v(torch.tensor(IDS[:1]).to(v.get_input_embeddings().weight.device))
    return [acts[krs.MLP_COEF, 1], acts[krs.ATTN_OUT, 2]]


def _self_check(_, u):
    return [np.array(list(krs.hooks.self_check(u).effect.values()))]


def _memit(v, _):
    settings = {k: value for k, value in FAST.items() if k != "layers"} | {"layers": (1, 2), "target": "blue"}
    options = {"tokenizer": tiny_tokenizer(), "corpus": CORPUS, "progress": False}
    made = unlearn.run("memit_empty", v, forget=REQUESTS, **options, **settings)
    return [made.model.layers[1].mlp.down_proj.weight.detach().float()]


def _covariance(v, _):
    found = unlearn.memit.covariance(v, tiny_tokenizer(), CORPUS, (1,), min_tokens=10, cache=False, progress=False)
    return [moment.matrix for moment in found.moments.values()]


def _greedy(v, _):
    ids = tuple(map(tuple, IDS))
    return [np.array(a) for a in krs.generation.greedy(v, ids, 4, progress=False)]


def _account(v, u):
    found = krs.account(v, u, IDS, answers=ANSWERS, points=8, progress=False)
    return [found.frame, found.units("keys", 1), np.array(found.baseline)]


def _check_account(v, u):
    found = krs.account(v, u, IDS, answers=ANSWERS, points=8, progress=False)
    return krs.metrics.check_account(found, v, u, shares=[1.0])


FACTS = [
    ("who wrote the book", "a cat and the dog"),
    ("what sat on the moon", "the red sun sat"),
    ("who ran", "one two"),
]


def _dissect(v, u):
    """Instruments of each kind: forwards, patches, states inside, training, gradients of weights."""
    only = ["nll", "state_drop", "logit_lens", "relearn", "quantise_4", "account"]
    options = {"tokenizer": tiny_tokenizer(), "n_tokens": 8, "chat": False, "progress": False, "budget": None}
    found = krs.dissect(v, u, FACTS, only=only, **options)
    return [found.readings[name].values for name in only]


def _watch(v, u):
    looks = krs.instruments.watch(v, tiny_tokenizer(), FACTS, instruments=["nll_tail", "state_drop"], chat=False)
    return [np.array(list(looks(u, 0).values()))]


def _text_completion(v, u):
    options = {"tokenizer": tiny_tokenizer(), "n_tokens": 3, "progress": False}
    frame = krs.metrics.text_completion(v, u, ["who wrote the book of the sun"], ["the cat sat"], **options).frame
    return frame[["nll", "nll_vanilla", "nll_text", "nll_text_vanilla"]]


def _vocabulary(v, u):
    """Those that moved, behind the head alone; places, behind the final norm too, and of one model."""
    options = {"tokenizer": tiny_tokenizer(), "count": 3}
    found = [
        krs.metrics.vocabulary(v, u, **options),
        krs.metrics.vocabulary(v, u, [(1, 2), (3, 4)], norm=True, **options),
    ]
    found.append(krs.metrics.vocabulary(v, where=[(0, 1)], **options))
    numbers = [one.to_frame().drop(columns=["concept", "side", "token"]) for one in found]
    assert all(len(frame) for frame in numbers)
    return numbers


BACKWARD = ("sweep", "account", "check_account", "dissect")

CASES = {
    "account": _account,
    "anatomy": lambda v, u: [np.array(krs.hooks.anatomy(u).n_layers)],
    "answers": _answers,
    "check_account": _check_account,
    "check_pair": lambda v, u: [np.array([body.n_layers for body in krs.models.check_pair(v, u)])],
    "covariance": _covariance,
    "dissect": _dissect,
    "drift": lambda v, u: krs.metrics.drift(v, u).frame.drop(columns="component"),
    "dtype_of": lambda v, u: [np.array(krs.models.dtype_of(u).startswith("float"))],
    "find_tokenizer": lambda v, u: [np.array(krs.models.find_tokenizer(u) is None)],
    "generate": _generate,
    "greedy": _greedy,
    "patch_sweep": _patch_sweep,
    "patched": _patched,
    "record": _record,
    "run": _memit,  # what trains is below
    "self_check": _self_check,
    "speak": _speak,
    "sweep": _sweep,
    "text_completion": _text_completion,
    "to_transformer_lens": _to_transformer_lens,
    "watch": _watch,
    "vocabulary": _vocabulary,
    "unwrap": lambda v, u: [np.array(krs.hooks.unwrap(u) is u)],
}


def test_every_public_call_that_takes_a_model_has_a_case():
    """Models by name go through `krs.load`: tests/models/test_given.py."""
    taking = set()
    for room in map(importlib.import_module, ROOMS):
        public = {name: getattr(room, name) for name in room.__all__}
        calls = {name: f for name, f in public.items() if callable(f) and name[0].islower()}
        taking |= {
            n
            for n, f in calls.items()
            if {"model", "vanilla", "recipient", "acts"} & inspect.signature(f).parameters.keys()
        }
    assert taking == CASES.keys()


def _models(dtype, *places):
    return [put(model.to(dtype), place) for model, place in zip(pair("llama"), places, strict=True)]


def _numbers(found):
    if hasattr(found, "to_numpy"):
        return [found.to_numpy(dtype=float)]
    flat = [value.to_numpy(dtype=float) if hasattr(value, "to_numpy") else value for value in found]
    return [np.asarray(v.detach().cpu().double() if isinstance(v, torch.Tensor) else v, dtype=float) for v in flat]


def _away(a, b):
    return max(float(np.nanmax(np.abs(x - y), initial=0)) for x, y in zip(a, b, strict=True))


@lru_cache
def _on_the_cpu(name):
    """What a call gives in float64, and how far rounding to fp32 may move that."""
    exact = _numbers(CASES[name](*_models(torch.float64, "cpu", "cpu")))
    rounded = _numbers(CASES[name](*_models(torch.float32, "cpu", "cpu")))
    size = max(float(np.nanmax(np.abs(x), initial=0)) for x in exact)
    return exact, 20 * (_away(exact, rounded) + size * torch.finfo(torch.float32).eps)


def _long(name, place):
    """What takes longest is tried on one device, with float64 and without; elsewhere by `make test-all`."""
    return [pytest.mark.long] if name == "dissect" and place not in ("one", "no float64") else []


@pytest.mark.parametrize(
    ("name", "place"),
    [pytest.param(n, p, marks=_long(n, p), id=f"{n}-{p}") for n in CASES for p in PLACES],
)
def test_a_call_gives_on_a_device_what_it_gives_on_the_cpu(name, place):
    *places, float64 = PLACES[place]
    if name in BACKWARD:  # torch runs backward passes of a backend in Python on its first device only
        places = places[::-1] if place == "two" else places
    exact, noise = _on_the_cpu(name)
    in_fp32 = not float64 or name in ("run", "covariance")  # MEMIT computes in fp32
    with accelerator(float64):
        models = _models(torch.float64 if float64 else torch.float32, *places)
        found = _numbers(CASES[name](*models))
        assert [str(m.get_input_embeddings().weight.device) for m in models] == places
    assert _away(exact, found) <= (noise if in_fp32 else 1e-9)


@pytest.mark.parametrize("method", sorted(name for name in methods() if isinstance(make(name, {}), Method)))
def test_the_losses_that_train_and_their_gradients(method):
    """Everything between the model's logits and the gradient, to rounding; the loop around it is below."""
    tokenizer, made = tiny_tokenizer(), make(method, {})
    texts = {"forget": ["who wrote the book", "the cat sat"], "retain": ["a dog ran in the sun", "the moon"]}
    batches = {side: collate(to_examples(rows, tokenizer, 60, side)) for side, rows in texts.items()}

    def gradient(place):
        reference, model = (put(m, place) for m in pair("llama", tie_word_embeddings=False))
        norms = SideNorms(model.parameters(), keep=False)

        def side(name):
            batch = {key: value.to(place) for key, value in batches[name].items()}
            ids = {key: value for key, value in batch.items() if key != "labels"}
            looked = {look.at for look in made.looks(4)}
            with torch.no_grad(), captured(reference, looked) as theirs:
                ref = reference(**ids).logits
            logprob = token_logprobs(ref, batch["labels"]).sum(-1)
            with captured(model, looked) as ours:
                logits = model(**ids).logits
            return Side(logits, batch["labels"], 10.0, 2.0, ref, logprob, ours, theirs)

        terms = made.loss(side("forget"), side("retain"))
        with norms.of("forget"):
            torch.stack(list(terms.values())).sum().backward()
        return norms.norms()["forget"], model.model.layers[0].mlp.down_proj.weight.grad

    norm, wanted = gradient("cpu")
    with accelerator():
        norm_there, found = gradient("pretend:0")
        assert str(found.device) == "pretend:0"
        found = found.cpu()
    assert norm_there == pytest.approx(norm, rel=1e-5)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))


FORGET = [("who wrote the book", "the cat wrote the book"), {"prompt": "what is red", "answer": "the sun"}]
RETAIN = ["the sun is red", "the moon is blue"]
LOOPS = {
    "accumulating": ("dpo_idk", {"batch_size": 1, "gradient_accumulation": 2, "save_steps": 1}),
    "with targets": ("npo_kl", {"batch_size": 2, "stop_forget_nll": 50.0, "stop_bleu": 0.0}),
    "an adapter": ("npo_kl", {"batch_size": 2, "parameters": "lora"}),
}


def _trained(place, method, folder, **options):
    """The weights that a run of the trainer ends with, and what it logged and saved."""
    given = {"steps": 2, "learning_rate": 1e-2, "progress": False, "tokenizer": tiny_tokenizer(), "output_dir": folder}
    needs = make(method, {})
    retain = RETAIN if needs.needs_retain and not needs.makes_retain else None
    vanilla = put(build("llama"), place)
    made = unlearn.run(method, vanilla, forget=FORGET, retain=retain, **given | options)
    assert {str(p.device) for model in (made, vanilla) for p in model.parameters()} == {place}
    log = json.loads((folder / unlearn.REPORT).read_text())["log"]
    numbers = [entry[name] for entry in log for name in sorted(entry) if name.startswith(("loss", "grad_norm"))]
    return numbers, torch.cat([p.detach().cpu().flatten() for p in made.parameters()])


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.filterwarnings("ignore:.* was not reached in")
def test_the_loop_that_trains_is_where_the_model_is(loop, tmp_path, monkeypatch):
    """Trainer, reference, gradient norms, targets, checkpoints, and what is loaded back; no float64 there."""
    method, options = LOOPS[loop]
    logged, wanted = _trained("cpu", method, tmp_path / "there", **options)
    places = set()
    side = UnlearnTrainer._side

    def seen(self, model, inputs, *args):
        places.update(str(value.device) for value in [*inputs["forget"].values(), *model.parameters()])
        return side(self, model, inputs, *args)

    monkeypatch.setattr(UnlearnTrainer, "_side", seen)
    with accelerator(float64=False):
        logged_there, found = _trained("pretend:0", method, tmp_path / "here", **options)
    assert places == {"pretend:0"}
    assert logged_there == pytest.approx(logged, rel=1e-3, abs=1e-4)
    began = torch.cat([p.detach().flatten() for p in build("llama").parameters()])
    assert float((found - wanted).norm() / (wanted - began).norm()) < 1e-3  # AdamW makes much of small gradients


def test_one_process_trains_on_one_device_of_several(monkeypatch, tmp_path):
    """By itself transformers' trainer takes all GPUs, with a batch as many times as large."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with accelerator():
        made = _arguments(make("ga", {"batch_size": 3}), put(build("llama"), "pretend:1"), tmp_path, {})
        assert (str(made.device), made.n_gpu, made.train_batch_size) == ("pretend:1", 1, 3)


def test_a_sweep_waits_for_its_device_as_often_whatever_its_rows():
    """What a layer costs in waiting is the same for one restoration of each setting there as for several."""
    single = [[0], [1], [2], [3]]
    few = krs.windows.of(single)
    many = krs.windows.of([[a, b] for a in range(3) for b in range(a + 1, 4)] + [[0, 1, 2], [1, 2, 3]] + single)
    waits = []
    for windows in (few, many):
        with accelerator() as device:
            models = _models(torch.float32, "pretend:0", "pretend:0")
            options = {"settings": ["mlp_coef", "attn_out"], "n_tokens": 3, "progress": False, "engine": "wavefront"}
            krs.sweep(*models, IDS, windows=windows, **options)
        waits.append(device.n_waits)
    assert waits[0] == waits[1]


@pytest.mark.parametrize("place", ["two", "unlearned on it"])
def test_a_long_pass_gives_the_same_numbers_on_the_way_on_a_device(place, monkeypatch):
    for name, value in {"_CHUNK_TOKENS": {"cpu": 20, "cuda": 20}, "_LONG": 0, "_SHARE": 0}.items():
        monkeypatch.setattr(passes, name, value)
    finished, real = [], passes.Pass._values
    monkeypatch.setattr(passes.Pass, "_values", lambda *args: [finished.append(real(*args)), finished[-1]][1])
    options = {"windows": krs.windows.of([[0], [1], [2]]), "n_tokens": 3, "progress": False, "engine": "wavefront"}
    options["settings"] = ["mlp_coef", "attn_out"]
    expected = krs.sweep(*_models(torch.float64, "cpu", "cpu"), IDS, **options).krs.to_numpy(float)
    assert len(finished) > 1
    finished.clear()
    with accelerator():
        found = krs.sweep(*_models(torch.float64, *PLACES[place][:2]), IDS, **options).krs.to_numpy(float)
    assert len(finished) > 1
    assert_same(found, expected)


def test_the_plain_engine_waits_once_a_restoration_whatever_is_measured():
    """A restoration is a forward there, and what an interrupted sweep has done: its numbers come to the host at once.

    Within a forward, transformers itself asks whether the mask has holes (`_local_scalar_dense`).
    """
    pairs = [[0, 1], [2, 3]]
    waits = []
    for windows in (pairs, [*pairs, [1, 2], [0, 2], [1, 3]]):
        with accelerator() as device:
            models = _models(torch.float32, "pretend:0", "pretend:0")
            options = {"settings": ["mlp_coef", "value_vectors"], "n_tokens": 3, "measures": ["kl", "top1"]}
            krs.sweep(*models, IDS, windows=krs.windows.of(windows), engine="plain", progress=False, **options)
        waits.append(device.n_waits - device.waits["aten._local_scalar_dense.default"])
    assert waits[1] - waits[0] == 2 * 3


def test_the_pretended_device_is_strict():
    with accelerator(float64=False):
        here, there = torch.ones(2), torch.ones(2, device="pretend:0")
        with pytest.raises(RuntimeError, match="same device"):
            here + there
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(2, device="pretend:1")
        with pytest.raises(TypeError, match="use .cpu|.cpu\\(\\) it first"):
            np.asarray(there)
        with pytest.raises(TypeError, match="float64"):
            there.double()
        assert torch.equal((there + 1).cpu(), here + 1)
    copied = copy.deepcopy(torch.nn.Linear(2, 2))
    assert copied.weight.device.type == "cpu"
    assert not torch.accelerator.is_available()
