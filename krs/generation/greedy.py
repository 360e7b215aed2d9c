"""Greedy generation: of one model, or of an unlearned one restored token by token from the vanilla one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.generation.batching import neighbours_matter
from krs.generation.fits import check_fits
from krs.generation.forward import accepted, device_of, head_at
from krs.generation.pieces import TextStream
from krs.hooks.calls import CACHES
from krs.hooks.context import plain_calls, plain_numerics
from krs.hooks.families import with_family
from krs.hooks.family import Family
from krs.hooks.finite import WIDER, refuse_not_finite
from krs.hooks.patch import patched
from krs.hooks.points import Placement, Setting
from krs.hooks.record import record
from krs.hooks.rope import start_afresh, switches_at
from krs.models.given import Model, load_given
from krs.models.pair import Vocabulary, check_pair, shared_ids
from krs.models.tokenizers import as_tokenizer, find_tokenizer
from krs.progress import bar
from krs.prompts import (
    Ids,
    Prompts,
    check_prompts,
    check_template_arguments,
    decode,
    encode,
    is_chat,
    needs_tokenizer,
    with_template_arguments,
)
from krs.prompts.listed import whole

_BATCH = 16


@dataclass(frozen=True, repr=False)
class Generated:
    """Answers, one a prompt. Iterating gives the texts (or the token ids, when there was no tokenizer).

    Attributes:
        token_ids: the generated ids, the EOS that ends an answer included.
        texts: the same decoded without special tokens; `None` without a tokenizer.
    """

    token_ids: tuple[Ids, ...]
    texts: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return "\n".join(map(repr, self))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.texts if self.texts is not None else self.token_ids)

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, i: int) -> Any:
        return (self.texts if self.texts is not None else self.token_ids)[i]


@with_family
def generate(
    vanilla: Model,
    unlearned: Model | None,
    prompts: Prompts,
    *,
    restore: Placement | Sequence[Placement] = (),
    n_tokens: int = 30,
    tokenizer: Tokenizer | str | Path | None = None,
    vocabulary: Vocabulary = "same",
    chat_template_kwargs: dict[str, Any] | None = None,
    progress: bool = True,
    hear: Callable[[int, str], None] | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
    family: Family | str | None = None,
) -> Generated:
    """Hear the knowledge come back: greedy answers of the unlearned model with pieces of the vanilla one in it.

    Both models run in lockstep, token by token, with key-value caches: at each step the vanilla model reads the tokens
    that the restored model has said so far, and its activations are put into the unlearned model's step.

    >>> import krs
    >>> vanilla, tokenizer = krs.load("smollm2")
    >>> unlearned, _ = krs.load("smollm2")       # stands in for one that was unlearned: its last layer is disturbed
    >>> _ = unlearned.model.layers[29].mlp.up_proj.weight.data.mul_(1.5)
    >>> restore = (krs.MLP_COEF + krs.ATTN_OUT).at(26, 27, 28, 29)
    >>> krs.generate(vanilla, unlearned, ["The capital of France is"], restore=restore, n_tokens=1, progress=False)[0]
    ' Paris'

    Args:
        vanilla: as in `krs.sweep`. Both models' answers end where this one's do.
        unlearned: as in `krs.sweep`; with `None` the vanilla model answers alone.
        prompts: as in `krs.sweep`.
        restore: what to put back; nothing gives the unlearned model's own answers.
        n_tokens: at most so many tokens an answer.
        tokenizer: looked for beside the model's checkpoint if not given.
        vocabulary: as in `krs.sweep`.
        tokenizer: or the name of a model that has it; looked for beside the models' checkpoints if not given.
        device: where models given by name go, as in `krs.sweep`; `dtype` and `device_map` likewise.
        dtype: see `device`.
        device_map: see `device`.
        chat_template_kwargs: as in `krs.sweep`.
        progress: show a bar.
        hear: is called with the number of a prompt and the next piece of its answer's text, as it comes.
        family: as in `krs.sweep`.

    Raises `KrsError` before anything runs for a pair that does not belong together and for bad input; and for logits
    that are NaN or infinite, of either model or of the restored one.
    """
    asked = check_prompts(prompts)
    arguments = check_template_arguments(chat_template_kwargs, any(map(is_chat, asked)))
    placements = [restore] if isinstance(restore, Placement) else list(restore)
    if any(p.positions is not None for p in placements):
        raise KrsError("generate() restores at every position: leave positions= out")
    if unlearned is None and placements:
        raise KrsError("restore= needs the unlearned model to restore into: generate(vanilla, unlearned, …)")
    given = {"vanilla": vanilla} | ({} if unlearned is None else {"unlearned": unlearned})
    tokenizer = as_tokenizer(tokenizer)
    loaded = load_given(given, device=device, dtype=dtype, device_map=device_map)
    if len(loaded) == 1:
        models: tuple[nn.Module, ...] = (_plain(loaded[0][0]),)
    else:
        v, u = check_pair(loaded[0][0], loaded[1][0], vocabulary)
        for p in placements:
            u.require(p.points, p.layers)
        models = (v.model, u.model)
    tokenizer = tokenizer or next((beside for _, beside in loaded if beside is not None), None)
    tokenizer = tokenizer or next((t for m in models if (t := find_tokenizer(m)) is not None), None)
    reader = with_template_arguments(tokenizer, arguments) if needs_tokenizer(asked) else None
    ids = encode(asked, reader, pads=pad_ids(models[0]), ends=eos_ids(models[0]))
    check_fits(ids, n_tokens, models[0])
    if hear is not None and tokenizer is None:
        raise KrsError("hear= gets pieces of text, and no tokenizer was found beside the models: pass tokenizer=")
    pieces = None if hear is None or tokenizer is None else TextStream(hear, tokenizer)
    other = models[1] if len(models) > 1 else None
    answers = greedy(models[0], ids, n_tokens, other, placements, progress, heard=pieces)
    if tokenizer is None:
        return Generated(answers)
    texts = tuple(decode(a, tokenizer, skip_special_tokens=True) for a in answers)
    if pieces is not None:
        pieces.finish(texts)
    return Generated(answers, texts)


def greedy(
    vanilla: nn.Module,
    prompts: tuple[Ids, ...],
    n_tokens: int,
    unlearned: nn.Module | None = None,
    restore: Sequence[Placement] = (),
    progress: bool = True,
    doing: str = "answers",
    side: str = "vanilla",
    n_ids: int | None = None,
    eos: frozenset[int] | None = None,
    heard: Callable[[int, Ids], None] | None = None,
    done: Sequence[Ids] = (),
    kept: Callable[[tuple[Ids, ...]], None] | None = None,
) -> tuple[Ids, ...]:
    """Greedy answers as token ids, each ending with its EOS if it came. See `generate`.

    `side` is what messages call the first model; the second one is the unlearned model. Ids from
    `n_ids` on are not said: those that a model does not have, if not given. `eos` are the ids that end an answer, those
    of `vanilla` if not given. An unlearned model that answers alone needs the vanilla model's: its own configuration
    may have lost them.

    `kept` is called after each batch with the answers so far. Given as `done` to the same call, they are gone on from,
    batch by batch with the same prompts together, so that the answers are those of a call that was not interrupted.
    """
    if whole(n_tokens, "n_tokens") < 1:
        raise KrsError(f"n_tokens={n_tokens}: at least one token has to be generated")
    eos = eos_ids(vanilla) if eos is None else eos
    models = [vanilla] if unlearned is None else [vanilla, unlearned]
    n_ids = shared_ids(models[0], models[-1]) if n_ids is None else n_ids
    _check_ids(prompts, n_ids)
    with plain_numerics(), plain_calls(*models):
        size = 1 if any(neighbours_matter(model, prompts) for model in models) else _BATCH
        answers = list(done if len(done) == len(prompts) else done[: len(done) // size * size])
        batches = [prompts[i : i + size] for i in range(len(answers), len(prompts), size)]
        with bar(len(batches) * n_tokens, doing, show=progress, unit="token") as shown:
            while batches:
                batch = batches.pop(0)
                try:
                    tell = None if heard is None else partial(_tell, heard, len(answers), eos)
                    answers += _lockstep(vanilla, unlearned, restore, batch, n_tokens, eos, n_ids, shown, tell)
                    if kept is not None:
                        kept(tuple(answers))
                except _NotFiniteError as found:
                    if len(batch) == 1:
                        _explain(found, models, (side, "unlearned"), len(answers))
                    batches[:0] = [(prompt,) for prompt in batch]  # padding may be what is not finite (Gemma2, float64)
                    shown.total += (len(batch) - 1) * n_tokens
    return tuple(answers)


def _check_ids(prompts: tuple[Ids, ...], n_ids: int) -> None:
    for i, prompt in enumerate(prompts):
        if bad := [t for t in prompt if not 0 <= t < n_ids]:
            raise KrsError(f"prompt {i} has the token id {bad[0]}, but the model's vocabulary has {n_ids} entries")


def eos_ids(model: nn.Module) -> frozenset[int]:
    """The ids that end an answer, as the model's generation config (or else its config) says; it may name several."""
    return _named(model, "eos_token_id")


