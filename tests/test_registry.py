"""Names: what is registered, by whom, and what packages bring by entry points."""

import json
import subprocess
import sys

import pytest

from krs import KrsError
from krs.metrics.measures import measure
from krs.registry import Registry


def test_a_module_may_register_its_own_name_again_and_nobody_elses():
    tools = Registry("tool", "krs.tools")
    tools.add("hammer", 1, "__main__")
    tools.add("hammer", 2, "__main__")  # the cell was changed and run again
    assert tools["hammer"] == 2
    with pytest.raises(KrsError, match="the tool 'hammer' is registered already, by __main__: choose another name"):
        tools.add("hammer", 3, "other")
    assert tools.add("hammer", 2, "other") == 2  # the same thing
    tools.add("saw", 1, "krs.tools")
    with pytest.raises(KrsError, match="the tool 'saw' is registered already, by krs.tools"):
        tools.add("saw", 2, "krs.tools")  # not even krs replaces what is built in
    assert tools.add("saw", 2, "other", replace=True) == 2


def test_an_unknown_name_is_told_of_with_those_that_there_are():
    tools = Registry("tool", "krs.tools")
    tools.add("hammer", 1, "m")
    message = r"unknown tool 'hamer' in the box: known are hammer; buy one. Did you mean 'hammer'\?"
    with pytest.raises(KrsError, match=message):
        tools.find("hamer", " in the box", "; buy one")


def test_a_name_in_capitals_is_told_of_too():
    with pytest.raises(KrsError, match=r"unknown measure 'KL'.*Did you mean 'kl'\?"):
        measure("KL")


def test_a_copy_stands_by_itself():
    tools = Registry("tool", "krs.tools")
    other = tools.copy()
    other.add("hammer", 1, "m")
    assert "hammer" not in tools
    assert (len(other), list(other), other.values()) == (1, ["hammer"], [1])


MINE = """
from krs.hooks import ActivationPoint, Family, register_point
from krs.metrics.measures import Measure
from krs.restore.plain import PlainEngine
from krs.unlearn import Method

GATE = ActivationPoint("t_gate", role=".mlp.gate_proj", label="Gates", side="output")
UP = register_point(ActivationPoint("t_up", role=".mlp.up_proj", label="Up", side="output"))
FAMILY = Family("theirs", ("t_llama",), "model.layers", {"attn_out_proj": "self_attn.o_proj"}, "model.norm")
def t_margin(logits, reference_logits, target_ids):
    top = logits.topk(2).values
    return top[:, 0] - top[:, 1]
NOT_MUCH = Measure("t_none", "Nothing", lambda tokens: 0 * tokens.logits[:, 0])
class Engine(PlainEngine):
    name = "t_engine"
class Quiet(Method):
    def loss(self, forget, retain):
        return {"forget": 0 * forget.logits.sum()}
"""
STEP = """
from krs.study import Step, register
@register("t_step")
class TStep(Step):
    def inputs(self, cell, spec, options): return {}
    def run(self, work): return ""
"""
ENTRIES = """
[krs.points]
gate = their_krs:GATE
[krs.families]
theirs = their_krs:FAMILY
[krs.measures]
t_margin = their_krs:t_margin
t_none = their_krs:NOT_MUCH
[krs.engines]
t_engine = their_krs:Engine
[krs.methods]
t_quiet = their_krs:Quiet
[krs.study]
t_step = their_step
"""
ASK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import krs
from krs import unlearn, study
from krs.hooks import family_of, known_types, setting
from krs.metrics.measures import measure
from krs.restore.engines import engine_names, find_engine
found = {
    "engines": list(engine_names()), "module loaded for a list": "their_krs" in sys.modules,
    "points": setting("t_gate+t_up").name, "family": family_of("t_llama").name, "types": "t_llama" in known_types(),
    "measures": [measure("t_margin").name, measure("t_none").label], "engine": type(find_engine("t_engine")).__name__,
    "methods": "t_quiet" in unlearn.methods(), "name": sys.modules["their_krs"].Quiet.name,
    "steps": "t_step" in study.steps(),
}
print(json.dumps(found))
"""


def _package(folder, entries, **modules):
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code)
    info = folder / "their_krs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-krs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entries)


def test_a_package_brings_one_of_each_kind_by_entry_points(tmp_path):
    """Installed by putting it on the path, in a process of its own."""
    _package(tmp_path, ENTRIES, their_krs=MINE, their_step=STEP)
    done = subprocess.run([sys.executable, "-c", ASK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "engines": ["auto", "wavefront", "plain", "estimate", "ray", "t_engine"],
        "module loaded for a list": False,
        "points": "t_gate+t_up",
        "family": "theirs",
        "types": True,
        "measures": ["t_margin", "Nothing"],
        "engine": "Engine",
        "methods": True,
        "name": "t_quiet",
        "steps": True,
    }


def test_a_package_that_fails_is_named_and_does_not_stand_in_the_way_of_what_is_known(tmp_path, monkeypatch):
    _package(tmp_path, "[krs.measures]\nbad = their_bad\nodd = json:JSONDecodeError\n", their_bad="1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    from krs.metrics.measures import measure

    assert measure("kl").name == "kl"
    message = r"'bad' \(krs.measures\) of the package 'their-krs' could not be loaded \(division by zero\): repair"
    with pytest.raises(KrsError, match=message):
        measure("bad")


CELLS = """
import krs
from krs.hooks import ActivationPoint, register_point, register_family, family_of
from krs.metrics.measures import Measure, measure, register_measure
from krs.unlearn import Method, register
from dataclasses import replace
for side in ("input", "output"):
    register_point(ActivationPoint("cell", role=".mlp", label="x", side=side))
    register_family(replace(family_of("llama"), name=side, model_types=("mine",)))
    register_measure(Measure("cell", side, lambda tokens: tokens.logits[:, 0]))
    @register("cell")
    class Cell(Method):
        def loss(self, forget, retain): ...
print(krs.hooks.setting("cell").points[0].side, family_of("mine").name, measure("cell").label)
try:
    register_point(ActivationPoint("resid", role=".mlp", label="x", side="input"))
except krs.KrsError as error:
    print(error)
"""


def test_a_cell_of_a_notebook_may_be_run_again_changed():
    done = subprocess.run([sys.executable, "-c", CELLS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "output output output"
    assert second.startswith("the point 'resid' is registered already, by krs.hooks.")
