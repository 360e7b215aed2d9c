"""Answers, drift, accounts and value vectors as sections of a page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from krs.metrics.account_result import Account
from krs.metrics.answers_result import Answers
from krs.metrics.drift import Drift
from krs.metrics.vocabulary_result import ValueTokens
from krs.pages import Block, Code, Map, Section, Table, Text


def sections(found: Answers | Drift | Account | ValueTokens) -> Iterator[Section]:
    """What a page shows of any of them."""
    if isinstance(found, Answers):
        yield Section("Answers", tuple(_answers(found)))
    elif isinstance(found, Drift):
        yield Section("How far the weights have moved", tuple(_drift(found)))
    elif isinstance(found, ValueTokens):
        yield Section("Value vectors as tokens", tuple(_vocabulary(found)))
    else:
        yield Section("Which weights did it", tuple(_account(found)))


def _answers(found: Answers) -> Iterator[Block]:
    yield Table(f"Means over questions ({found.provenance['bleu']})", found.table.reset_index())
    names = {"vanilla": "before (vanilla)", "unlearned": "after (unlearned)"}
    said = found.shown.fillna("(not asked yet)").rename(columns=names)
    yield Table("Answers before and after", said, 1, texts=True)
    yield _origin(found.provenance)


def _drift(found: Drift) -> Iterator[Block]:
    layers = sorted(set(found.frame.layer.astype(int)))
    for value in ("relative_change", "cosine"):
        table = found.frame.pivot_table(index="component", columns="layer", values=value, sort=False)[layers]
        table = table.set_axis(["outside" if n < 0 else str(n) for n in layers], axis=1)
        table = table.set_axis([str(c).replace("_", " ") for c in table.index], axis=0)
        what = value.replace("_", " ")
        most = table.max(axis=1)
        told = f"{what} by component and layer: " + "; ".join(f"{c} at most {v:.3g}" for c, v in most.items())
        yield Map(f"{what}, component by layer", told, table, "Layer", "", what)
    yield Table("By component, layers together", found.by_component().reset_index())


def _account(found: Account) -> Iterator[Block]:
    shares = found.by_component.rename("share").rename_axis("component").reset_index()
    yield Text(f"Shares of the logit MSE; they add up to it within {found.error:.1g}.")
    table = found.frame.set_axis([str(c).replace("_", " ") for c in found.frame.index], axis=0)
    table = table.set_axis(["outside" if str(n) == "-1" else str(n) for n in table.columns], axis=1)
    told = "shares by component: " + "; ".join(f"{c} {v:z.1%}" for c, v in found.by_component.items())
    yield Map("Share of the logit MSE, component by layer", told, table, "Layer", "", "share", 0.0)
    yield Table("Share of each component", shares, digits=4)
    yield Table("Share, component by layer", table.rename_axis("component").reset_index(), digits=4, folded=True)
    yield _origin(found.provenance)


def _vocabulary(found: ValueTokens) -> Iterator[Block]:
    head = "the final norm and the unembedding" if found.provenance["norm"] else "the unembedding alone"
    yield Text(f"Tokens that each value vector writes, through {head}, the strongest first.")
    yield Table("By value vector", found.table(), digits=3, texts=True)
    yield Table("Each token", found.to_frame(), digits=4, texts=True, folded=True)
    yield _origin(found.provenance)


def _origin(provenance: Any) -> Block:
    told = json.dumps(provenance, indent=1, default=str, ensure_ascii=False)
    return Code("Models, versions, settings", told)
