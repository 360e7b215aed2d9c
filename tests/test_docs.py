"""What README and docs show runs: every block of Python, and every line of `krs` parses.

A block that cannot be run here has its reason before it: `<!-- not run: reason -->`. The pages are run with tiny
models, which take the bundled one's place in a cache of their own.
"""

import ast
import gzip
import importlib
import json
import random
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

import krs
from krs.cli import app
from krs.data.concepts import as_chat
from krs.hooks import families, registry
from krs.metrics import measures
from krs.restore import engines
from krs.study import step as steps
from tests.data.concept_case import EMMA, PAPER
from tests.tiny import pair
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)


def _blocks(page, language):
    text = page.read_text(encoding="utf-8")
    return [
        (m["code"], text.count("\n", 0, m.start("code")) + 1, m["reason"])
        for m in _BLOCK.finditer(text)
        if m["language"] == language
    ]


@pytest.fixture(scope="module")
def models():
    return pair("llama", num_hidden_layers=30, max_position_embeddings=128)


@pytest.fixture
def names(models, tmp_path, monkeypatch):
    """What the pages take as given: models, prompts and files in a folder of its own; registries are put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(families, "BY_TYPE", families.BY_TYPE.copy())
    for module in (registry, measures, steps, importlib.import_module("krs.unlearn.methods")):
        monkeypatch.setattr(module, "REGISTRY", module.REGISTRY.copy())
    for folder, model in zip((tmp_path / "hf/krs/smollm2-135m-instruct-v1", "out/demo/unlearned"), models, strict=True):
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    vanilla, unlearned = (krs.load(name)[0] for name in ("smollm2", "out/demo/unlearned"))
    Path("mine.json").write_text(json.dumps(EMMA))
    Path("llama2-7b_concepts.json").write_text(json.dumps([PAPER | {"Concept": "Star Wars"}]))
    Path("dump").mkdir()
    with gzip.open("dump/a.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "Hogwarts is a school. " * 10}) + "\n")
    prompts = as_chat(("who wrote the book", "what is red"))
    ids = tiny_tokenizer()("who wrote the book", return_tensors="pt", return_token_type_ids=False)
    with krs.hooks.record(vanilla, krs.MLP_COEF + krs.ATTN_OUT) as acts:
        vanilla(**ids)
    words = random.Random(0)
    asked = ["who wrote the book"], ["what is red"]
    said = krs.metrics.answers(vanilla, unlearned, *asked, tokenizer=tiny_tokenizer(), n_tokens=3, progress=False)
    given = {
        "krs": krs,
        "vanilla": vanilla,
        "unlearned": unlearned,
        "model": unlearned,
        "other_model": vanilla,
        "tokenizer": tiny_tokenizer(),
        "prompts": prompts,
        "acts": acts,
        "mask": torch.ones(1, 4, dtype=torch.bool),
        "answers": ["the cat", "the sun"],
        **dict.fromkeys(("gentle", "default", "strong", "other"), said),
        "texts": [" ".join(words.choices(sorted(tiny_tokenizer().get_vocab()), k=20)) for _ in range(6000)],
    }
    return given


def _pages_with(language):
    return [pytest.param(page, id=page.name) for page in PAGES if _blocks(page, language)]


@pytest.mark.parametrize("page", _pages_with("python"))
@pytest.mark.filterwarnings("ignore:.*FigureCanvasAgg is non-interactive")
def test_the_python_of_a_page_runs_from_top_to_bottom(page, names):
    for code, line, reason in _blocks(page, "python"):
        if reason is None:
            padded = "\n" * line + code  # so that a traceback names the line of the page
            exec(compile(padded, str(page), "exec"), names)


@pytest.mark.long
@pytest.mark.parametrize("name", ["forked", "workers"])
def test_the_engines_of_worker_processes_give_the_plain_engines_numbers(name, models, tmp_path, monkeypatch):
    written = [c for c, _, _ in _blocks(ROOT / "docs/extending.md", "python") if "ProcessPoolExecutor" in c]
    (code,) = [c for c in written if f'name, exact = "{name}", True' in c]
    (tmp_path / f"krs_doc_{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(engines, "ENGINES", engines.ENGINES.copy())
    importlib.import_module(f"krs_doc_{name}")
    for side, model in zip("vu", models, strict=True):
        model.save_pretrained(tmp_path / side)
    asked = {"windows": krs.windows.of([[3]]), "settings": "resid_pre", "positions": [[0], [2, 3]], "measures": "kl"}
    prompts = [[5, 9, 11], [7, 3, 22, 8]]
    ours, plain = (
        krs.sweep(str(tmp_path / "v"), str(tmp_path / "u"), prompts, engine=engine, n_tokens=3, progress=False, **asked)
        for engine in (name, "plain")
    )
    for measure in plain.measures:
        np.testing.assert_allclose(ours.table(measure), plain.table(measure), rtol=1e-4, atol=1e-6)


def _commands(text):
    joined = text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.startswith("krs ")]


def _parse(command):
    """Read the line as click does; raises for an unknown command or option, or for a missing argument."""
    name, found, rest = _command(command)
    found.make_context(name, rest).close()


def _parse_part(command):
    """The same of a line in which arguments are left out."""
    name, found, rest = _command(command)
    found.make_parser(found.context_class(found, info_name=name)).parse_args(rest)


def _command(line):
    _, name, *rest = shlex.split(line, comments=True)
    return name, typer.main.get_command(app).commands[name], rest


@pytest.mark.parametrize("page", _pages_with("bash"))
def test_every_line_of_krs_parses(page):
    for code, _, _ in _blocks(page, "bash"):
        for command in _commands(code):
            _parse(command)


def test_every_line_of_krs_in_a_table_or_a_sentence_parses():
    seen = 0
    for page in PAGES:
        for command in re.findall(r"`(krs \w[^`]*)`", page.read_text(encoding="utf-8")):
            parse = _parse_part if " …" in command or len(command.split()) == 2 else _parse
            parse(re.sub(r"[\[\]…]", "", command))
            seen += 1
    assert seen > 10


def test_the_page_on_commands_has_every_command_and_option():
    page = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert runpy.run_path(str(ROOT / "docs/commands.py"))["page"](page) == page, "make commands writes it anew"
    for name, command in typer.main.get_command(app).commands.items():
        (section,) = re.findall(rf"^## krs {name}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
        assert all(line in section.splitlines() for line in command.help.splitlines())
        assert f"| [krs {name}](#krs-{name}) | " in page
        options = [o for p in command.params if p.name != "help" for o in p.opts if o.startswith("-")]
        assert all(f"`{option}`" in section for option in options)
    assert re.search(r"^\| `--n-tokens` \| .+ \| `30` \|$", page, re.M)
    assert re.search(r"^\| `--output`, `-o` \| .+ \| needed \|$", page, re.M)


def test_an_unknown_option_would_be_found():
    with pytest.raises(Exception, match="No such option: --promts"):
        _parse("krs sweep a b --promts c -o d")
    with pytest.raises(Exception, match="No such option: --promts"):
        _parse_part("krs sweep --promts c")
    with pytest.raises(Exception, match="Missing parameter: prompts"):
        _parse("krs sweep a b -o d")


def test_a_reason_is_given_for_what_is_not_run():
    reasons = [reason for page in PAGES for _, _, reason in _blocks(page, "python") if reason is not None]
    assert all(len(reason.split()) > 2 for reason in reasons)


RAISED = ("KrsError", "NoPlaceError", "NotExactError", "CannotPackError", "warn", "error")


def _template(node):
    """A message as the source has it, with … for what differs."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
    return _template(node.left) + _template(node.right) if isinstance(node, ast.BinOp) else "…"


