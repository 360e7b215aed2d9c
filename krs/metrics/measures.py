"""What is measured of a restoration: a number a scored token, from the logits that it leaves and those of a reference.

>>> from krs.metrics.measures import measure
>>> measure("kl").label
'KL divergence from the reference'

A function of your own is a measure as well:

>>> def margin(logits, reference_logits, target_ids):
...     top2 = logits.topk(2).values
...     return top2[:, 0] - top2[:, 1]
>>> measure(margin).name
'margin'
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from krs.errors import KrsError
from krs.metrics.code import code_digest
from krs.metrics.logits import logit_mse
from krs.models.devices import has_float64
from krs.prompts.listed import listed
from krs.registry import Registry, caller

MeasureFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(logits [token, vocab], reference_logits [token, vocab], target_ids [token]) -> [token]`."""


class ScoredTokens:
    """Some scored tokens: a model's logits, the reference's, and the tokens that come next.

    Attributes:
        logits: `[token, vocab]`, of the model with something restored, or as it is.
        reference_logits: `[token, vocab]`.
        target_ids: `[token]`, the scored answer's tokens that these logits predict.
    """

    def __init__(
        self,
        logits: Float[Tensor, "token vocab"],
        reference: ReferenceTokens,
    ) -> None:
        self.logits = logits
        self.reference = reference
        self.reference_logits = reference.logits
        self.target_ids = reference.target_ids

    @cached_property
    def logprobs(self) -> Float[Tensor, "token vocab"]:
        """Log-probabilities, in fp32 or better, computed once for all measures."""
        return _logprobs(self.logits)

    @property
    def tensors(self) -> list[Tensor]:
        """Everything that a measure may look at and that is there by now."""
        return [v for part in (self, self.reference) for v in vars(part).values() if isinstance(v, Tensor)]


class ReferenceTokens:
    """The reference's side of some scored tokens, computed once for all restorations."""

    def __init__(self, logits: Float[Tensor, "token vocab"], target_ids: Int[Tensor, " token"]) -> None:
        self.logits, self.target_ids = logits, target_ids

    @cached_property
    def logprobs(self) -> Float[Tensor, "token vocab"]:
        """Log-probabilities, in fp32 or better."""
        return _logprobs(self.logits)

    @cached_property
    def probs(self) -> Float[Tensor, "token vocab"]:
        """Probabilities."""
        return self.logprobs.exp()

    @cached_property
    def top(self) -> Int[Tensor, " token"]:
        """The most likely token."""
        return self.logits.argmax(-1)


@dataclass(frozen=True, repr=False)
class Measure:
    """A number a scored token.

    Attributes:
        name: how it is asked for and found in results.
        label: how figures name it.
        function: what it computes of scored tokens, `[token]`.
        needs: `"logits"`, or `"states"` for one that the engines compute without logits.
        of_answer: whether it looks at the answer's own tokens, so that it is not defined where a scored position
            predicts none (the last one under `scoring="paper-code"`).
        differentiable: whether its gradient says how it changes; not so for ranks and agreement, which jump.
        version: what tells a measure from another of its name; of a function of the user's, if it is not given, a
            digest of all that it does (`krs.metrics.code`).
    """

    name: str
    label: str
    function: Callable[[ScoredTokens], Tensor]
    needs: str = "logits"
    of_answer: bool = False
    version: str = ""
    differentiable: bool = True

    @property
    def identity(self) -> str:
        """The name, and for a function of the user's what tells it from another of that name."""
        built_in = getattr(self.function, "__module__", None) == __name__
        version = self.version or ("" if built_in else code_digest(self.function))
        return f"{self.name} ({version})" if version else self.name

    def __call__(self, tokens: ScoredTokens) -> Float[Tensor, " token"]:
        """The measure of these tokens, float64 where the device has it."""
        given = [t for t in tokens.tensors if not t.is_inference()]  # those do not count what is written into them
        before = [t._version for t in given]
        found = self.function(tokens)
        if before != [t._version for t in given]:
            raise KrsError(
                f"the measure {self.name!r} writes into the logits that it is given, of which other numbers are made: "
                "let it write into a copy (logits = logits.clone())"
            )
        count = len(tokens.target_ids)
        if not isinstance(found, Tensor) or found.shape != (count,):
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise KrsError(f"the measure {self.name!r} has to return a tensor of [{count}] ([token]), not {got}")
        found = found.detach()
        return found.double() if has_float64(found.device) else found.float()

    def __repr__(self) -> str:
        return f"Measure({self.name})"


def _logprobs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


def _mse(tokens: ScoredTokens) -> Tensor:
    return logit_mse(tokens.logits, tokens.reference_logits)


def _kl(tokens: ScoredTokens) -> Tensor:
    ours, theirs = tokens.logprobs, tokens.reference.logprobs
    return (tokens.reference.probs * (theirs - ours)).sum(-1)