def pad_ids(model: nn.Module) -> frozenset[int]:
    """The id that the model's configuration names for padding, if it names one."""
    return _named(model, "pad_token_id")


def _named(model: nn.Module, name: str) -> frozenset[int]:
    config: Any = getattr(model, "config", None)
    inner = config.get_text_config() if hasattr(config, "get_text_config") else None
    for one in (getattr(model, "generation_config", None), config, inner):
        found = getattr(one, name, None)
        if found is not None:
            return frozenset(map(int, [found] if isinstance(found, int) else found))
    return frozenset()


def _lockstep(
    vanilla: nn.Module,
    unlearned: nn.Module | None,
    restore: Sequence[Placement],
    prompts: tuple[Ids, ...],
    n_tokens: int,
    eos: frozenset[int],
    n_ids: int,
    shown: Any,
    tell: Callable[[list[list[int]]], None] | None = None,
) -> list[Ids]:
    speakers = [_Speaker(vanilla, prompts)] if unlearned is None or restore else []
    speakers += [] if unlearned is None else [_Speaker(unlearned, prompts)]
    said: list[list[int]] = [[] for _ in prompts]
    going = [True] * len(prompts)
    with ExitStack() as stack:
        if unlearned is not None:
            _restore_from(vanilla, unlearned, restore, stack)
        for step in range(n_tokens):
            for speaker in speakers:
                logits = speaker.step(said)[:, :n_ids]
                if not (finite := torch.isfinite(logits).all(-1)).all():
                    row = int((~finite).nonzero()[0])
                    raise _NotFiniteError(speaker.model, row, (*prompts[row], *said[row]))
            for i, token in enumerate(logits.argmax(-1).tolist()):
                said[i].append(token)
                if going[i] and token in eos:
                    going[i] = False
            shown.update()
            if tell is not None:
                tell(said)
            if not any(going):
                shown.update(n_tokens - step - 1)
                break
    return [_until_end(tokens, eos) for tokens in said]


