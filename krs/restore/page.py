"""A sweep, or several, as a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from krs._typing import DataFrame
from krs.names import asked_by
from krs.pages import Block, Code, Lines, Map, Page, Section, Switch, Table, Text, peaks
from krs.restore.pictures import pair_of, part_name, value_label, x_label
from krs.restore.result import SweepResult
from krs.wording import counted

if TYPE_CHECKING:
    from krs.restore.averaging import MeanResult

_MAPS = 12
_TOKENS = 20
_PROMPTS = 200
_FRAME = 12
"""Characters that prompts have in common for that to be a chat template."""


def page_of(results: Mapping[str, SweepResult | MeanResult]) -> Page:
    """One page of results by name; each has its sections."""
    several = len(results) > 1
    parts = [Section(name, (), tuple(sections(r)), {"sweep": name}) for name, r in results.items()]
    found = tuple(parts) if several else tuple(parts[0].sections)
    settings = dict.fromkeys(label for r in results.values() for label in _labels(r))
    switches = (
        Switch("sweep", "Sweeps", tuple(results)),
        Switch("setting", "What is put back", tuple(settings), lines=True),
    )
    return Page("What a restoration sweep found", (Text(_scale(next(iter(results.values())))),), found, switches)


def sections(result: SweepResult | MeanResult) -> Iterator[Section]:
    """Sections of one result, for a page whose switches are those of `page_of`."""
    one = isinstance(result, SweepResult)
    yield Section("Curves" if result.recovery().columns.nlevels == 1 else "Maps", tuple(_scores(result)))
    if isinstance(result, SweepResult):
        yield Section("Prompts, and how much of each comes back", tuple(_prompts(result)))
        yield Section("Which words come back where", tuple(_words(result)))
    made = (
        result.provenance
        if isinstance(result, SweepResult)
        else {n: m.provenance for n, m in zip(result.names, result.members, strict=True)}
    )
    blocks = [Code("Models, versions, settings", json.dumps(made, indent=1, ensure_ascii=False, default=str))]
    commands = _commands(result) if isinstance(result, SweepResult) else "krs report mean.krs"
    what = "A command that makes one like it" if one else "The command that made this page"
    yield Section("Where this comes from", (Code(what, commands, unfolded=True), *blocks))


def _scale(result: Any) -> str:
    if result.direction != "restore":
        return "Recovery: 0 is the recipient as it is, 1 the donor as it is."
    return (
        "The Knowledge Recovery Score: 0 is the unlearned model as it is, 1 the vanilla model's own logits. An "
        "activation that is put back carries all that the vanilla model computed below it; on its own a high score "
        "does not prove that the knowledge is still there."
    )


def _labels(result: Any) -> list[str]:
    """What settings are called, in order; by name where two are called alike."""
    found = dict.fromkeys((c.setting, c.label) for c in result.plan.columns)
    alike = len({label for _, label in found}) < len(found)
    return [name if alike else label for name, label in found]


def _headline(result: Any) -> str:
    if not isinstance(result, SweepResult):
        return f"The mean of {counted(len(result.members), 'sweep')}: {', '.join(result.names)}."
    pair = pair_of(result.provenance, result.direction)
    mask, plan = result.losses.mask, result.plan
    size = (
        f"{counted(len(mask), 'prompt')}, {counted(int(mask.sum()), 'scored token')}; "
        f"{counted(len(plan.settings), 'setting')}, {counted(len(plan.windows), 'window')}; scoring {result.scoring}, "
        f"engine {result.provenance.get('engine', '?')}."
    )
    state = f" It was {result.interrupted} are there; what is missing was not computed." if result.interrupted else ""
    return f"{pair + '. ' if pair else ''}{size}{state}"


def _scores(result: Any) -> Iterator[Block]:
    yield Text(_headline(result))
    for note in getattr(result, "notes", []):
        yield Text(f"Note: {note}", "note")
    for measure in result.measures:
        table = result.recovery(measure)
        if table.columns.nlevels > 1:
            yield from _maps(result, measure, table)
        else:
            yield from _curves(result, measure, table)


def _named(result: Any, table: DataFrame) -> DataFrame:
    return table.set_axis(_labels(result), axis=1).set_axis([str(w) for w in table.index], axis=0)


def _curves(result: Any, measure: str, table: DataFrame) -> Iterator[Block]:
    low = high = None
    band = ""
    if not isinstance(result, SweepResult):
        sd = result.sd(measure)
        low, high, band = table - sd, table + sd, "; band: ± 1 SD between sweeps"
    elif len(result.losses.mask) > 1:
        (low, high), band = result.interval(0.95, measure), "; band: 95% interval over prompts"
    shown = _named(result, table)
    edges = None if low is None or high is None else (_named(result, low), _named(result, high))
    what = value_label(result.direction, measure)
    yield Lines(
        f"{what} by window{band}",
        f"{what} over {counted(len(shown), 'window')}: {peaks(shown)}",
        shown,
        low=None if edges is None else edges[0],
        high=None if edges is None else edges[1],
        x_label=x_label(result.plan),
        y_label=what,
        axis="setting",
    )
    frame = shown.rename_axis("layer").reset_index()
    yield Table(f"{what} by window", frame, axis="setting", digits=4, about=result.about)
    if edges is not None:
        both = {
            f"{name}, {end}": edge[name] for name in shown for end, edge in zip(("low", "high"), edges, strict=True)
        }
        import pandas as pd

        frame = pd.DataFrame(both).rename_axis("layer").reset_index()
        caption = f"{what}: {band.removeprefix('; band: ')}"
        yield Table(caption, frame, digits=4, folded=True, about=result.about)


def _maps(result: Any, measure: str, table: DataFrame) -> Iterator[Block]:
    """A map a setting, of layers by positions, heads or units."""
    plan, what = result.plan, value_label(result.direction, measure)
    places: dict[str, list[int]] = {}
    for i, column in enumerate(plan.columns):
        by_part = column.position is not None and column.part is not None
        places.setdefault(
            f"{column.label}, {part_name(plan, i)} {column.part}" if by_part else column.label, []
        ).append(i)
    for n, (name, columns) in enumerate(places.items()):
        positions = bool(plan.places)
        names = [str(plan.columns[i].position if positions else plan.columns[i].part) for i in columns]
        one = table.iloc[:, columns].set_axis(names, axis=1).set_axis([str(w) for w in table.index], axis=0)
        across = "Position, from the answer's first token" if positions else part_name(plan, columns[0]).capitalize()
        values = one.to_numpy(dtype=float)
        told = f"{name}: {what}, no numbers"
        if not np.isnan(values).all():
            row, column = np.unravel_index(int(np.nanargmax(values)), values.shape)
            peak = f"{values[row, column]:z.3f}, at layer {list(one.index)[row]}, {across.lower()} {names[column]}"
            told = f"{name}: {what}, at most {peak}"
        keys = {"setting": plan.columns[columns[0]].label}
        if n < _MAPS:
            yield Map(f"{name}: {what}", told, one, across, x_label(plan), what, keys=keys)
        frame = one.rename_axis("layer").reset_index()
        yield Table(f"{name}: {what}", frame, digits=4, folded=True, belongs=keys, about=result.about)


def _prompts(result: SweepResult) -> Iterator[Block]:
    """Each prompt with the answer that is scored and, for each setting, its best window's score for it."""
    import pandas as pd

    frame = result.to_frame(per_prompt=True)
    score = frame.columns[-1]
    wide = frame.groupby(["prompt", "setting"], sort=False)[score].max().unstack("setting")
    labels = {s.name: f"{s.label}: best" for s in result.plan.settings}
    numbers = wide[[s.name for s in result.plan.settings]].rename(columns=labels).reset_index(drop=True)
    if len(result.prompts) == len(numbers) == len(result.answers):
        shown, around = _without_frame(result.prompts)
        if around:
            yield Text(f"What all prompts have in common, {around}, is left out.")
        texts = {"prompt": shown, "vanilla answer (scored)": list(map(_text, result.answers))}
        numbers = pd.concat([pd.DataFrame(texts), numbers], axis=1)
    if len(numbers) > _PROMPTS:
        yield Text(f"The first {_PROMPTS} of {len(numbers):,} prompts.", "note")
    yield Table("Prompts, and the highest score of each setting on each", numbers.head(_PROMPTS), digits=3, texts=True)


