"""What the shell is told to type is no Python: every error's words, as `krs.cli.main` prints them."""

import ast
import re

import pytest

from krs.files import in_options
from tests.test_docs import ROOT, _template

_RAISED = ("KrsError", "NoPlaceError")
_PYTHON = re.compile(r"(?<!\.units)(?<!\.heads)(?<=\w)\(|\[|\{'|=(?:True|False)\b|\bNone\b")
"""Calls, lists, dicts, constants; `mlp_coef.units(7)` is a setting's name, in the shell too."""
_SHAPES = re.compile(r"\[(?:in, out|batch, position(?:, unit)?|prompt, token|token)\]")

PYTHON_ONLY = {
    "hooks": "points, patches and models that are loaded",
    "generation/greedy.py": "krs.generate, which no command calls so",
    "metrics/measures.py": "a measure of one's own",
    "metrics/account_result.py": "a result's methods",
    "models/given.py": "loaded models",
    "models/identity.py": "krs.models.identity",
    "models/pair.py": "loaded models; those that krs loads are in eval mode",
    "prompts/batch.py": "donor_prompts=",
    "prompts/rows.py": "what a tokenizer returned, or ids in a file of JSON, which are lists there",
    "prompts/listed.py": "what no file of prompts holds, or lists in JSON",
    "reports.py": "krs.report of a result",
    "restore/alike.py": "krs.mean and krs.concat",
    "restore/engines.py": "an engine of one's own",
    "restore/windows.py": "krs.windows; --window is read before",
    "unlearn/terms.py": "a method of one's own",
    "unlearn/train.py": "trainer=",
}
"""Rooms and files whose errors nobody meets who types commands, and what they are about."""
EXCEPT = {
    "questions is one string": "JSON's list",
    "aliases is one string": "JSON's list",
    "answers is one list of token ids": "JSON's list",
    "… is one list of token ids": "JSON's list",
    "… is one conversation": "JSON's list",
    "…=…: give a list, […]": "--set takes JSON",
    "…[…] of … has a line break": "a place in a file",
    "… holds …: a study is a mapping": "YAML's list",
    "the source is …: hand in files": "an iterable of documents",
    "… is chat messages: give the text": "messages as an answer, in JSON",
    "… is a conversation: give it as a pair": "messages as a text, in JSON",
    "--only has … without a name": "an instrument of one's own",
    "--template-arg is no dict": "the option is name=value",
    "krs.compare takes results by name": "krs.compare",
    "--positions [] restores nothing": "the option is text",
    "this sweep …, so there is no Knowledge": "krs.patch_sweep",
    "--dtype is for models given by name": "loaded models",
    "--device is for models given by name": "loaded models",
    "the model is in training mode": "loaded models",
}
"""Beginnings of errors elsewhere of which the same is true, or whose brackets are those of a file's format."""


def _said():
    """Every error in the words of the shell, by its file."""
    for path in sorted((ROOT / "krs").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
            if name in _RAISED and node.args:
                yield str(path.relative_to(ROOT / "krs")), in_options(_template(node.args[0]))


def test_what_the_shell_says_has_no_python_in_it():
    python = {(file, said) for file, said in _said() if _PYTHON.search(_SHAPES.sub("", said))}
    left = [(file, said) for file, said in python if not any(file.startswith(room) for room in PYTHON_ONLY)]
    wrong = [f"{file}: {said}" for file, said in sorted(left) if not said.startswith(tuple(EXCEPT))]
    assert not wrong, "say it in the shell's words (krs.files.in_options):\n" + "\n".join(wrong)
    unused = [room for room in PYTHON_ONLY if not any(file.startswith(room) for file, _ in python)]
    assert unused == []
    assert [began for began in EXCEPT if not any(said.startswith(began) for _, said in left)] == []


@pytest.mark.parametrize(
    ("python", "shell"),
    [
        ("sweep that one again with measures=['kl']", "sweep that one again with --measure kl"),
        ("such as settings=['resid', 'mlp_out']", "such as --settings resid --settings mlp_out"),
        ("settings=['attn_out'] works", "--settings attn_out works"),
        ("positions=[0, -1] are", "--positions 0,-1 are"),
        ("pass tokenizer=AutoTokenizer.from_pretrained(…), or", "pass --tokenizer DIR, or"),
        ("the fast one (AutoTokenizer.from_pretrained(…, use_fast=True)), or", "the fast one, or"),
        ("npo needs texts: pass sides={'paraphrase': […]}", "npo needs texts: pass --side paraphrase=FILE"),
        ("pass messages (krs.data.as_chat(questions), chat=True)", "pass messages (--chat)"),
        ("another name, or save(path, overwrite=True)", "another name, or --overwrite"),
        ("parameters=['mlp']: not", "--set parameters=['mlp']: not"),
    ],
)
def test_python_by_the_options_that_stand_for_it(python, shell):
    assert in_options(python) == shell
