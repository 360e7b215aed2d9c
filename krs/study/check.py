"""Everything in a spec that could fail later, looked at before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from krs.data.concepts import load_concept
from krs.errors import KrsError
from krs.files import read_prompts
from krs.models.places import locate
from krs.study.checkpoints import files_of, has_safetensors
from krs.study.grid import labels_of_models, slug
from krs.study.manifest import digest_of
from krs.study.spec import ConceptSpec, Fault, MethodSpec, ModelSpec, Spec, options_of
from krs.study.step import TAUGHT, TWIN, step, steps
from krs.study.stopping import STOP, check_stop
from krs.study.teaching import teaching_faults
from krs.study.training import paragraphs_in


def faults(spec: Spec) -> Iterator[Fault]:
    """What is wrong with a spec whose fields are of the right types, by their places."""
    if bool(spec.models) != bool(spec.methods):
        missing = "methods" if spec.models else "models"
        yield (missing,), f"there are none: give {missing}, or leave models and methods out and give pairs"
    if not spec.models and not spec.pairs:
        yield (), "there are no cells: give models and methods, or pairs"
    yield from _labels(spec)
    for i, model in enumerate(spec.models):
        yield from _model(("models", i, "name"), model, spec)
        yield from teaching_faults(i, model, spec, _reads_retain(spec))
    for i, concept in enumerate(spec.concepts):
        yield from _tried(("concepts", i, "name"), partial(_concept, concept))
    for i, method in enumerate(spec.methods):
        yield from _method(i, method, spec)
    labels = [c.label for c in spec.concepts]
    called = labels_of_models(spec)
    for i, pair in enumerate(spec.pairs):
        yield from _tried(("pairs", i, "vanilla"), partial(locate, pair.vanilla))
        if called[pair.vanilla] == pair.vanilla and Path(pair.vanilla).is_absolute():
            last = Path(pair.vanilla).name
            yield (
                ("pairs", i, "vanilla"),
                f"another model of this study goes by {last!r} too, and tables would take them for one: give the "
                "directory another name",
            )
        each = pair.unlearned if isinstance(pair.unlearned, dict) else {None: pair.unlearned}
        for label, name in each.items():
            place = ("pairs", i, "unlearned") if label is None else ("pairs", i, "unlearned", label)
            yield from _tried(place, partial(locate, name))
            if label is not None and label not in labels:
                yield place, f"{label!r} is no concept of this study: there are {labels}"
        if isinstance(pair.unlearned, dict) and pair.concepts is not None:
            yield ("pairs", i, "concepts"), "unlearned has a model for each concept already: leave concepts out"
        for j, name in enumerate(pair.concepts or []):
            if name not in labels:
                yield ("pairs", i, "concepts", j), f"{name!r} is no concept of this study: there are {labels}"
    yield from _steps(spec)


def _labels(spec: Spec) -> Iterator[Fault]:
    """Labels have to tell apart what they stand for, on the disk too."""
    seen: dict[tuple[str, str], str] = {}
    for axis, parts in (("models", spec.models), ("concepts", spec.concepts)):
        yield from _twice(axis, [p.label for p in parts], seen)
    yield from _twice("methods", [m.label for m in spec.methods], seen)
    yield from _twice(
        "pairs", [p.label for p in spec.pairs], {("pairs", slug(m.label)): "methods" for m in spec.methods}
    )
    yield from _twice("seeds", [str(s) for s in spec.seeds], seen)


def _twice(axis: str, labels: list[str], seen: dict[tuple[str, str], str]) -> Iterator[Fault]:
    for i, label in enumerate(labels):
        at = (axis, slug(label))
        if at in seen:
            yield (axis, i), f"{label!r} is in {seen[at]} already: give it a label= of its own, or remove it"
        seen[at] = axis


def _reads_retain(spec: Spec) -> bool:
    known = steps()
    return any(step(name).reads_retain for name in spec.steps if name in known)


def _model(place: tuple[str | int, ...], model: ModelSpec, spec: Spec) -> Iterator[Fault]:
    name = model.name
    yield from (found := list(_tried(place, partial(locate, name))))
    if found or spec.keep != "difference" or model.teach is not None:
        return
    folder = files_of(name)
    if folder is None or not has_safetensors(folder):
        yield (
            ("keep",),
            f"a difference is to a model's safetensors, and {name!r} has none here: keep weights or nothing",
        )


def _concept(concept: ConceptSpec) -> None:
    from krs.unlearn.prepare import check_lines

    found = load_concept(concept.name, concept.concept)
    check_lines(found)
    if concept.only is not None:
        found.only(concept.only)
    if not found.retain_questions:
        load_concept(concept.retain_from)
    if concept.paragraphs is not None:
        paragraphs_in(concept.paragraphs)


def _method(i: int, method: MethodSpec, spec: Spec) -> Iterator[Fault]:
    from krs.unlearn.methods import Edit, make
    from krs.unlearn.methods import method as plugin_of
    from krs.unlearn.preflight import check_extras

    place = ("methods", i)
    if found := list(_tried((*place, "name"), partial(plugin_of, method.name))):
        yield from found
        return
    plugin = plugin_of(method.name)
    parts: list[tuple[tuple[str | int, ...], dict[str, Any]]] = [(("settings",), method.settings)]
    parts += [(("strengths", name), changes) for name, changes in method.strengths.items()]
    for where, settings in parts:
        if "seed" in settings:
            yield (*place, *where, "seed"), "seeds are an axis of the study: give it in seeds:"
            continue
        for name, value in settings.items():
            stops = name == STOP
            look = partial(check_stop if stops else make, method.name, value if stops else {name: value})
            yield from _tried((*place, *where, name), look)
    own = {name: value for name, value in method.settings.items() if name != STOP}
    yield from _tried((*place, "name"), lambda: check_extras(make(method.name, own)))
    yield from _strengths(place, method)
    edits = issubclass(plugin, Edit)
    if method.corpus is not None and not Path(method.corpus).is_file():
        yield (*place, "corpus"), f"no such file: {method.corpus!r}"
    if edits and getattr(plugin, "needs_corpus", False) and method.corpus is None:
        yield place, f"{method.name} needs text to take statistics of: give corpus: FILE"
    if not edits and method.corpus is not None:
        yield (*place, "corpus"), f"{method.name} uses no corpus: leave it out"
    yield from _retain((*place, "retain"), method, plugin)
    if method.forget == "paragraphs":
        without = [c.label for c in spec.concepts if not _has_paragraphs(c)]
        if edits or without:
            why = f"{method.name} edits facts" if edits else f"{', '.join(without)} has none"
            yield (*place, "forget"), f"paragraphs cannot be unlearned here ({why}): give forget: answers"


def _strengths(place: tuple[str | int, ...], method: MethodSpec) -> Iterator[Fault]:
    """Strengths have to differ, in their names on the disk too."""
    at: dict[str, str] = {}
    for name in method.strengths:
        if (other := at.setdefault(slug(name), name)) != name:
            yield (*place, "strengths", name), f"{name!r} and {other!r} would be one name on the disk: rename one"
    made = {digest_of(method.settings | changes): name for name, changes in method.strengths.items()}
    for name, changes in method.strengths.items():
        if (other := made[digest_of(method.settings | changes)]) != name:
            yield (*place, "strengths", name), f"it is the same as {other!r}: remove one"


def _retain(place: tuple[str | int, ...], method: MethodSpec, plugin: Any) -> Iterator[Fault]:
    if method.retain is None:
        return
    yield from _tried(place, partial(read_prompts, Path(method.retain)))
    if not getattr(plugin, "needs_retain", False) or getattr(plugin, "makes_retain", False):
        yield place, f"{method.name} keeps no texts of yours: leave it out"


def _has_paragraphs(concept: ConceptSpec) -> bool:
    try:
        return bool(concept.paragraphs or load_concept(concept.name, concept.concept).paragraphs)
    except KrsError:  # said elsewhere
        return True


def _steps(spec: Spec) -> Iterator[Fault]:
    done: list[str] = []
    for name, given in spec.steps.items():
        place = ("steps", name)
        if name in (TAUGHT, TWIN):
            yield (
                place,
                f"{name} belongs to a model: give it there (models: [{{name: …, teach: …}}]), not as a step",
            )
            continue
        if found := list(_tried(place, partial(step, name))):
            yield from found
            continue
        made = step(name)
        options, wrong = options_of(made.options, given, place)
        yield from wrong
        if options is not None:
            yield from (((*place, *where), said) for where, said in made.check(spec, options))
        needed = [n for n in made.needs if n not in done and not (n == "unlearn" and not spec.methods)]
        if needed:
            yield place, f"it needs {' and '.join(needed)}, which has to come before it: add that above"
        done.append(name)
    if not spec.steps:
        yield ("steps",), "there are none: leave it out for the usual five"


def _tried(place: tuple[str | int, ...], look: Callable[[], object]) -> Iterator[Fault]:
    try:
        look()
    except KrsError as reason:
        yield place, str(reason)
