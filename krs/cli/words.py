"""Saved results in words: plain lines, a fact each, that read in 80 columns and aloud."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from krs.names import called, told_apart
from krs.wording import counted, whole


def words(result: Any, kind: str) -> Iterator[str]:
    """Lines about a result of a kind of `krs.saved`."""
    if kind == "sweep":
        return _mean(result) if hasattr(result, "members") else _sweep(result)
    told = {"account": _account, "answers": _answers, "dissection": _dissection, "report": _report, "drift": _drift}
    return (told | {"vocabulary": _vocabulary, "study": _study})[kind](result)


def _study(result: Any) -> Iterator[str]:
    yield f"A {result!r}."
    table = result.table("krs")
    if len(table):
        best = table.groupby(["cell", "setting"], sort=False).krs.max().unstack("setting")
        yield f"Highest KRS of any window, mean over {counted(len(best), 'cell')} (lowest to highest):"
        for name in dict.fromkeys(table.setting):
            yield f"- {name}: {best[name].mean():z.2f} ({best[name].min():z.2f} to {best[name].max():z.2f})"
    read = result.table("dissect")
    if len(read):
        words = read.drop_duplicates("cell").verdict.value_counts()
        yield "Verdicts: " + ", ".join(f"{word} {n}" for word, n in words.items()) + "."


def _sweep(result: Any) -> Iterator[str]:
    from krs.restore.telling import unfinished

    made, plan, mask = result.provenance, result.plan, result.losses.mask
    yield f"A sweep of {_pair(made)}."
    yield (
        f"{counted(len(mask), 'prompt')}, {counted(int(mask.sum()), 'scored token')}; "
        f"{counted(len(plan.settings), 'setting')}, {counted(len(plan.windows), 'window')} of up to "
        f"{counted(max(map(len, plan.windows)), 'layer')}; scoring {result.scoring}, engine {made.get('engine', '?')}."
    )
    if not result.complete:
        yield f"It was {result.interrupted} are there; numbers that are missing were not computed."
    yield _scale(result)
    frame = result.best()
    part = {plan.settings[i // max(1, len(plan.places))].name for i in unfinished(result)}
    for column, (name, row) in zip(_columns(result), frame.iterrows(), strict=True):
        value, where = row.iloc[-1], _layers(int(row.first_layer), int(row.last_layer))
        axes = (name for name in ("head", "unit", "position") if name in row and row[name] == row[name])
        place = "".join(f", {axis} {row[axis]:.0f}" for axis in axes)
        far = " so far" if name in part else ""
        peak = "no number" if np.isnan(value) else f"at most {value:z.3f}{far}, at {where}{place}"
        yield f"- {column} ({name}): {peak}"
    for measure in result.measures[1:]:
        peaks = result.recovery(measure).max()
        told = ", ".join(f"{_named(name)} {peak:z.3f}" for name, peak in peaks.items())
        yield f"Measured beside it: {measure}, whose recovery is at most {told}."
    if result.prompts and result.answers and isinstance(result.prompts[0], str):
        yield f"Scored, for one: … {result.prompts[0][-60:]!r} -> {result.answers[0]!r}"
    yield from _end(made, result.notes)


def _columns(result: Any) -> list[str]:
    return [setting.label for setting in result.plan.settings]


def _scale(result: Any) -> str:
    if result.direction != "restore":
        return "0 is the vanilla model as it is, 1 the unlearned model as it is (pieces were transplanted)."
    return "0 is the unlearned model as it is, 1 the vanilla model's own logits."


def _mean(result: Any) -> Iterator[str]:
    yield f"The mean of {counted(len(result.members), 'sweep')}: {', '.join(result.names)}."
    yield _scale(result)
    table, spread = result.recovery(), result.sd()
    for i, name in enumerate(table.columns):
        values = table.iloc[:, i].to_numpy(dtype=float)
        if np.isnan(values).all():
            yield f"- {_named(name)}: no number"
            continue
        at = int(np.nanargmax(values))
        yield f"- {_named(name)}: at most {values[at]:z.3f} (SD {spread.iloc[at, i]:z.3f}), at layer {table.index[at]}"
    for name, member in zip(result.names, result.members, strict=True):
        yield f"{name}: {_pair(member.provenance)}, {counted(len(member.losses.mask), 'prompt')}."


def _named(name: Any) -> str:
    return ", ".join(map(str, name)) if isinstance(name, tuple) else str(name)


def _account(result: Any) -> Iterator[str]:
    yield f"An account of {_pair(result.provenance)}: which weights make the logits differ."
    yield (
        f"{counted(len(result.loss), 'prompt')}; logit MSE {result.baseline:.4g}; the parts add up to it within "
        f"{result.error:.1g}."
    )
    change = result.share_of_change
    for component, share in result.by_component.sort_values(ascending=False).items():
        name = str(component).replace("_", " ")
        yield f"- {name}: {share:z.1%} of the difference, {change[component]:z.1%} of the change"
    yield from _end(result.provenance, result.notes)


def _answers(result: Any) -> Iterator[str]:
    yield f"Answers of {_pair(result.provenance)}."
    for side, row in result.table.iterrows():
        yield (
            f"{str(side).capitalize()}, {counted(int(row.questions), 'question')}: BLEU {row.bleu:.1f} of "
            f"{row.ceiling:.1f}, refusals {row.refusals:.0%} (vanilla {row.refusals_vanilla:.0%})."
        )
        if "bleu_text" in row:
            yield (
                f"Against the texts themselves: BLEU {row.bleu_text:.1f} (vanilla {row.bleu_text_vanilla:.1f}), "
                f"{row.nll_text:z.2f} nats a token of them (vanilla {row.nll_text_vanilla:z.2f})."
            )
        yield from said(result.shown[result.shown.side == side].head(3))
    yield from _end(result.provenance, result.notes)


def said(rows: Any) -> Iterator[str]:
    """Questions, and what both models answer to them."""
    for row in rows.itertuples():
        yield f"- {_line(row.question)}"
        if hasattr(row, "text"):
            yield f"  text:      {_line(row.text)}"
        yield f"  vanilla:   {_line(row.vanilla)}"
        yield f"  unlearned: {_line(row.unlearned)}"


def page(answers: Any) -> str:
    """All answers as Markdown."""
    lines = ["# Answers", "", f"Of {_pair(answers.provenance)}."]
    for side, rows in answers.shown.groupby("side", sort=False):
        lines += ["", f"## {str(side).capitalize()} questions"]
        for row in rows.itertuples():
            lines += ["", f"**{_line(row.question)}**", ""]
            lines += [f"- text: {_line(row.text)}"] if hasattr(row, "text") else []
            lines += [f"- vanilla: {_line(row.vanilla)}", f"- unlearned: {_line(row.unlearned)}"]
    return "\n".join(lines) + "\n"


def _line(text: str | None) -> str:
    return "(not asked yet)" if text is None else " ".join(text.split()) or "(nothing)"


def _dissection(result: Any) -> Iterator[str]:
    models = result.provenance.get("models", {})
    yield f"A dissection of {', '.join(_of_side(name, side) for side, name in told_apart(models).items())}."
    yield f"Verdict: {result.verdict}"
    yield f"{counted(len(result.facts), 'fact')}; each instrument:"
    for reading in result.readings.values():
        yield f"- {reading!r}"
    for name, why in result.left_out.items():
        yield f"- {name}: not run ({why})"
    yield from _end(result.provenance, result.provenance.get("notes", []))


def _report(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"An unlearned model, made by {result['method']} from {_name(result['vanilla'])}."
    if "steps" in result:
        stopped = f", stopped: {result['stopped']}" if result.get("stopped") else ""
        last = result.get("log") or [{}]
        loss = f", last loss {last[-1]['loss']:.4g}" if "loss" in last[-1] else ""
        yield f"{counted(int(result['steps']), 'step')}{loss}{stopped}; {result.get('seconds', 0):.0f} s."
    elif "edited_layers" in result:
        yield f"Value vectors edited at layers {', '.join(map(str, result['edited_layers']))}."
    yield "Settings:"
    for name, value in result["config"].items():
        yield f"- {name}: {whole(value) if isinstance(value, str) and '/' in value else value}"
    yield from _end(result, result.get("notes") or [])


def _drift(result: Any) -> Iterator[str]:
    yield "How far weights have moved, by component: relative change, cosine (least of a layer), bit for bit the same."
    for name, row in result.by_component().iterrows():
        yield f"- {str(name).replace('_', ' ')}: {row.relative_change:.2e}, {row.cosine_min:.6f}, {row.identical:.1%}"


def _vocabulary(result: Any) -> Iterator[str]:
    made = result.provenance
    of = _pair(made) if "unlearned" in made else _name(made["vanilla"])
    norm = "through the final norm and the head" if made["norm"] else "through the head alone"
    yield f"{counted(len(result.vectors), 'value vector')} of {of} as tokens, {norm}."
    for vector, row in result.vectors.iterrows():
        moved = f": moved by {row.relative_change:.3g}, cosine {row.cosine:.4f}, {row.kept:.0%} of its tokens kept"
        concept = f" ({row.concept})" if row.concept else ""
        yield f"- layer {row.layer}, value vector {row.unit}{concept}{moved if 'unlearned' in made else ''}"
        of_it = result.tokens[result.tokens.vector == vector]
        for side, rows in of_it.groupby("side", sort=False):
            yield f"  {side}: {' '.join(whole(repr(token)) for token in rows.token)}"
    yield from _end(made, result.notes)


def _end(made: Mapping[str, Any], notes: Any) -> Iterator[str]:
    versions = made.get("versions", {})
    by = ", ".join(f"{p} {versions[p]}" for p in ("krs", "torch", "transformers") if p in versions)
    when = made.get("time") or made.get("made")
    if when or by:
        yield f"Made {when or 'at a time that is not known'}{f' with {by}' if by else ''}."
    yield from (f"note: {note.replace('the same call', 'the same command')}" for note in notes)


def _pair(made: Mapping[str, Any]) -> str:
    sides = told_apart({side: made.get(side, {}) for side in ("unlearned", "vanilla")})
    return " beside ".join(_of_side(name, side) for side, name in sides.items())


def _of_side(name: str, side: str) -> str:
    return name if name in (side, f"the {side} model") else f"{name} ({side})"


def _name(made: Mapping[str, Any]) -> str:
    return told_apart({"": made})[""] if called(made) else "a model without a name"


def _layers(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first}-{last}"
