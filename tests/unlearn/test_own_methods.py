"""What is said of a method of a user's own that does not do what a method has to."""

import json

import pytest
import torch

from krs import KrsError, unlearn
from krs.unlearn.config import Config
from krs.unlearn.losses import token_logprobs
from tests.tiny import build
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

FORGET, RETAIN = ["the cat sat on the moon"], ["the sun is red"]


def _run(given, **options):
    return unlearn.run(given, build("llama"), forget=FORGET, tokenizer=tiny_tokenizer(), progress=False, **options)


class _Returns(unlearn.Method):
    """Its loss returns what `made` makes of gradient ascent's."""

    made = staticmethod(lambda loss: {"forget": loss})

    def loss(self, forget, retain):
        return self.made(token_logprobs(forget.logits, forget.labels).sum() / forget.n_tokens)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda x: x, "_Returns: loss returns a dict of terms, and this one returned Tensor: return {'forget': …}"),
        (lambda x: None, "loss returns a dict of terms, and this one returned None"),
        (lambda x: {}, "loss returns a dict of terms, and this one returned an empty one"),
        (lambda x: {0: x}, "loss names a term 0: give it a name that is a text"),
        (lambda x: {"a": x, "b": x[None]}, r"the term 'b' of its loss is a tensor of shape \[1\]: return a floating-"),
        (lambda x: {"a": x, "b": 0.0}, r"the term 'b' of its loss is 0.0 \(float\): return a floating-point scalar"),
        (lambda x: {"a": x, "b": x.long()}, "the term 'b' of its loss is a tensor of int64: return a floating-point"),
    ],
)
def test_a_loss_that_returns_no_dict_of_scalars_is_told_what_to_return(monkeypatch, made, message):
    monkeypatch.setattr(_Returns, "made", staticmethod(made))
    with pytest.raises(KrsError, match=message):
        _run(_Returns(Config(steps=1)))


class _Forgot(_Returns):
    """Reads its retain side without having said that it has one."""

    def loss(self, forget, retain):
        kept = token_logprobs(retain.logits, retain.labels).sum() / retain.n_tokens
        return super().loss(forget, retain) | {"retain": -kept}


def test_a_retain_side_that_the_class_does_not_announce_is_named_by_needs_retain(tmp_path):
    with pytest.raises(KrsError, match=r"^_Forgot has no retain term.*: leave it out, or set needs_retain = True in"):
        _run(_Forgot(Config(steps=1)), retain=RETAIN)
    with pytest.raises(KrsError, match="^_Forgot: loss reads 'logits' of a retain side, and there is none: set needs_"):
        _run(_Forgot(Config(steps=1)))
    with pytest.raises(KrsError, match=": leave it out$"):
        _run("ga", retain=RETAIN)

    class Mended(_Forgot):
        needs_retain = True

    _run(Mended(Config(steps=1)), retain=RETAIN, output_dir=tmp_path / "u")
    report = json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())
    assert {"loss_forget", "loss_retain"} <= set(report["log"][0])


def test_other_errors_of_a_loss_are_its_own(monkeypatch):
    monkeypatch.setattr(_Returns, "made", staticmethod(lambda x: x.nothing_like_it))
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _run(_Returns(Config(steps=1)))


def test_an_instance_without_a_config_has_its_defaults():
    class Mine(_Returns):
        config_class = unlearn.dpo.DPOConfig

    assert Mine().config == unlearn.dpo.DPOConfig()
    with pytest.raises(KrsError, match="^steps= stands beside Mine, which has its settings: change it there"):
        _run(Mine(), steps=3)
    assert torch.is_tensor(next(_run(Mine(unlearn.dpo.DPOConfig(steps=1))).parameters()))
