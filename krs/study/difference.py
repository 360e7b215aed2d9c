"""An unlearned model as its difference to the vanilla one: exact to the bit, and smaller.

Of each tensor the bytes of both models are combined by exclusive or, which undoes itself. What training moves little
keeps sign, exponent and high bits, so most of that is zero; it is put in order by the place of the byte in its number
and compressed. Tensors that are the same in both take no room.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krs.writing import replacing

NAME = "difference.safetensors"
_ABOUT = "krs_difference"


def take(vanilla: Path, model: Path) -> None:
    """Write `model`'s difference to `vanilla` beside its weights, which stay; both are directories of safetensors."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    about: dict[str, Any] = {}
    packed: dict[str, Tensor] = {}
    with ExitStack() as opened:
        base = _opened(vanilla, opened)
        for file in _files(model):
            with safe_open(file, framework="pt") as ours:
                told: dict[str, Any] = {}
                for name in ours.keys():  # noqa: SIM118 - not a mapping
                    mine = ours.get_tensor(name)
                    theirs = base[name].get_tensor(name) if name in base else None
                    alike = theirs is not None and theirs.shape == mine.shape and theirs.dtype == mine.dtype
                    changed = _bytes(mine) ^ _bytes(theirs) if alike and theirs is not None else _bytes(mine)
                    form = "whole" if not alike else "changed" if changed.any() else "same"
                    told[name] = {"form": form, "dtype": str(mine.dtype).removeprefix("torch."), "shape": mine.shape}
                    if form != "same":
                        packed[name] = _packed(changed, mine.element_size())
                about[file.name] = {"metadata": ours.metadata(), "tensors": told}
    with replacing(model / NAME) as unfinished:
        save_file(packed, unfinished, metadata={_ABOUT: json.dumps(about)})


def expand(vanilla: Path, model: Path) -> bool:
    """Write the weights again, from `vanilla` and the difference; `False` if that is not of this vanilla model."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with ExitStack() as opened:
        base = _opened(vanilla, opened)
        kept = opened.enter_context(safe_open(model / NAME, framework="pt"))
        for file, about in json.loads(kept.metadata()[_ABOUT]).items():
            whole: dict[str, Tensor] = {}
            for name, told in about["tensors"].items():
                dtype = getattr(torch, told["dtype"])
                if told["form"] != "whole" and name not in base:
                    return False
                if told["form"] == "same":
                    whole[name] = base[name].get_tensor(name)
                    continue
                found = _unpacked(kept.get_tensor(name), dtype.itemsize)
                if told["form"] == "changed":
                    theirs = _bytes(base[name].get_tensor(name))
                    if len(theirs) != len(found):
                        return False
                    found = found ^ theirs
                whole[name] = torch.from_numpy(found).view(dtype).reshape(told["shape"])
            with replacing(model / file) as unfinished:
                save_file(whole, unfinished, metadata=about["metadata"])
    return True


def _opened(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """By name of a tensor, the open file that has it."""
    from safetensors import safe_open

    files = [stack.enter_context(safe_open(file, framework="pt")) for file in _files(folder)]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118 - not a mapping


def _files(folder: Path) -> Iterator[Path]:
    return (f for f in sorted(folder.glob("*.safetensors")) if f.name != NAME and not f.name.startswith(".krs-"))


def _bytes(value: Tensor) -> np.ndarray:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy()


def _packed(flat: np.ndarray, width: int) -> Tensor:
    by_place = np.ascontiguousarray(flat.reshape(-1, width).T)
    return torch.frombuffer(bytearray(zlib.compress(by_place.tobytes(), 1)), dtype=torch.uint8)


def _unpacked(packed: Tensor, width: int) -> np.ndarray:
    by_place = np.frombuffer(zlib.decompress(packed.numpy().tobytes()), dtype=np.uint8)
    return np.ascontiguousarray(by_place.reshape(width, -1).T).reshape(-1)
