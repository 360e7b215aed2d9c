"""`krs doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer

from krs.cli.shell import app
from krs.extras import installed, missing

_CORE = ("krs", "torch", "transformers", "safetensors", "numpy", "pandas")
_EXTRAS = {
    "unlearn": ("accelerate", "peft"),
    "plot": ("matplotlib",),
    "report": ("vl_convert",),
    "lens": ("transformer_lens",),
    "xarray": ("xarray",),
    "data": ("datasets", "pyarrow"),
    "study": ("accelerate", "peft", "pydantic", "yaml"),
    "cluster": ("ray",),
}
"""By extra, what is imported of it."""
_DISTRIBUTIONS = {"yaml": "pyyaml", "transformer_lens": "transformer-lens", "vl_convert": "vl-convert-python"}

_CLOSE = {"float64": 1e-9, "float32": 1e-3}
"""How far apart the engines' scores may be; the random model's baseline is small."""


@app.command()
def doctor() -> None:
    """Say what is installed, which devices there are, where caches lie, and whether a sweep of a tiny model is exact.

    Ends with 1 where the two engines do not agree.
    """
    for line in (*_versions(), *_extras(), *_devices(), *_places()):
        print(line)
    agree = True
    for line, fine in _self_test():
        print(line)
        agree = agree and fine
    if not agree:
        raise typer.Exit(1)


def _versions() -> Iterator[str]:
    yield f"python {platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in _CORE:
        yield f"{name} {version(name)}"


def _extras() -> Iterator[str]:
    for extra, libraries in _EXTRAS.items():
        lacking = [library for library in libraries if not installed(library)]
        if lacking:
            yield f"extra {extra}: not installed; {missing(lacking[0], extra, 'it')}"
        else:
            yield f"extra {extra}: {', '.join(map(_with_version, libraries))}"


def _with_version(library: str) -> str:
    distribution = _DISTRIBUTIONS.get(library, library)
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return library


def _devices() -> Iterator[str]:
    import psutil
    import torch

    free, whole = (n / 2**30 for n in (psutil.virtual_memory().available, psutil.virtual_memory().total))
    yield f"cpu: {torch.get_num_threads()} threads of torch, {free:.1f} of {whole:.1f} GiB of memory free"
    for n in range(torch.cuda.device_count()):
        free, whole = (size / 2**30 for size in torch.cuda.mem_get_info(n))
        yield f"cuda:{n}: {torch.cuda.get_device_name(n)}, {free:.1f} of {whole:.1f} GiB free"
    if not torch.cuda.is_available():
        yield f"cuda: none (torch is built {f'for {torch.version.cuda}' if torch.version.cuda else 'without it'})"
    for name, there in (("xpu", torch.xpu.is_available()), ("mps", torch.backends.mps.is_available())):
        if there:
            yield f"{name}: there"


def _places() -> Iterator[str]:
    from huggingface_hub import constants

    from krs.models.cache import cache_root

    for what, place in (("krs's cache", cache_root()), ("the hub's cache", Path(constants.HF_HUB_CACHE))):
        size = f"{_size(place) / 1e9:.2f} GB in it" if place.is_dir() else "not there yet"
        yield f"{what}: {place} ({size}, {_free(place) / 1e9:.1f} GB free on its disk)"
    here = Path.cwd()
    writable = "" if os.access(here, os.W_OK) else ", cannot be written to"
    yield f"this directory: {_free(here) / 1e9:.1f} GB free on its disk{writable}"


def _free(place: Path) -> int:
    there = next(folder for folder in (place, *place.parents) if folder.is_dir())
    return shutil.disk_usage(there).free


def _size(place: Path) -> int:
    """Bytes in a folder, links aside."""
    return sum((Path(root) / name).lstat().st_size for root, _, names in os.walk(place) for name in names)


def _self_test() -> Iterator[tuple[str, bool]]:
    """Both engines on a random model, on the CPU in float64 and on the GPU if there is one."""
    import torch

    from krs.models.devices import has_float64, pick_device

    for device in dict.fromkeys((torch.device("cpu"), pick_device("auto"))):
        dtype = "float64" if has_float64(device) else "float32"
        started = time.monotonic()
        apart = _apart(device, getattr(torch, dtype))
        fine = apart <= _CLOSE[dtype]
        yield (
            f"self-test on {device} in {dtype}: {'fine' if fine else 'FAILED'}, scores of the two engines differ by "
            f"{apart:.1g} at most ({time.monotonic() - started:.1f} s)",
            fine,
        )


def _apart(device: Any, dtype: Any) -> float:
    """The largest difference between the scores of the wavefront and those of the plain engine."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import krs

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    config = LlamaConfig(**sizes, vocab_size=61, num_hidden_layers=4, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vanilla, unlearned = (LlamaForCausalLM(config).to(device, dtype).eval() for _ in range(2))
    scores = [
        krs.sweep(
            vanilla,
            unlearned,
            [[5, 9, 11], [7, 3, 22, 8]],
            answers=[[12, 30, 4], [9, 9, 2]],
            windows=krs.windows.centred(3),
            engine=engine,
            progress=False,
        ).krs.to_numpy()
        for engine in ("wavefront", "plain")
    ]
    return float(abs(scores[0] - scores[1]).max())
