"""An account put to the test: do the weights that it names bring back more than others?"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from krs._typing import DataFrame
from krs.errors import KrsError
from krs.generation.forward import device_of, logits_at
from krs.hooks.anatomy import Anatomy
from krs.hooks.context import plain_numerics
from krs.hooks.library import VALUE_VECTORS
from krs.hooks.patch import patched
from krs.metrics.account_result import Account
from krs.metrics.logits import logit_mse
from krs.models.given import load_given
from krs.models.pair import check_pair, shared_rows
from krs.prompts import TokenBatch, next_token_batch

Of: TypeAlias = Literal["units", "layers"]


@plain_numerics()
def check_account(
    account: Account,
    vanilla: nn.Module | str | Path,
    unlearned: nn.Module | str | Path,
    *,
    of: Of = "units",
    shares: Iterable[float] = (0.02, 0.1, 0.3),
    seed: int = 0,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "auto",
) -> DataFrame:
    """Restore some value vectors by an account, and as many others: the account's should recover the most.

    >>> import krs
    >>> vanilla, tokenizer = krs.load("smollm2")
    >>> unlearned, _ = krs.load("smollm2")
    >>> _ = unlearned.model.layers[20].mlp.down_proj.weight.data[:, 79].mul_(3)
    >>> _ = unlearned.model.layers[5].mlp.up_proj.weight.data.mul_(1.01)
    >>> found = krs.account(vanilla, unlearned, ["Hogwarts is a"], n_tokens=3, points=2, progress=False)
    >>> table = krs.metrics.check_account(found, vanilla, unlearned, shares=[0.0001])
    >>> round(float(table.account[0.0001]), 2), round(float(table.random[0.0001]), 2)
    (1.0, 0.0)

    Args:
        account: of this pair, scored `"next-token"`.
        vanilla: the models of the account, or their names.
        unlearned: see `vanilla`.
        of: `"units"` restores single neurons' value vectors, `"layers"` whole layers' value vectors.
        shares: how many of them, as shares of all.
        seed: of the random ones.
        device: as in `krs.sweep`; `dtype` likewise.
        dtype: see `device`.

    Returns a table: a row a share, and the Knowledge Recovery Score of restoring those with the largest parts in the
    `account`, those whose weights moved most (`change`), and `random` ones. Restored together they act on each other,
    so a score is not the sum of the parts: where large parts of either sign cancel, the largest ones alone can do harm.

    Raises `KrsError` for an account without value vectors, of other models, or scored in another way.
    """
    if of not in ("units", "layers"):
        raise KrsError(f"of={of!r}: choose 'units' or 'layers'")
    wanted = [float(share) for share in shares]
    if bad := [share for share in wanted if not 0 < share <= 1]:
        raise KrsError(f"shares= has {bad[0]!r}: give numbers above 0 and up to 1, such as 0.1")
    if account.provenance.get("scoring", "next-token") != "next-token":
        raise KrsError("check_account takes accounts of scoring='next-token' only: make one")
    chosen = [i for i, (component, _, unit) in enumerate(account.places) if component == "value_vectors" and unit >= 0]
    if not chosen:
        raise KrsError("this account has no value vectors to restore: mixtures of experts have none of their own")
    models = load_given({"vanilla": vanilla, "unlearned": unlearned}, device=device, dtype=dtype)
    v, u = check_pair(models[0][0], models[1][0], "shared")
    batch = next_token_batch(tuple(ids for ids, _ in account.token_ids), tuple(said for _, said in account.token_ids))
    units = np.array([account.places[i][1:] for i in chosen])
    groups = units[:, 0] if of == "layers" else np.arange(len(units))
    n_rows = shared_rows(v.model, u.model)
    target = _logits(v, batch, n_rows)
    base = _mse(_logits(u, batch, n_rows), target)
    if not abs(base / account.baseline - 1) < 0.05:
        raise KrsError(
            f"the logit MSE of these models is {base:.4g} on the account's prompts, and the account's own is "
            f"{account.baseline:.4g}: give the two models that the account is of"
        )
    by = {
        "account": np.bincount(groups, weights=account.unit_parts[chosen]),
        "change": np.bincount(groups, weights=account.change[chosen]),
        "random": np.random.default_rng(seed).random(int(groups.max()) + 1),
    }
    rows = []
    for share in wanted:
        n, row = max(1, round(share * len(by["random"]))), {"share": share}
        for name, values in by.items():
            best = np.isin(groups, np.argsort(-values, kind="stable")[:n])
            row[name] = 1 - _mse(_restored(u, v, units[best], batch, n_rows), target) / base
        rows.append(row)
    return _table(rows)


def _table(rows: list[dict[str, float]]) -> DataFrame:
    import pandas as pd

    return pd.DataFrame(rows).set_index("share")


def _restored(u: Anatomy, v: Anatomy, units: np.ndarray, batch: TokenBatch, n_rows: int) -> list[torch.Tensor]:
    """Logits of the unlearned model with these neurons' value vectors (`[neuron, (layer, number)]`) restored."""
    patches: list[Any] = []
    for layer in np.unique(units[:, 0]):
        numbers = units[units[:, 0] == layer, 1]
        patches.append(VALUE_VECTORS.at(int(layer), units=[int(n) for n in numbers]).set(v.model))
    with patched(u.model, *patches):
        return _logits(u, batch, n_rows)


def _logits(body: Anatomy, batch: TokenBatch, n_rows: int) -> list[torch.Tensor]:
    found = []
    for i in range(len(batch)):
        row = batch.rows(i, i + 1)
        found.append(logits_at(body.model, row.inputs(device_of(body.model)), row.scored_index())[0, :, :n_rows].cpu())
    return found


def _mse(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """Mean logit MSE over all scored tokens."""
    return float(torch.cat([logit_mse(a, b) for a, b in zip(some, others, strict=True)]).mean())
