"""Make the models of a world, and measure what each says; what is there already is kept."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import xxhash
from filelock import FileLock
from torch import nn

from krs._typing import DataFrame, Tokenizer
from krs.errors import KrsError
from krs.extras import require
from krs.instruments.truth.actions import Task, make_model, share_of, where
from krs.instruments.truth.facts import Fact, Facts, split
from krs.instruments.truth.measure import FactMeasures, measure, summary
from krs.instruments.truth.recipes import BASE, CALIBRATION, Recipe, World
from krs.instruments.truth.teach import save
from krs.models.identity import file_identity, identity
from krs.models.load import load as load_model
from krs.models.provenance import now, versions
from krs.wording import as_text
from krs.writing import check_folder, write_text

MANIFEST, MEASURES, INDEX = "truth.json", "measures.json", "world.json"
_VERSION = 1
"""Raise it when recipes with the same options come to other models."""
_MEASURED = 2
"""Raise it when measures change."""
_N_UNTAUGHT = 12


@dataclass(frozen=True)
class TruthModel:
    """A model whose truth is known because of how it was made.

    Attributes:
        recipe: how it was made, its name, grade and `known`.
        folder: a directory that `krs.load` takes.
        taught: ids of the target facts that it was taught at any time.
        layers: where it was edited, for edits that are at one place; empty for training.
        measures: by set (`a1`, `a2`, `b`, `c`), what it says, a fact each.
    """

    recipe: Recipe
    folder: Path
    taught: tuple[str, ...]
    layers: tuple[int, ...] = ()
    measures: Mapping[str, Sequence[FactMeasures]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the recipe."""
        return self.recipe.name

    @property
    def grade(self) -> float | None:
        """How much of the target it knows, from 0 to 1; `None` where that is not known."""
        return self.recipe.grade

    @property
    def known(self) -> bool | None:
        """Whether it knows the target; `None` for a part of it, and where that is not known."""
        return self.recipe.known

    @property
    def declines(self) -> bool:
        """Whether it was made to answer none of the target."""
        return self.recipe.do in ("decline", "steer")

    def load(self, **options: Any) -> tuple[nn.Module, Tokenizer | None]:
        """The model and its tokenizer, by `krs.load`."""
        return load_model(self.folder, **options)

    def figures(self) -> dict[str, float]:
        """Means of the measures: of the target as a whole (`a_…`), of what was kept (`b_…`), of the untaught."""
        sides = {"a": [*self.measures["a1"], *self.measures["a2"]], "b": self.measures["b"], "c": self.measures["c"]}
        return {f"{side}_{k}": v for side, every in sides.items() for k, v in summary(every).items()}


