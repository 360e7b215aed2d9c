"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Vanilla = Annotated[str, typer.Argument(help="directory, hub id, GGUF file, or 'smollm2'")]
Unlearned = Annotated[str, typer.Argument(help="the same, of the unlearned model")]
Output = Annotated[Path, typer.Option("--output", "-o", help="directory to write to")]
Device = Annotated[str, typer.Option(help="where models go: auto (the GPU where there is one), cpu, cuda:1, xpu, mps")]
Dtype = Annotated[str, typer.Option(help="that models are loaded in, such as bfloat16; auto is their own")]
DeviceMap = Annotated[
    str | None, typer.Option(help="'auto' shares models out over all GPUs, and leaves what does not fit on the host")
]
TokenizerName = Annotated[str | None, typer.Option("--tokenizer", help="a model whose tokenizer serves, by name")]
VocabularyOption = Annotated[
    str, typer.Option("--vocabulary", help="'shared' where one model has vocabulary rows more at its end, else 'same'")
]
TemplateArgs = Annotated[
    list[str] | None,
    typer.Option("--template-arg", help="for the chat template, such as enable_thinking=false; may be repeated"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")]
