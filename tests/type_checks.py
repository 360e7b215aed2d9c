"""Types and shapes that krs declares, checked at run time while the tests run.

`jaxtyping`'s own import hook does this too, but it also decorates the functions inside functions, anew in every call,
and binds the axes of signatures that have none: a sweep of a tiny model took four times as long. Here a function or a
dataclass whose signature has shapes gets `jaxtyped`, every other one `beartype` alone, when it is first called; a
function inside a function gets neither.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, FunctionType, ModuleType
from typing import Any, ClassVar, get_args

from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped

_SHAPES = {"Bool", "Float", "Int", "Shaped"}
_CHECK, _CHECK_AXES = "__check__", "__check_axes__"
"""Names of the two decorators in the modules that are checked."""


def install(package: str) -> None:
    """Check every module of `package` that is imported from now on."""
    sys.meta_path.insert(0, _Finder(package))


def switch(on: bool) -> None:
    """Whether what is called from now on is checked; the fixture `as_a_user` switches it off."""
    _Checked.on = on
    for function in _Checked.all:
        function.settle()


def _check(given: Any, axes: bool = False) -> Any:
    """A decorator of functions and dataclasses."""
    if isinstance(given, type):
        given.__init__ = _check(given.__init__, axes)  # type: ignore[misc]
        return given
    return _Checked(given, axes).function


class _Checked:
    """One function whose code is exchanged: it makes its checks at the first call, and is then itself what checks.

    A function around the checked one would cost a second call each time, a third of what checking costs.
    """

    on: ClassVar[bool] = True
    all: ClassVar[list[_Checked]] = []

    def __init__(self, given: FunctionType, axes: bool) -> None:
        self.given, self.axes = given, axes
        self.checked: FunctionType | None = None
        made = FunctionType(_hand_on.__code__, given.__globals__, given.__name__, given.__defaults__)
        self.function = functools.wraps(given)(made)
        self._hand_on_to(self._first)
        self.all.append(self)

    def settle(self) -> None:
        """Become what checks, or what does not, if there was a first call."""
        if self.checked is not None:
            self._become(self.checked if self.on else self.given)

    def _first(self, *args: Any, **kwargs: Any) -> Any:
        if not self.on:
            return self.given(*args, **kwargs)
        if self.checked is None:
            given = self.given
            given.__annotations__ = {name: _resolved(a, given) for name, a in given.__annotations__.items()}
            shapes = self.axes or any(map(_has_shapes, given.__annotations__.values()))
            self.checked = jaxtyped(given, typechecker=beartype) if shapes else beartype(given)
            self.settle()
        return self.checked(*args, **kwargs)

    def _become(self, other: FunctionType) -> None:
        if other.__code__.co_freevars or other.__globals__ is not self.function.__globals__:
            self._hand_on_to(other)
        else:
            self._take(other.__code__, other.__kwdefaults__ or {})

    def _hand_on_to(self, other: Callable[..., Any]) -> None:
        self._take(_hand_on.__code__, {"_krs_to": other})

    def _take(self, code: CodeType, defaults: dict[str, Any]) -> None:
        """Defaults first, and none is taken away: another thread may be calling."""
        self.function.__kwdefaults__ = (self.function.__kwdefaults__ or {}) | defaults
        self.function.__code__ = code


def _hand_on(*args: Any, _krs_to: Callable[..., Any], **kwargs: Any) -> Any:
    return _krs_to(*args, **kwargs)


def _resolved(annotation: Any, function: Any) -> Any:
    """What an annotation is; anything, where it names what is imported for type checkers only."""
    try:
        return eval(annotation, function.__globals__) if isinstance(annotation, str) else annotation
    except NameError:
        return Any


def _has_shapes(annotation: Any) -> bool:
    """Whether a type, as it is once names and aliases are resolved, declares the shape of an array."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(map(_has_shapes, get_args(annotation)))


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.split(".", maxsplit=1)[0] != self.package:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Never from a .pyc file, which has the code as it is without the decorators."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        _decorate(tree)
        return compile(tree, path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[_CHECK] = _check
        vars(module)[_CHECK_AXES] = functools.partial(_check, axes=True)
        super().exec_module(module)


def _decorate(tree: ast.Module | ast.ClassDef) -> None:
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            _decorate(node)
            if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                fields = [n.annotation for n in node.body if isinstance(n, ast.AnnAssign)]
                node.decorator_list.insert(0, _decorator(fields, node))
        elif isinstance(node, ast.FunctionDef):
            arguments = [a.annotation for a in ast.walk(node.args) if isinstance(a, ast.arg) and a.annotation]
            node.decorator_list.append(_decorator(arguments + ([node.returns] if node.returns else []), node))


def _decorator(annotations: Sequence[ast.expr], node: ast.ClassDef | ast.FunctionDef) -> ast.Name:
    names = {n.id for a in annotations for n in ast.walk(a) if isinstance(n, ast.Name)}
    return ast.copy_location(ast.Name(_CHECK_AXES if names & _SHAPES else _CHECK, ast.Load()), node)