def _reverse_kl(tokens: ScoredTokens) -> Tensor:
    ours, theirs = tokens.logprobs, tokens.reference.logprobs
    return (ours.exp() * (ours - theirs)).sum(-1)


def _answer_logprob(tokens: ScoredTokens) -> Tensor:
    return tokens.logprobs.gather(-1, tokens.target_ids[:, None].to(tokens.logprobs.device))[:, 0]


def _rank(tokens: ScoredTokens) -> Tensor:
    theirs = tokens.logits.gather(-1, tokens.reference.top[:, None].to(tokens.logits.device))
    return (tokens.logits > theirs).sum(-1)


def _top1(tokens: ScoredTokens) -> Tensor:
    return tokens.logits.argmax(-1) == tokens.reference.top.to(tokens.logits.device)


LOGIT_MSE = Measure("logit_mse", "Logit MSE", _mse, needs="states")
"""Mean squared difference of the logits over the vocabulary: the loss of Eq. 3. Computed without logits where heads
are linear."""

KL = Measure("kl", "KL divergence from the reference", _kl)
"""`KL(reference ‖ model)`, nats a token."""

REVERSE_KL = Measure("kl_reverse", "KL divergence to the reference", _reverse_kl)
"""`KL(model ‖ reference)`, nats a token."""

ANSWER_LOGPROB = Measure("answer_logprob", "Log-probability of the answer", _answer_logprob, of_answer=True)
"""Log-probability of the scored answer's next token, nats."""

RANK = Measure("rank", "Rank of the reference's token", _rank, differentiable=False)
"""How many tokens the model finds more likely than the one that the reference finds most likely; 0 is agreement."""

TOP1 = Measure("top1", "Agreement on the most likely token", _top1, differentiable=False)
"""1 where the model and the reference find the same token most likely, else 0."""


def _take(name: str, given: Any) -> None:
    """What an entry point of the group `krs.measures` names: a measure, or a function by the entry point's name."""
    if not isinstance(given, Measure) and not callable(given):
        raise KrsError(f"the entry point {name!r} (krs.measures) names {type(given).__name__}, which is no measure")
    found = given if isinstance(given, Measure) else _from_function(given, name)
    REGISTRY.add(found.name, found, f"entry point {name}")


REGISTRY: Registry[Measure] = Registry("measure", "krs.measures", take=_take)
for _measure in (LOGIT_MSE, KL, REVERSE_KL, ANSWER_LOGPROB, RANK, TOP1):
    REGISTRY.add(_measure.name, _measure, __name__)


def register_measure(measure: Measure) -> Measure:
    """Make a measure known by its name, so that strings such as `"kl"` can use it.

    A notebook's cell that registers one may be run again, changed. Raises `KrsError` for a name that another measure
    has.
    """
    return REGISTRY.add(measure.name, measure, caller())


def measure_label(name: str) -> str:
    """How figures name a measure, also one that is not registered here.

    >>> measure_label("kl"), measure_label("my_margin")
    ('KL divergence from the reference', 'my margin')
    """
    return REGISTRY[name].label if name in REGISTRY else name.replace("_", " ")


def measure(given: str | Measure | MeasureFunction) -> Measure:
    """A measure from its name, or from a function of `(logits, reference_logits, target_ids)`."""
    if isinstance(given, Measure):
        return given
    if isinstance(given, str):
        function = "; or pass a function of (logits, reference_logits, target_ids) that returns a number a token"
        return REGISTRY.find(given, remedy=function)
    if not callable(given):
        raise KrsError(f"a measure is a name, a Measure or a function, not {type(given).__name__}")
    name = getattr(given, "__name__", type(given).__name__)
    if name in REGISTRY or not name.isidentifier():
        raise KrsError(f"a measure cannot be called {name!r}: give the function a name of its own (def my_measure …)")
    return _from_function(given, name)


def _from_function(given: MeasureFunction, name: str) -> Measure:
    return Measure(name, name.replace("_", " "), partial(_called, given), of_answer=True, version=code_digest(given))


def _called(given: MeasureFunction, tokens: ScoredTokens) -> Tensor:
    return given(tokens.logits, tokens.reference_logits, tokens.target_ids)


def measures(given: Iterable[str | Measure | MeasureFunction] | str | Measure | MeasureFunction) -> tuple[Measure, ...]:
    """Several measures, `logit_mse` always the first; raises `KrsError` for two of one name."""
    one = isinstance(given, str | Measure) or callable(given)
    names_or_measures = [given] if one else listed(given, "measures", "measure")
    found = [LOGIT_MSE, *(m for m in map(measure, names_or_measures) if m != LOGIT_MSE)]
    names = [m.name for m in found]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise KrsError(f"measures= names {twice[0]!r} twice: give each a name of its own")
    return tuple(found)
