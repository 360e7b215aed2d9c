"""How much memory is free: on a device, or on this machine within the limits that its process has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_memory(device: torch.device) -> int:
    """Bytes that a process can still get on a device; of an accelerator that does not say, what the host has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "xpu":
        return int(torch.xpu.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return host_memory()


def host_memory(cgroups: Path = _CGROUPS, own: Path = _OWN) -> int:
    """Bytes that a process can still get on this machine.

    What the system calls available (free pages, and those it would take back from its caches), and no more than the
    control groups of the process leave (containers, Slurm jobs); their own cached files count as free too.
    """
    import psutil

    return max(0, min([int(psutil.virtual_memory().available), *_left_in_cgroups(cgroups, own)]))


def _left_in_cgroups(root: Path, own: Path) -> Iterator[int]:
    """What each control group above the process leaves it: version 2 in one tree, version 1 in one of its own."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tree, names = root, _V2
        elif "memory" in controllers.split(","):
            tree, names = root / "memory", _V1
        else:
            continue
        inside = tree / path.strip("/")
        for folder in (inside, *inside.parents):  # in a container the outer path is not there, but its own group is
            if (left := _left(folder, *names)) is not None:
                yield left
            if folder == tree:
                break


def _left(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    """What one control group leaves; `None` where it has no limit."""
    try:
        most = (folder / limit).read_text(encoding="utf-8").strip()
        used = int((folder / usage).read_text(encoding="utf-8"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return None
    return None if most == "max" else int(most) - used + int(stat.get(cached, 0))