def _fixed_words(template):
    """The first five words of the longest fixed stretch of what a message gives as the cause."""
    whole = re.sub(r"^(… ?)*: ", "", " ".join(template.split()))
    cause = whole.split(": ")[0]
    stretches = (cause if max(map(len, cause.split("…"))) >= 8 else whole).split("…")
    return " ".join(max((s.strip(" .,:;()") for s in stretches), key=len).split()[:5]).rstrip(" .,:;()")


def _messages():
    for path in sorted((ROOT / "krs").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                words = _fixed_words(_template(node.args[0])) if name in RAISED else ""
                if len(words) >= 8:  # others hand on what somebody else says
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", words


def test_the_page_on_troubleshooting_has_every_error():
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").replace("`", "").replace("\\|", "|")
    messages = list(_messages())
    assert len(messages) > 300
    missing = [f"{where}: {words}" for where, words in messages if words not in page]
    assert not missing, "add a row to docs/troubleshooting.md:\n" + "\n".join(missing)


def test_every_row_on_troubleshooting_has_cause_and_remedy():
    rows = re.findall(r"^\|.*\|$", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.M)
    assert all(len(row.replace("\\|", "").split(" | ")) == 3 and "|  |" not in row for row in rows)


def _anchors(page):
    """Of headings, as GitHub and mkdocs make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    words = (re.sub(r"[^\w\- ]", "", h.strip().lower()) for h in re.findall(r"^#+ (.+)$", text, re.M))
    return {heading.replace(" ", "-") for heading in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere_and_pictures_say_what_they_show(page):
    text = page.read_text(encoding="utf-8")
    for picture, told, target in re.findall(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", text):
        place, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        file = page if not place else (page.parent / place).resolve()
        assert file.exists(), target
        assert not anchor or anchor in _anchors(file), target
        assert not picture or len(told.split()) > 4, f"{target} has the alternative text {told!r}"
