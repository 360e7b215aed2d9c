"""What an unlearning method is, and the registry of those that there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.registry import Registry, module_of
from krs.unlearn.config import Config, EditConfig
from krs.unlearn.settings import check_settings
from krs.unlearn.sides import Look, Side, Wanted


class Plugin:
    """What `krs.unlearn.run` can carry out by name: a `Method` is trained, an `Edit` changes weights by itself.

    Register a subclass with `@register("name")`, or from another package by an entry point of the group
    `krs.methods` that names the class or its module.
    """

    config_class: ClassVar[type[Config] | type[EditConfig]] = Config
    name: ClassVar[str] = ""

    def __init__(self, config: Any = None) -> None:
        """With the settings of `config_class`, and its defaults where none are given."""
        self.config: Any = self.config_class() if config is None else config


class Edit(Plugin, ABC):
    """A method that computes new weights instead of training them, such as MEMIT.

    Attributes:
        needs_corpus: whether it needs text of the user's (`corpus=`).
    """

    config_class = EditConfig
    needs_corpus: ClassVar[bool] = False

    @abstractmethod
    def edit(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        forget: Sequence[Any],
        corpus: Sequence[str] | None,
        progress: bool,
    ) -> list[dict[str, Any]]:
        """Change `model`, which is a copy in fp32, in place; returns what is to be logged, an entry a step.

        Raises `KrsError` for bad input before anything long.
        """


class Method(Plugin, ABC):
    """A method that trains: its loss, and what it needs for it.

    Attributes:
        needs_retain: whether it has a retain side; without it `loss` gets `None` there.
        makes_retain: whether it makes its retain side from the forget set itself.
        more_sides: names of further sets of texts (`run(…, sides={"paraphrase": […]})`), which `loss` gets by keyword.
        reference: what it needs of the vanilla model, by side: `{"forget": "logits"}`, or `"logprob"`, a summed
            log-probability a text. In words: nothing, a log-probability on both sides (`"logprobs"`), logits of the
            retain texts (`"live"`), or `"both"`, a log-probability of the forget and logits of the retain texts.
    """

    config_class = Config
    needs_retain: ClassVar[bool] = False
    makes_retain: ClassVar[bool] = False
    more_sides: ClassVar[tuple[str, ...]] = ()
    reference: ClassVar[Literal["none", "logprobs", "live", "both"] | Mapping[str, Wanted]] = "none"

    @property
    def sides(self) -> tuple[str, ...]:
        """Names of its sets of texts."""
        return ("forget", *(("retain",) if self.needs_retain else ()), *self.more_sides)

    def looks(self, n_layers: int) -> Sequence[Look]:
        """Which activations its loss looks at, in a model of so many layers; none by default.

        They are in `activations` and `ref_activations` of the sides that `loss` gets.
        """
        return ()

    def trained_layers(self, n_layers: int) -> Sequence[int] | None:
        """The layers whose weights are trained, in a model of so many; `None` for all, and what is outside them."""
        layers: Sequence[int] | None = self.config.layers
        return layers

    def retain_texts(self, forget: Sequence[Any]) -> list[Any]:
        """For methods with `makes_retain`: what stands on the retain side, one for each forget text."""
        raise NotImplementedError

    @abstractmethod
    def loss(self, forget: Side, retain: Side | None, *args: Any, **more: Any) -> dict[str, Float[Tensor, ""]]:
        """The loss's terms by name, whose sum is minimised; logged one by one.

        Each is a sum over this forward's tokens or rows divided by `n_tokens` or `n_rows` of its side, so that
        accumulated forwards add up to the loss of one large batch.
        """


def _take(name: str, found: Any) -> None:
    """What an entry point of the group `krs.methods` names: a class, by the entry point's name unless it has one."""
    if not isinstance(found, type) or not issubclass(found, Plugin):
        raise KrsError(f"the entry point {name!r} (krs.methods) names {found!r}, which is no Method or Edit")
    register(found.name or name)(found)


REGISTRY: Registry[type[Plugin]] = Registry("unlearning method", "krs.methods", "krs.unlearn", take=_take)
"""Methods by name. The group `krs.unlearn` is that of packages written for krs 0.1."""
M = TypeVar("M", bound=type[Plugin])


def register(name: str) -> Callable[[M], M]:
    """Class decorator: make a method known by a name. A notebook's cell may be run again, changed."""

    def add(method: M) -> M:
        REGISTRY.add(name, method, module_of(method))
        method.name = name
        return method

    return add


def methods() -> list[str]:
    """Names of all methods, also of those that installed packages bring by the entry point `krs.methods`.

    >>> "npo_kl" in methods()
    True
    """
    return REGISTRY.names()


def method(name: str) -> type[Plugin]:
    """The class of a method; raises `KrsError` for an unknown name."""
    return REGISTRY[name]


def make(name: str, settings: dict[str, Any]) -> Plugin:
    """A method with its config; raises `KrsError` for a setting that it does not have, or of another type."""
    found = method(name)
    check_settings(name, found.config_class, settings)
    return found(found.config_class(**settings))


def made(given: str | Config | EditConfig | Plugin, settings: dict[str, Any]) -> Plugin:
    """A method from its name and settings, from its config, or as it is.

    Raises `KrsError` for a config that no method, or more than one, has, and for settings beside one that has them.
    """
    if isinstance(given, str):
        return make(given, settings)
    if isinstance(given, type):
        raise KrsError(f"{given.__name__} is a class: give its name, a config, or an instance of it with its config")
    if settings:
        where = type(given).__name__
        raise KrsError(f"{min(settings)}= stands beside {where}, which has its settings: change it there")
    if isinstance(given, Plugin):
        given.name = given.name or type(given).__name__  # type: ignore[misc]
        return given
    taking = [name for name in methods() if method(name).config_class is type(given)]
    if len(taking) != 1:
        said = f"{', '.join(taking)} have it" if taking else "no registered method has it"
        raise KrsError(f"{type(given).__name__} does not say which method is meant ({said}): give the method's name")
    return method(taking[0])(given)
