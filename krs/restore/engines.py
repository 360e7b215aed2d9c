"""Engines by their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from krs.errors import KrsError
from krs.hooks.anatomy import Anatomy
from krs.metrics.measures import Measure
from krs.registry import Registry, module_of
from krs.restore.attribution import EstimateEngine
from krs.restore.job import Engine
from krs.restore.plain import PlainEngine
from krs.restore.plan import Plan
from krs.restore.shards import RayEngine
from krs.restore.wavefront import WavefrontEngine

_AUTO = ("wavefront", "plain")


def _take(name: str, made: Any) -> None:
    """What an entry point of the group `krs.engines` names: an engine, or its class."""
    register_engine(made() if isinstance(made, type) else made)


ENGINES: Registry[Engine] = Registry("engine", "krs.engines", take=_take)


def register_engine(engine: Engine) -> Engine:
    """Make an engine known by its name, for `krs.sweep(engine="…")`.

    A notebook's cell that registers one may be run again, changed. Raises `KrsError` for a name that another engine
    has, and for what is no engine.
    """
    if isinstance(engine, type):
        raise KrsError(f"{engine.__name__} is a class: register an engine, register_engine({engine.__name__}())")
    if not isinstance(engine, Engine):
        raise KrsError(f"{type(engine).__name__} is no engine: it needs a name, exact, run(job) and steps(job)")
    if engine.name == "auto":
        raise KrsError("an engine cannot be called 'auto', which stands for krs's choice: choose another name")
    return ENGINES.add(engine.name, engine, module_of(engine))


register_engine(WavefrontEngine())
register_engine(PlainEngine())
register_engine(EstimateEngine())
register_engine(RayEngine())


def engine_names() -> tuple[str, ...]:
    """Names that `engine=` takes: `auto`, those registered, and those of entry points in the group `krs.engines`."""
    return ("auto", *ENGINES.listed())


def is_engine(name: str) -> bool:
    """Whether `engine_names` has it; entry points, which take milliseconds to look up, only for one not registered."""
    return name in ("auto", *ENGINES) or name in engine_names()


def is_exact(name: str) -> bool:
    """Whether an engine of that name is known, and computes every number rather than estimate some."""
    return is_engine(name) and name != "auto" and find_engine(name).exact


def check_engine(name: str, measures: Sequence[Measure]) -> None:
    """Raise `KrsError` for measures that an engine says it cannot take, if it has a `check(measures)`."""
    check = None if name == "auto" else getattr(find_engine(name), "check", None)
    if check is not None:
        check(measures)


def taken_by(name: str, bodies: tuple[Anatomy, ...]) -> tuple[Anatomy, ...]:
    """The models; raises `KrsError` for those that an engine with a `check_models(bodies)` says it cannot take."""
    check = None if name == "auto" else getattr(find_engine(name), "check_models", None)
    if check is not None:
        check(bodies)
    return bodies


def check_plan(name: str, plan: Plan) -> None:
    """Raise `KrsError` for restorations that an engine says it cannot make, if it has a `check_plan(plan)`."""
    check = None if name == "auto" else getattr(find_engine(name), "check_plan", None)
    if check is not None:
        check(plan)


def find_engine(name: str) -> Engine:
    """An engine by a name that `engine_names` has; one of an entry point is loaded and registered."""
    return ENGINES[name]


def engines_of(name: str) -> tuple[Engine, ...]:
    """What `engine=` names, in the order in which they are tried: for `"auto"`, the fast one and then the plain one."""
    return tuple(map(find_engine, _AUTO if name == "auto" else (name,)))
