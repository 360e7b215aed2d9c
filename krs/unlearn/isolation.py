"""A run and its caller do not act on each other: gradient modes, autocast, default dtype and device, random numbers."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

_ONE_RUN = threading.RLock()
_DETERMINISM = {
    *("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"),
    *("ASCEND_LAUNCH_BLOCKING", "HCCL_DETERMINISTIC"),
}


@contextmanager
def isolated() -> Iterator[None]:
    """Inside: gradients on, no autocast, fp32 as the default dtype, the CPU as the default device; one run at a time.

    Afterwards everything is as it was, the state of the random numbers too, which training seeds. Runs of several
    threads wait for each other, for random numbers and the default dtype belong to the whole process.

    Mixed precision that is asked for with `trainer={"bf16": True}` is switched on inside, by the trainer.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    with ExitStack() as stack:
        stack.enter_context(_ONE_RUN)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {"cpu", "cpu" if accelerator is None else accelerator.type}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        stack.enter_context(random_numbers_kept())
        stack.enter_context(_switches_kept())
        yield


@contextmanager
def _switches_kept() -> Iterator[None]:
    """Afterwards the switches that `trainer={"full_determinism": True}` sets in the process are as they were."""
    cudnn, environment = torch.backends.cudnn, dict(os.environ)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    kept = cudnn.deterministic, cudnn.benchmark
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = kept
        for name in _DETERMINISM & os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update({name: environment[name] for name in _DETERMINISM & environment.keys()})


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Afterwards the state of the random numbers is what it was, whatever was drawn inside."""
    with ExitStack() as stack:
        used = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        stack.enter_context(torch.random.fork_rng(devices=used))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        yield
