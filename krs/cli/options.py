"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Vanilla = Annotated[str, typer.Argument(help="directory, hub id, GGUF file, or 'smollm2'")]
Unlearned = Annotated[str, typer.Argument(help="the same, of the unlearned model")]
Output = Annotated[Path, typer.Option("--output", "-o", help="directory to write to")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")]
