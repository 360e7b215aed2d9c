"""The benchmarks run, on random models of no size: what they time is measured by hand, that they work is not."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import krs

HERE = Path(__file__).parent.parent / "benchmarks"
SHAPE = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 7, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 60,
}  # fmt: skip
PROMPTS = ((1, 2, 3, 4), (1, 2, 5), (7, 8, 9, 10, 11))


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    names = {path.stem for path in HERE.glob("*.py")}
    yield importlib.import_module
    for name in names & set(sys.modules):
        del sys.modules[name]


def test_the_sweeps_benchmark_compares_engines_that_agree(benchmarks, capsys):
    sweep, common = benchmarks("sweep"), benchmarks("common")
    torch.manual_seed(0)
    work = common.Work.of(*common.random_pair(SHAPE, "cpu", torch.float32), PROMPTS, n_tokens=4)
    sweep.compare(work, None, rounds=1, only_loop=True)
    said = capsys.readouterr().out
    assert float(re.search(r"largest difference .*: (\S+)", said).group(1)) < 1e-3
    assert re.search(r"wavefront / floor: \d", said)


def test_the_floor_counts_what_a_restoration_leaves_to_be_computed(benchmarks):
    common, floor = benchmarks("common"), benchmarks("floor")
    work = common.Work.of(*common.random_pair(SHAPE, "cpu", torch.float32), PROMPTS, n_tokens=4)
    config = work.vanilla.config

    def operations(setting, *layers):
        plan = krs.restore.plan.Plan.make([setting], krs.windows.of(layers), n_layers=7)
        return floor.operations(config, plan, work.batch)

    tokens = len(krs.restore.wave.packing.pack(work.batch).ids)
    keys_and_values = 3 * 2 * config.hidden_size * config.intermediate_size * tokens
    early = operations(krs.MLP_COEF, [2]), operations(krs.MLP_COEF, [2, 3])
    assert early[0] - early[1] == pytest.approx(  # the MLP is left out once more, but for the constant
        keys_and_values * 2 / 3
    )
    assert operations(krs.ATTN_OUT, [6]) < operations(krs.ATTN_OUT, [5]) < operations(krs.ATTN_OUT, [0])


def test_the_loop_beside_the_residual_stream_gives_the_sweeps_numbers(benchmarks):
    questions, common = benchmarks("questions"), benchmarks("common")
    vanilla, unlearned = common.random_pair(SHAPE, "cpu", torch.float32)
    vanilla, unlearned = vanilla.double(), unlearned.double()
    answers = tuple(map(tuple, krs.generate(vanilla, None, PROMPTS, n_tokens=4, progress=False).token_ids))
    found = krs.sweep(
        vanilla, unlearned, PROMPTS, answers=answers, settings=["resid"], windows=krs.windows.each(),
        direction="transplant", measures=["answer_logprob"], n_tokens=4, progress=False,
    )  # fmt: skip
    assert found.table("answer_logprob").iloc[:, 0].tolist() == pytest.approx(
        questions.loop(vanilla, unlearned, PROMPTS, answers), abs=1e-9
    )
