"""Unlearn something from a copy of a model, and leave the original as it is."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.generation.greedy import eos_ids
from krs.hooks.adapters import active_adapters, has_adapters, merged
from krs.hooks.anatomy import anatomy
from krs.hooks.given import check_model
from krs.hooks.unwrap import unwrap
from krs.models.given import check_fit, load_options
from krs.models.load import find_tokenizer, load
from krs.models.places import locate
from krs.models.provenance import NUMBERS, as_json, describe_model, now, versions, versions_that_count, weights_digest
from krs.progress import loading
from krs.prompts import check_strings, check_template_arguments, decode, is_chat, listed, with_template_arguments
from krs.prompts.notes import prompt_notes, show
from krs.registry import module_of
from krs.unlearn import checkpoints
from krs.unlearn.config import Config, EditConfig
from krs.unlearn.examples import Example, Text, check_texts, to_examples
from krs.unlearn.interrupt import Interrupt
from krs.unlearn.isolation import isolated
from krs.unlearn.memit.requests import Request
from krs.unlearn.methods import Edit, Method, Plugin
from krs.unlearn.methods import made as as_method
from krs.unlearn.preflight import check_extras, check_finite, check_memory, check_saves
from krs.unlearn.saving import kept, save
from krs.unlearn.sides import check_looks
from krs.unlearn.student import check_trainable, context, depth, finish, survives_rounding, warn_of_rounding
from krs.unlearn.verify import probes, words
from krs.wording import kind

Done: TypeAlias = tuple[nn.Module, list[dict[str, Any]], dict[str, Any]]
"""The unlearned model, the log, and what else is to be reported."""

Work: TypeAlias = Callable[[Path | None], Done]
"""The long part of a run, which begins at a checkpoint if it is given one."""


def run(
    method: str | Config | EditConfig | Plugin,
    model: nn.Module | str | Path,
    *,
    forget: Iterable[Any],
    retain: Iterable[Text] | None = None,
    sides: Mapping[str, Iterable[Text]] | None = None,
    corpus: Iterable[str] | None = None,
    tokenizer: Tokenizer | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "auto",
    trainer: dict[str, Any] | None = None,
    watch: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    stop_when: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> nn.Module:
    """Unlearn `forget` from a copy of `model`, and return the copy in eval mode, in the original's dtype.

    Training keeps its weights in fp32 whatever the model's dtype, unless `precision="bf16-pure"`: in bf16 most steps of
    a small learning rate round away.

    >>> import krs
    >>> from krs import unlearn
    >>> vanilla, tokenizer = krs.load("smollm2")
    >>> unlearned = unlearn.run("npo", vanilla, forget=[("Who wrote Emma?", "Jane Austen.")], steps=1, progress=False)
    >>> unlearned is vanilla
    False

    Args:
        method: a name that `krs.unlearn.methods()` lists; or a config, such as `unlearn.rmu.RMUConfig(layer=5)`; or an
            instance of a method of your own, registered or not.
        model: the vanilla model, or its name; it is not changed. A PEFT
            model's adapters are merged into the copy before training, and the report names them.
        forget: what to unlearn: paragraphs, or prompts with answers (see `Text`); for MEMIT also requests.
        retain: what to keep, in the same forms; for the methods that use it.
        sides: further sets of texts by name, for methods that have more than these two (`more_sides`).
        corpus: any text, for the methods that need statistics of it (MEMIT).
        tokenizer: looked for beside the model's checkpoint if not given.
        chat_template_kwargs: arguments of the chat template, such as `{"enable_thinking": False}` or a date.
        output_dir: where to save model, tokenizer and a report of how it was made; nowhere if not given. An
            interrupted run leaves checkpoints there, and the same call goes on from the newest.
        overwrite: save into a directory that is not empty, and begin anew where it holds another run.
        device: where a model given by name goes, and where it is trained: `"auto"` is the GPU where there is one. A
            loaded model is trained where it is.
        dtype: of a model given by name; as in `krs.load`.
        trainer: further `transformers.TrainingArguments` (`fsdp`, `report_to`, `optim` …).
        watch: looks at the model while it trains: called with it and the number of steps taken (0 before the first),
            it returns numbers by name, or `{}` where it does not look. They are in the report (`watched`). It must not
            change the model; `krs.instruments.watch` makes one that reads instruments.
        stop_when: stop after the step at which this holds of what `watch` returns, such as `"nll_tail > 1.5"`; several
            comparisons are joined by `and`.
        settings: of the method's config, such as `learning_rate`, `steps`, `batch_size`, `beta`, `parameters`.

    Whatever the caller has switched on around the call (autocast, `no_grad`, a default dtype or device) does not act
    on it, and the caller's random numbers stay as they are.

    What `krs.load(output_dir)` gives is compared with the copy before it is returned, and the report says by how much
    logits differ.

    Raises `KrsError` before training for bad input, for what could not be saved and for what does not fit; then for a
    loss or weights that are not finite, when no parameter moved, and when what was saved loads as another model. What
    cannot be saved at the end is the error's `partial`, and is kept in `output_dir` too, where the same call finds it.
    """
    made = as_method(method, settings)
    stop = _check_watch(made, watch, stop_when)
    sets, corpus = _check_given(made, forget, retain, sides, corpus, trainer)
    texts = [text for given in sets.values() for text in given]
    arguments = check_template_arguments(chat_template_kwargs, any(map(_is_chat, texts)))
    if not isinstance(model, str | Path):
        check_model(model)
    check_extras(made)
    main = int(os.environ.get("RANK", "0")) == 0
    folder = checkpoints.output(output_dir, overwrite or not main)
    chosen = {"method": made.name, "settings": asdict(made.config)}
    if folder is not None and main and not overwrite:
        checkpoints.refuse_another(folder, chosen)
    interrupt = Interrupt(saves=folder is not None)
    with isolated(), interrupt.listening():
        vanilla, tokenizer = _vanilla(model, tokenizer, made, device, dtype)
        adapters = active_adapters(vanilla)
        vanilla = merged(vanilla) if has_adapters(vanilla) else vanilla
        reader = with_template_arguments(tokenizer, arguments)
        notes = _notes(texts, reader, arguments, progress and main)
        _check_place(folder, model, vanilla)
        check_finite(vanilla)
        if folder is not None and main:
            check_saves(vanilla, tokenizer, folder, made.config, words(sets["forget"]))
        if isinstance(made, Edit):
            work, described = _editing(made, vanilla, sets["forget"], corpus, reader, progress)
        else:
            assert isinstance(made, Method)
            options: dict[str, Any] = {"options": trainer or {}, "progress": progress, "interrupt": interrupt}
            if watch is not None:
                from krs.unlearn.watching import Watching

                options["watching"] = Watching(watch, stop)
            work, described = _training(made, vanilla, sets, reader, folder, options)
        if folder is None:
            return work(None)[0]
        recipe = {
            **chosen,
            "vanilla model": weights_digest(vanilla),
            "versions": versions_that_count(versions()) | {"krs's way to its numbers": NUMBERS},
            **({} if stop_when is None else {"stop_when": stop_when}),
            **checkpoints.launched(trainer or {}),
            **{f"{side} texts": said for side, said in described.items()},
        }
        with checkpoints.tidied(folder, main):
            resume = checkpoints.begin(folder, recipe, overwrite, main)
            done = kept(folder, vanilla)
            if done is not None and main:
                place = str(folder / checkpoints.FOLDER)
                show([f"going on: the finished model was in {place!r}, and has only to be saved"], progress)
            origin = describe_model(model, vanilla) | ({"merged_adapters": adapters} if adapters else {})
            prompted = {"chat_template_kwargs": as_json(arguments), "notes": notes}
            unlearned, report = done or _worked(work, resume, made, origin, described | prompted)
            interrupt.waits = True
            if main:
                asked = probes(sets["forget"], reader, context(vanilla, 10**6))
                save(unlearned, tokenizer, folder, report, asked)
                checkpoints.end(folder)
    return unlearned


def _worked(
    work: Work, resume: Path | None, made: Plugin, vanilla: dict[str, Any], sides: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The unlearned model, and the report of how it was made."""
    started = time.monotonic()
    unlearned, log, ended = work(resume)
    report = {
        "method": made.name,
        "config": asdict(made.config),
        "vanilla": vanilla,
        **sides,
        **ended,
        "seconds": round(time.monotonic() - started, 1),
        "made": now(),
        "versions": versions(),
        "log": log,
    }
    return unlearned, report