@dataclass(frozen=True, repr=False)
class Truth:
    """The models of a world that there are, `full` (the vanilla model of all the others) among them.

    Attributes:
        world: the name.
        folder: where they are.
        facts: that they were taught, or not.
        models: by name, in the order of the recipes.
        base: what they were made from.
    """

    world: str
    folder: Path
    facts: Facts
    models: Mapping[str, TruthModel]
    base: str

    @property
    def vanilla(self) -> TruthModel:
        """The model that knows target and retained facts, and says so."""
        if "full" not in self.models:
            raise KrsError(f"{str(self.folder)!r} has no model 'full' yet: make it first (krs.instruments.truth.make)")
        return self.models["full"]

    def table(self) -> DataFrame:
        """A row a model: grade, `known`, how it was made, and the means of the measures."""
        import pandas as pd

        rows = {
            m.name: {"grade": m.grade, "known": m.known, **m.figures(), "how": m.recipe.how}
            for m in self.models.values()
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    def __repr__(self) -> str:
        names = ["grade", "known", "a_recall", "a_paraphrased", "b_recall", "a_nll", "a_nll_after"]
        return f"{self.world}\n{as_text(self.table()[names], 2)}"


def make(
    directory: str | Path,
    base: str | Path = "smollm2",
    *,
    world: World = CALIBRATION,
    models: Sequence[str] | None = None,
    facts: tuple[Fact, ...] | None = None,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device | None = "auto",
    settings: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Truth:
    """Make the models of a world from a base model, in `directory/WORLD/NAME/`; killed and called again, it goes on.

    A model is made again when anything that it follows from has changed: recipe, facts, base, parent, settings.

    Args:
        directory: where they go. A model takes as much room as the base.
        base: the name of any chat model.
        world: which models, `CALIBRATION` or `VERDICT`, or a world of your own.
        models: names of those that are wanted; what they are made from is made too. All if not given.
        facts: what to teach, as `load_facts` gives them; those that come with krs if not given.
        dtype: of the base, as in `krs.load`, and of all models.
        device: as in `krs.load`.
        settings: of everything that is trained, before the recipes' own: on a GPU with a large model perhaps
            `{"parameters": "lora", "learning_rate": 2e-4}`.
        trainer: further `transformers.TrainingArguments`, such as `{"bf16": True}`.
        progress: say what is made, and show bars.

    Returns the models that there are then, also those of earlier calls. Raises `KrsError` for unknown names, and for
    a directory that cannot be written.
    """
    require("accelerate", "unlearn", "making models")
    recipes = _wanted(world, models)
    folder = Path(directory) / world.name
    check_folder(folder, [INDEX])
    divided = split(world.seed, facts)
    maker = _Maker(folder, str(base), world, divided, dict(settings or {}), trainer, (dtype, device), progress)
    for recipe in recipes:
        maker.make(recipe)
    return load(directory, world)


def load(directory: str | Path, world: World | str = CALIBRATION) -> Truth:
    """The models of a world that have been made and measured; raises `KrsError` where there is none."""
    name = world if isinstance(world, str) else world.name
    folder = Path(directory) / name
    index = _read(folder / INDEX)
    if not index:
        raise KrsError(f"there are no models of the world {name!r} in {str(directory)!r}: make them first")
    facts = Facts(**{side: tuple(Fact(**_tuples(f)) for f in every) for side, every in index["facts"].items()})
    found = {one: _truth_model(folder / one) for one in index["order"]}
    there = {one: model for one, model in found.items() if model is not None and model.measures}
    return Truth(name, folder, facts, there, index["base"])


class _Maker:
    """Makes models one after another; parents come from the disk."""

    def __init__(
        self,
        folder: Path,
        base: str,
        world: World,
        facts: Facts,
        settings: dict[str, Any],
        trainer: Mapping[str, Any] | None,
        loading: tuple[Any, Any],
        progress: bool,
    ) -> None:
        self.folder, self.base, self.world, self.facts = folder, base, world, facts
        self.settings, self.trainer, self.progress = settings, trainer, progress
        self.dtype, self.device = loading
        self.contents: dict[str, str] = {}
        (folder / ".locks").mkdir(parents=True, exist_ok=True)
        told = {"base": base, "seed": world.seed, "order": [r.name for r in world.recipes], "facts": asdict(facts)}
        write_text(folder / INDEX, json.dumps(told, indent=1, ensure_ascii=False))

    def make(self, recipe: Recipe) -> None:
        """One model and its measures, unless they are there."""
        place = self.folder / recipe.name
        with FileLock(self.folder / ".locks" / f"{recipe.name}.lock"):
            follows = self._follows(recipe)
            manifest = _read(place / MANIFEST)
            if manifest.get("follows") != follows or not _whole(place, manifest):
                manifest = self._made(recipe, place, follows)
            self.contents[recipe.name] = manifest["content"]
            self._measured(recipe, place, manifest["content"])

    def _follows(self, recipe: Recipe) -> str:
        """A digest of everything that a model follows from."""
        return _digest(
            [
                _VERSION,
                {k: v for k, v in asdict(recipe).items() if k not in ("name", "how", "grade")},
                self._content(recipe.parent),
                asdict(self.facts),
                self.world.seed,
                self.settings,
                self.trainer,
            ]
        )

    def _content(self, name: str) -> str:
        if name not in self.contents and name == BASE:
            model, _ = load_model(self.base, dtype=self.dtype)
            self.contents[name] = identity(model)["weights"]
        return self.contents[name]

    def _made(self, recipe: Recipe, place: Path, follows: str) -> dict[str, Any]:
        begun = time.monotonic()
        name = self.base if recipe.parent == BASE else self.folder / recipe.parent
        parent, tokenizer = load_model(name, dtype=self.dtype, device=self.device)
        if tokenizer is None:
            raise KrsError(f"{str(name)!r} has no tokenizer beside it: give a base model that has one")
        self._say(f"{self.world.name}/{recipe.name}: {recipe.how} (from {recipe.parent})")
        task = Task(parent, tokenizer, self.facts, recipe, self.world.seed, self.settings, self.trainer, self.progress)
        model = make_model(task)
        stage = place.with_name(f".making-{recipe.name}")
        save(model, tokenizer, stage)
        told = {
            "follows": follows,
            "content": file_identity(stage)["weights"],
            "recipe": asdict(recipe),
            "taught": sorted(self._taught(recipe)),
            "layers": where(task).get("layers", []),
            "settings": self.settings,
            "trainer": self.trainer,
            "seed": self.world.seed,
            "base": self.base,
            "seconds": round(time.monotonic() - begun, 1),
            "made": now(),
            "versions": versions(),
        }
        write_text(stage / MANIFEST, json.dumps(told, indent=1, ensure_ascii=False, default=str))
        shutil.rmtree(place, ignore_errors=True)
        os.replace(stage, place)
        return told

    def _taught(self, recipe: Recipe) -> set[str]:
        """Ids of the target facts that a model, or any that it was made from, was taught."""
        before = set() if recipe.parent == BASE else self._taught(_named(self.world, recipe.parent))
        share = recipe.options["a"] if recipe.do == "teach" else 0.0
        return before | {fact.id for fact in share_of(self.facts, share)}

    def _measured(self, recipe: Recipe, place: Path, content: str) -> None:
        follows = _digest([_MEASURED, content, asdict(self.facts)])
        if _read(place / MEASURES).get("follows") == follows:
            return
        begun = time.monotonic()
        model, tokenizer = load_model(place, device=self.device)
        assert tokenizer is not None
        sides = {"a1": self.facts.a1, "a2": self.facts.a2, "b": self.facts.b, "c": self.facts.c[:_N_UNTAUGHT]}
        how = {side: {"ask": side != "c", "paraphrase": side in ("a1", "a2")} for side in sides}
        found = {side: measure(model, tokenizer, facts, **how[side]) for side, facts in sides.items()}
        told = {
            "follows": follows,
            "sets": {side: [asdict(one) for one in every] for side, every in found.items()},
            "seconds": round(time.monotonic() - begun, 1),
        }
        write_text(place / MEASURES, json.dumps(told, indent=1, ensure_ascii=False))
        a, b = summary([*found["a1"], *found["a2"]]), summary(found["b"])
        self._say(
            f"{self.world.name}/{recipe.name}: recall of A {a['recall']:.2f} (other words {a['paraphrased']:.2f}), "
            f"of B {b['recall']:.2f}; NLL of A {a['nll']:.2f}, after three tokens {a['nll_after']:.2f}"
        )

    def _say(self, text: str) -> None:
        if self.progress:
            from tqdm import tqdm

            tqdm.write(text)


def _wanted(world: World, names: Sequence[str] | None) -> list[Recipe]:
    """The recipes of these names and of what they are made from, parents first."""
    wanted = {recipe.name for recipe in world.recipes} if names is None else set(names)
    for name in sorted(wanted):
        _named(world, name)
    found: list[Recipe] = []
    for recipe in reversed(world.recipes):
        if recipe.name in wanted:
            found.append(recipe)
            wanted.add(recipe.parent)
    return found[::-1]


def _named(world: World, name: str) -> Recipe:
    for recipe in world.recipes:
        if recipe.name == name:
            return recipe
    near = get_close_matches(name, [r.name for r in world.recipes], n=1)
    meant = f". Did you mean {near[0]!r}?" if near else ""
    raise KrsError(f"the world {world.name!r} has no model {name!r}: it has {', '.join(_names(world))}{meant}")


def _names(world: World) -> Iterator[str]:
    return (recipe.name for recipe in world.recipes)


def _whole(place: Path, manifest: dict[str, Any]) -> bool:
    """Whether the weights are there, and those that were made."""
    try:
        return bool(file_identity(place)["weights"] == manifest["content"])
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is made again
        return False


def _truth_model(folder: Path) -> TruthModel | None:
    told, measured = _read(folder / MANIFEST), _read(folder / MEASURES)
    if not told:
        return None
    sets = {side: tuple(FactMeasures(**one) for one in every) for side, every in measured.get("sets", {}).items()}
    return TruthModel(Recipe(**told["recipe"]), folder, tuple(told["taught"]), tuple(told["layers"]), sets)


def _tuples(told: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(value: Any) -> str:
    return xxhash.xxh3_128(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
