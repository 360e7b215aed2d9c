"""A spec is checked whole before any work, and every fault has its line and its field."""

from pathlib import Path

import pytest

from krs import KrsError, study
from krs.study.grid import cells, n_cells
from tests.study.small import home

GOOD = """\
models: [v]
concepts:
  - cat.json
  - {name: dog.json, label: hound}
methods:
  - name: grad_diff
    settings:
      learning_rate: 1e-3
    strengths:
      gentle: {steps: 2}
      strong: {steps: 4}
  - ga
seeds: [0, 1]
pairs:
  - {vanilla: v, unlearned: p, label: public, concepts: [hound]}
steps:
  prepare:
  unlearn:
  sweep:
    windows: 3
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return home(tmp_path_factory.mktemp("spec"))


def _read(place, text):
    (place / "study.yaml").write_text(text)
    return study.read_spec(place / "study.yaml")


def test_a_grid_is_models_x_concepts_x_methods_x_strengths_x_seeds_and_pairs(place):
    spec = _read(place, GOOD)
    names = [cell.name for cell in cells(spec)]
    assert len(names) == len(set(names)) == n_cells(spec) == 1 * 2 * (2 + 1) * 2 + 1
    assert names[0] == "v--cat--grad_diff--gentle--s0"
    assert names[-1] == "v--hound--public--published"
    first = next(cells(spec))
    assert first.settings == {"learning_rate": 1e-3, "steps": 2}
    assert (first.vanilla, first.topic.name) == (str(place / "v"), str(place / "cat.json"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds:", "sedes:", r"line 13: sedes: there is no such field: there are .*\. Did you mean 'seeds'\?"),
        ("    settings:", "    setings:", r"line 7: methods\[0\].setings: .* Did you mean 'settings'\?"),
        ("1e-3", "fast", r"line 8: methods\[0\].settings.learning_rate: grad_diff: learning_rate='fast' is a str"),
        ("1e-3", "-1.0", r"line 8: methods\[0\].settings.learning_rate: learning_rate=-1.0: it has to be positive"),
        ("{steps: 4}", "{stps: 4}", r"line 11: methods\[0\].strengths.strong.stps: grad_diff has no setting 'stps'"),
        ("{steps: 4}", "{steps: 2}", r"line 10: methods\[0\].strengths.gentle: it is the same as 'strong'"),
        (
            "strong:",
            "Gentle:",
            r"line 11: methods\[0\].strengths.Gentle: 'Gentle' and 'gentle' would be one name on the",
        ),
        ("{steps: 4}", "{seed: 4}", r"line 11: methods\[0\].strengths.strong.seed: seeds are an axis of the study"),
        ("- ga", "- gaa", r"line 12: methods\[1\].name: unknown unlearning method 'gaa'.*Did you mean 'ga'\?"),
        ("cat.json", "cot.json", r"line 3: concepts\[0\].name: no concept 'cot.json' comes with krs"),
        ("[v]", "[./w]", r"line 1: models\[0\].name: no such path: './w'"),
        ("unlearned: p", "unlearned: ./q", r"line 15: pairs\[0\].unlearned: no such path: './q'"),
        ("[hound]", "[dog]", r"line 15: pairs\[0\].concepts\[0\]: 'dog' is no concept of this study"),
        ("windows: 3", "windows: 4", r"line 20: steps.sweep.windows: .*odd"),
        ("windows: 3", "window: 3", r"line 20: steps.sweep.window: there is no such field: .* Did you mean 'windows'"),
        ("windows: 3", "windows: three", r"line 20: steps.sweep.windows: input should be a valid integer"),
        ("windows: 3", "settings: [mlp_cof]", r"line 20: steps.sweep.settings: .*mlp_cof"),
        ("sweep:", "swep:", r"line 19: steps.swep: unknown step 'swep': .*Did you mean 'sweep'\?"),
        ("  unlearn:\n", "", r"line 18: steps.sweep: it needs unlearn, which has to come before it"),
        ("[0, 1]", "[0, 0]", r"line 13: seeds\[1\]: '0' is in seeds already"),
        ("label: hound", "label: CAT", r"line 4: concepts\[1\]: 'CAT' is in concepts already"),
        ("seeds: [0, 1]", "seeds: [0]\nseeds: [1]", r"line 14: 'seeds' is there twice, first in line 13"),
        ("seeds: [0, 1]", "seeds: [0", r"is not valid YAML: line 14: "),
        ("- ga", "- {name: ga, forget: paragraphs}", r"methods\[1\].forget: paragraphs .*cat, hound has none"),
        ("- ga", "- {name: ga, corpus: x}", r"methods\[1\].corpus: no such file: 'x'"),
        (
            "cat.json\n",
            "{name: cat.json, only: [0, 7]}\n",
            r"concepts\[0\].name: questions \[0, 7\] of 'cat': there is no ",
        ),
        ("{steps: 4}", "{stop_when: nll}", r"line 11: methods\[0\].strengths.strong.stop_when: .*give a name, a sign"),
        ("{steps: 4}", "{stop_when: uds > 1}", r"line 11: .*stop_when: uds needs retain, which is not at hand"),
        ("seeds:", "keep: some\nseeds:", r"line 13: keep: input should be 'weights', 'difference' or 'nothing'"),
    ],
)
def test_a_fault_is_named_with_its_line_and_field(place, old, new, message):
    assert old in GOOD
    with pytest.raises(KrsError, match=message):
        _read(place, GOOD.replace(old, new, 1))


def test_all_faults_are_named_at_once(place):
    with pytest.raises(KrsError) as raised:
        _read(place, GOOD.replace("- ga", "- gaa").replace("cat.json", "cot.json").replace("windows: 3", "window: 3"))
    assert [line.partition(", line ")[2].split(":")[0] for line in str(raised.value).splitlines()] == ["3", "12", "20"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: a study has at least models, concepts and methods"),
        ("[1]", "holds a list: a study is a mapping"),
        ("models: [v]\nmethods: [ga]\n", "concepts: it is missing: give it"),
        ("concepts: [cat.json]\n", "there are no cells: give models and methods, or pairs"),
        ("concepts: [cat.json]\nmodels: [v]\n", "methods: there are none: give methods"),
    ],
)
def test_what_is_no_spec_at_all(place, text, message):
    with pytest.raises(KrsError, match=message):
        _read(place, text)


def test_a_runner_that_there_is_not(place, tmp_path):
    with pytest.raises(KrsError, match="there is no runner 'slurm': there is 'local', 'ray', or pass one of yours"):
        study.run(_read(place, GOOD), tmp_path / "out", runner="slurm")
    assert not (tmp_path / "out").exists()


@pytest.mark.real
def test_the_example_is_right_and_the_documentation_shows_it(smollm2):
    root = Path(__file__).parents[2]
    example = root / "examples" / "study.yaml"
    assert n_cells(study.read_spec(example)) == 3
    shown = example.read_text().partition("\n")[2]
    assert f"```yaml\n{shown}```" in (root / "docs" / "study.md").read_text()
