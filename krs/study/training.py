"""The steps that make an unlearned model: `prepare` and `unlearn`."""

from __future__ import annotations

import functools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from krs import files
from krs.data.concepts import Concept, load_concept
from krs.errors import KrsError
from krs.models.identity import file_identity
from krs.models.load import load
from krs.study import difference
from krs.study.checkpoints import files_of, size_of
from krs.study.grid import Cell
from krs.study.manifest import Manifest, artefacts, digest_of, file_digest
from krs.study.spec import ConceptSpec, Keep, Part, Spec
from krs.study.step import Step, Work, register
from krs.study.stopping import STOP, until

_KEEP = ("weights", "difference", "nothing")
TRAINED = 16
"""Bytes a parameter in training: weights, gradient and both of AdamW's averages, in fp32."""


class PrepareOptions(Part):
    """At most so many tokens an answer."""

    n_tokens: int = Field(default=30, gt=0)


@register("prepare")
class Prepare(Step):
    """Ask the vanilla model a concept's questions; its answers are what is unlearned."""

    options = PrepareOptions

    def models(self, cell: Cell) -> dict[str, str]:
        """Only the vanilla one, so that all cells of a model and a concept share the answers."""
        return {"vanilla": cell.vanilla}

    def inputs(self, cell: Cell, spec: Spec, options: Any) -> dict[str, Any]:
        """The concept's texts, not the place where they are."""
        found = concept_of(cell)
        retain = (
            found.retain_questions
            or _concept(cell.topic.retain_from, None, changed(cell.topic.retain_from)).retain_questions
        )
        asked = [found.questions, retain, found.unrelated_questions, found.names]
        return {"texts": digest_of(asked), **options.model_dump(), **chat_of(spec)}

    def run(self, work: Work) -> str:
        """Write the files of `krs prepare`."""
        from krs.unlearn.prepare import prepare

        topic = work.cell.topic
        prepare(
            topic.name,
            work.vanilla,
            work.folder,
            topic.concept,
            only=topic.only,
            retain_from=topic.retain_from,
            chat=work.spec.chat,
            n_tokens=work.options.n_tokens,
            overwrite=True,
            chat_template_kwargs=work.spec.chat_template_kwargs,
            **dtype_of(work.spec),
        )
        return digest_of(artefacts(work.folder))

    def memory(self, cell: Cell, options: Any) -> int | None:
        """The model."""
        size = size_of(cell.vanilla)
        return None if size is None else size[1]


class UnlearnOptions(Part):
    """`save_steps`: how often training writes a checkpoint that a killed study goes on from; 0 for never."""

    save_steps: int = Field(default=25, ge=0)


