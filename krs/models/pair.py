"""Do two models belong together? Asked before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

from torch import Tensor, nn

from krs.errors import KrsError
from krs.hooks.anatomy import Anatomy, anatomy
from krs.hooks.bridges import without_bridge
from krs.hooks.unwrap import core, plain_modules, unwrap

Vocabulary: TypeAlias = Literal["same", "shared"]
"""Whether both models must have the same vocabulary rows, or only those are scored that both have."""

_ROWS = ("vocabulary", "rows of the LM head")


def check_pair(vanilla: object, unlearned: object, vocabulary: Vocabulary | None = "same") -> tuple[Anatomy, Anatomy]:
    """The anatomies of two models that may be compared; raises `KrsError` that names what differs.

    They must be two models (no shared storage), both in eval mode, of one architecture, with the same layers,
    widths, vocabulary and dtype. With `vocabulary="shared"` one of them may have more rows at the end of its
    embedding and its head (a token added, a head padded to a multiple); see `shared_rows`. `None` is for calls that
    do not offer that.
    """
    if vocabulary not in ("same", "shared", None):
        raise KrsError(f"vocabulary={vocabulary!r}: choose 'same' or 'shared'")
    if vanilla is unlearned:
        raise KrsError(
            "vanilla and unlearned are the same object: pass two models (copy.deepcopy first, or load it twice)"
        )
    v, u = (one_model(model, side) for model, side in ((vanilla, "vanilla"), (unlearned, "unlearned")))
    for side, body in (("vanilla", v), ("unlearned", u)):
        _in_eval_mode(side, body.model)
    _not_shared(v.model, u.model)
    differing = {what: (a, b) for what, a, b in _facts(v, u) if a != b}
    if vocabulary == "shared":
        differing = {what: pair for what, pair in differing.items() if what not in _ROWS}
    if differing:
        listed = "; ".join(f"{what}: {a} and {b}" for what, (a, b) in differing.items())
        rows_only = ". If one of them has rows added at the end (a pad token, a head padded to a multiple), "
        if vocabulary is None:
            rows_only += "cut them off first (model.resize_token_embeddings(n)), for here all rows count"
        else:
            rows_only += "vocabulary='shared' scores the rows that both have"
        raise KrsError(
            f"vanilla and unlearned do not belong together; they differ in {listed}. "
            "Pass the model that was unlearned and the one it came from, loaded with the same dtype"
            f"{rows_only if differing.keys() & set(_ROWS) else ''}"
        )
    return v, u


def one_model(model: object, side: str) -> Anatomy:
    """A model's anatomy, without a bridge whose hooks are idle: bridges and plain models have the same modules then."""
    return anatomy(without_bridge(unwrap(model, side), side), side)


def check_reference(reference: object, pair: tuple[Anatomy, Anatomy], vocabulary: Vocabulary = "same") -> Anatomy:
    """The anatomy of a third model that the two are compared with; raises `KrsError` where it cannot be.

    It may be of another architecture and size, and has to have their vocabulary.
    """
    body = one_model(reference, "reference")
    _in_eval_mode("reference", body.model)
    for side, other in zip(("vanilla", "unlearned"), pair, strict=True):
        _not_shared(other.model, body.model, (side, "reference"))
        facts = (
            {vocabulary_of(m) for m in (other.model, body.model)},
            {_head_rows(m) for m in (other.model, body.model)},
        )
        if vocabulary == "same" and any(len(sizes) > 1 for sizes in facts):
            raise KrsError(
                f"the reference and {side} have vocabularies of different sizes, so their logits cannot be compared: "
                "pass a reference of the same vocabulary, or vocabulary='shared'"
            )
    return body


def shared_rows(vanilla: nn.Module, unlearned: nn.Module) -> int:
    """How many vocabulary rows, from the first one on, both models have logits for: the ones that are scored."""
    return min(_head_rows(vanilla), _head_rows(unlearned))


