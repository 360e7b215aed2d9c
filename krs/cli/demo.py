"""`krs demo`."""

from __future__ import annotations

from pathlib import Path

from krs.cli.options import Output, Quiet
from krs.cli.outcome import interruptible
from krs.cli.shell import app


@app.command()
def demo(output: Output = Path("out/demo"), quiet: Quiet = False) -> None:
    """Unlearn Harry Potter from the bundled model, sweep it, draw the figure."""
    from krs.demo import demo as run

    with interruptible():
        run(output, progress=not quiet)