@register("unlearn")
class Unlearn(Step):
    """Unlearn the concept from a copy of the vanilla model."""

    needs = ("prepare",)
    options = UnlearnOptions

    def applies(self, cell: Cell) -> bool:
        """Not to a published pair."""
        return cell.recipe is not None

    def inputs(self, cell: Cell, spec: Spec, options: Any) -> dict[str, Any]:
        """Method, settings, seed and texts; how often a checkpoint is written changes nothing."""
        recipe = cell.recipe
        assert recipe is not None
        found: dict[str, Any] = {"method": recipe.name, "settings": cell.settings, "seed": cell.seed, **chat_of(spec)}
        if recipe.forget == "paragraphs":
            found["paragraphs"] = digest_of(concept_of(cell).paragraphs)
        if recipe.retain is not None:
            found["retain"] = file_digest(Path(recipe.retain))
        if recipe.corpus is not None:
            found["corpus"] = file_digest(Path(recipe.corpus))
        return found | {"cell": cell.name}

    def run(self, work: Work) -> str:
        """Train or edit, from the newest checkpoint if there is one."""
        from krs.unlearn import REPORT, Edit, run
        from krs.unlearn.methods import method

        recipe, folder = work.cell.recipe, work.folder / "model"
        assert recipe is not None
        if not (folder / REPORT).exists() or (folder / "checkpoints" / "krs_moving.json").exists():
            plugin = method(recipe.name)
            vanilla, tokenizer = load(work.vanilla, device="auto", **dtype_of(work.spec))
            run(
                recipe.name,
                vanilla,
                tokenizer=tokenizer,
                **self._texts(work, issubclass(plugin, Edit)),
                chat_template_kwargs=work.spec.chat_template_kwargs,
                output_dir=folder,
                **self._settings(work),
                **self._stop(work, vanilla, tokenizer),
            )
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # a killed call may have left some of them
        return str(file_identity(folder)["weights"])

    @staticmethod
    def _settings(work: Work) -> dict[str, Any]:
        from krs.unlearn.methods import method

        assert work.cell.recipe is not None
        fields = method(work.cell.recipe.name).config_class.__dataclass_fields__
        often = {"save_steps": work.options.save_steps} if "save_steps" in fields else {}
        own = {name: value for name, value in work.cell.settings.items() if name != STOP}
        return often | own | {"seed": work.cell.seed}

    @staticmethod
    def _stop(work: Work, vanilla: Any, tokenizer: Any) -> dict[str, Any]:
        condition = work.cell.settings.get(STOP)
        if condition is None:
            return {}
        n_tokens = PrepareOptions(**(work.spec.steps.get("prepare") or {})).n_tokens
        answers = work.upstream["prepare"] / "forget.jsonl"
        return until(condition, vanilla, tokenizer, answers, n_tokens, work.spec.chat)

    @staticmethod
    def _texts(work: Work, edits: bool) -> dict[str, Any]:
        from krs.unlearn.methods import method

        recipe, place = work.cell.recipe, work.upstream["prepare"]
        assert recipe is not None
        plugin: Any = method(recipe.name)
        if edits:
            forget: list[Any] = files.texts(place / "requests.jsonl", work.spec.chat)
        elif recipe.forget == "paragraphs":
            forget = list(concept_of(work.cell).paragraphs)
        else:
            forget = files.texts(place / "forget.jsonl", work.spec.chat)
        retain = None
        if getattr(plugin, "needs_retain", False) and not plugin.makes_retain:
            kept = place / "retain.jsonl" if recipe.retain is None else Path(recipe.retain)
            retain = files.texts(kept, work.spec.chat)
        return {
            "forget": forget,
            "retain": retain,
            "corpus": None if recipe.corpus is None else files.texts(Path(recipe.corpus)),
        }

    def memory(self, cell: Cell, options: Any) -> int | None:
        """The vanilla model beside a copy in training (all of it, which adapters and edits stay below)."""
        size = size_of(cell.vanilla)
        return None if size is None else size[1] + TRAINED * size[0]

    def provide(self, work: Work, manifest: Manifest) -> Manifest | None:
        """The weights, from their difference to the vanilla model's."""
        if manifest.kept == "weights":
            return manifest
        vanilla = files_of(work.vanilla)
        if manifest.kept == "nothing" or vanilla is None:
            return None
        model = work.folder / "model"
        if not difference.expand(vanilla, model) or file_identity(model)["weights"] != manifest.content:
            return None
        names = [n for n in manifest.artefacts if not n.endswith(difference.NAME)]
        whole = manifest.with_artefacts(work.folder, [*names, *_weights(work.folder)], kept="weights")
        whole.write(work.folder)
        (model / difference.NAME).unlink()
        return whole

    def is_large(self, work: Work, manifest: Manifest, keep: Keep) -> bool:
        """Whether there are weights that are not to be kept."""
        rest = [n for n in _weights(work.folder) if n not in manifest.artefacts]
        return bool(rest) or _KEEP.index(keep) > _KEEP.index(manifest.kept)

    def shrink(self, work: Work, manifest: Manifest, keep: Keep) -> Manifest:
        """The difference instead of the weights, or neither; the manifest first, then the weights go."""
        vanilla = files_of(work.vanilla)
        if _KEEP.index(keep) > _KEEP.index(manifest.kept):
            names = [n for n in manifest.artefacts if n not in _weights(work.folder)]
            names = [n for n in names if not n.endswith(difference.NAME)]
            if keep == "difference":
                assert vanilla is not None
                difference.take(vanilla, work.folder / "model")
                names.append(f"model/{difference.NAME}")
            manifest = manifest.with_artefacts(work.folder, names, kept=keep)
            manifest.write(work.folder)
        for name in [*_weights(work.folder), f"model/{difference.NAME}"]:
            if name not in manifest.artefacts:
                (work.folder / name).unlink(missing_ok=True)
        return manifest


def concept_of(cell: Cell) -> Concept:
    """A cell's concept, read again only when its file has changed."""
    return concept_in(cell.topic)


def concept_in(topic: ConceptSpec) -> Concept:
    """The same of a place in a spec."""
    found = _concept(topic.name, topic.concept, changed(topic.name))
    if topic.paragraphs is not None:
        found = replace(found, paragraphs=paragraphs_in(topic.paragraphs))
    return found if topic.only is None else found.only(topic.only)


def paragraphs_in(name: str) -> tuple[str, ...]:
    """Texts of a file, such as one of `krs corpus`; raises `KrsError` for one that holds anything else."""
    return _paragraphs(name, changed(name))


@functools.lru_cache(maxsize=64)
def _paragraphs(name: str, _at: int) -> tuple[str, ...]:
    texts = files.texts(Path(name))
    if wrong := [i for i, text in enumerate(texts) if not isinstance(text, str)]:
        raise KrsError(
            f"{name!r} holds more than texts (item {wrong[0]}): give a text a line, or what krs corpus wrote"
        )
    return tuple(texts)


@functools.lru_cache(maxsize=256)
def _concept(name: str, concept: str | None, _at: int) -> Concept:
    return load_concept(name, concept)


def changed(name: str) -> int:
    """When a concept's file was changed last; 0 for a bundled one."""
    path = Path(name)
    return path.stat().st_mtime_ns if path.is_file() else 0


def chat_of(spec: Spec) -> dict[str, Any]:
    """How prompts are put, and to models of which dtype."""
    return {"chat": spec.chat, "chat_template_kwargs": spec.chat_template_kwargs, **dtype_of(spec)}


def dtype_of(spec: Spec) -> dict[str, Any]:
    """The dtype that models are loaded in, where it is not their own."""
    return {} if spec.dtype == "auto" else {"dtype": spec.dtype}


def _weights(folder: Path) -> list[str]:
    found = (p for p in (folder / "model").glob("*.safetensors") if p.name != difference.NAME)
    return [f"model/{p.name}" for p in found if not p.name.startswith(".krs-")]
