"""The paper's question in one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from krs._typing import Tokenizer
from krs.generation.greedy import eos_ids, greedy
from krs.hooks.check import self_check
from krs.hooks.families import with_family
from krs.hooks.family import Family
from krs.hooks.offload import is_offloaded
from krs.hooks.points import Setting
from krs.metrics.measures import Measure, MeasureFunction
from krs.metrics.measures import measures as as_measures
from krs.models.lineage import check_roles
from krs.models.pair import Vocabulary
from krs.prompts import (
    Answer,
    Ids,
    Prompts,
    Scoring,
    check_prompts,
    check_subjects,
    check_template_arguments,
    is_chat,
)
from krs.prompts.notes import answer_notes, bare_texts, example, prompt_notes, show
from krs.restore.answering import begun, keeping_answers
from krs.restore.call import Call
from krs.restore.checkpoint import carried_out, earlier, with_answers_of
from krs.restore.early import refuse_another
from krs.restore.engines import engines_of, taken_by
from krs.restore.execution import execute
from krs.restore.job import Job
from krs.restore.memory import budget
from krs.restore.notes import unlikely_answers
from krs.restore.plan import Settings, check_positions, check_settings
from krs.restore.prepare import (
    Engine,
    Model,
    Offload,
    batch_of,
    check_choices,
    check_donor_prompts,
    check_restorations,
    donor_batch_of,
)
from krs.restore.result import SweepResult
from krs.restore.sides import load_sides
from krs.restore.storage import size_of
from krs.restore.windows import Shape, shape
from krs.writing import check_writable

Measures: TypeAlias = Iterable[str | Measure | MeasureFunction] | str | Measure | MeasureFunction
Direction: TypeAlias = Literal["restore", "transplant"]


@with_family
def sweep(
    vanilla: Model,
    unlearned: Model,
    prompts: Prompts,
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    settings: Settings = None,
    windows: int | Shape = 5,
    n_tokens: int = 30,
    scoring: Scoring = "next-token",
    positions: str | Iterable[int] | Iterable[Iterable[int]] | None = None,
    subjects: Iterable[str] | None = None,
    engine: Engine = "auto",
    memory: int | float | str = "auto",
    progress: bool = True,
    checkpoint: str | Path | None = None,
    answers: Iterable[Answer] | None = None,
    offload: Offload | None = None,
    vocabulary: Vocabulary = "same",
    measures: Measures = (),
    direction: Direction = "restore",
    chat_template_kwargs: dict[str, Any] | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
    reference: Model | None = None,
    donor_prompts: Prompts | None = None,
    family: Family | str | None = None,
) -> SweepResult:
    """Put pieces of the vanilla model back into the unlearned one and measure how much of its logits returns.

    For each setting and each window of layers, the unlearned model runs on the vanilla model's own greedy answers with
    that setting restored there; the score of Eq. 3 (Hong et al., EMNLP 2024) compares its logits with the vanilla
    ones.

    >>> import krs
    >>> vanilla, tokenizer = krs.load("smollm2")
    >>> unlearned, _ = krs.load("smollm2")       # stands in for one that was unlearned: its last layer is disturbed
    >>> _ = unlearned.model.layers[29].mlp.up_proj.weight.data.mul_(1.5)
    >>> result = krs.sweep(vanilla, unlearned, ["Hogwarts is a"], windows=krs.windows.of([[27], [29]]), n_tokens=3,
    ...                    progress=False)
    >>> result.best()["window"].to_dict()["mlp_coef"]
    29

    Args:
        vanilla: the original causal language model (transformers, a TransformerLens bridge, PEFT), or a name that
            `krs.load` understands.
        unlearned: the model that was made from it, likewise. Both models are bit for bit what they were when this
            returns or raises.
        prompts: strings, taken as they are; lists of chat messages, to which the tokenizer's template is applied; or
            lists of token ids, for which no tokenizer is needed. What a tokenizer returns is taken too, by its
            attention mask.
        tokenizer: or the name of a model that has it; looked for beside the models' checkpoints if not given.
        settings: sums of points, or their names; the paper's four if not given. `HEAD_OUT.each_head()` and
            `MLP_COEF.units(7, 9).each()` are axes: a setting for each head, or unit.
        windows: the size of a centred window, or a shape from `krs.windows`.
        n_tokens: at most so many answer tokens are generated and scored a prompt (the paper's I).
        scoring: `"next-token"` scores the logits that predict each answer token, as Eq. 3 does, an answer's EOS
            included; `"paper-code"` scores as the released notebooks do. Docs: scoring.
        positions: where activations are restored: everywhere (`None`, as in the paper), `"prompt"`, `"answer"`,
            `"scored"` (the positions whose logits are compared), `"last_prompt"`, indices into each prompt's tokens
            (negative ones count back from its end), or a list of indices for each prompt; `"each"` makes them an axis,
            one position at a time, prompts aligned at the beginning of their answers. Docs: axes. `"subject"` is every
            token of each prompt's subject, `"last_subject"` the last of them.
        subjects: for these, the subject of each prompt as it stands there; its last mention counts.
        engine: `"wavefront"` does every restoration in one pass through the layers; `"plain"` runs one forward a
            restoration; `"auto"` takes the first, and the second where the first would not be exact (the result's
            `provenance` says which it was, and why). `"estimate"` estimates from gradients, in a few passes for all
            restorations, and its results say so. `"ray"` hands shards of the prompts to a cluster. Docs: performance,
            estimates, scale.
        memory: what the sweep may keep beside the models: bytes, `"4GiB"`, or `"auto"`, a quarter of what is free.
        progress: show bars.
        checkpoint: a file for what is done so far. It is written every half minute and on Ctrl-C; called again with
            the same models, prompts and plan, the sweep goes on from it.
        answers: what is scored, one a prompt (text, or token ids), instead of the vanilla model's own greedy answers.
            A text ends as the vanilla model ends its answers.
        offload: `"disk"` for models given by name that do not fit in memory: each layer is read from the checkpoint
            once a pass. Give `answers` too, for generating them reads the vanilla model once a token.
        vocabulary: `"shared"` scores the vocabulary rows that both models have, where one of them has more at its end
            (a token was added, a head padded to a multiple); nothing beyond them is said or scored.
        measures: what is measured beside the logit MSE: `"kl"`, `"kl_reverse"`, `"answer_logprob"`, `"rank"`,
            `"top1"`, or a function of `(logits [token, vocab], reference_logits [token, vocab], target_ids [token])`
            that returns a number a token. Docs: measures.
        direction: `"restore"` puts vanilla pieces into the unlearned model (denoising); `"transplant"` puts unlearned
            pieces into the vanilla one (noising), to see what is sufficient to unlearn. Either way the vanilla model is
            what results are compared with, and its answers are scored.
        chat_template_kwargs: arguments of the chat template, such as `{"enable_thinking": False}` or a date.
        device: where models given by name go: `"auto"` is the GPU where there is one, else the CPU; or `"cuda:1"`,
            `"xpu"`, `"mps"`, `"cpu"`.
        dtype: that they are loaded in; `"auto"` is their checkpoints' own.
        device_map: `"auto"` shares them out over all GPUs, as `accelerate` does.
        reference: see `krs.patch_sweep`.
        donor_prompts: see `krs.patch_sweep`.
        family: for models whose `config.model_type` krs does not know, and whose layers are laid out as those of one
            that it knows: that type (`"llama"`), or a `krs.hooks.Family`. All models of the call are taken to be of it.

    What is most likely not meant (a chat model asked without its template, given answers that the vanilla model would
    not give) is in the result's `notes`, and on stderr with one scored answer where bars are shown. A `KrsWarning` is
    given where most answers are empty and where the models do not belong together as `krs_unlearn.json` says.

    Raises `KrsError` for bad input, before any model runs, and for models whose logits are NaN or infinite. An
    interrupted sweep raises what interrupted it with the attribute `partial`, the `SweepResult` of what was done; where
    the vanilla model was still answering, of the prompts that it has answered, sixteen at a time.
    """
    asked = check_prompts(prompts)
    arguments = check_template_arguments(chat_template_kwargs, any(map(is_chat, asked)))
    wanted = as_measures(measures)
    check_choices(scoring, engine, n_tokens, direction, wanted)
    n_tokens, windows, settings = int(n_tokens), shape(windows), check_settings(settings)
    about = check_subjects(subjects, positions, asked)
    where = check_positions(positions) if about is None else None
    others = check_donor_prompts(donor_prompts, len(asked), settings, where)
    call = Call(
        prompts=asked,
        donor_prompts=others,
        settings=settings,
        windows=windows,
        positions=positions,
        where=where,
        subjects=about,
        answers=list(answers) if isinstance(answers, Iterator) else answers,
        n_tokens=n_tokens,
        scoring=scoring,
        measures=wanted,
        engine=engine,
        direction=direction,
        family=family,
        chat_template_kwargs=arguments,
    )
    file = _checked(checkpoint)
    names = {"vanilla": vanilla, "unlearned": unlearned} | ({} if reference is None else {"reference": reference})
    refuse_another(file, names, call, tokenizer, as_stored=dtype == "auto")
    sides, tokenizer = load_sides(
        vanilla,
        unlearned,
        reference,
        call.reads,
        tokenizer,
        scoring,
        vocabulary,
        direction,
        device=device,
        dtype=dtype,
        device_map=device_map,
        offload=offload,
    )
    v, u, r = taken_by(engine, (sides.vanilla, sides.unlearned, sides.reference))
    bodies = {"vanilla": v, "unlearned": u} | ({"reference": r} if sides.has_third else {})
    ends = eos_ids(r.model)
    asking = call.of(bodies, tokenizer, ends, sides.described())
    plan, ids, given = asking.plan, asking.prompts, asking.answers
    check_restorations(engine, plan, v, u)
    donor_ids = None if others is None else tuple(map(tuple, asking.made["donor_prompts"]))
    sides.check_tokens(plan, ids, n_tokens, given, donor_ids)
    room = budget(memory, next(u.model.parameters()).device)
    if file is not None:
        check_writable(file, "checkpoint", size_of(plan, ids, n_tokens, len(wanted)))
    found = earlier(file, asking, progress)
    for side, body in (("vanilla", v), ("unlearned", u)):
        if not is_offloaded(body.model):  # an offloaded model would be read several times; the pass checks itself too
            self_check(body.model, Setting(plan.points), side=side, layers=plan.layers)

    def begin(said: tuple[Ids, ...], notes: Sequence[str] = ()) -> SweepResult:
        answered = batch_of(scoring, ids[: len(said)], said, tokenizer, r)
        return begun(asking, answered, said, wanted, tokenizer, notes)

    with keeping_answers(found, len(ids), sides.reference_name, file, begin) as kept:
        said = given or kept.said
        if len(said) < len(ids):
            said = greedy(r.model, ids, n_tokens, n_ids=sides.n_ids, progress=progress, **kept.options)
        batch = batch_of(scoring, ids, said, tokenizer, r)
        plan = plan.at_places(batch.places)
        donor_batch = donor_batch_of(plan, batch, donor_ids)
        notes = check_roles(v.model, u.model) + prompt_notes(asked, tokenizer, arguments)
        notes += answer_notes(said, tokenizer, ends, bare_texts(asked, tokenizer), "scored answers")
        if given is not None and scoring == "next-token" and not is_offloaded(r.model):
            notes += unlikely_answers(r.model, batch, given)
        show([example(ids[0], said[0], tokenizer), *(f"note: {note}" for note in notes)], progress)
        result = with_answers_of(found, file, begin(said, notes))

    def run(saving: Any) -> None:
        recipient, donor = (u, v) if direction == "restore" else (v, u)
        job = Job(plan, recipient, donor, r, batch, wanted, room, result.losses.computed, donor_batch)
        execute(engines_of(engine), job, result.losses, progress, saving, result.provenance)

    return carried_out(result, file, run)


def _checked(checkpoint: str | Path | None) -> Path | None:
    """The checkpoint's file, tried now rather than at the end."""
    if checkpoint is None:
        return None
    check_writable(Path(checkpoint), "checkpoint")
    return Path(checkpoint)