def _tell(heard: Callable[[int, Ids], None], first: int, eos: frozenset[int], said: list[list[int]]) -> None:
    for i, tokens in enumerate(said):
        heard(first + i, _until_end(tokens, eos))


def _restore_from(vanilla: nn.Module, unlearned: nn.Module, restore: Sequence[Placement], stack: ExitStack) -> None:
    """Open the blocks in which each step of the unlearned model takes the vanilla model's activations."""
    for place in restore:
        for point in place.points:
            one = place.of(point)
            if point.kind == "weight":
                stack.enter_context(patched(unlearned, one.set(vanilla)))
            else:
                acts = stack.enter_context(record(vanilla, Setting((point,)), layers=place.layers))
                stack.enter_context(patched(unlearned, one.set(acts)))


class _NotFiniteError(Exception):
    """A model gave NaN or infinity: which model, on which row of the batch, after which tokens."""

    def __init__(self, model: nn.Module, row: int, tokens: Ids) -> None:
        super().__init__(model, row, tokens)
        self.model, self.row, self.tokens = model, row, tokens


def _explain(found: _NotFiniteError, models: list[nn.Module], sides: tuple[str, str], before: int) -> NoReturn:
    """Raise `KrsError` that says which model is at fault, now that nothing is restored in it any more."""
    where = f" on prompt {before + found.row}"
    for model, side in zip(models, sides, strict=False):
        inputs = {"input_ids": torch.tensor([found.tokens], device=device_of(model))}
        refuse_not_finite(model, side, inputs, where)
    what = "the restored model's logits" if len(models) > 1 else f"the logits of {sides[0]}, token by token,"
    raise KrsError(
        f"{what} are NaN or infinite{where}, though neither model's own are in one forward: what is put together "
        f"overflows. {WIDER[0].upper()}{WIDER[1:]}, or restore something else"
    )


