"""What a family is: where one architecture keeps what the points name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from krs.errors import KrsError


@dataclass(frozen=True)
class OneOf:
    """Where a role is in architectures whose layers differ: a layer has the first of these that it has all modules of.

    >>> OneOf("mlp.down_proj", "mlp.shared_expert.down_proj").alternatives
    (('mlp.down_proj',), ('mlp.shared_expert.down_proj',))

    Args:
        alternatives: a path each, or several.
    """

    alternatives: tuple[tuple[str, ...], ...]

    def __init__(self, *alternatives: str | tuple[str, ...]) -> None:
        object.__setattr__(self, "alternatives", tuple((a,) if isinstance(a, str) else a for a in alternatives))


@dataclass(frozen=True)
class Family:
    """Where one architecture keeps what the points name.

    Attributes:
        name: what to call it in messages.
        model_types: the values of `config.model_type` that it covers.
        layers: path of the list of decoder layers.
        roles: for each role, the path (or paths) of the module inside a layer. The built-in points use
            `"mlp_out_proj"` (its input are the MLP coefficients, its weight the value vectors) and `"attn_out_proj"`
            (its output is the attention output). `"mlp_in"` (the keys: gate and up projection, or the one there is) and
            `"attn_in"` (queries, keys and values, or the one projection that they share), in mixtures of experts
            `"experts"` and `"router"`, say which component a weight counts as. More roles may be added for more points.
            Where layers differ (dense ones, then mixtures of experts), `OneOf` lists alternatives.
        final_norm: path of the norm before the head.
        absent: for a role that the architecture does not have, or not in every layer, the reason, as an error message
            tells it.
        mixers: paths, inside a layer, of what mixes its tokens where that is no softmax attention: linear attention,
            state spaces, convolutions. A layer that has one has no attention heads.

    Example
    -------
    >>> Family("mine", ("my_type",), layers="model.layers",
    ...        roles={"mlp_out_proj": "mlp.down_proj", "attn_out_proj": "self_attn.o_proj"},
    ...        final_norm="model.norm").layers
    'model.layers'
    """

    name: str
    model_types: tuple[str, ...]
    layers: str
    roles: Mapping[str, str | tuple[str, ...] | OneOf]
    final_norm: str
    absent: Mapping[str, str] = field(default_factory=dict)
    mixers: tuple[str, ...] = ()

    @property
    def decoder(self) -> str:
        """Path of the module that owns the layers and is called once a forward."""
        return self.layers.rpartition(".")[0]

    def paths(self, role: str) -> tuple[str, ...]:
        """The paths of a role inside a layer, of all alternatives; raises `KrsError` when the family has none."""
        return tuple(path for paths in self.alternatives(role) for path in paths)

    def alternatives(self, role: str) -> tuple[tuple[str, ...], ...]:
        """The paths of a role inside a layer, for each kind of layer; raises `KrsError` when the family has none."""
        if role not in self.roles and role in self.absent:
            raise KrsError(f"{self.name} models have no {role}: {self.absent[role]}")
        if role not in self.roles and role.startswith("moe_"):
            raise KrsError(
                f"{self.name} models are no mixtures of experts: leave the points of experts and routers out"
            )
        if role not in self.roles:
            raise KrsError(
                f"the family {self.name!r} does not say where {role!r} is: "
                "register it again with that role (krs.hooks.register_family(…, replace=True))"
            )
        path = self.roles[role]
        if isinstance(path, OneOf):
            return path.alternatives
        return ((path,) if isinstance(path, str) else tuple(path),)
