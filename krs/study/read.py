"""A spec from YAML, checked whole before any work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from krs.errors import KrsError
from krs.study.check import faults
from krs.study.marked import Place, line_of, read_marked, shown
from krs.study.spec import Fault, ModelSpec, PairSpec, Spec, faults_of
from krs.wording import kind


def read_spec(given: str | Path | Mapping[str, Any] | Spec) -> Spec:
    """A checked spec from a YAML file or from a mapping of the same shape.

    >>> read_spec({"models": ["smollm2"], "concepts": ["paris"], "methods": ["ga"]}).keep
    'weights'

    Names of files are relative to the YAML file's directory. Labels that were not given are made from names.

    Raises `KrsError` that lists everything that is wrong, each with its line in the file and its field.
    """
    lines: dict[Place, int] = {}
    tree: Any
    if isinstance(given, Spec):
        tree, base, title = given.model_dump(), None, "the spec"
    elif isinstance(given, Mapping):
        tree, base, title = dict(given), None, "the spec"
    else:
        tree, lines = read_marked(given)
        base, title = Path(given).resolve().parent, str(given)
    if not isinstance(tree, dict):
        raise KrsError(f"{title} holds {kind(tree)}: a study is a mapping, such as models: [smollm2]")
    try:
        spec = Spec.model_validate(tree)
    except ValidationError as reason:
        raise KrsError(_listed(list(faults_of(reason, Spec)), lines, title)) from None
    spec = _labelled(_at_home(spec, base))
    if found := list(faults(spec)):
        raise KrsError(_listed(found, lines, title))
    return spec


def _listed(found: list[Fault], lines: dict[Place, int], title: str) -> str:
    said = []
    for place, message in found:
        line = line_of(place, lines)
        said.append(f"{title}{'' if line is None else f', line {line}'}: {shown(place)}: {message}")
    return "\n".join(said)


def _at_home(spec: Spec, base: Path | None) -> Spec:
    """Names of files as absolute paths, so that the study can be gone on with from anywhere."""

    def placed(name: str) -> str:
        path = (base or Path()) / Path(name).expanduser()
        return str(path.resolve()) if path.exists() and name != "smollm2" else name

    def local(part: Any, *fields: str) -> Any:
        return part.model_copy(update={f: placed(getattr(part, f)) for f in fields if getattr(part, f) is not None})

    def with_also(model: ModelSpec) -> ModelSpec:
        if model.teach is None:
            return model
        also = [placed(name) for name in model.teach.also]
        return model.model_copy(update={"teach": model.teach.model_copy(update={"also": also})})

    def of_each(pair: PairSpec) -> PairSpec:
        if isinstance(pair.unlearned, str):
            return local(pair, "vanilla", "unlearned")
        named = {label: placed(name) for label, name in pair.unlearned.items()}
        return local(pair, "vanilla").model_copy(update={"unlearned": named})

    return spec.model_copy(
        update={
            "models": [with_also(local(m, "name")) for m in spec.models],
            "concepts": [local(c, "name", "retain_from", "paragraphs") for c in spec.concepts],
            "methods": [local(m, "corpus", "retain") for m in spec.methods],
            "pairs": [of_each(p) for p in spec.pairs],
        }
    )


def _labelled(spec: Spec) -> Spec:
    def label(part: Any, name: str) -> Any:
        return part if part.label else part.model_copy(update={"label": Path(name).stem or name})

    return spec.model_copy(
        update={
            "models": [label(m, m.name) for m in spec.models],
            "concepts": [label(c, c.concept or c.name) for c in spec.concepts],
            "methods": [label(m, m.name) for m in spec.methods],
            "pairs": [label(p, p.unlearned if isinstance(p.unlearned, str) else "published") for p in spec.pairs],
        }
    )
