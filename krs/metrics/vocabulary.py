"""Value vectors as distributions over tokens (Geva et al., 2021 and 2022), before unlearning and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from krs._typing import DataFrame, Tokenizer
from krs.data.concepts import Concept
from krs.errors import KrsError
from krs.hooks.anatomy import Anatomy
from krs.hooks.context import plain_numerics
from krs.hooks.ends import read_point
from krs.hooks.finite import REMEDY
from krs.hooks.library import UNEMBEDDING, VALUE_VECTORS
from krs.hooks.offload import materialised
from krs.hooks.points import Point
from krs.metrics.vocabulary_result import ValueTokens
from krs.models.devices import summable
from krs.models.given import Model, load_given
from krs.models.lineage import check_roles
from krs.models.pair import Vocabulary, check_pair, one_model, shared_rows
from krs.models.provenance import describe_model, now, versions
from krs.models.tokenizers import as_tokenizer, find_tokenizer
from krs.prompts import decode

Where: TypeAlias = Literal["moved"] | Concept | Sequence[tuple[int, int] | Concept]
_SIDES = ("vanilla", "unlearned")
_WIDE = 2**22
"""So many weights are widened to float64 at once."""


class _Place(NamedTuple):
    layer: int
    unit: int
    concept: str = ""


@plain_numerics()
def vocabulary(
    vanilla: Model,
    unlearned: Model | None = None,
    where: Where = "moved",
    *,
    count: int = 10,
    top: int = 10,
    norm: bool = False,
    tokenizer: Tokenizer | str | Path | None = None,
    vocabulary: Vocabulary = "same",
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
) -> ValueTokens:
    """Read value vectors as tokens: `v @ U`, the logits that a vector adds for each unit of its coefficient.

    >>> import krs
    >>> vanilla, _ = krs.load("smollm2")
    >>> unlearned, _ = krs.load("smollm2")       # stands in for one that was unlearned: one vector is turned around
    >>> _ = unlearned.model.layers[20].mlp.down_proj.weight.data[:, 7].mul_(-1)
    >>> found = krs.metrics.vocabulary(vanilla, unlearned, count=3)
    >>> found.table(1)[["layer", "unit", "relative_change", "kept"]].values.tolist()
    [[20.0, 7.0, 2.0, 0.0]]

    A vector goes straight through the model's own unembedding, as in Geva et al. (2022) and in the project that the
    paper's `Layer` and `Dim` come from: no norm, no bias, no scale or soft cap of the logits, and no norm that
    post-norm families put behind their MLP. With `norm` the model's final norm is applied first, as if the vector were
    all that the head reads. Products are float64, so that the order of tokens is that of the weights.

    Args:
        vanilla: as in `krs.sweep`.
        unlearned: the same; without it only the vanilla model's tokens are read.
        where: `"moved"`: the `count` value vectors whose relative change is largest, of those that changed at all; a
            list of `(layer, unit)`; a `krs.data.Concept` that has `layer` and `unit` (the paper's `Dim`), or a list.
        count: how many with `"moved"`.
        top: so many tokens of each vector.
        norm: apply the final norm before the head.
        tokenizer: or the name of a model that has it; looked for beside the models' checkpoints if not given.
        vocabulary: as in `krs.sweep`; with `"shared"`, tokens are those of both models.
        device: where models given by name go, as in `krs.sweep`; `dtype` and `device_map` likewise.
        dtype: see `device`.
        device_map: see `device`.

    Weights are what the modules apply: adapters count as merging would give them, packed (quantised) weights as what
    they are unpacked to. Offloaded ones are read a layer at a time.

    Raises `KrsError` for a pair that does not belong together, places that are not there, layers without value vectors
    (mixtures of experts), models of which no value vector differs, weights that are no one linear map, and NaN or
    infinity.
    """
    named = None if isinstance(where, str) and where == "moved" else _named(where)
    _check_numbers(named, unlearned, count=count, top=top)
    reader = as_tokenizer(tokenizer)
    given = {"vanilla": vanilla} | ({} if unlearned is None else {"unlearned": unlearned})
    models = load_given(given, device=device, dtype=dtype, device_map=device_map)
    if unlearned is None:
        bodies: tuple[Anatomy, ...] = (one_model(models[0][0], "vanilla"),)
    else:
        bodies = check_pair(models[0][0], models[1][0], vocabulary)
    readers = [beside or find_tokenizer(body.model) for (_, beside), body in zip(models, bodies, strict=True)]
    reader = reader or next((found for found in readers if found is not None), None)
    if reader is None:
        raise KrsError(
            "no tokenizer was found beside the models: pass tokenizer=, one that is loaded or the name of a model that "
            "has it"
        )
    notes = check_roles(bodies[0].model, bodies[1].model) if len(bodies) > 1 else []
    n_rows = shared_rows(bodies[0].model, bodies[-1].model)
    if top > n_rows:
        raise KrsError(f"top={top}: the vocabulary has {n_rows} tokens: ask for at most so many")
    places = _moved(bodies, count) if named is None else named
    vectors = [_vectors(body, side, places) for body, side in zip(bodies, _SIDES, strict=False)]
    scores = [
        _scores(body, side, rows, norm, n_rows) for body, side, rows in zip(bodies, _SIDES, vectors, strict=False)
    ]
    if len(bodies) > 1 and not _one_head(bodies):
        notes = [*notes, "the unembeddings differ too: tokens after unlearning are read by the unlearned model's own"]
    provenance: dict[str, Any] = {
        side: describe_model(one, body.model) for (side, one), body in zip(given.items(), bodies, strict=True)
    }
    provenance |= {"where": "moved" if named is None else "named", "norm": norm, "top": top, "notes": notes}
    provenance |= {"versions": versions(), "made": now()}
    return ValueTokens(_distances(places, vectors, scores, top), _tokens(scores, top, reader), provenance)


def _named(where: Any) -> list[_Place]:
    """Places that a caller names: layer and unit, or what a concept says of them."""
    if isinstance(where, str):
        raise KrsError(f"where={where!r}: give 'moved', (layer, unit) pairs or concepts in a list, or a concept")
    found = []
    for one in [where] if isinstance(where, Concept) else list(where):
        if isinstance(one, Concept):
            if one.layer is None or one.unit is None:
                raise KrsError(
                    f"the concept {one.name!r} does not say which value vector carries it: give a concept with layer "
                    "and unit (Layer and Dim of the paper's files), or where=[(layer, unit)]"
                )
            found.append(_Place(one.layer, one.unit, one.name))
        elif isinstance(one, Sequence) and len(one) == 2 and all(type(n) is int and n >= 0 for n in one):
            found.append(_Place(*one))
        else:
            raise KrsError(f"{one!r} in where= is no value vector: give (layer, unit), two numbers from 0 on")
    if not found:
        raise KrsError("where= names no value vector: give at least one (layer, unit), or 'moved'")
    return found


def _check_numbers(named: list[_Place] | None, unlearned: object, **numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise KrsError(f"{name}={value}: ask for at least one")
    if named is None and unlearned is None:
        raise KrsError(
            "which value vectors moved is known of two models: pass the unlearned one too, or where=[(layer, unit)]"
        )


@contextmanager
def _weight(body: Anatomy, point: Point, layer: int | None) -> Iterator[Tensor]:
    """A weight as `[in, out]`; one that is offloaded is in memory inside the block, and no longer."""
    (module,) = body.modules(point, layer)
    with materialised(module):
        yield read_point(point, module, body.path(point, layer)).detach()


def _moved(bodies: Sequence[Anatomy], count: int) -> list[_Place]:
    """The value vectors that moved most, relative to their length; those of layers that have some."""
    having = [layer for layer in range(bodies[0].n_layers) if bodies[0].has_role("mlp_out_proj", layer)]
    if not having:
        bodies[0].role_paths("mlp_out_proj", 0)  # says why
    found: list[tuple[float, int, int]] = []
    for layer in having:
        with ExitStack() as stack:
            both = [stack.enter_context(_weight(body, VALUE_VECTORS, layer)) for body in bodies]
            for side, body, rows in zip(_SIDES, bodies, both, strict=True):
                _require_finite(rows, side, body.path(VALUE_VECTORS, layer))
            change = _relative_changes(*both)
        found += [(float(change[unit]), layer, unit) for unit in change.nonzero()[:, 0].tolist()]
    if not found:
        raise KrsError(
            "no value vector differs between the two models, so none has moved: look at krs.metrics.drift for what "
            "has, or name some, where=[(layer, unit)]"
        )
    found.sort(key=lambda moved: (-moved[0], *moved[1:]))
    return [_Place(layer, unit) for _, layer, unit in found[:count]]


def _relative_changes(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Norm of each row's change over its norm before, float64 on the host; infinite where only the latter is 0."""
    rows = max(1, _WIDE // before.shape[1])
    found = []
    for x, y in zip(before.split(rows), after.to(before.device).split(rows), strict=True):
        wide = summable(x).double()
        change = (summable(y).double() - wide).norm(dim=1)
        found.append(torch.where(change == 0, change, change / wide.norm(dim=1)).cpu())
    return torch.cat(found)


def _vectors(body: Anatomy, side: str, places: Sequence[_Place]) -> Float[Tensor, "vector d"]:
    """The value vectors of these places, float64 on the host; each layer is read once."""
    found: dict[tuple[int, int], Tensor] = {}
    for layer in dict.fromkeys(place.layer for place in places):
        with _weight(body, VALUE_VECTORS, layer) as rows:
            for unit in (place.unit for place in places if place.layer == layer):
                if unit >= len(rows):
                    raise KrsError(
                        f"there is no value vector {unit} at layer {layer}: it has {len(rows)}, 0 to {len(rows) - 1}"
                    )
                _require_finite(rows[unit], side, body.path(VALUE_VECTORS, layer))
                found[layer, unit] = rows[unit].cpu().double()
    return torch.stack([found[place.layer, place.unit] for place in places])


@torch.no_grad()
def _scores(
    body: Anatomy, side: str, vectors: Float[Tensor, "vector d"], norm: bool, n_rows: int
) -> Float[Tensor, "vector vocab"]:
    """What each vector adds to the logits, float64 on the host."""
    vectors = _normed(body, vectors) if norm else vectors
    found = []
    with _weight(body, UNEMBEDDING, None) as whole:
        weight = whole[:, :n_rows]
        if weight.shape[0] != vectors.shape[1]:
            raise KrsError(
                f"value vectors of this {type(body.model).__name__} have {vectors.shape[1]} entries and its head takes "
                f"{weight.shape[0]}, with a projection between: they are no distributions over tokens"
            )
        for part in weight.split(max(1, _WIDE // weight.shape[0]), dim=1):
            wide = summable(part).double()
            found.append((vectors.to(wide.device) @ wide).cpu())
    scores = torch.cat(found, dim=1)
    _require_finite(scores, side, body.path(UNEMBEDDING, None))
    return scores


def _normed(body: Anatomy, vectors: Float[Tensor, "vector d"]) -> Float[Tensor, "vector d"]:
    """What the model's final norm makes of vectors, in the model's dtype; float64 on the host."""
    norm = body.model.get_submodule(body.family.final_norm)
    dtype = next(p.dtype for p in body.model.parameters() if p.is_floating_point())
    with materialised(norm):
        at = next((p.device for p in norm.parameters()), torch.device("cpu"))
        normed: Tensor = norm(vectors.to(at, dtype))
    return normed.cpu().double()


def _require_finite(values: Tensor, side: str, name: str) -> None:
    if not torch.isfinite(values).all():
        raise KrsError(
            f"{side} is broken: its weight {name!r} has values that are NaN or infinite, so it writes no tokens. "
            f"{REMEDY}"
        )


def _one_head(bodies: Sequence[Anatomy]) -> bool:
    with ExitStack() as stack:
        heads = [stack.enter_context(_weight(body, UNEMBEDDING, None)) for body in bodies]
        n = min(head.shape[1] for head in heads)
        return torch.equal(heads[0][:, :n], heads[1][:, :n].to(heads[0].device))


def _distances(places: Sequence[_Place], vectors: list[Tensor], scores: list[Tensor], top: int) -> DataFrame:
    import pandas as pd

    frame = pd.DataFrame({name: [getattr(p, name) for p in places] for name in ("concept", "layer", "unit")})
    if len(vectors) == 1:
        return frame.assign(**dict.fromkeys(("relative_change", "cosine", "kept", "tv"), float("nan")))
    a, b = vectors
    p, q = (torch.softmax(of, dim=1) for of in scores)
    first = [_first(of, top) for of in scores]
    kept = [len(set(x) & set(y)) / top for x, y in zip(*(f.tolist() for f in first), strict=True)]
    return frame.assign(
        relative_change=_relative_changes(a, b).numpy(),
        cosine=((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).numpy(),
        kept=kept,
        tv=((p - q).abs().sum(1) / 2).numpy(),
    )


def _first(scores: Float[Tensor, "vector vocab"], top: int) -> Tensor:
    """The ids of the largest scores; of equal ones the smaller id goes first."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :top]


def _tokens(scores: list[Tensor], top: int, reader: Tokenizer) -> DataFrame:
    import pandas as pd

    rows = []
    for vector in range(len(scores[0])):
        for side, of in zip(_SIDES, scores, strict=False):
            shares = torch.softmax(of[vector], dim=0)
            for rank, token in enumerate(_first(of[vector : vector + 1], top)[0].tolist(), 1):
                rows.append(
                    {
                        "vector": vector,
                        "side": side,
                        "rank": rank,
                        "token_id": token,
                        "token": decode([token], reader),
                        "score": float(of[vector, token]),
                        "probability": float(shares[token]),
                    }
                )
    return pd.DataFrame(rows)