def _check_place(folder: Path | None, model: nn.Module | str | Path, vanilla: nn.Module) -> None:
    """Raise `KrsError` if the output would take the vanilla model's place, which `overwrite` does not mean."""
    config: Any = vanilla.config
    given = [p for p in (model, getattr(config, "_name_or_path", "")) if isinstance(p, str | Path) and str(p)]
    if folder is not None and folder.resolve().is_dir() and folder.resolve() in [Path(p).resolve() for p in given]:
        raise KrsError(f"output_dir={str(folder)!r} is where the vanilla model is: give another directory")


def _check_given(
    made: Plugin,
    forget: Iterable[Any],
    retain: Iterable[Text] | None,
    more: Mapping[str, Iterable[Text]] | None,
    corpus: Iterable[str] | None,
    trainer: dict[str, Any] | None,
) -> tuple[dict[str, list[Any]], list[str] | None]:
    """The sets by side, as lists of checked texts, and the corpus. Raises `KrsError` for such that are empty, missing
    or would be ignored, and for what is no text: before a model is loaded."""
    name = made.name
    sets = {"forget": _requests(forget) if isinstance(made, Edit) else check_texts(forget, "forget")}
    if retain is not None:
        sets["retain"] = check_texts(retain, "retain")
    checked = None if corpus is None else check_strings(corpus, "corpus")
    if isinstance(made, Edit):
        if given := [k for k, v in {"retain": retain, "sides": more, "trainer": trainer}.items() if v is not None]:
            raise KrsError(f"{name} does not train, so {given[0]}= would be ignored: leave it out")
        if made.needs_corpus and corpus is None:
            raise KrsError(f"{name} needs text to take statistics of: pass corpus=, a list of texts of any kind")
        return sets, checked
    assert isinstance(made, Method)
    if corpus is not None:
        raise KrsError(f"{name} uses no corpus=: leave it out")
    if retain is None and made.needs_retain and not made.makes_retain:
        raise KrsError(f"{name} needs a retain set: pass retain=, texts that the model is to keep")
    if retain is not None and made.makes_retain:
        raise KrsError(f"{name} makes its own retain side from the forget set: leave retain= out")
    if retain is not None and not made.needs_retain:
        own = ", or set needs_retain = True in its class if its loss reads it"
        raise KrsError(
            f"{name} has no retain term, so retain= would be ignored: leave it out"
            f"{'' if module_of(made).startswith('krs.') else own}"
        )
    further = dict(more or {})
    if missing := [side for side in made.more_sides if side not in further]:
        raise KrsError(f"{name} needs texts of the side {missing[0]!r}: pass sides={{{missing[0]!r}: […]}}")
    if unused := [side for side in further if side not in made.more_sides]:
        its = ", ".join(made.more_sides) or "none besides forget= and retain="
        raise KrsError(f"{name} has no side {unused[0]!r}, so its texts would be ignored: its further sides are {its}")
    return sets | {side: check_texts(further[side], side) for side in made.more_sides}, checked


