"""How often each direction of the MLP coefficients is used: their second moment over a corpus, and its cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.hooks.anatomy import Anatomy, anatomy
from krs.hooks.finite import refuse_recorded
from krs.hooks.library import MLP_COEF
from krs.hooks.linear import widths
from krs.models.cache import build_once, cache_root, is_cached
from krs.models.identity import combined, config_that_counts, named_digests
from krs.models.pair import dtype_of
from krs.models.provenance import NUMBERS, versions, versions_that_count
from krs.progress import bar
from krs.prompts import Ids, TokenBatch, check_strings
from krs.unlearn.memit.forward import visit
from krs.unlearn.preflight import check_place
from krs.writing import replacing, write_text

_FORMAT = 2
_MATRIX = "second_moment.safetensors"
_TOKENS_A_FORWARD = 2048


@dataclass(frozen=True, repr=False, eq=False)
class Moment:
    """The uncentred second moment `E[k kᵀ]` of one layer's MLP coefficients.

    Attributes:
        layer: which.
        matrix: with the ridge added.
        tokens: over how many tokens.
        condition: the largest over the smallest eigenvalue of `matrix`.
    """

    layer: int
    matrix: Float64[Tensor, "n n"]
    tokens: int
    condition: float

    @property
    def trace(self) -> float:
        """The mean squared norm of the coefficients."""
        return float(self.matrix.trace())

    def __repr__(self) -> str:
        n = len(self.matrix)
        return f"layer {self.layer}: {n} by {n} over {self.tokens:,} tokens, condition {self.condition:.1e}"


@dataclass(frozen=True, repr=False, eq=False)
class Covariance:
    """Second moments by layer, made by `covariance`: `found[5].matrix`."""

    moments: dict[int, Moment]

    def __getitem__(self, layer: int) -> Moment:
        if layer not in self.moments:
            raise KrsError(f"there is no second moment of layer {layer}: it was computed for {sorted(self.moments)}")
        return self.moments[layer]

    def __repr__(self) -> str:
        return "\n".join(["Covariance of the MLP coefficients", *map(repr, self.moments.values())])


def covariance(
    model: nn.Module,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    layers: Sequence[int],
    *,
    min_tokens: int = 100_000,
    max_length: int = 500,
    ridge: float = 0.0,
    cache: bool = True,
    progress: bool = True,
) -> Covariance:
    """`C = E[k kᵀ]` of the MLP coefficients `k` at some layers, not centred, over the tokens of `texts`.

    >>> import krs
    >>> model, tokenizer = krs.load("smollm2")
    >>> covariance(model, tokenizer, ["Emma is a novel by Jane Austen."], [2], min_tokens=5, ridge=0.1, cache=False,
    ...            progress=False)[2].tokens
    9

    Args:
        model: a transformers model; it is run in the precision that it has.
        tokenizer: its tokenizer.
        texts: documents; one of more than `max_length` tokens is cut into pieces.
        layers: which.
        min_tokens: refuse a corpus of fewer tokens. A layer of n coefficients needs far more than n of them: 10⁵ at
            least, 10⁶ are good.
        max_length: tokens that are seen together.
        ridge: ε of `C + ε·tr(C)/n·I`, for a corpus that does not reach every direction.
        cache: keep each layer's matrix (8·n² bytes) in the cache directory, under a hash of the weights up to that
            layer, of the corpus's token ids, the layer, the dtype.
        progress: show a bar.

    Sums are kept in float64. What follows the last of the layers is not computed. Raises `KrsError` for a corpus that
    is too small, for a cache that cannot be written, for coefficients that are NaN or infinite, and for a singular
    matrix.
    """
    body = anatomy(model)
    body.require([MLP_COEF], layers)
    pieces = _pieces(texts, tokenizer, max_length)
    check_size(sum(map(len, pieces)), min_tokens, _width(body, layers[0]), ridge)
    names = _names(body, pieces, layers) if cache else {}
    missing = [layer for layer in layers if not cache or not is_cached(names[layer])]
    if cache and missing:
        size = 8 * len(missing) * _width(body, layers[0]) ** 2
        named = f"the cache directory {str(cache_root())!r}"
        check_place(cache_root(), named, "the second moments", size, " ($HF_HOME), or set cache=False")
    sums = _sums(body, pieces, missing, progress) if missing else {}
    refuse_recorded(body, {(MLP_COEF, layer): (total,) for layer, total in sums.items()})
    found = {}
    for layer in layers:
        build = _writer(sums.get(layer), sum(map(len, pieces)), layer)
        found[layer] = _moment(layer, build, names.get(layer), ridge)
    return Covariance(found)


def count_tokens(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> int:
    """How many tokens a corpus has, cut into pieces as `covariance` does it."""
    return sum(map(len, _pieces(texts, tokenizer, max_length)))


def check_size(tokens: int, min_tokens: int, n: int, ridge: float) -> None:
    """Raise `KrsError` for a corpus that cannot tell the directions of n coefficients apart."""
    if tokens < min_tokens:
        raise KrsError(
            f"the corpus has {tokens:,} tokens, fewer than min_tokens={min_tokens}: give more text (a layer has {n} "
            "coefficients, and needs far more tokens than that: 10⁵ at least, 10⁶ are good), or lower min_tokens "
            "and set ridge, such as ridge=0.01"
        )
    if tokens < n and not ridge:
        raise KrsError(
            f"the corpus has {tokens:,} tokens for {n} coefficients, so that their second moment is singular: give "
            "more text, or set ridge, such as ridge=0.01"
        )


def _pieces(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> list[Ids]:
    """Token ids of all documents; a later piece of a long one begins with the BOS that the document began with."""
    found: list[Ids] = []
    for text in check_strings(texts, "corpus"):
        ids = tuple(tokenizer(text, verbose=False)["input_ids"])
        start = ids[:1] if ids[:1] == (tokenizer.bos_token_id,) and max_length > 1 else ()
        body = ids[len(start) :]
        step = max_length - len(start)
        found += [start + body[i : i + step] for i in range(0, len(body), step)]
    if not found:
        raise KrsError("the corpus is empty: give texts")
    return found


def _width(body: Anatomy, layer: int) -> int:
    (module,) = body.modules(MLP_COEF, layer)
    return widths(module)[0]


def _sums(body: Anatomy, pieces: list[Ids], layers: list[int], progress: bool) -> dict[int, Tensor]:
    """`Σ k kᵀ` of each layer, in float64; what is padding is known from lengths."""
    n = _width(body, layers[0])
    sums = {layer: torch.zeros(n, n, dtype=torch.float64) for layer in layers}
    ordered = sorted(pieces, key=len, reverse=True)
    with bar(sum(map(len, pieces)), "memit (covariance)", show=progress, unit="tok") as shown:
        start = 0
        while start < len(ordered):
            rows = ordered[start : start + max(1, _TOKENS_A_FORWARD // len(ordered[start]))]
            batch = TokenBatch(tuple(rows), tuple(map(len, rows)), tuple((0,) for _ in rows))
            live = batch.inputs()["attention_mask"].bool()

            def add(layer: int, live: Tensor = live) -> Callable[[Tensor], None]:
                def plus(value: Tensor) -> None:
                    k = value[live.to(value.device)].float()
                    sums[layer] += (k.T @ k).cpu().double()

                return plus

            visit(body, batch, {(MLP_COEF, layer): add(layer) for layer in layers})
            shown.update(sum(map(len, rows)))
            start += len(rows)
    return sums


def _writer(total: Tensor | None, tokens: int, layer: int) -> Callable[[], tuple[Tensor, dict[str, Any]]]:
    """A function that gives the matrix and what is known of it; called when the cache does not have them."""

    def made() -> tuple[Tensor, dict[str, Any]]:
        assert total is not None
        matrix = total / tokens
        extremes = torch.linalg.eigvalsh(matrix)[[0, -1]].tolist()
        return matrix, {"format": _FORMAT, "layer": layer, "tokens": tokens, "eigenvalues": extremes}

    return made


def _moment(layer: int, made: Callable[[], tuple[Tensor, dict[str, Any]]], name: str | None, ridge: float) -> Moment:
    matrix, known = made() if name is None else _cached(name, made)
    n = len(matrix)
    smallest, largest = known["eigenvalues"]
    more = ridge * float(matrix.trace()) / n
    if smallest + more <= n * torch.finfo(torch.float64).eps * largest:
        raise KrsError(
            f"the second moment of layer {layer} is singular: some directions of its {n} coefficients never occur in "
            f"the corpus's {known['tokens']:,} tokens. Give more text, or set ridge, such as ridge=0.01"
        )
    whole = matrix + more * torch.eye(n, dtype=torch.float64)
    return Moment(layer, whole, known["tokens"], (largest + more) / (smallest + more))


def _cached(name: str, made: Callable[[], tuple[Tensor, dict[str, Any]]]) -> tuple[Tensor, dict[str, Any]]:
    from safetensors.torch import load_file, save_file

    def build(folder: Path) -> None:
        matrix, known = made()
        with replacing(folder / _MATRIX) as unfinished:
            save_file({"second_moment": matrix.contiguous()}, unfinished)
        write_text(folder / "config.json", json.dumps(known))

    folder = build_once(name, build)
    known = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return load_file(folder / _MATRIX)["second_moment"], known


def _names(body: Anatomy, pieces: list[Ids], layers: Sequence[int]) -> dict[int, str]:
    """Where each layer's matrix is cached: a hash of all that it depends on, and of nothing that it does not."""
    config: Any = body.model.config
    known = [
        _FORMAT,
        NUMBERS,
        versions_that_count(versions()),
        dtype_of(body.model),
        config_that_counts(config.to_dict()),
    ]
    corpus = hashlib.sha256(json.dumps(pieces).encode()).hexdigest()
    prefix = f"{body.family.layers}."
    digests = named_digests(body.model, lambda name: (_layer_of(name, prefix) or 0) <= max(layers))
    found = {}
    for layer in layers:
        below = {name: digest for name, digest in digests.items() if (_layer_of(name, prefix) or 0) <= layer}
        found[layer] = f"memit/{combined(below, [known, layer, corpus])}"
    return found


def _layer_of(name: str, prefix: str) -> int | None:
    return int(name.removeprefix(prefix).split(".")[0]) if name.startswith(prefix) else None
