"""Unlearning losses as pure functions of log-probabilities and masks.

Notation as in the papers: `NLL` is a sequence's summed negative log-likelihood over its live tokens, `CE` the mean over
live tokens, `ref` the frozen vanilla model.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

IGNORED = -100
"""Label of a token that is not learnt: the prompt, and padding."""


def live_tokens(labels: Int[Tensor, "row pos"]) -> Bool[Tensor, "row pos-1"]:
    """Which predictions count: position p predicts token p+1, if that is live."""
    return labels[:, 1:] != IGNORED


def token_logprobs(
    logits: Float[Tensor, "row pos vocab"], labels: Int[Tensor, "row pos"]
) -> Float[Tensor, "row pos-1"]:
    """Log-probability, in fp32, of each live token given those before it; 0 where the label is ignored."""
    live = live_tokens(labels)
    wanted = labels[:, 1:].masked_fill(~live, 0)
    scores = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    return scores.gather(-1, wanted[..., None])[..., 0] * live


def npo(logprob: Float[Tensor, " row"], ref_logprob: Float[Tensor, " row"], beta: float) -> Float[Tensor, " row"]:
    """Negative preference optimisation, a loss a sequence: `-(2/β)·log σ(-β(logπ(y) - logπ_ref(y)))`.

    Both arguments are summed log-probabilities of the answer. At `π = π_ref` it is `(2/β)·ln 2`, and its gradient
    is that of `logπ(y)`: gradient ascent on the summed NLL. Zhang et al., 2024, Eq. 3.

    >>> npo(torch.zeros(1), torch.zeros(1), beta=0.1)
    tensor([13.8629])
    """
    return -(2 / beta) * F.logsigmoid(-beta * (logprob - ref_logprob))


def dpo(
    wanted: Float[Tensor, " row"],
    ref_wanted: Float[Tensor, " row"],
    unwanted: Float[Tensor, " row"],
    ref_unwanted: Float[Tensor, " row"],
    beta: float,
) -> Float[Tensor, " row"]:
    """Direct preference optimisation, a loss a pair: `-(2/β)·log σ(β[(logπ(y_w) - logπ_ref(y_w)) - (logπ(y_l) -
    logπ_ref(y_l))])`.

    All arguments are summed log-probabilities. At `π = π_ref` it is `(2/β)·ln 2`. Rafailov et al., 2023, Eq. 7, with
    the factor `2/β` that makes it comparable with NPO.

    >>> dpo(torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.zeros(1), beta=0.1)
    tensor([13.8629])
    """
    return -(2 / beta) * F.logsigmoid(beta * ((wanted - ref_wanted) - (unwanted - ref_unwanted)))


def simnpo(
    logprob: Float[Tensor, " row"], n_tokens: Float[Tensor, " row"], beta: float, gamma: float
) -> Float[Tensor, " row"]:
    """NPO without a reference, its log-probability a mean over the answer: `-(2/β)·log σ(-(β/|y|)·logπ(y) - γ)`.

    Fan et al., 2024, Eq. 4.

    >>> simnpo(torch.zeros(1), torch.ones(1), beta=2.5, gamma=0.0)
    tensor([0.5545])
    """
    return -(2 / beta) * F.logsigmoid(-beta * logprob / n_tokens - gamma)


def kl_to_reference(
    logits: Float[Tensor, "row pos vocab"],
    ref_logits: Float[Tensor, "row pos vocab"],
    labels: Int[Tensor, "row pos"],
) -> Float[Tensor, "row pos-1"]:
    """`KL(ref ‖ model)` of each live token's distribution, in fp32; 0 where the label is ignored."""
    ours = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    theirs = torch.log_softmax(ref_logits[:, :-1].float(), dim=-1)
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1) * live_tokens(labels)


def undial(
    logits: Float[Tensor, "row pos vocab"],
    ref_logits: Float[Tensor, "row pos vocab"],
    labels: Int[Tensor, "row pos"],
    beta: float,
) -> Float[Tensor, "row pos-1"]:
    """Cross-entropy to `softmax(ref_logits - β·onehot(token))` of each live token, in fp32; 0 where it is ignored.

    Dong et al., 2024 (UnDIAL).
    """
    live = live_tokens(labels)
    wanted = labels[:, 1:].masked_fill(~live, 0)[..., None]
    theirs = ref_logits[:, :-1].float()
    lowered = theirs.scatter_add(-1, wanted, theirs.new_full((), -beta).expand(wanted.shape))
    ours = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    return -(torch.softmax(lowered, dim=-1) * ours).sum(-1) * live


def squared_distance(
    ours: Float[Tensor, "row pos unit"], target: Float[Tensor, "*any unit"], labels: Int[Tensor, "row pos"]
) -> Float[Tensor, "row pos-1"]:
    """`‖ours - target‖²` in fp32 where a live token is predicted; 0 elsewhere. Li et al., 2024 (RMU)."""
    distance = (ours.float() - target.float()).square().sum(-1)
    return distance[:, :-1] * live_tokens(labels)
