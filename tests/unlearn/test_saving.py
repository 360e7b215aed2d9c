"""What could fail at the end is tried before the start, and what fails all the same is not lost."""

import importlib
import json
import os
import re
import resource
import shutil
import signal
from dataclasses import dataclass, field

import pytest
import torch

import krs
from krs import KrsError, unlearn
from krs.unlearn.config import Config, EditConfig
from krs.unlearn.methods import Edit, Method, register
from krs.unlearn.preflight import check_space
from tests.tiny import build, same_state, state
from tests.unlearn.memit_case import CORPUS
from tests.unlearn.memit_case import FAST as MEMIT
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

FORGET = [("who wrote the book", "the cat wrote the book"), ("what is red", "the sun is red"), ("who ran", "a dog")]
FAST = {"steps": 3, "batch_size": 2, "learning_rate": 1e-2}


def _run(vanilla, name="npo", **options):
    given = {"forget": FORGET, "tokenizer": tiny_tokenizer(), "progress": False}
    return unlearn.run(name, vanilla, **given | (FAST if name in ("npo", "ga") else {}) | options)


@pytest.fixture
def plugin(monkeypatch):
    """Registers a method for one test."""
    methods = importlib.import_module("krs.unlearn.methods")  # the package has a function of that name
    monkeypatch.setattr(methods, "REGISTRY", methods.REGISTRY.copy())
    return register


def _never(plugin):
    """A method that says so when it is run."""

    class Never(Method):
        def loss(self, forget, retain):
            raise AssertionError("training began")

    plugin("never")(Never)
    return "never"


def _unsavable(model):
    model.generation_config.temperature = 0.7


def _shared(model):
    model.model.layers[1].mlp = model.model.layers[0].mlp


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_unsavable, "model.generation_config cannot be saved, .*do_sample.* Set model.generation_config right before"),
        (
            _shared,
            "has weights that share memory, which transformers cannot save: .*Give each layer weights of its own",
        ),
    ],
)
def test_a_model_that_cannot_be_saved_is_refused_before_training(tmp_path, plugin, spoil, message):
    vanilla = build("llama")
    spoil(vanilla)
    with pytest.raises(KrsError, match=message):
        _run(vanilla, _never(plugin), output_dir=tmp_path / "u")
    assert not (tmp_path / "u").exists()


def test_what_is_not_saved_need_not_be_savable():
    vanilla = build("llama")
    _unsavable(vanilla)
    assert _run(vanilla, steps=1).generation_config.temperature == 0.7


def test_a_tokenizer_that_cannot_be_saved_is_refused_before_training(tmp_path, plugin):
    tokenizer = tiny_tokenizer()
    tokenizer.init_kwargs["made_with"] = object()
    with pytest.raises(
        KrsError, match="tokenizer cannot be saved, so that the unlearned model could not be either: .*"
    ):
        _run(build("llama"), _never(plugin), tokenizer=tokenizer, output_dir=tmp_path / "u")


def test_settings_that_the_report_cannot_hold_are_refused_before_training(tmp_path, plugin):
    @dataclass(frozen=True, kw_only=True)
    class Odd(Config):
        kind: object = field(default_factory=object)

    class Never(Method):
        config_class = Odd

        def loss(self, forget, retain):
            raise AssertionError("training began")

    plugin("odd")(Never)
    with pytest.raises(KrsError, match="the settings cannot be written to the report as JSON .*: give numbers, texts"):
        _run(build("llama"), "odd", output_dir=tmp_path / "u")


def test_a_place_that_cannot_be_written_is_refused_before_training(tmp_path, plugin):
    (tmp_path / "file").write_text("")
    with pytest.raises(KrsError, match="output_dir=.* cannot be written .*: give another place"):
        _run(build("llama"), _never(plugin), output_dir=tmp_path / "file" / "u")
    with pytest.raises(KrsError, match="output_dir='/proc/u' cannot be written .*: give another place"):
        _run(build("llama"), "never", output_dir="/proc/u")


