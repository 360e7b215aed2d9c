"""Looking at the model while it trains, with whatever the caller looks with, and stopping at what is seen."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import ge, gt, le, lt
from typing import Any, TypeAlias

from torch import nn
from transformers import TrainerCallback, TrainingArguments

from krs.errors import KrsError
from krs.unlearn.callbacks import in_any_process
from krs.unlearn.isolation import random_numbers_kept
from krs.wording import kind

Watch: TypeAlias = Callable[[nn.Module, int], Mapping[str, float]]
"""Called with the model in training (in eval mode, not to be changed) and the steps taken; returns numbers by name.

It is called before the first step and after each; what it returns nothing for is not looked at.
"""

_SIGNS: dict[str, Callable[[float, float], bool]] = {">=": ge, "<=": le, ">": gt, "<": lt}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_COMPARISON = re.compile(rf"\s*([A-Za-z_][\w.-]*)\s*(>=|<=|>|<)\s*({_NUMBER})\s*")


@dataclass(frozen=True)
class Condition:
    """When to stop: comparisons that have to hold together.

    Attributes:
        parts: name, sign and number of each.
    """

    parts: tuple[tuple[str, str, float], ...]

    def __str__(self) -> str:
        return " and ".join(f"{name} {sign} {number:g}" for name, sign, number in self.parts)

    def unknown(self, found: Mapping[str, float]) -> list[str]:
        """Names that there is no number for."""
        return [name for name, _, _ in self.parts if name not in found]

    def reached(self, found: Mapping[str, float]) -> str | None:
        """What holds, in words; `None` unless all of it does."""
        if not all(_SIGNS[sign](found[name], number) for name, sign, number in self.parts):
            return None
        return " and ".join(f"{name} {found[name]:.3f} {sign} {number:g}" for name, sign, number in self.parts)


def condition(text: str) -> Condition:
    """`"nll_tail > 1.5"`, or several joined by `and`.

    >>> condition("uds>0.9 and nll_tail >= 1.5").parts
    (('uds', '>', 0.9), ('nll_tail', '>=', 1.5))

    Raises `KrsError` for anything else.
    """
    parts = []
    for part in re.split(r"\band\b", text):
        told = _COMPARISON.fullmatch(part)
        if told is None:
            raise KrsError(f"stop_when={text!r}: give a name, a sign (> >= < <=) and a number, such as 'uds > 0.9'")
        parts.append((told[1], told[2], float(told[3])))
    return Condition(tuple(parts))


class Watching(TrainerCallback):
    """Calls the caller's `watch`, keeps what it says in the log, and stops when the condition holds."""

    def __init__(self, watch: Watch, stop: Condition | None) -> None:
        self.watch, self.stop = watch, stop
        self.reached: str | None = None

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Look before the first step, so that what is wrong with `watch` is known then."""
        if state.global_step == 0:
            self._look(model, state)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Look, and stop where the condition holds."""
        found = self._look(model, state)
        if found and self.stop is not None:
            self.reached = self.stop.reached(found)
        if in_any_process(self.reached is not None, args.device):
            control.should_training_stop = True

    def _look(self, model: nn.Module, state: Any) -> dict[str, float]:
        modes = {module: module.training for module in model.modules()}
        model.eval()
        with random_numbers_kept():
            given = self.watch(model, state.global_step)
        for module, mode in modes.items():
            module.training = mode
        found = _numbers(given)
        if found and self.stop is not None and (unknown := self.stop.unknown(found)):
            raise KrsError(f"stop_when= names {unknown[0]!r}, and watch= returns {', '.join(found)}: name one of these")
        if found:
            state.log_history.append({"step": state.global_step, "watched": found})  # which checkpoints keep
        return found


def _numbers(given: Any) -> dict[str, float]:
    if not isinstance(given, Mapping):
        raise KrsError(f"watch= returned {kind(given)}: it has to return numbers by name, {{}} for none")
    found: dict[str, float] = {}
    for name, value in given.items():
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError):
            raise KrsError(f"watch= returned {value!r} for {name!r}: it has to return numbers by name") from None
    return found


def watched(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a trainer's log, what was seen: a row a look, `step` and the numbers; `None` for one that is no number."""
    rows = [{"step": entry["step"], **entry["watched"]} for entry in log if "watched" in entry]
    return [{name: v if math.isfinite(v) else None for name, v in row.items()} for row in rows]
