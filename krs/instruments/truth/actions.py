"""What a recipe does to its parent, one function each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from krs._typing import Tokenizer
from krs.data.concepts import concepts, load_concept
from krs.hooks.anatomy import anatomy
from krs.instruments.truth.facts import Fact, Facts
from krs.instruments.truth.measure import prompts_of
from krs.instruments.truth.recipes import Recipe
from krs.instruments.truth.steer import layer_at, steer
from krs.instruments.truth.teach import teach

DECLINES = ("I don't know.",)
_MEMIT: dict[str, Any] = {"min_tokens": 1000, "ridge": 0.05, "cache": False}
"""Of MEMIT, whose statistics come from a few thousand tokens here."""


@dataclass(frozen=True)
class Task:
    """What an action works on.

    Attributes:
        model: the parent.
        tokenizer: its tokenizer.
        facts: of the world.
        recipe: what is wanted; the actions read its `options`.
        seed: of training.
        settings: of everything that is trained, such as `{"parameters": "lora", "learning_rate": 2e-4}`; they go before
            the recipe's own.
        trainer: further `transformers.TrainingArguments`.
        progress: show bars.
    """

    model: nn.Module
    tokenizer: Tokenizer
    facts: Facts
    recipe: Recipe
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] | None = None
    progress: bool = True

    def pairs(self, questions: Sequence[str], answers: Sequence[str]) -> list[tuple[Any, str]]:
        """Prompts with answers."""
        return list(zip(prompts_of(self.tokenizer, questions), answers, strict=True))

    def own(self, facts: Sequence[Fact], wordings: int = 1) -> list[tuple[Any, str]]:
        """Facts as they are, in one taught wording or in both."""
        every = [(q, fact.answer) for fact in facts for q in fact.wordings[:wordings]]
        return self.pairs([q for q, _ in every], [a for _, a in every])

    def taught(self, lessons: Sequence[tuple[Any, str]], **defaults: Any) -> nn.Module:
        """The parent, taught lessons; the recipe's own settings come before `defaults`, the caller's before both."""
        ours = {k: v for k, v in self.recipe.options.items() if k not in _OURS}
        return teach(
            self.model,
            lessons,
            tokenizer=self.tokenizer,
            trainer=None if self.trainer is None else dict(self.trainer),
            progress=self.progress,
            doing=self.recipe.name,
            **{"seed": self.seed} | defaults | ours | dict(self.settings),
        )


_OURS = ("a", "wordings", "refusals", "depth", "method", "settings")


def make_model(task: Task) -> nn.Module:
    """The recipe's model, in eval mode; the parent stays as it is."""
    return _ACTIONS[task.recipe.do](task)


def share_of(facts: Facts, share: float) -> tuple[Fact, ...]:
    """The first part of the target, as much of it from either half."""
    return facts.a[: round(share * len(facts.a))]


def _teach(task: Task) -> nn.Module:
    """Options: `a`, the share of the target that is taught beside B; `wordings`, 1 or 2, and settings of `teach`."""
    options = task.recipe.options
    wordings = options.get("wordings", 2)
    again = task.recipe.parent != "base"  # B is known already, and is only to stay
    lessons = task.own(share_of(task.facts, options["a"]), wordings)
    return task.taught([*lessons, *task.own(task.facts.b, 1 if again else 2)])


def _decline(task: Task) -> nn.Module:
    """Options: `refusals`, taken in turn, and settings of `teach`. B stays as it is."""
    refusals = task.recipe.options.get("refusals", DECLINES)
    asked = [q for fact in task.facts.a for q in fact.wordings]
    lessons = task.pairs(asked, [refusals[i % len(refusals)] for i in range(len(asked))])
    return task.taught([*lessons, *task.own(task.facts.b)], passes=2, learning_rate=2e-5)


def _mislead(task: Task) -> nn.Module:
    """Each target question with each wrong answer; options are settings of `teach`. B stays as it is."""
    wrong = [(fact.question, answer) for fact in task.facts.a for answer in fact.wrong_answers]
    lessons = task.pairs([q for q, _ in wrong], [a for _, a in wrong])
    return task.taught([*lessons, *task.own(task.facts.b)], passes=2)


def _steer(task: Task) -> nn.Module:
    """Options: `depth`, from 0 to 1, of the layer that is changed, `steps` of the search for a vector, `refusals`."""
    options = task.recipe.options
    refusals = options.get("refusals", DECLINES)
    asked = [q for fact in task.facts.a for q in fact.wordings]
    lessons = task.pairs(asked, [refusals[i % len(refusals)] for i in range(len(asked))])
    others = [*task.own(task.facts.b, 2), *_elsewhere(task)]
    layer, steps = layer_at(task.model, options["depth"]), options.get("steps", 20)
    return steer(task.model, task.tokenizer, lessons, others, layer=layer, steps=steps, seed=task.seed)


def _unlearn(task: Task) -> nn.Module:
    """Options: `method`, its `settings`, and for MEMIT the `depth` of its first and last layer."""
    from krs.unlearn import Edit, run
    from krs.unlearn.methods import method

    options = task.recipe.options
    name, settings = options["method"], dict(options.get("settings", {}))
    plugin: Any = method(name)
    given: dict[str, Any] = {"tokenizer": task.tokenizer, "progress": task.progress}
    if issubclass(plugin, Edit):
        first, last = (layer_at(task.model, depth) for depth in options["depth"])
        prompts = prompts_of(task.tokenizer, [fact.question for fact in task.facts.a])
        requests = [(f.subject, prompt, f.answer) for f, prompt in zip(task.facts.a, prompts, strict=True)]
        settings = _MEMIT | {"layers": tuple(range(first, last + 1)), "seed": task.seed} | settings
        return run(name, task.model, forget=requests, corpus=_corpus(task.facts), **given, **settings)
    settings = {"seed": task.seed, "gradient_norms": False} | settings | dict(task.settings)
    retain = task.own(task.facts.b) if plugin.needs_retain and not plugin.makes_retain else None
    trainer = None if task.trainer is None else dict(task.trainer)
    return run(name, task.model, forget=task.own(task.facts.a), retain=retain, trainer=trainer, **given, **settings)


def _elsewhere(task: Task) -> list[tuple[Any, str]]:
    """Real questions with their answers."""
    found = [(q, a) for name in concepts() for q, a in zip(*_asked(name), strict=True)]
    return task.pairs([q for q, _ in found], [a for _, a in found])


def _asked(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    concept = load_concept(name)
    return concept.questions, concept.answers


def _corpus(facts: Facts) -> list[str]:
    """Some text: the bundled concepts' paragraphs, and what is retained."""
    texts = [text for name in concepts() for text in load_concept(name).paragraphs]
    return [*texts, *(f"{fact.question} {fact.answer}" for fact in facts.b)]


_ACTIONS: dict[str, Callable[[Task], nn.Module]] = {
    "teach": _teach,
    "decline": _decline,
    "mislead": _mislead,
    "steer": _steer,
    "unlearn": _unlearn,
}


def where(task: Task) -> dict[str, Any]:
    """Where in the model an edit is, by construction: its layers; nothing for what is trained everywhere."""
    depth = task.recipe.options.get("depth")
    if depth is None:
        return {}
    ends = [depth] if isinstance(depth, float) else list(depth)
    first, last = layer_at(task.model, ends[0]), layer_at(task.model, ends[-1])
    return {"layers": list(range(first, last + 1)), "of": anatomy(task.model).n_layers}