def test_the_vanilla_models_own_directory_is_not_written_over(tmp_path, plugin):
    place = tmp_path / "v"
    build("llama").save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    before = (place / "model.safetensors").read_bytes()
    for vanilla in (place, krs.load(place)[0]):
        with pytest.raises(KrsError, match="output_dir=.* is where the vanilla model is: give another directory"):
            _run(vanilla, _never(plugin), output_dir=tmp_path / "x" / ".." / "v", overwrite=True)
    assert (place / "model.safetensors").read_bytes() == before


def test_a_cache_that_cannot_be_written_is_refused_before_the_corpus_is_read(monkeypatch):
    monkeypatch.setenv("HF_HOME", "/proc/nowhere")
    options = {"forget": [("cat", "the cat", None)], "corpus": CORPUS, **MEMIT}
    with pytest.raises(
        KrsError, match=r"the cache directory '/proc/nowhere/krs' cannot be written .* or set cache=False"
    ):
        _run(build("llama"), "memit_empty", target="blue", **options | {"cache": True})


def test_room_for_model_and_checkpoints_is_asked_for(tmp_path):
    class Huge(torch.nn.Module):
        """Of 10¹⁵ weights that take one place in memory."""

        def __init__(self, n):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16).expand(n), requires_grad=False)

    message = "the model will take 2,000,000.0 GB, and .* GB are free there: free some space, or give another place$"
    with pytest.raises(KrsError, match=message):
        check_space(Huge(10**15), tmp_path / "u", EditConfig())
    free = shutil.disk_usage(tmp_path).free
    fits = Huge(free // 4)  # the model is half of what is free, a checkpoint six times as large
    check_space(fits, tmp_path / "u", Config())
    with pytest.raises(
        KrsError, match="the model and its checkpoints will take .* give another place, or set save_steps=0"
    ):
        check_space(fits, tmp_path / "u", Config(steps=8, save_steps=5))
    check_space(fits, tmp_path / "u", Config(steps=8, save_steps=8))  # none is written at the last step
    check_space(fits, tmp_path / "u", Config(steps=8, save_steps=5, parameters="lora"))


def _spoils_itself(plugin, edits=True):
    """A method whose model cannot be saved when it is done, in the first call."""
    calls = []

    class Spoils(Edit if edits else Method):
        def edit(self, model, tokenizer, forget, corpus, progress):
            calls.append("edit")
            with torch.no_grad():
                model.model.layers[0].mlp.down_proj.weight += 1
            _unsavable(model)
            return [{"layer": 0}]

        def loss(self, forget, retain):
            calls.append("loss")
            return {"forget": forget.logits.square().mean()}

    plugin("spoils")(Spoils)
    return calls


def test_a_model_that_cannot_be_saved_in_the_end_is_not_lost_and_the_same_call_goes_on(tmp_path, plugin):
    calls = _spoils_itself(plugin)
    vanilla = build("llama")
    with pytest.raises(
        KrsError, match="the model is unlearned, but saving it to .* failed .GenerationConfig is"
    ) as error:
        _run(vanilla, "spoils", output_dir=tmp_path / "u")
    assert re.search("kept in .*: mend the cause, and the same call saves them without", str(error.value))
    partial = error.value.partial
    assert not same_state(partial, state(vanilla))
    with pytest.raises(KrsError, match="holds checkpoints of another run; forget texts differ"):
        _run(vanilla, "spoils", output_dir=tmp_path / "u", forget=FORGET[:1])
    unlearned = _run(vanilla, "spoils", output_dir=tmp_path / "u")
    assert calls == ["edit"]
    assert same_state(unlearned, state(partial))
    assert same_state(krs.load(tmp_path / "u")[0], state(partial))
    assert unlearned.lm_head.weight is unlearned.model.embed_tokens.weight
    assert json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())["edited_layers"] == [0]
    assert not (tmp_path / "u" / "checkpoints").exists()


