"""Ground truth: invented facts, and models that know them, never knew them, or know them and decline.

Needs the extra `krs[unlearn]` to make models; the facts need nothing.
"""

from krs.instruments.truth.facts import Fact, Facts, load_facts, split
from krs.instruments.truth.make import Truth, TruthModel, load, make
from krs.instruments.truth.recipes import CALIBRATION, VERDICT, Recipe, World

__all__ = [
    "CALIBRATION",
    "VERDICT",
    "Fact",
    "Facts",
    "Recipe",
    "Truth",
    "TruthModel",
    "World",
    "load",
    "load_facts",
    "make",
    "split",
]
