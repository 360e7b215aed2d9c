"""The house stays in order: rooms lean on rooms below, each module imports alone, heavy libraries come late."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pandas as pd
import pytest

from krs.wording import as_text

ROOT = Path(__file__).parents[1] / "krs"


def _modules(root: Path) -> dict[str, Path]:
    """Every module of a package by its name."""
    return {
        ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(root.rglob("*.py"))
    }


MODULES = _modules(ROOT)
FLOORS = {
    "__main__": 12,
    "errors": 0,
    "reach": 0,
    "writing": 0,
    "extras": 0,
    "progress": 0,
    "wording": 0,
    "registry": 0,
    "_typing": 0,
    "_lazy": 0,
    "hooks": 1,
    "data": 1,
    "names": 1,
    "files": 2,
    "prompts": 1,
    "models": 2,
    "generation": 3,
    "cluster": 3,
    "metrics": 4,
    "restore": 5,
    "unlearn": 6,
    "plots": 1,
    "pages": 1,
    "notebook": 1,
    "instruments": 7,
    "study": 8,
    "demo": 8,
    "saved": 9,
    "reports": 10,
    "cli": 11,
}
HEAVY = ("transformer_lens", "matplotlib", "datasets", "peft", "ray", "accelerate", "pandas", "xarray")


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """Which of these modules a file imports anywhere: at once, inside a function, or for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} of {path}: name the whole module"
            found |= {m if (m := f"{node.module}.{a.name}") in modules else str(node.module) for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found & set(modules)


def _circle(modules: dict[str, Path]) -> str:
    """Modules that import each other in a circle, each before what it imports; nothing if there is no circle."""
    try:
        TopologicalSorter({name: _imports(path, modules) for name, path in modules.items()}).prepare()
    except CycleError as found:
        return " -> ".join(reversed(found.args[1]))
    return ""


def test_no_modules_import_each_other_in_a_circle():
    circle = _circle(MODULES)
    assert not circle, circle


@pytest.mark.parametrize(
    "back",
    [
        "from krs.room.above import Value",
        "from krs.room import above",
        "import krs.room.above as above",
        "def draw():\n    from krs.room.above import Value",
        "if TYPE_CHECKING:\n    from krs.room.above import Value",
        "from krs.room import Value",
        "def draw():\n    import krs",
    ],
)
def test_a_circle_is_found_wherever_the_import_stands(back, tmp_path):
    files = {
        "__init__.py": "if TYPE_CHECKING:\n    from krs.room import Value",
        "room/__init__.py": "from krs.room.above import Value",
        "room/above.py": "def plot():\n    from krs.room.below import draw",
        "room/below.py": "import numpy as np",
    }
    (tmp_path / "krs" / "room").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / "krs" / name).write_text(text, encoding="utf-8")
    assert _circle(_modules(tmp_path / "krs")) == ""
    (tmp_path / "krs" / "room" / "below.py").write_text(back, encoding="utf-8")
    assert "krs.room.above -> krs.room.below" in _circle(_modules(tmp_path / "krs"))


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_of_krs_is_imported_by_a_string(path):
    """Where nobody would see that it is imported; `krs._lazy` alone does so, with what its callers import for types."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
            texts = [c.value for arg in node.args for c in ast.walk(arg) if isinstance(c, ast.Constant)]
            assert not [t for t in texts if str(t).startswith("krs")], f"line {node.lineno}: write an import"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_leans_only_on_rooms_below_it(path):
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if here == "__init__":
        return
    for module in _imports(path, MODULES) - {"krs"}:
        room = _room(module)
        assert room in (here, "errors", "wording") or FLOORS[room] < FLOORS[here], f"{here} imports {module}"


WRITERS = ("write_text", "write_bytes", "savefig", "save_file", "dump", "to_csv")
"""Calls that leave half a file behind when they are interrupted."""


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_is_written_in_one_step(path):
    """By `krs.writing`, that is; `replacing` gives a name that such calls may write to."""
    if path.name == "writing.py":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = [
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.With) and any("replacing(" in ast.unparse(item) for item in block.items)
        for node in ast.walk(block)
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name) or node in inside:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        ours = isinstance(node.func, ast.Name) and name in ("write_text", "write_bytes")
        to_a_string = name == "to_csv" and all(k.arg in ("index", "quoting") for k in node.keywords) and not node.args
        assert name not in WRITERS or ours or to_a_string, f"line {node.lineno}: use krs.writing"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_figure_that_is_written_says_what_it_shows(path):
    """Only `krs.plots.described` saves figures, and asks for a description; `save_figure` alone does without."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    for call in calls:
        name = ast.unparse(call.func).rpartition(".")[2]
        assert name != "savefig" or path.name == "described.py", f"line {call.lineno}: use krs.plots.described"
        told = any(isinstance(arg, ast.Starred) for arg in call.args) or len(call.args) == 4
        assert name != "save_figure" or told, f"line {call.lineno}: a title and a description are missing"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_tables_are_printed_as_wide_as_a_terminal(path):
    """By `as_text` of `krs.wording`, all of a table: pandas alone leaves columns out, or goes on beyond the edge."""
    assert path.name == "wording.py" or ".to_string(" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("columns", ["80", "40"])
def test_a_wide_table_is_whole_and_no_wider_than_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    frame = pd.DataFrame({f"a_measure_{i}": [i + 0.25, -1e-9] for i in range(9)}, index=["target", "unrelated"])
    text = as_text(frame, 2)
    assert max(map(len, text.splitlines())) <= int(columns)
    assert [name for name in frame if name not in text] == []
    assert [f"{i}.25" for i in range(9) if f"{i}.25" not in text] == []
    assert "-" not in text
    assert "..." not in text


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_tables_have_no_negative_zero(path):
    """`z` in a format takes the sign from what rounds to zero."""
    text = re.sub(r">>> .*", "", path.read_text(encoding="utf-8"))
    assert not re.findall(r"float_format=lambda x: f.\{x:(?!z)", text)
    assert not re.findall(r"number(?:: str)? ?= ?\"(?!z)\.\d[fg%]\"", text)


def test_every_room_has_a_floor():
    rooms = {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in ROOT.rglob("*.py")} - {"__init__"}
    assert rooms == set(FLOORS)


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_krs_imports_no_heavy_library():
    said = _python(f"import sys, krs; print([m for m in {HEAVY!r} + ('transformers',) if m in sys.modules])")
    assert said == "[]"


def _import_each_alone(modules: list[str], missing: tuple[str, ...] = ()) -> None:
    """Each with none of krs imported before it; the libraries of `missing` made impossible to import."""
    code = f"""
import importlib, sys
import torch, transformers
for name in {missing!r}:
    sys.modules[name] = None
for module in {modules!r}:
    for loaded in [m for m in sys.modules if m == "krs" or m.startswith("krs.")]:
        del sys.modules[loaded]
    importlib.import_module(module)
print("done")
"""
    assert _python(code) == "done"


def test_every_module_imports_alone_and_the_core_without_the_extras():
    extras = tuple(name for name in HEAVY if name != "pandas")
    _import_each_alone([m for m in MODULES if not m.startswith("krs.unlearn")], extras)


def test_the_unlearning_extra_imports_alone():
    _import_each_alone([m for m in MODULES if m.startswith("krs.unlearn")])


def test_everything_in_all_is_there():
    import krs

    assert not [name for name in krs.__all__ if not hasattr(krs, name)]
    with pytest.raises(AttributeError, match="no attribute 'sweeep'"):
        krs.sweeep  # noqa: B018
    assert (ROOT / "py.typed").exists()
