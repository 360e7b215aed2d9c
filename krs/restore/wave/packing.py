"""Prompts laid out flat, what they begin with in common only once.

The token sequences of a batch form a tree: sequences that begin alike share a branch until they differ. Under causal
attention a token's activations depend on what stands before it only, so a shared beginning (a chat template's
system prompt, say) has to be computed once and not once a prompt. Laid out branch after branch there is no padding
either.

>>> from krs.prompts import TokenBatch
>>> tree = pack(TokenBatch(((1, 2, 3), (1, 2, 4, 5)), (1, 1), ((2,), (3,))))
>>> tree.ids, tree.depths
((1, 2, 3, 4, 5), (0, 1, 2, 2, 3))
>>> tree.places
((0, 1, 2), (0, 1, 3, 4))
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from krs.prompts import Ids, TokenBatch


@dataclass(frozen=True)
class Branch:
    """A run of packed tokens without a fork.

    Attributes:
        start: its first packed token.
        stop: one past its last.
        before: the packed ranges that its tokens follow, first to last; together with its own, what they attend to.
    """

    start: int
    stop: int
    before: tuple[tuple[int, int], ...]

    @property
    def n_before(self) -> int:
        """How many tokens stand before it in its sequences."""
        return sum(b - a for a, b in self.before)


@dataclass(frozen=True)
class Packed:
    """A batch as a tree of tokens.

    Attributes:
        ids: the token ids, each shared one once.
        depths: each token's position in its sequences.
        branches: the tree.
        places: for each prompt, where its tokens are in `ids`.
    """

    ids: Ids
    depths: Ids
    branches: tuple[Branch, ...]
    places: tuple[Ids, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def unbroken(self) -> tuple[Branch, ...]:
        """The fewest runs of tokens in which each attends to what stands before the run and to the run so far.

        A branch and the first one that goes on from it lie side by side and are one run: there is one for each leaf.

        >>> from krs.prompts import TokenBatch
        >>> [(run.start, run.stop) for run in pack(TokenBatch(((1, 2, 3), (1, 2, 4)), (1, 1), ((2,), (2,)))).unbroken]
        [(0, 3), (3, 4)]
        """
        runs: list[Branch] = []
        for branch in self.branches:
            last = runs[-1] if runs else None
            if last is not None and branch.before == _joined(last.before, (last.start, last.stop)):
                runs[-1] = Branch(last.start, branch.stop, last.before)
            else:
                runs.append(branch)
        return tuple(runs)


def pack(batch: TokenBatch, marks: Sequence[Sequence[Hashable]] | None = None) -> Packed:
    """Lay a batch out as a tree.

    Args:
        batch: the sequences; nothing behind a prompt's last scored position is kept.
        marks: for each prompt, something for each of its tokens; tokens that differ in it are not shared. For
            restorations that touch a shared token in one prompt and not in another.
    """
    rows = []
    for i, (tokens, scored) in enumerate(zip(batch.tokens, batch.scored, strict=True)):
        kept = tokens[: max(scored) + 1]
        rows.append([(t, marks[i][p] if marks is not None else None) for p, t in enumerate(kept)])
    ids: list[int] = []
    depths: list[int] = []
    places: list[list[int]] = [[] for _ in rows]
    branches = []
    for members, depth, length, before in _branches(rows, list(range(len(rows)))):
        start = len(ids)
        ids += [token for token, _ in rows[members[0]][depth : depth + length]]
        depths += range(depth, depth + length)
        branches.append(Branch(start, len(ids), before))
        for i in members:
            places[i] += range(start, len(ids))
    return Packed(tuple(ids), tuple(depths), tuple(branches), tuple(map(tuple, places)))


_Sequences: TypeAlias = list[list[tuple[int, Hashable]]]
_Ranges: TypeAlias = tuple[tuple[int, int], ...]


def _branches(rows: _Sequences, members: list[int]) -> Iterator[tuple[list[int], int, int, _Ranges]]:
    """Depth first: the sequences, depth, length, and what stands before, of each branch."""
    waiting: list[tuple[list[int], int, _Ranges]] = _forks(rows, members, 0, ())
    placed = 0
    while waiting:
        together, depth, before = waiting.pop()
        length = _common(rows, together, depth)
        yield together, depth, length, before
        behind = _joined(before, (placed, placed + length))
        placed += length
        waiting += _forks(rows, together, depth + length, behind)


def _forks(rows: _Sequences, members: list[int], depth: int, before: _Ranges) -> list[tuple[list[int], int, _Ranges]]:
    """The sequences that go on beyond `depth`, by what they go on with; the first one last, for a stack."""
    found: dict[Hashable, list[int]] = {}
    for i in members:
        if depth < len(rows[i]):
            found.setdefault(rows[i][depth], []).append(i)
    return [(together, depth, before) for together in reversed(found.values())]


def _common(rows: _Sequences, members: list[int], depth: int) -> int:
    """How many tokens from `depth` on the sequences have in common."""
    first, length = rows[members[0]], 0
    limit = min(len(rows[i]) for i in members) - depth
    while length < limit and all(rows[i][depth + length] == first[depth + length] for i in members):
        length += 1
    return length


def _joined(before: _Ranges, new: tuple[int, int]) -> _Ranges:
    """The ranges with one more, merged with the last where they touch."""
    if before and before[-1][1] == new[0]:
        return (*before[:-1], (before[-1][0], new[1]))
    return (*before, new)
