"""Deep or shallow: every instrument that fits the time, and what they say together."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.generation.greedy import eos_ids, greedy
from krs.hooks.context import plain_numerics
from krs.instruments.case import Asked, Case
from krs.instruments.dissection import Dissection
from krs.instruments.facts import Fact, FactLike, as_facts, read_facts
from krs.instruments.instrument import Instrument, instrument, instruments
from krs.instruments.kept import Kept, subject_of
from krs.instruments.logprobs import said_of
from krs.instruments.pace import Pace
from krs.instruments.reading import Reading
from krs.instruments.verdict import thresholds, verdict
from krs.models.given import Model, load_given
from krs.models.lineage import check_roles
from krs.models.pair import check_pair
from krs.models.provenance import describe_model, machine, now, tokenizer_name, versions
from krs.models.tokenizers import as_tokenizer, find_tokenizer
from krs.progress import bar, going_on
from krs.prompts import encode, listed
from krs.wording import kind
from krs.writing import check_folder, save_in_the_end

Target: TypeAlias = str | Path | Iterable[FactLike | str]
_FIRST = ("nll", "nll_tail", "recall")
"""Cheap, and what a reader asks first: run whatever the budget is."""
_SENTENCE_ENDS = re.compile(
    "[.!?]+['\")\\]\N{RIGHT SINGLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}]*(?=\\s|$)|\\n"
    "|[\N{IDEOGRAPHIC FULL STOP}\N{FULLWIDTH EXCLAMATION MARK}\N{FULLWIDTH QUESTION MARK}]+"
)
_STEP = {"s": 1.0, "m": 60.0, "h": 3600.0}


@plain_numerics()
def dissect(
    vanilla: Model,
    unlearned: Model,
    target: Target,
    *,
    unrelated: Target = (),
    retain: Model | None = None,
    budget: str | int | float | None = "10m",
    only: Sequence[str | Instrument] | None = None,
    nulls: bool = True,
    tokenizer: Tokenizer | str | Path | None = None,
    chat: bool | None = None,
    n_tokens: int = 64,
    seed: int = 0,
    output_dir: str | Path | None = None,
    progress: bool = True,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
) -> Dissection:
    """Has the unlearned model forgotten, or does it only not say?

    Runs instruments that look at it in different ways, each beside its own nulls, and says what they come to.

    >>> import krs
    >>> vanilla, _ = krs.load("smollm2")
    >>> unlearned, _ = krs.load("smollm2")       # stands in for one that was unlearned: its last layer is disturbed
    >>> _ = unlearned.model.layers[29].mlp.up_proj.weight.data.mul_(1.5)
    >>> facts = [("What is the capital of France?", "The capital of France is Paris.")]
    >>> found = krs.dissect(vanilla, unlearned, facts, only=["nll", "nll_tail"], progress=False)
    >>> sorted(found.readings), found.verdict.word
    (['nll', 'nll_tail'], 'cannot tell')

    Args:
        vanilla: the model that knew, or its name.
        unlearned: the model in question, or its name. All models are bit for bit what they were when this returns or
            raises.
        target: what was to be forgotten: facts (`krs.instruments.Fact`, pairs of question and answer, objects), a file
            of them, or questions alone, whose right answers are then the vanilla model's own.
        unrelated: the same of what was not; controls need it.
        retain: a model that never knew the target, where there is one. Several instruments can then say where zero is.
        budget: how long it may take, as `"10m"`, seconds, or `None` for no limit. The instruments that tell most for
            their cost come first; none is begun that would go over it.
        only: instruments to run, in this order, by name or as instances.
        nulls: whether each is read under its nulls too.
        tokenizer: as in `krs.sweep`.
        chat: whether questions are put as a user's messages; as the tokenizer has a chat template, if not given.
        n_tokens: at most so many tokens of an answer are looked at.
        seed: of everything that is drawn.
        output_dir: a folder that readings are kept in as they are made: called again, only what is missing is run. The
            page (`report.html`) and the data (`report.json`) go there too.
        progress: show a bar.
        device: where models given by name go, as in `krs.sweep`; `dtype` and `device_map` likewise.
        dtype: see `device`.
        device_map: see `device`.

    Raises `KrsError` for bad input before anything runs. What is interrupted raises what interrupted it with the
    attribute `partial`, the `Dissection` of what was done; so does one that cannot be saved in the end, where possible
    with a file among the temporary ones.
    """
    given, others = _asked(target, "target"), _asked(unrelated, "unrelated", empty=True)
    limit = seconds(budget)
    tools = _tools(instruments() if only is None else only)
    folder = None if output_dir is None else Path(output_dir)
    if folder is not None:
        check_folder(folder, ["report.html", "report.json"])
    named = {"vanilla": vanilla, "unlearned": unlearned} | ({} if retain is None else {"retain": retain})
    loaded = load_given(named, device=device, dtype=dtype, device_map=device_map)
    models = dict(zip(named, (model for model, _ in loaded), strict=True))
    bodies = check_pair(models["vanilla"], models["unlearned"], None)
    never = None if retain is None else check_pair(models["vanilla"], models["retain"], None)[1].model
    chosen = as_tokenizer(tokenizer) or next((t for _, t in loaded if t is not None), None)
    chosen = chosen or next((t for m in models.values() if (t := find_tokenizer(m)) is not None), None)
    if chosen is None:
        raise KrsError("no tokenizer was found beside the models: pass tokenizer=")
    v, u = (body.model for body in bodies)
    notes = check_roles(v, u)
    case = Case.make(
        v,
        u,
        chosen,
        _with_answers(given, v, chosen, chat, n_tokens),
        _with_answers(others, v, chosen, chat, n_tokens) if others else (),
        never,
        chat=chat,
        n_tokens=n_tokens,
        seed=seed,
    )
    provenance = {
        "made_by": "krs.dissect",
        "time": now(),
        "budget": None if budget is None else limit,
        "seed": seed,
        "chat": case.target.wording.chat,
        "models": {side: describe_model(model, models[side]) for side, model in named.items()},
        "tokenizer": tokenizer_name(chosen),
        "own answers": isinstance(given[0], str),
        "notes": notes,
        "versions": versions(),
        "machine": machine(),
    }
    return _run(case, tools, limit, nulls, folder, provenance, progress, keep_order=only is not None)


def _tools(given: Sequence[str | Instrument]) -> list[Instrument]:
    """Instruments, each with a name of its own: a dissection has one reading by a name."""
    found = [instrument(one) for one in ([given] if isinstance(given, str | Instrument) else given)]
    names = [tool.name for tool in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise KrsError(f"only= has the instrument {twice!r} twice, and one reading by a name is kept: give it once")
    if "" in names:
        raise KrsError(f"only= has {kind(found[names.index('')])} without a name: @register('name') gives one")
    return found


def seconds(budget: str | int | float | None) -> float:
    """A time limit in seconds: a number of them, or `"90s"`, `"10m"`, `"1.5h"`; no limit for `None`.

    >>> seconds("10m"), seconds(30)
    (600.0, 30.0)

    Raises `KrsError` for anything else.
    """
    if budget is None:
        return float("inf")
    told = re.fullmatch(r"\s*([0-9.]+)\s*([smh]?)\s*", str(budget))
    try:
        found = float(told[1]) * _STEP[told[2] or "s"] if told else 0.0
    except ValueError:
        found = 0.0
    if found <= 0:
        raise KrsError(f"budget={budget!r}: give seconds, or a time such as '90s', '10m' or '1h'")
    return found


def _run(
    case: Case,
    tools: list[Instrument],
    limit: float,
    nulls: bool,
    folder: Path | None,
    provenance: dict[str, Any],
    progress: bool,
    keep_order: bool,
) -> Dissection:
    start = time.perf_counter()
    readings: dict[str, Reading] = {}
    left_out = {t.name: why for t in tools if (why := t.lacks(case)) is not None}
    fitting = [t for t in tools if t.name not in left_out]
    said_by: dict[str, list[str]] = {}

    def found() -> Dissection:
        waiting = {t.name: "interrupted" for t in fitting if t.name not in readings and t.name not in left_out}
        return Dissection(verdict(readings), readings, left_out | waiting, case.target.facts, said_by, provenance)

    try:
        kept = Kept(folder, subject_of(case))
        there = {t.name: reading for t in fitting if (reading := kept.find(t, nulls)) is not None}
        going_on({"reading": (len(there), len(fitting))}, str(folder), show=progress)
        per_pass, pace = _seconds_a_pass(case), Pace()
        for tool, estimated in ordered(case, fitting, per_pass, nulls, keep_order):
            reading = there.get(tool.name)
            if reading is None:
                begun, cost = time.perf_counter(), pace.judged(estimated)
                spent = begun - start
                if spent + cost > limit and tool.name not in _FIRST:
                    left = max(limit - spent, 0)
                    told = f" ({estimated:.0f} s by estimate; {pace})" if pace.ratios else ""
                    left_out[tool.name] = f"takes about {cost:.0f} s{told}, and {left:.0f} s of the budget are left"
                    continue
                try:
                    anyway = ", which no budget leaves out" if spent + cost > limit else ""
                    with bar(None, f"{tool.name} (about {cost:.0f} s{anyway})", show=progress):
                        reading = tool.read(case, nulls)
                except KrsError as reason:
                    if keep_order:  # it was asked for
                        raise
                    left_out[tool.name] = str(reason)
                    continue
                pace.note(estimated, time.perf_counter() - begun)
                provenance["pace"] = pace.told()
                kept.add(tool, nulls, reading)
            readings[tool.name] = reading
        with bar(None, "what the models say", show=progress):
            for side, model in (("vanilla", case.vanilla), ("unlearned", case.unlearned), ("retain", case.retain)):
                if model is not None:
                    said_by[side] = said_of(case, model)
    except (KeyboardInterrupt, Exception) as stop:
        stop.partial = found()  # type: ignore[union-attr]
        stop.add_note(_left(folder))
        raise
    result = found()
    if folder is not None:
        for name in ("report.json", "report.html"):
            save_in_the_end(result.save, folder / name, "the dissection", result)
    return result


def _left(folder: Path | None) -> str:
    """What an interruption leaves."""
    if folder is None:
        return "the readings so far are in the exception's attribute `partial`; output_dir= would also keep them"
    return f"the readings so far are in {str(folder)!r}; the same call goes on from there"


def ordered(
    case: Case, tools: list[Instrument], per_pass: float, nulls: bool, keep_order: bool
) -> Iterator[tuple[Instrument, float]]:
    """Instruments with about how many seconds each takes: of those that tell the cheapest of each kind, for two kinds
    have to agree, then the others that tell, then the rest; the cheapest first.
    """
    tells = thresholds()
    none = {"never_knew": case.retain is None, "unrelated": case.unrelated is None}  # what a case has not costs nothing
    cost = {t.name: per_pass * t.passes * (1 + nulls * sum(not none.get(n) for n in t.nulls)) for t in tools}
    if not keep_order:
        by_cost = sorted(tools, key=lambda t: (t.name not in _FIRST, cost[t.name]))
        kinds: dict[str, str] = {}
        for tool in by_cost:
            if tool.name in tells:
                kinds.setdefault(tells[tool.name].kind or tool.name, tool.name)
        first = set(kinds.values())
        tools = sorted(
            tools, key=lambda t: (t.name not in _FIRST, t.name not in first, t.name not in tells, cost[t.name])
        )
    return ((tool, cost[tool.name]) for tool in tools)


def _seconds_a_pass(case: Case) -> float:
    """One forward of the vanilla model over the target, timed; the second one, for the first warms up."""
    from krs.instruments.logprobs import answer_tokens

    answer_tokens(case.vanilla, case.target.batch.rows(0, 1), "vanilla")
    start = time.perf_counter()
    answer_tokens(case.vanilla, case.target.batch, "vanilla")
    return time.perf_counter() - start


def _asked(given: Target, what: str, empty: bool = False) -> tuple[Fact, ...] | tuple[str, ...]:
    """Facts, or questions alone."""
    if isinstance(given, str | Path):
        from krs.files import read_prompts

        rows: list[Any] = read_prompts(Path(given))
        return tuple(rows) if all(isinstance(r, str) for r in rows) else read_facts(given, what)
    rows = listed(given, what, "fact")
    if not rows and empty:
        return ()
    if rows and all(isinstance(row, str) for row in rows):
        return tuple(rows)
    return as_facts(rows, what)


def _with_answers(
    given: tuple[Any, ...], vanilla: Any, tokenizer: Tokenizer, chat: bool | None, n_tokens: int
) -> tuple[Fact, ...]:
    """Facts; of questions alone the right answers are the vanilla model's own, to the end of a sentence or line."""
    if not given or isinstance(given[0], Fact):
        return given
    drafts = tuple(Fact(question, "?") for question in given)
    wording = Case.make(vanilla, vanilla, tokenizer, drafts, chat=chat, n_tokens=n_tokens).target.wording
    ids = encode(Asked(drafts, wording).prompts, tokenizer)
    answers = greedy(vanilla, ids, min(n_tokens, 30), progress=False, eos=eos_ids(vanilla))
    ends = wording.ends
    texts = [_sentences(str(tokenizer.decode(list(a), skip_special_tokens=True)), a[-1] in ends) for a in answers]
    facts = tuple(Fact(question, text) for question, text in zip(given, texts, strict=True))
    if empty := [fact.question for fact in facts if not fact.sought]:
        raise KrsError(
            f"the vanilla model's answer to {empty[0]!r} is empty, so there is nothing to look for: give the right "
            "answers, or leave the question out"
        )
    return facts


def _sentences(said: str, ended: bool) -> str:
    """An answer without the beginning of a sentence or line that it stopped in for want of tokens.

    A right answer is scored with its end: one in the middle of a sentence would be unlikely to every model.
    """
    found = said.strip()
    ends = [] if ended else list(_SENTENCE_ENDS.finditer(found))
    return found[: ends[-1].end()].strip() if ends else found
