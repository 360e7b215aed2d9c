"""Families by model type: a registry that users can add to.

A family is found by the model's `config.model_type`. Paths are matched exactly, never by substring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from krs.errors import KrsError
from krs.hooks.architectures import BUILT_IN
from krs.hooks.family import Family
from krs.registry import Registry, caller

Params = ParamSpec("Params")
Result = TypeVar("Result")


def _take(name: str, family: Any) -> None:
    """What an entry point of the group `krs.families` names; one that is no module is a family."""
    if not isinstance(family, Family):
        raise KrsError(f"the entry point {name!r} (krs.families) names {type(family).__name__}, which is no family")
    _register(family, f"entry point {name}")


BY_TYPE: Registry[Family] = Registry(
    "model type", "krs.families", take=_take, taken="pass replace=True to take its place"
)
"""Families by `config.model_type`."""


def register_family(family: Family, *, replace: bool = False) -> Family:
    """Teach krs an architecture, for this process.

    Check it with `krs.hooks.self_check(model)` afterwards: it tells whether the points fire, whether
    putting a value back onto itself changes nothing, and whether changing a value changes the logits.

    A notebook's cell that registers one may be run again, changed. Raises `KrsError` when one of its model types is
    known already and `replace` is false.
    """
    return _register(family, caller(), replace)


def _register(family: Family, module: str, replace: bool = False) -> Family:
    for registry in (BY_TYPE.copy(), BY_TYPE):  # none of its types is registered unless all can be
        for model_type in family.model_types:
            registry.add(model_type, family, module, replace=replace)
    return family


_OF_CALL: ContextVar[Family | None] = ContextVar("krs_family", default=None)


@contextmanager
def family_for(family: Family | str | None) -> Iterator[None]:
    """Inside, every model is of this family, by itself or as a model type that it covers; `None` changes nothing."""
    if family is None:
        yield
        return
    token = _OF_CALL.set(family if isinstance(family, Family) else family_of(family))
    try:
        yield
    finally:
        _OF_CALL.reset(token)


def with_family(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """A function whose argument `family` says of which family the models of a call are."""

    @wraps(function)
    def call(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        with family_for(kwargs.get("family")):  # type: ignore[arg-type]
            return function(*args, **kwargs)

    return call


def family_of(model_type: str | None) -> Family:
    """The family that covers a `config.model_type`; raises `KrsError` with the remedy when none does.

    Inside `family_for` it is that family, whatever the type.
    """
    if (given := _OF_CALL.get()) is not None:
        return given
    if model_type is not None and model_type in BY_TYPE:
        return BY_TYPE[model_type]
    raise KrsError(
        f"unknown model family {model_type!r}: krs does not know where its MLP and attention projections "
        f"are. Where it is laid out as a known type, name that one (family='llama'); else describe it with "
        f"krs.hooks.register_family(krs.hooks.Family(…)). Known: {', '.join(known_types())}"
    )


def known_types() -> list[str]:
    """All model types that a registered family covers, sorted."""
    return BY_TYPE.names()


for _family in BUILT_IN:
    _register(_family, __name__)


def layout(family: Family) -> dict[str, Any] | None:
    """Where a family that somebody else has described keeps what the points name; `None` for one of krs's own.

    >>> layout(family_of("llama")) is None
    True
    """
    if family in BUILT_IN:
        return None
    roles = {role: family.alternatives(role) for role in family.roles}
    return {"layers": family.layers, "roles": roles, "final_norm": family.final_norm, "mixers": family.mixers}
