"""Representation misdirection: the residual stream of forget texts is moved to a random place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from krs.errors import KrsError
from krs.hooks.library import RESID
from krs.unlearn.config import Config, Parameters, in_range
from krs.unlearn.losses import squared_distance
from krs.unlearn.methods import Method, register
from krs.unlearn.sides import Look, Side

_TRAINED = 3
"""So many layers are trained, the last of which is the one that is looked at."""


@dataclass(frozen=True, kw_only=True)
class RMUConfig(Config):
    """Settings of `rmu`.

    Attributes:
        layer: l, behind which the residual stream is looked at; by default a fifth of the way up (`default_layer`).
        layers: what is trained; by default l-2, l-1 and l.
        parameters: what is trained of them; by default the value vectors.
        steering: c, the length of the place that forget texts are moved to. It has to be of the size of the residual
            stream, which differs from model to model: about 100 there in the bundled one.
        retain_weight: α of the retain term.
        seed: also of the random direction u.
    """

    learning_rate: float = 1e-3
    steps: int = 10
    parameters: Parameters = "value_vectors"
    layer: int | None = None
    steering: float = 50.0
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, not_negative=["steering", "retain_weight"])
        if self.layer is not None and self.layer < 0:
            raise KrsError(f"layer={self.layer}: give a layer number from 0")


@register("rmu")
class RMU(Method):
    """`‖h_l(x_f) - c·u‖² + α·‖h_l(x_r) - h_l,vanilla(x_r)‖²`, means over the positions that predict live tokens.

    h_l is the residual stream behind layer l, u a random unit vector (entries uniform in [0, 1), then normed). Li et
    al., 2024 (WMDP), section 4. There the mean is over all tokens of a text; here it leaves out prompts, which forget
    and retain texts may share.
    """

    config_class = RMUConfig
    needs_retain = True
    config: RMUConfig

    def looks(self, n_layers: int) -> Sequence[Look]:
        """The residual stream behind layer l on both sides, and the vanilla one on the retain side."""
        place = RESID.at(self._layer(n_layers))
        return Look("forget", place), Look("retain", place), Look("retain", place, of="vanilla")

    def trained_layers(self, n_layers: int) -> Sequence[int] | None:
        """Layers l-2 to l, unless the settings name others or an adapter is trained."""
        if self.config.layers is not None or self.config.parameters == "lora":
            return self.config.layers
        last = self._layer(n_layers)
        return tuple(range(max(0, last + 1 - _TRAINED), last + 1))

    def loss(self, forget: Side, retain: Side | None) -> dict[str, Tensor]:
        """The two terms, `forget` and `retain`."""
        assert retain is not None
        (place,) = forget.activations
        ours = forget.activations[place]
        target = self.config.steering * direction(ours.shape[-1], self.config.seed).to(ours)
        moved = squared_distance(ours, target, forget.labels).sum() / forget.n_tokens
        held = squared_distance(retain.activations[place], retain.ref_activations[place], retain.labels)
        return {"forget": moved, "retain": self.config.retain_weight * held.sum() / retain.n_tokens}

    def _layer(self, n_layers: int) -> int:
        return default_layer(n_layers) if self.config.layer is None else self.config.layer


def default_layer(n_layers: int) -> int:
    """Layer 7 of 32, as in the paper's 7B models, and as far up in others.

    >>> default_layer(32), default_layer(30), default_layer(4)
    (7, 6, 0)
    """
    return 7 * n_layers // 32


def direction(width: int, seed: int) -> Float[Tensor, " width"]:
    """u: a unit vector whose entries are drawn uniformly from [0, 1) and then normed."""
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.norm()
