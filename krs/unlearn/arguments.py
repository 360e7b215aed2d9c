"""The trainer's arguments, with which it trains where the vanilla model is."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from accelerate.utils import DistributedType
from transformers import TrainingArguments


class Arguments(TrainingArguments):
    """`transformers.TrainingArguments` of a run on one device, which is the vanilla model's.

    By themselves they take the first GPU whatever device the model is on, and of several GPUs all: `DataParallel`,
    with a batch as many times as large as the settings say.

    Args:
        place: where the vanilla model is.
        options: as `TrainingArguments` takes them.
    """

    def __init__(self, place: torch.device, **options: Any) -> None:
        self.place = place
        super().__init__(use_cpu=place.type == "cpu", **options)

    @cached_property
    def _setup_devices(self) -> torch.device:
        found: torch.device = TrainingArguments._setup_devices.func(self)  # type: ignore[attr-defined]
        state = self.distributed_state
        if state is None or state.distributed_type != DistributedType.NO:
            return found  # each process has a device of its own
        state.device = self.place
        self._n_gpu = 0 if state.device.type == "cpu" else 1
        return state.device
