"""`memit_empty` and `memit_entropy`: the edit from start to end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.hooks.anatomy import Anatomy, anatomy
from krs.hooks.library import MLP_COEF, VALUE_VECTORS
from krs.hooks.linear import widths
from krs.progress import bar
from krs.unlearn.memit.config import MemitConfig, MemitEmptyConfig, MemitEntropyConfig
from krs.unlearn.memit.moments import check_size, count_tokens, covariance
from krs.unlearn.memit.objectives import Entropy, Likelihood, Objective
from krs.unlearn.memit.places import Sited, site
from krs.unlearn.memit.requests import to_requests
from krs.unlearn.memit.spread import spread
from krs.unlearn.memit.targets import targets
from krs.unlearn.methods import Edit, register


class Memit(Edit):
    """MEMIT (Meng et al., 2023): writes into the value vectors of a few layers. See `docs/memit.md`."""

    config_class = MemitConfig
    needs_corpus: ClassVar[bool] = True
    config: MemitConfig

    @abstractmethod
    def objective(self) -> Objective:
        """What is wanted at the subject's token."""

    def edit(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        forget: Sequence[Any],
        corpus: Sequence[str] | None,
        progress: bool,
    ) -> list[dict[str, Any]]:
        """Edit `model` in place.

        Args:
            model: a copy in fp32 and in eval mode.
            tokenizer: a fast one.
            forget: requests; see `to_requests`.
            corpus: texts as the model usually sees them; see `covariance`.
            progress: show bars.

        Returns the log: an entry a layer for the covariance, an entry a request for its target, an entry a layer for
        what was written, and an entry for each request that names its old answer.

        Raises `KrsError` for bad requests, layers and corpus before anything long.
        """
        config, objective = self.config, self.objective()
        body = anatomy(model)
        layers = _layers(body, config)
        objective.check(body, layers[-1])
        sited = site(to_requests(forget, config.subjects), config.contexts, tokenizer, config.max_length)
        texts = _corpus(corpus, self.name)
        n = _width(body, layers)
        check_size(count_tokens(texts, tokenizer, config.max_length), config.min_tokens, n, config.ridge)
        moments = covariance(
            model,
            tokenizer,
            texts,
            layers,
            min_tokens=config.min_tokens,
            max_length=config.max_length,
            ridge=config.ridge,
            cache=config.cache,
            progress=progress,
        )
        log: list[dict[str, Any]] = [
            {"step": "covariance", "layer": m.layer, "tokens": m.tokens, "condition": m.condition}
            for m in moments.moments.values()
        ]
        before = _old_answers(body, sited, tokenizer)
        chunks = -(-len(sited) // config.batch_size)
        with bar(chunks * config.steps, f"{self.name} (targets)", show=progress, unit="step") as shown:
            found = targets(body, layers[-1], sited, objective, config, tokenizer, shown)
        with bar(len(layers), f"{self.name} (weights)", show=progress, unit="layer") as shown:
            written = spread(body, layers, sited, found, moments, config.covariance_weight, shown)
        after = _old_answers(body, sited, tokenizer)
        answers = [{"step": "object", "request": i, "nll_before": before[i], "nll_after": after[i]} for i in before]
        return [*log, *found.log(), *written, *answers]


@register("memit_empty")
class MemitEmpty(Memit):
    """MEMIT towards a meaningless word: `-log p(" dummy")` after every prompt."""

    config_class = MemitEmptyConfig
    config: MemitEmptyConfig

    def objective(self) -> Objective:
        """The word's negative log-likelihood."""
        return Likelihood(self.config.target)


@register("memit_entropy")
class MemitEntropy(Memit):
    """MEMIT towards no answer in particular: the entropy of the vocabulary projections, over the layers above."""

    config_class = MemitEntropyConfig
    config: MemitEntropyConfig

    def objective(self) -> Objective:
        """Minus the entropy."""
        return Entropy()


def default_layers(n_layers: int) -> tuple[int, ...]:
    """The window for a model of so many layers: up to five that end a quarter of the way up, Llama-2's usual ones.

    >>> default_layers(32), default_layers(30), default_layers(12)
    ((4, 5, 6, 7, 8), (3, 4, 5, 6, 7), (1, 2, 3))
    """
    last = n_layers // 4
    return tuple(range(max(n_layers // 8, last - 4), last + 1))


def _layers(body: Anatomy, config: MemitConfig) -> tuple[int, ...]:
    layers = default_layers(body.n_layers) if config.layers is None else config.layers
    body.require([MLP_COEF, VALUE_VECTORS], layers)
    return tuple(layers)


def _width(body: Anatomy, layers: Sequence[int]) -> int:
    found = set()
    for layer in layers:
        (module,) = body.modules(VALUE_VECTORS, layer)
        found.add(widths(module)[0])
    return max(found)


def _corpus(corpus: Sequence[str] | None, name: str) -> Sequence[str]:
    if corpus is None:
        raise KrsError(
            f"{name} needs a corpus: pass corpus=, texts as the model usually sees them, some hundred thousand tokens "
            "of them"
        )
    return corpus


def _old_answers(body: Anatomy, sited: Sequence[Sited], tokenizer: Tokenizer) -> dict[int, float]:
    """Nats a token that the model gives each request's old answer, where there is one."""
    found = {}
    for i, one in enumerate(sited):
        if one.request.object:
            what = Likelihood(one.request.object)
            rows = what.rows(one.places[:1], tokenizer)
            with torch.no_grad():
                found[i] = float(what.loss(body, rows, 0)[0])
    return found
