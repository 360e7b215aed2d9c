"""From prompts with answers to a batch with its scored positions."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from krs._typing import Positions, Tokenizer
from krs.errors import KrsError
from krs.prompts.encode import decode
from krs.prompts.rows import Ids
from krs.wording import counted

Scoring: TypeAlias = Literal["next-token", "paper-code"]


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of prompts with their answers, and the positions whose logits are scored.

    Attributes:
        tokens: for each prompt, the ids that the models see. Never padded here.
        prompt_lengths: how many of them are the prompt.
        scored: for each prompt, the positions whose logits are compared.
        targets: for each scored position the token that its logits predict, -1 where they predict none.
        alone: whether prompts must not share a forward (models in which neighbours matter).
    """

    tokens: tuple[Ids, ...]
    prompt_lengths: tuple[int, ...]
    scored: tuple[Ids, ...]
    targets: tuple[Ids, ...] = ()
    alone: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_scored(self) -> int:
        """The largest number of scored positions of a prompt: the token axis of the losses."""
        return max(map(len, self.scored))

    @property
    def mask(self) -> np.ndarray:
        """Bool `[prompt, token]`: true where there is a scored position."""
        counts = np.array([len(s) for s in self.scored])
        return np.arange(self.n_scored)[None] < counts[:, None]

    def rows(self, start: int, stop: int) -> TokenBatch:
        """The prompts `start … stop-1` as a batch of their own."""
        part = slice(start, stop)
        return TokenBatch(
            self.tokens[part], self.prompt_lengths[part], self.scored[part], self.targets[part], self.alone
        )

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Int[Tensor, "prompt pos"]]:
        """`input_ids`, `attention_mask` and `position_ids`, padded on the right.

        Under causal attention nothing behind a token acts on it, so right padding changes no scored logit.
        """
        length = max(map(len, self.tokens))
        ids = torch.zeros(len(self), length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(self.tokens):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        positions = torch.arange(length).expand(len(self), -1) * mask
        named = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        return {name: value.to(device) for name, value in named.items()}

    def scored_index(self, device: torch.device | str = "cpu") -> Int[Tensor, "prompt token"]:
        """Scored positions as a rectangle; rows that have fewer repeat their last one (see `mask`)."""
        width = max(map(len, self.scored))
        rows = [list(s) + [s[-1]] * (width - len(s)) for s in self.scored]
        return torch.tensor(rows, device=device)

    @property
    def target_ids(self) -> Int[Tensor, " token"]:
        """`targets` of all prompts, one after the other."""
        return torch.tensor([t for row in self.targets for t in row], dtype=torch.long)

    def where(self, positions: Positions) -> Bool[Tensor, "prompt pos"] | None:
        """The positions to restore as a mask; `None` means all.

        `"prompt"`, `"answer"`, `"scored"` (those whose logits are compared) or `"last_prompt"` names a part; integers
        count in each prompt's own tokens from its first one, negative ones back from the end of the prompt (`-1` is its
        last token); a tuple of tuples has integers for each prompt. A number alone counts from the answer's first token
        in every prompt (`0`; `-1` is the prompt's last). An answer that ended before a position has nothing to restore
        there; see `check_reach` for positions that no answer can have.
        """
        if positions is None:
            return None
        mask = torch.zeros(len(self), max(map(len, self.tokens)), dtype=torch.bool)
        for i, (row, tokens, prompt) in enumerate(zip(mask, self.tokens, self.prompt_lengths, strict=True)):
            if isinstance(positions, int):
                row[[p for p in [prompt + positions] if 0 <= p < len(tokens)]] = True
            elif isinstance(positions, tuple):
                inside = [p if p >= 0 else prompt + p for p in _of_prompt(positions, i)]
                row[[p for p in inside if 0 <= p < len(tokens)]] = True
            else:
                parts = {
                    "prompt": range(prompt),
                    "answer": range(prompt, len(tokens)),
                    "scored": self.scored[i],
                    "last_prompt": [prompt - 1],
                }
                row[list(parts[positions])] = True
        return mask

    def behind(self, prompts: tuple[Ids, ...]) -> TokenBatch:
        """The same answers behind other prompts, with the same scored tokens."""
        tokens, scored = [], []
        for prompt, row, length, wanted in zip(prompts, self.tokens, self.prompt_lengths, self.scored, strict=True):
            tokens.append(prompt + row[length:])
            scored.append(tuple(p + len(prompt) - length for p in wanted))
        return TokenBatch(tuple(tokens), tuple(map(len, prompts)), tuple(scored), self.targets, self.alone)

    def aligned(self, other: TokenBatch) -> Int[Tensor, "prompt pos"]:
        """For each position the one of another batch with the same answers that is as far from the answer.

        Positions that the other has none for get its first one.
        """
        width = max(map(len, self.tokens))
        shifts = torch.tensor([b - a for a, b in zip(self.prompt_lengths, other.prompt_lengths, strict=True)])
        last = torch.tensor([len(row) - 1 for row in other.tokens])[:, None]
        return (torch.arange(width)[None] + shifts[:, None]).clamp(min=0).minimum(last)

    @property
    def reach(self) -> Int[np.ndarray, "prompt 2"]:
        """How many positions each prompt has before its answer's first token, and from there on."""
        pairs = zip(self.tokens, self.prompt_lengths, strict=True)
        return np.array([[before, len(tokens) - before] for tokens, before in pairs], dtype=np.int64)

    @property
    def places(self) -> range:
        """Every position that some prompt has, counted from the answer's first token: prompts are aligned there."""
        before, behind = map(int, self.reach.max(axis=0))
        return range(-before, behind)

    @property
    def digest(self) -> str:
        """A hash of the ids and scored positions, for provenance."""
        said = json.dumps([self.tokens, self.prompt_lengths, self.scored])
        return hashlib.sha256(said.encode()).hexdigest()


def _of_prompt(positions: tuple[Any, ...], i: int) -> Ids:
    """The indices that are meant in one prompt."""
    return positions[i] if isinstance(positions[0], tuple) else positions


def check_aligned(positions: Positions, batch: TokenBatch, donor: TokenBatch) -> None:
    """Raise `KrsError` for a position that is restored and that the donor's prompt has no counterpart of."""
    where = batch.where(positions)
    for i, (ours, theirs) in enumerate(zip(batch.prompt_lengths, donor.prompt_lengths, strict=True)):
        missing = range(ours - theirs) if where is None else [p for p in range(ours - theirs) if where[i, p]]
        if len(missing):
            raise KrsError(
                f"donor prompt {i} has {theirs} tokens and the recipient's {ours}: aligned at their ends, position "
                f"{missing[0]} has no counterpart. Give a donor prompt at least as long, or positions= that it has, "
                "such as [-1]"
            )


def check_reach(positions: Positions, prompts: tuple[Ids, ...], n_tokens: int) -> None:
    """Raise `KrsError` for a position that a prompt with `n_tokens` answer tokens cannot have."""
    if not isinstance(positions, tuple):
        return
    if isinstance(positions[0], tuple) and len(positions) != len(prompts):
        raise KrsError(
            f"positions= has {counted(len(positions), 'list')} for {counted(len(prompts), 'prompt')}: give one for each"
        )
    for i, prompt in enumerate(prompts):
        for p in _of_prompt(positions, i):
            if not -len(prompt) <= p < len(prompt) + n_tokens:
                raise KrsError(
                    f"position {p} is out of range for prompt {i}, which has {len(prompt)} tokens and up to "
                    f"{n_tokens} more"
                )


def next_token_batch(prompts: tuple[Ids, ...], answers: tuple[Ids, ...]) -> TokenBatch:
    """Score the logits that *predict* each answer token (Eq. 3 of the paper): positions P-1 … P+I-2.

    The last answer token is predicted but never fed back, so it is not in the batch.
    """
    tokens = tuple(p + a[:-1] for p, a in zip(prompts, answers, strict=True))
    scored = tuple(tuple(range(len(p) - 1, len(t))) for p, t in zip(prompts, tokens, strict=True))
    return TokenBatch(tokens, tuple(map(len, prompts)), scored, answers)


def paper_code_batch(
    prompts: tuple[Ids, ...], answers: tuple[Ids, ...], tokenizer: Tokenizer | None, eos: frozenset[int]
) -> TokenBatch:
    """Score what the paper's released notebooks score, `logits[-length:]`.

    The answer is decoded and tokenised again, its EOS left out, and the logits *at* its tokens are taken, one
    position later than Eq. 3. `length` is short by as many tokens as the notebooks' left padding had in that
    row: the number by which the prompt is shorter than the longest one. At least one position is scored, because
    a length of 0 would select everything there.
    """
    if tokenizer is None:
        raise KrsError(
            "scoring='paper-code' decodes the answers and tokenises them again, so it needs a tokenizer: pass "
            "tokenizer=…, or use scoring='next-token'"
        )
    longest = max(map(len, prompts))
    tokens, scored = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        kept = [t for t in answer if t not in eos]
        text = decode(kept, tokenizer, skip_special_tokens=True)
        again = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        row = prompt + again
        length = min(max(len(kept) - (longest - len(prompt)), 1), len(row))
        tokens.append(row)
        scored.append(tuple(range(len(row) - length, len(row))))
    targets = tuple(
        tuple(row[p + 1] if p + 1 < len(row) else -1 for p in positions)
        for row, positions in zip(tokens, scored, strict=True)
    )
    return TokenBatch(tuple(tokens), tuple(map(len, prompts)), tuple(scored), targets)