def test_a_trained_model_that_cannot_be_saved_in_the_end_is_not_lost(tmp_path):
    """The tokenizer breaks on the way, as files that it needs may."""
    tokenizer = tiny_tokenizer()

    class Breaks(type(tokenizer)):
        def save_pretrained(self, folder, *args, **kwargs):
            if "finished" in str(folder):
                raise OSError(28, "No space left on device")
            return super().save_pretrained(folder, *args, **kwargs)

    vanilla, kind = build("llama"), tokenizer.__class__
    tokenizer.__class__ = Breaks
    with pytest.raises(KrsError, match="saving it to .* failed .*No space left on device") as error:
        _run(vanilla, parameters="lora", tokenizer=tokenizer, output_dir=tmp_path / "u")
    tokenizer.__class__ = kind
    unlearned = _run(vanilla, parameters="lora", tokenizer=tokenizer, output_dir=tmp_path / "u")
    assert same_state(unlearned, state(error.value.partial))
    assert (tmp_path / "u" / "adapter" / "adapter_config.json").exists()
    assert len(json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())["log"]) == 3


def test_a_call_that_is_killed_while_it_moves_the_model_into_place_is_gone_on_with(tmp_path, monkeypatch):
    whole, part = tmp_path / "whole", tmp_path / "part"
    vanilla = build("llama")
    unlearned = _run(vanilla, output_dir=whole)

    class KilledError(BaseException):
        """Nothing catches it."""

    def dies(source, target):
        replace(source, target)
        if str(target).endswith("model.safetensors"):
            raise KilledError

    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr("krs.unlearn.saving.os.replace", dies)
        with pytest.raises(KilledError):
            _run(vanilla, output_dir=part)
    assert (part / "model.safetensors").exists()
    assert not (part / "krs_unlearn.json").exists()
    again = _run(vanilla, output_dir=part)
    assert same_state(again, state(unlearned))
    assert sorted(p.name for p in part.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert all(p.requires_grad for p in again.parameters())


def test_overwriting_leaves_nothing_that_would_be_loaded_instead(tmp_path):
    vanilla = build("llama")
    _run(vanilla, parameters="lora", output_dir=tmp_path / "u")
    for stale in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json"):
        (tmp_path / "u" / stale).write_text("{}")
    (tmp_path / "u" / "notes.txt").write_text("mine")
    unlearned = _run(vanilla, output_dir=tmp_path / "u", overwrite=True)
    assert same_state(krs.load(tmp_path / "u")[0], state(unlearned))
    left = {p.name for p in (tmp_path / "u").iterdir()}
    assert "notes.txt" in left
    assert not {n for n in left if "adapter" in n or "-of-" in n or "index" in n}


def test_files_have_the_users_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        _run(build("llama"), output_dir=tmp_path / "u", steps=1)
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "u").iterdir()} == {0o640}


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(tmp_path, capsys):
    """Files larger than 100 kB cannot be written: the optimiser's is one, the model's is not."""
    whole = _run(build("llama"), output_dir=tmp_path / "whole")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "whole" / "model.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(1.3 * size), limit[1]))
    try:
        unlearned = _run(build("llama"), output_dir=tmp_path / "u", save_steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    said = capsys.readouterr().err
    assert said.count("could not be written") == 2
    assert "the checkpoint of step 2 could not be written" in said
    assert same_state(unlearned, state(whole))


class _Pressed(Method):
    """During one of whose steps somebody presses Ctrl-C."""

    steps, at = 0, 0

    def loss(self, forget, retain):
        type(self).steps += 1
        if type(self).steps == type(self).at:
            os.kill(os.getpid(), signal.SIGINT)
        return {"forget": forget.logits.square().mean()}


def test_ctrl_c_in_the_last_step_saves_the_model_that_is_complete(tmp_path, plugin, capsys):
    plugin("pressed")(_Pressed)
    _Pressed.steps, _Pressed.at = 0, FAST["steps"]
    with pytest.raises(KeyboardInterrupt):
        _run(build("llama"), "pressed", output_dir=tmp_path / "u", **FAST)
    assert "Ctrl-C came when the model was unlearned: it has been saved first" in capsys.readouterr().err
    assert json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())["steps"] == 3
    assert not (tmp_path / "u" / "checkpoints").exists()