def _check_watch(made: Plugin, watch: object, stop_when: str | None) -> Any:
    """The condition to stop at, if there is one; `KrsError` for one that nothing could fulfil."""
    if watch is None and stop_when is None:
        return None
    if isinstance(made, Edit):
        raise KrsError(f"{made.name} does not train, so watch= and stop_when= would be ignored: leave them out")
    if watch is None:
        raise KrsError("stop_when= reads what watch= returns: pass watch= too (krs.instruments.watch makes one)")
    if not callable(watch):
        raise KrsError(f"watch= is {kind(watch)}: give a function of the model and the step")
    if stop_when is None:
        return None
    from krs.unlearn.watching import condition

    return condition(stop_when)


def _requests(forget: Iterable[Any]) -> list[Any]:
    """What an edit is to forget, as a list; the method looks at each."""
    found = listed(forget, "forget", "request")
    if not found:
        raise KrsError("the forget set is empty: give at least one request")
    return found


def _notes(texts: Sequence[Any], tokenizer: Tokenizer, arguments: dict[str, Any], progress: bool) -> list[str]:
    """What about the prompts is most likely not meant; shown with the bars."""
    prompts = [text["prompt"] for text in texts if isinstance(text, dict) and "prompt" in text]
    notes = prompt_notes(prompts, tokenizer, arguments)
    show([f"note: {note}" for note in notes], progress)
    return notes


