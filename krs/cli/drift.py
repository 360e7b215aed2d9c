"""`krs drift`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from krs.cli.options import Device, DeviceMap, Dtype, Unlearned, Vanilla, VocabularyOption
from krs.cli.outcome import check_unwritten, draw, writable, write_table
from krs.cli.shell import app, check_at_hand, check_names


@app.command()
def drift(
    vanilla: Vanilla,
    unlearned: Unlearned,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="directory for drift.csv and drift.png")] = None,
    overwrite: Annotated[bool, typer.Option(help="replace what an earlier call wrote")] = False,
    vocabulary: VocabularyOption = "same",
    device: Device = "auto",
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
) -> None:
    """How far the weights of two models are apart, by component (and by layer in the files)."""
    check_names(vanilla, unlearned)
    if output is not None:
        check_unwritten(output, "drift.csv", overwrite)
    check_at_hand(vanilla, unlearned)

    import krs

    names = [] if output is None else writable(output, ["drift.csv"], "drift.png")
    found = krs.metrics.drift(
        vanilla,
        unlearned,
        vocabulary=vocabulary,  # type: ignore[arg-type]
        device=device,
        dtype=dtype,
        device_map=device_map,
    )
    print(found)
    if output is not None:
        write_table(found.frame, output / "drift.csv")
        draw(found, "drift", output, "drift.png", names)
        print(f"written to {output}/: {', '.join(names)}")
