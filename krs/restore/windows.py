"""Which layers are restored together: shapes that become windows once the number of layers is known.

>>> from krs import windows
>>> windows.centred(5).over(30)[0]
Window(0: layers 0-2)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from krs.errors import KrsError
from krs.prompts.listed import is_whole, whole
from krs.wording import counted

ENDS = ("embedding", "unembedding", "embedding+unembedding")
"""Names of the windows without layers."""


@dataclass(frozen=True, repr=False)
class Window:
    """Layers that are restored together, or an end of the model, which has none.

    Attributes:
        name: what stands for it on the x axis and in tables: its centre layer, or a label; `"embedding"`,
            `"unembedding"` or `"embedding+unembedding"` at the ends.
        layers: the layer numbers, ascending; empty at the ends.
    """

    name: int | str
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        """Plain ascending numbers, whatever a shape made them of: what is saved is read again."""
        object.__setattr__(self, "name", self.name if isinstance(self.name, str) else whole(self.name, "window"))
        object.__setattr__(self, "layers", tuple(sorted({whole(layer, "layer") for layer in self.layers})))

    @property
    def first(self) -> int | None:
        """The lowest layer; `None` at an end of the model."""
        return self.layers[0] if self.layers else None

    @property
    def last(self) -> int | None:
        """The highest layer; `None` at an end of the model."""
        return self.layers[-1] if self.layers else None

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"Window({self.name}: layers {_label(self.layers)})" if self.layers else f"Window({self.name})"


@dataclass(frozen=True)
class Shape:
    """A way to lay windows over the layers; `over(n_layers)` gives the windows."""

    kind: Literal["centred", "sliding", "from_layer_on", "up_to_layer", "each", "last", "of"]
    size: int = 0
    listed: tuple[tuple[int, ...], ...] = ()

    def over(self, n_layers: int) -> tuple[Window, ...]:  # noqa: PLR0911
        """The windows over layers 0 … n_layers-1. Raises `KrsError` where they do not fit."""
        layers = range(n_layers)
        match self.kind:
            case "centred":
                half = self.size // 2
                return tuple(Window(c, tuple(range(max(c - half, 0), min(c + half, n_layers - 1) + 1))) for c in layers)
            case "sliding":
                if self.size > n_layers:
                    raise KrsError(f"a sliding window of {self.size} does not fit into {counted(n_layers, 'layer')}")
                starts = range(n_layers - self.size + 1)
                return tuple(Window(s + (self.size - 1) // 2, tuple(range(s, s + self.size))) for s in starts)
            case "from_layer_on":
                return tuple(Window(c, tuple(range(c, n_layers))) for c in layers)
            case "up_to_layer":
                return tuple(Window(c, tuple(range(c + 1))) for c in layers)
            case "each":
                return tuple(Window(c, (c,)) for c in layers)
            case "last":
                if self.size > n_layers:
                    raise KrsError(f"there are no last {self.size} layers in a model of {n_layers}")
                return (Window(f"last {self.size}", tuple(layers[-self.size :])),)
            case "of":
                return self._of(n_layers)

    def _of(self, n_layers: int) -> tuple[Window, ...]:
        for window in self.listed:
            if bad := [layer for layer in window if not 0 <= layer < n_layers]:
                raise KrsError(
                    f"layer {bad[0]} in the window {list(window)} is out of range: the model has {n_layers} layers, "
                    f"0 to {n_layers - 1}"
                )
        centres = [window[(len(window) - 1) // 2] for window in self.listed]
        names: list[Any] = centres if len(set(centres)) == len(centres) else [_label(w) for w in self.listed]
        return tuple(Window(name, window) for name, window in zip(names, self.listed, strict=True))


def centred(size: int) -> Shape:
    """One window a layer, `size` layers wide, centred on it and clipped at both ends: the paper's shape (size 5)."""
    size = _positive(size)
    if size % 2 == 0:
        raise KrsError(f"a centred window has an odd size, not {size}: use {size + 1}, or windows.sliding({size})")
    return Shape("centred", size)


def sliding(size: int) -> Shape:
    """Every run of `size` neighbouring layers, never clipped; named by its middle (lower middle) layer."""
    return Shape("sliding", _positive(size))


def from_layer_on() -> Shape:
    """From each layer to the last; named by the first."""
    return Shape("from_layer_on")


def up_to_layer() -> Shape:
    """From layer 0 to each layer; named by the last."""
    return Shape("up_to_layer")


def each() -> Shape:
    """Single layers."""
    return Shape("each")


def last(size: int) -> Shape:
    """The last `size` layers together: the paper's "last two or three layers".

    >>> last(3).over(30)
    (Window(last 3: layers 27-29),)
    """
    return Shape("last", _positive(size))


def of(listed: Iterable[Iterable[int]]) -> Shape:
    """The windows listed, such as `of([[27, 28, 29]])`; named by their middle layers where those differ."""
    found = tuple(tuple(sorted({whole(layer, "layer") for layer in window})) for window in listed)
    if not found or not all(found):
        raise KrsError("windows.of(…) takes a list of lists of layers, none of them empty: of([[27, 28, 29]])")
    if len(set(found)) != len(found):
        raise KrsError("windows.of(…) names the same window twice")
    return Shape("of", listed=found)


def shape(given: int | Shape) -> Shape:
    """A shape; a number is the size of a centred window."""
    if isinstance(given, Shape):
        return given
    if is_whole(given):
        return centred(given)
    raise KrsError(f"windows= takes a size or a shape such as krs.windows.centred(5), not {given!r}")


def _positive(size: int) -> int:
    if whole(size, "size") < 1:
        raise KrsError(f"a window of {counted(size, 'layer')} restores nothing: give at least 1")
    return int(size)


def _label(layers: tuple[int, ...]) -> str:
    if len(layers) > 1 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))
