"""Ray, for those who hand work to it: connected to, looked at, asked for room, and let go of again."""

from __future__ import annotations

import os
import platform
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from krs.errors import KrsError
from krs.extras import require
from krs.models.provenance import NUMBERS, versions, versions_that_count
from krs.wording import counted

_STORE = 2**28
"""Bytes of a local Ray's object store: what goes through it are plans and numbers, never weights."""
_PATIENCE = 30.0
"""Seconds that interrupted tasks have to write what they have."""


class NoPlaceError(KrsError):
    """A worker cannot take part at all, whatever it is given to do."""


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster has: processors, GPUs, and bytes of memory."""

    cpus: int
    gpus: int
    memory: int


@dataclass(frozen=True)
class Share:
    """What one task gets of a node.

    Attributes:
        cpus: processors, which is how many threads it computes on.
        gpus: whole ones, or a fraction of one.
        memory: bytes that are set aside for it.
        capped: whether it would take more memory than any node has; it then gets all of a node's.
    """

    cpus: int
    gpus: float
    memory: int = 0
    capped: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """As Ray's tasks take it. A task whose worker is lost is tried three times again, one that raises is not."""
        asked: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": 3}
        return asked | ({"memory": self.memory} if self.memory else {})


@dataclass(frozen=True)
class Room:
    """How much each task asks for; what is not given follows from the cluster.

    Attributes:
        cpus: threads a task. With GPUs, a GPU's share of its node's processors; without, as many as torch uses here, so
            that numbers are those of this process.
        gpus: GPUs a task, such as 0.25 for four tasks on one: 1 where the cluster has any.
    """

    cpus: int | None = None
    gpus: float | int | None = None

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise KrsError(f"cpus={self.cpus!r}: a task needs one at least")
        if self.gpus is not None and (self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus))):
            raise KrsError(f"gpus={self.gpus!r}: give a whole number, or a fraction of one GPU")

    def share(self, nodes: Sequence[Node], memory: int | None = 0) -> Share:
        """What a task that needs so much memory asks for; `None` for an unknown amount.

        >>> Room().share([Node(64, 8, 10**12)], 10**10)
        Share(cpus=8, gpus=1.0, memory=10000000000, capped=False)
        >>> Room(cpus=4).share([Node(64, 0, 10**9)], 10**10)
        Share(cpus=4, gpus=0.0, memory=1000000000, capped=True)

        Raises `KrsError` where no node has the GPUs or the processors.
        """
        gpus = float(any(node.gpus for node in nodes)) if self.gpus is None else float(self.gpus)
        able = [node for node in nodes if node.gpus >= gpus]
        cpus = self.cpus or min((self._cpus(node, gpus) for node in able), default=1)
        able = [node for node in able if node.cpus >= cpus]
        if not able:
            most = f"{max((n.cpus for n in nodes), default=0)} and {max((n.gpus for n in nodes), default=0)}"
            raise KrsError(
                f"no node has {counted(cpus, 'CPU')} and {gpus:g} GPUs, which a task asks for (the most are {most}): "
                "ask for less (cpus=, gpus=)"
            )
        there = max(int(node.memory * gpus / node.gpus) if gpus else node.memory for node in able)
        return Share(cpus, gpus, min(memory or 0, there), not gpus and (memory or 0) > there)

    @staticmethod
    def _cpus(node: Node, gpus: float) -> int:
        return max(1, int(node.cpus * gpus / node.gpus)) if gpus else max(1, min(torch.get_num_threads(), node.cpus))


@contextmanager
def connected(address: str | None = None) -> Iterator[list[Node]]:
    """Inside there is Ray: what the caller has begun, a cluster by its address, or one of this machine's own.

    Args:
        address: such as `"auto"` or `"10.0.0.1:6379"`; that of the environment (`RAY_ADDRESS`) if not given, and if
            there is none, Ray is started on this machine and ended again.

    Yields the nodes. Raises `KrsError` without Ray, and for a cluster that does not answer.
    """
    require("ray", "cluster", "work on Ray")
    import ray

    if ray.is_initialized():
        yield _nodes()
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if where == "local":
        options |= {"include_dashboard": False, "object_store_memory": _STORE}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _begin(where, options)
    try:
        yield _nodes()
    finally:
        ray.shutdown()


def _begin(where: str, options: dict[str, Any]) -> None:
    """Ray waits half a minute for what it starts; on a machine that is very busy it is tried again."""
    import ray

    for left in (2, 1, 0) if where == "local" else (0,):
        try:
            with _signals_kept():
                ray.init(address=where, **options)
            return
        except Exception as reason:  # noqa: BLE001 - a plain Exception, where a node takes too long
            ray.shutdown()
            said = str(reason).strip().partition("\n")[0]
            if not left and where == "local":
                raise KrsError(f"Ray does not start on this machine ({said}): try when it is less busy") from None
            if not left:
                raise KrsError(f"no Ray cluster answers at {where!r} ({said}): start one (docs: scale)") from None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts a handler of its own for SIGTERM, which would end the process without a word of what is kept."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _nodes() -> list[Node]:
    import ray

    every = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(r.get("CPU", 0)), int(r.get("GPU", 0)), int(r.get("memory", 0))) for r in every]


def stop(refs: Sequence[Any]) -> None:
    """Interrupt tasks as Ctrl-C would, and end those that have not ended after half a minute."""
    import ray

    if not refs:
        return
    for ref in refs:
        ray.cancel(ref)
    _, late = ray.wait(list(refs), num_returns=len(refs), timeout=_PATIENCE)
    for ref in late:
        ray.cancel(ref, force=True)


def cause_of(reason: Exception) -> Exception:
    """Why a task has no result: what was raised in it, or the loss of its worker; raises a `NoPlaceError` again."""
    cause = getattr(reason, "cause", None)
    if isinstance(cause, NoPlaceError):
        raise NoPlaceError(str(cause)) from None
    if isinstance(cause, Exception):
        return cause
    said = str(reason).strip().partition("\n")[0]
    return KrsError(
        f"its worker was lost again and again ({type(reason).__name__}: {said}): memory is what mostly ends"
    )


def here() -> dict[str, Any]:
    """Under what numbers come about in this process."""
    return {**versions_that_count(versions()), "krs": versions().get("krs"), "numbers": NUMBERS}


def check_here(told: Mapping[str, Any]) -> None:
    """In a worker: raise `KrsError` if numbers come about under other versions than where the work was handed out."""
    ours = here()
    for name in told.keys() | ours.keys():
        if told.get(name) != ours.get(name):
            raise NoPlaceError(
                f"a worker ({platform.node()}) has {name} {ours.get(name)}, and {told.get(name)} is what the work "
                "was handed out with: install the same on every node"
            )