def _without_frame(prompts: Sequence[Any]) -> tuple[list[str], str]:
    """Prompts without the chat template around them, and what that is; as they are where they have none in common."""
    texts = list(map(_text, prompts))
    before = _beginning(texts)
    before = before[: max(before.rfind(" "), before.rfind("\n")) + 1]
    behind = _beginning([text[len(before) :][::-1] for text in texts])[::-1].lstrip("?.! ")
    inner = [text[len(before) : len(text) - len(behind)].strip() for text in texts]
    if len(texts) < 2 or len(before) < _FRAME or not all(inner):
        return texts, ""
    return inner, f"{before!r} before and {behind!r} behind"


def _beginning(texts: Sequence[str]) -> str:
    """What all of them begin with."""
    first, last = min(texts, default=""), max(texts, default="")
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _text(given: Any) -> str:
    return given if isinstance(given, str) else " ".join(map(str, given))


def _words(result: SweepResult) -> Iterator[Block]:
    """Of some prompts, each scored token's own recovery, window by window, of the setting that recovers most."""
    if result.plan.places or result.plan.axes or result.scoring != "next-token" or not result.complete:
        yield Text("There is no such picture of this sweep: it has axes, is of the paper's code, or was interrupted.")
        return
    best = result.best()
    setting = str(best[best.columns[-1]].astype(float).fillna(-np.inf).idxmax())
    label = {s.name: s.label for s in result.plan.settings}[setting]
    yield Text(f"{label}: of each token of the scored answer, how far its logits come back (0 to 1).")
    shown_prompts = _without_frame(result.prompts)[0]
    for prompt in range(min(len(result.losses.mask), _MAPS)):
        table = result.tokens(prompt, setting, recovery=True).head(_TOKENS)
        names = [f"{n} {str(text).strip() or '␣'}" for n, text in table.index]
        shown = table.set_axis(names, axis=0).set_axis([str(c) for c in table.columns], axis=1)
        asked = shown_prompts[prompt][-80:] if shown_prompts else f"prompt {prompt}"
        told = f"{asked}: recovery of {counted(len(shown), 'token')} over {counted(len(table.columns), 'window')}"
        yield Map(asked, told, shown, "Layer", "", "recovery, colours from 0 to 1", ends=(0.0, 1.0))


def _commands(result: SweepResult) -> str:
    """As far as a result knows how it was asked for; `prompts.txt` stands for its prompts."""
    made = result.provenance
    names = [asked_by(made.get(side, {})) or side.upper() for side in ("vanilla", "unlearned")]
    words = ["krs sweep", *map(_quoted, names), "--prompts prompts.txt", f"--n-tokens {made.get('n_tokens', 30)}"]
    words += [f"--settings {_quoted(s.name)}" for s in result.plan.settings if not result.plan.axes]
    widest = max(len(w) for w in result.plan.windows)
    if all(isinstance(w.name, int) for w in result.plan.windows):
        words.append(f"--window {widest}")
    words += [f"--measure {_quoted(m)}" for m in result.measures[1:]]
    words += [f"--scoring {result.scoring}"] if result.scoring != "next-token" else []
    words += [f"--direction {result.direction}"] if result.direction == "transplant" else []
    return " ".join([*words, "-o out/sweep"]) + "\nkrs report out/sweep/sweep.krs"


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