def _until_end(tokens: list[int], eos: frozenset[int]) -> Ids:
    end = next((i for i, t in enumerate(tokens) if t in eos), len(tokens) - 1)
    return tuple(tokens[: end + 1])


def _plain(model: nn.Module) -> nn.Module:
    from krs.hooks.unwrap import unwrap

    return unwrap(model)


class _Speaker:
    """One model's cache of what has been said, prompts padded on the left so that all rows end together."""

    def __init__(self, model: nn.Module, prompts: tuple[Ids, ...]) -> None:
        self.model = model
        self.cache: dict[str, Any] = {}
        self.whole = False  # whether the model keeps nothing, and reads everything at each step
        self.device = device_of(model)
        self.prompts = prompts
        self.switch = switches_at(model)
        start_afresh(model)
        longest = max(map(len, prompts))
        self.ids: Int[Tensor, "batch pos"] = torch.zeros(len(prompts), longest, dtype=torch.long)
        self.mask: Int[Tensor, "batch pos"] = torch.zeros_like(self.ids)
        for i, prompt in enumerate(prompts):
            self.ids[i, longest - len(prompt) :] = torch.tensor(prompt)
            self.mask[i, longest - len(prompt) :] = 1

    def step(self, said: list[list[int]]) -> Float[Tensor, "batch vocab"]:
        """Logits of the next token, after the last of what was said."""
        ids = self.ids
        if said[0]:
            ids = torch.tensor([[tokens[-1]] for tokens in said])
            self.mask = torch.cat([self.mask, torch.ones_like(ids)], dim=1)
            if self.switch is not None and self.mask.shape[1] == self.switch + 1:  # a prompt by itself, see `batching`
                self.cache, ids = {}, torch.tensor([[*self.prompts[0], *said[0]]])
            if self.whole:
                ids = torch.cat([self.ids, torch.tensor(said)], dim=1)
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        inputs = {
            "input_ids": ids.to(self.device),
            "attention_mask": self.mask.to(self.device),
            "position_ids": positions.to(self.device),
        }
        last = torch.full((ids.shape[0], 1), ids.shape[1] - 1)
        with head_at(self.model, last):
            out = self.model(**accepted(self.model, inputs), **self.cache, use_cache=True)
        name = next((name for name in CACHES if getattr(out, name, None) is not None), None)
        self.whole = name is None
        self.cache = {} if name is None else {name: getattr(out, name)}
        return out.logits[:, -1].float()
