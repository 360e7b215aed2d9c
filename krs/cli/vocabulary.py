"""`krs vocabulary`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from krs.cli.options import Device, DeviceMap, Dtype, TokenizerName, Vanilla, VocabularyOption
from krs.cli.outcome import check_unwritten, writable, write_table
from krs.cli.shell import app, check_at_hand, check_names
from krs.errors import KrsError


@app.command()
def vocabulary(
    vanilla: Vanilla,
    unlearned: Annotated[str | None, typer.Argument(help="the same, of the unlearned model; may be left out")] = None,
    at: Annotated[list[str] | None, typer.Option(help="LAYER:UNIT, such as 20:7; may be repeated")] = None,
    concept: Annotated[str | None, typer.Option(help="a file of concepts with Layer and Dim, or its like")] = None,
    name: Annotated[str | None, typer.Option(help="which concept of the file; all of them if not given")] = None,
    count: Annotated[int, typer.Option(help="how many of those that moved most, where none are named")] = 10,
    top: Annotated[int, typer.Option(help="tokens of each value vector")] = 10,
    norm: Annotated[bool, typer.Option(help="apply the model's final norm before its head")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="directory for vocabulary.json and vocabulary.csv")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace what an earlier call wrote")] = False,
    tokenizer: TokenizerName = None,
    vocabulary: VocabularyOption = "same",
    device: Device = "auto",
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
) -> None:
    """Value vectors as tokens, before and after: those that moved most, those --at places, or those of concepts."""
    models = [vanilla] if unlearned is None else [vanilla, unlearned]
    check_names(*models)
    where = _where(at, concept, name)
    if output is not None:
        check_unwritten(output, "vocabulary.json", overwrite)
    check_at_hand(*models)

    import krs

    names = [] if output is None else writable(output, ["vocabulary.json", "vocabulary.csv"], None)
    options: dict[str, Any] = {"device": device, "dtype": dtype, "device_map": device_map}
    found = krs.metrics.vocabulary(
        vanilla,
        unlearned,
        where,
        count=count,
        top=top,
        norm=norm,
        tokenizer=tokenizer,
        vocabulary=vocabulary,  # type: ignore[arg-type]
        **options,
    )
    print(found)
    if output is not None:
        found.save(output / "vocabulary.json", overwrite=True)
        write_table(found.to_frame(), output / "vocabulary.csv")
        print(f"written to {output}/: {', '.join(names)}")


def _where(at: list[str] | None, concept: str | None, name: str | None) -> Any:
    """The places that the options name; those that moved most where there are none."""
    places: list[Any] = []
    for given in at or []:
        found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", given)
        if found is None:
            raise KrsError(f"--at {given!r}: give a layer and the number of its value vector, such as 20:7")
        places.append((int(found[1]), int(found[2])))
    if concept is not None:
        from krs.data import load_concept, load_concepts

        places += load_concepts(concept) if name is None else [load_concept(concept, name)]
    elif name is not None:
        raise KrsError(f"--name {name!r} says which concept of a file: give --concept FILE with it")
    return places or "moved"
