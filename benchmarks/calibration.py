"""The tables of docs/calibration.md: instruments on models whose truth is known, and verdicts on others.

    python benchmarks/calibration.py out/truth              # the models and instruments that are reported; hours
    python benchmarks/calibration.py out/truth --every      # all of them; longer

Interrupted, it goes on. `krs calibrate` does the same with models and instruments of your choice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from krs.instruments import truth
from krs.instruments.calibration import Calibration, calibrate, check_verdicts

MODELS = (
    "hides", "hides_more", "hides_varied", "hides_values", "steered_middle", "steered_late", "steered_more",
    "never_declines", "never_declines_varied", "never_declines_values", "misled", "misled_declines",
    "part_50", "part_50_hides", "npo_kl", "grad_diff",
)  # fmt: skip
READ = (
    "nll", "nll_tail", "recall", "prefix", "exact_memorisation", "extraction_strength", "paraphrase", "truth_ratio",
    "quantise_4", "quantise_8", "probe", "state_drop", "uds", "uds_inner", "relearn", "krs",
)  # fmt: skip
SILENT = MODELS[1:12]
"""The models of known truth that say none of the answers."""
DEARER = ("held_out_restoration", "logit_lens", "relearn_same", "relearn_unrelated", "transplant", "account")
"""Read of these alone, a core hour and more each; none of them has a vote."""
_TWO = "{:.2f}".format


def main() -> None:
    """Make, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--every", action="store_true", help="every model and instrument")
    chosen = parser.parse_args()
    models, read = (None, None) if chosen.every else (list(MODELS), list(READ))
    told = truth.make(
        chosen.folder, chosen.base, models=None if models is None else ["full", "retain", *models]
    ).table()
    columns = {"a_recall": "recall", "b_recall": "of B", "a_paraphrased": "untaught words", "a_nll": "NLL"}
    print(told[["known", "grade", *columns]].rename(columns=columns).to_string(float_format=_TWO))
    found = calibrate(chosen.folder, models=models, only=read)
    found.save(chosen.folder / "thresholds.json")
    print(f"\n{found.table().drop(columns=['unit']).to_string(float_format=_TWO)}\n")
    _print_means(found)
    if not chosen.every:
        dearer = calibrate(chosen.folder, models=list(SILENT), only=list(DEARER))
        print(f"\n{dearer.table().drop(columns=['unit']).to_string(float_format=_TWO)}\n")
        _print_means(dearer)
    by = found.thresholds()
    print(f"\n{pd.DataFrame({n: vars(t) for n, t in by.items()}).T.to_string(float_format=_TWO)}\n")
    truth.make(chosen.folder, chosen.base, world=truth.VERDICT)
    for retain in (True, False):
        verdicts = check_verdicts(chosen.folder, by, retain=retain)
        print(f"\n{'with' if retain else 'without'} the retain model:\n\n{verdicts.to_string()}\n")
        decided = verdicts[verdicts.decided]
        print(f"{len(decided)} of {len(verdicts)} decided, {int(np.sum(decided.wrong))} wrong")


def _print_means(found: Calibration) -> None:
    means = {name: {row.model: row.reading.mean for row in rows} for name, rows in found.rows.items()}
    print(pd.DataFrame(means).T.to_string(float_format=_TWO))


if __name__ == "__main__":
    main()