def _is_chat(text: Any) -> bool:
    """Whether the prompt of a text or request is chat messages."""
    if isinstance(text, Request):
        return text.chat
    parts = text.values() if isinstance(text, Mapping) else text if isinstance(text, tuple | list) else ()
    return any(is_chat(part) for part in parts)


def _editing(
    made: Edit,
    vanilla: nn.Module,
    forget: Sequence[Any],
    corpus: Sequence[str] | None,
    tokenizer: Tokenizer,
    progress: bool,
) -> tuple[Work, dict[str, Any]]:
    """What does the work of a method that edits, and what it works on."""

    def work(_: Path | None) -> Done:
        edited = copy.deepcopy(vanilla).float()
        log = made.edit(edited, tokenizer, forget, corpus, progress)
        layers = sorted({entry["layer"] for entry in log if "layer" in entry})
        survives = survives_rounding(edited, vanilla)
        finished = finish(edited, vanilla, made.name)
        warn_of_rounding(made.name, survives, next(vanilla.parameters()).dtype)
        return finished, log, {"edited_layers": layers, "survives_rounding": survives}

    return work, {"forget": _texts(forget), "corpus": _texts(corpus or [])}


def _training(
    made: Method,
    vanilla: nn.Module,
    sets: dict[str, list[Any]],
    tokenizer: Tokenizer,
    folder: Path | None,
    options: dict[str, Any],
) -> tuple[Work, dict[str, Any]]:
    """What does the work of a method that trains, and what it works on."""
    from krs.unlearn.train import train

    check_trainable(vanilla, made.config, made.trained_layers(depth(vanilla)))
    if looks := made.looks(depth(vanilla)):
        check_looks(made.name, looks, made.sides, anatomy(vanilla))
    limit = context(vanilla, made.config.max_length)
    ends = eos_ids(vanilla)
    texts = sets | ({"retain": made.retain_texts(sets["forget"])} if made.makes_retain else {})
    sides = {side: to_examples(texts[side], tokenizer, limit, side, ends) for side in made.sides}

    def decoded(ids: Sequence[int]) -> str:
        return decode(ids, tokenizer, skip_special_tokens=True)

    def work(resume: Path | None) -> Done:
        return train(made, vanilla, sides, decoded=decoded, folder=folder, resume=resume, **options)

    return work, {side: _digest(sides.get(side, [])) for side in ("forget", "retain", *made.more_sides)}


def _vanilla(
    model: nn.Module | str | Path,
    tokenizer: Tokenizer | None,
    made: Plugin,
    device: str | torch.device,
    dtype: torch.dtype | str,
) -> tuple[nn.Module, Tokenizer]:
    options = load_options(device, dtype)
    if isinstance(model, str | Path):
        located = {"model": locate(model)}
        check_fit(located, options["dtype"], options["device"])
        check_memory(made, located, options["dtype"], options["device"])
        loading([model])
        loaded, beside = load(model, **options)
        plain, found = unwrap(loaded), tokenizer or beside
    else:
        if dtype != "auto":
            raise KrsError("dtype= is for models given by name: convert the model yourself (model.to(dtype))")
        if device != "auto":
            raise KrsError("device= is for models given by name: move the model yourself (model.to(device))")
        plain = unwrap(model)
        if any(m.training for m in plain.modules()):
            raise KrsError("the model is in training mode: call .eval() first, so that it can be the reference")
        found = tokenizer if tokenizer is not None else find_tokenizer(plain)
    if found is None:
        raise KrsError("no tokenizer was found beside the model: pass tokenizer=AutoTokenizer.from_pretrained(…)")
    return plain, found


def _digest(examples: list[Example]) -> dict[str, Any]:
    """How many sequences, how many of them with a chat prompt, how many were cut, and a hash of them."""
    said = json.dumps([(e.ids, e.n_prompt) for e in examples]).encode()
    cut = sum(e.cut for e in examples)
    chat = sum(e.chat for e in examples)
    return {"sequences": len(examples), "chat": chat, "cut": cut, "sha256": hashlib.sha256(said).hexdigest()}


def _texts(texts: Sequence[Any]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(repr(text).encode())
    return {"texts": len(texts), "sha256": digest.hexdigest()}