def shared_ids(vanilla: nn.Module, unlearned: nn.Module) -> int:
    """How many token ids, from the first one on, both models can say and read: the ones that may stand in a text."""
    return min(shared_rows(vanilla, unlearned), vocabulary_of(vanilla), vocabulary_of(unlearned))


def _facts(v: Anatomy, u: Anatomy) -> Iterator[tuple[str, object, object]]:
    yield "architecture", type_of(v), type_of(u)
    yield "number of layers", v.n_layers, u.n_layers
    yield "width (hidden size)", _width(v.model), _width(u.model)
    yield "vocabulary", vocabulary_of(v.model), vocabulary_of(u.model)
    yield "rows of the LM head", _head_rows(v.model), _head_rows(u.model)
    yield "dtype", dtype_of(v.model), dtype_of(u.model)
    for i in range(min(v.n_layers, u.n_layers)):
        ours, theirs = _layer_shapes(v, i), _layer_shapes(u, i)
        names = ours.keys() | theirs.keys() if i == 0 else ours.keys() & theirs.keys()  # one layer may have a bias more
        for name in sorted(names):
            if ours.get(name) != theirs.get(name):
                yield f"shape of {name!r} in layer {i}", ours.get(name), theirs.get(name)
                return


def type_of(body: Anatomy) -> str:
    """The model's `model_type`."""
    return str(body.model.config.model_type)  # type: ignore[union-attr]


def dtype_of(model: nn.Module) -> str:
    """The dtype of the first floating-point parameter outside adapters, without the `torch.` prefix."""
    for _, parameter in _own_parameters(model):
        if parameter.is_floating_point():
            return str(parameter.dtype).removeprefix("torch.")
    return "none"


def _width(model: nn.Module) -> int:
    return int(_embedding(model).shape[1])


def vocabulary_of(model: nn.Module) -> int:
    """How many token ids a model takes."""
    return int(_embedding(model).shape[0])


def _head_rows(model: nn.Module) -> int:
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        return vocabulary_of(model)
    holder = core(head)
    return int(getattr(holder, "out_features", 0) or holder.weight.shape[0])  # type: ignore[index]


def _embedding(model: nn.Module) -> Tensor:
    weight = core(model.get_input_embeddings()).weight  # type: ignore[operator]
    assert isinstance(weight, Tensor)
    return weight


def _layer_shapes(body: Anatomy, layer: int) -> dict[str, tuple[int, ...]]:
    """By name; adapters' own parameters left out, and the names that wrappers add taken out."""
    return {name: tuple(parameter.shape) for name, parameter in _own_parameters(body.layers[layer])}


def _own_parameters(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters as the model had them before adapters were put around its modules."""
    for path, module in plain_modules(root):
        inner = core(module)
        own = inner.named_parameters(recurse=inner is not module)
        yield from ((f"{path}.{name}" if path else name, parameter) for name, parameter in own)


def _in_eval_mode(side: str, model: nn.Module) -> None:
    if training := [name for name, module in model.named_modules() if module.training]:
        where = f" (at {training[0]!r})" if training[0] else ""
        raise KrsError(
            f"{side} is in training mode{where}, where dropout makes every forward different: call {side}.eval() first"
        )


def _not_shared(vanilla: nn.Module, unlearned: nn.Module, sides: tuple[str, str] = ("vanilla", "unlearned")) -> None:
    theirs = {_storage(p): name for name, p in vanilla.named_parameters() if p.device.type != "meta" and p.numel()}
    for name, p in unlearned.named_parameters():
        if p.device.type != "meta" and p.numel() and _storage(p) in theirs:
            raise KrsError(
                f"{sides[0]} and {sides[1]} share the storage of {name!r}, so patching one would change the other: "
                "copy the model (copy.deepcopy) or load it a second time"
            )


def _storage(parameter: Tensor) -> tuple[str, int]:
    return str(parameter.device), parameter.untyped_storage().data_ptr()
