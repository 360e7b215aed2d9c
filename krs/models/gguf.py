"""GGUF files, converted once into a directory of safetensors that `transformers` loads in a second."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from krs.errors import KrsError
from krs.models.cache import build_once

_FORMAT = 1
"""Raise this when the conversion changes, so that older cached ones are not used."""


def converted(path: Path) -> Path:
    """The directory that a GGUF file was, or is now, converted to.

    The cache knows a file by its path, size and time of change. Weights are de-quantised to fp32, which is
    exact; the numbers are those of the quantised model.
    """
    if not path.is_file():
        raise KrsError(f"no GGUF file at {str(path)!r}: check the path")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise KrsError(f"{str(path)!r} is not a GGUF file (it does not begin with 'GGUF')")
    seen = path.stat()
    mark = hashlib.sha256(f"{path.resolve()}|{seen.st_size}|{seen.st_mtime_ns}|{_FORMAT}".encode()).hexdigest()[:16]
    return build_once(f"gguf/{path.stem}-{mark}", lambda folder: convert(path, folder))


def convert(path: Path, folder: Path) -> None:
    """Read a GGUF file with transformers and save model and tokenizer to `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    except (ValueError, KeyError, OSError, ImportError) as reason:
        raise KrsError(f"transformers cannot read the GGUF file {str(path)!r}: {reason}") from None
    _split_digits(tokenizer, _pre_tokenizer(path))
    _drop_quantisation(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _pre_tokenizer(path: Path) -> str:
    """The entry `tokenizer.ggml.pre`, which transformers 5.23 does not look at."""
    import gguf

    field = gguf.GGUFReader(path).get_field("tokenizer.ggml.pre")
    return "" if field is None else str(field.contents())


def _split_digits(tokenizer: Any, pre: str) -> None:
    """SmolLM's pre-tokenizer takes digits one by one; transformers leaves that out."""
    if pre != "smollm":
        return
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )


def _drop_quantisation(model: Any) -> None:
    """The weights are plain fp32 now; say so, or `save_pretrained` refuses."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