def test_ctrl_c_at_the_step_that_reaches_the_target_ends_a_complete_run(tmp_path, plugin):
    """A checkpoint there would be gone on from, beyond the target."""
    plugin("pressed")(_Pressed)
    _Pressed.steps, _Pressed.at = 0, 2
    with pytest.raises(KeyboardInterrupt):
        _run(build("llama"), "pressed", output_dir=tmp_path / "u", stop_forget_nll=0.0, check_every=2, **FAST)
    report = json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())
    assert report["steps"] == 2
    assert report["stopped"].startswith("forget NLL")


def test_targets_that_were_looked_at_before_an_interruption_are_in_the_report(tmp_path, plugin):
    plugin("pressed")(_Pressed)
    _Pressed.steps, _Pressed.at = 0, 2
    options = FAST | {"output_dir": tmp_path / "u", "stop_forget_nll": 1e9}
    with pytest.raises(KeyboardInterrupt):
        _run(build("llama"), "pressed", **options)
    assert not (tmp_path / "u" / "krs_unlearn.json").exists()
    with pytest.warns(krs.KrsWarning, match=r"stop_forget_nll=1000000000.0 was not reached in 3 steps"):
        _run(build("llama"), "pressed", **options)
    report = json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())
    assert [seen["step"] for seen in report["targets"]] == [1, 2, 3]
    assert len(report["log"]) == 3


def test_ctrl_c_where_no_checkpoint_can_be_written_hands_over_the_model(tmp_path, plugin, capsys):
    plugin("pressed")(_Pressed)
    _Pressed.steps, _Pressed.at = 0, 2
    vanilla = build("llama")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(KeyboardInterrupt) as interrupt:
            _run(vanilla, "pressed", output_dir=tmp_path / "u", **FAST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "stopped after step 2, and no checkpoint could be written" in capsys.readouterr().err
    assert not same_state(interrupt.value.partial, state(vanilla))


def test_ctrl_c_before_training_leaves_nothing_behind(tmp_path, plugin):
    class Asks(Edit):
        def edit(self, model, tokenizer, forget, corpus, progress):
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("Ctrl-C did not act at once")

    plugin("asks")(Asks)
    with pytest.raises(KeyboardInterrupt):
        _run(build("llama"), "asks", output_dir=tmp_path / "u")
    assert not (tmp_path / "u").exists()


def test_a_refused_call_leaves_nothing_that_stands_in_the_way_of_the_next(tmp_path):
    with pytest.raises(KrsError, match="TrainingArguments does not take this: .*sede"):
        _run(build("llama"), output_dir=tmp_path / "u", trainer={"sede": 3})
    assert not (tmp_path / "u").exists()
    _run(build("llama"), output_dir=tmp_path / "u", steps=1)


def test_a_tokenizer_that_would_be_loaded_as_another_one_is_refused_before_training(tmp_path):
    with pytest.raises(
        KrsError, match=r"beside this qwen2 model: Qwen2Tokenizer reads 'who wrote .* Pass the one that"
    ):
        _run(build("qwen2"), output_dir=tmp_path / "u")
    assert not (tmp_path / "u").exists()
    _run(build("qwen3"), output_dir=tmp_path / "u")


def test_a_folder_of_the_users_with_the_name_of_ours_is_not_taken_away(tmp_path):
    mine = tmp_path / "u" / "checkpoints" / "mine.bin"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(KrsError, match="holds checkpoints of another run"):
        _run(build("llama"), output_dir=tmp_path / "u")
    assert mine.read_text() == "mine"
