"""Commands that hand out networks: smaller ones, and programs that run without gentickets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gentickets.cli.program import AllowCode, Overrides, app, out
from gentickets.errors import GenticketsError


@app.command(epilog="Example: gentickets shrink runs/quickstart-gan/seed-0/level-03 --out small.safetensors")
def shrink(
    what: Annotated[Path, typer.Argument(help="A level's folder; or a ticket, with --recipe.", show_default=False)],
    overrides: Overrides = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="The recipe whose model a ticket is for.")] = None,
    output: Annotated[
        Path, typer.Option("--out", help="The file to write: *.safetensors; of one component *.pt2 or *.onnx too.")
    ] = Path("small.safetensors"),
    component: Annotated[
        str | None, typer.Option(help="Write this one alone: generator, decoder …", show_default=False)
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Make a ticket's network physically smaller: channels that no live weight needs go, outputs stay the same.

    --out small.safetensors holds the whole network for gentickets.load_small; with --component, *.onnx or *.pt2 hold a
    program that runs without gentickets.
    """
    from gentickets.lab import shipping
    from gentickets.lab.run.outputs import check_output

    if what.is_file() and recipe is None:
        raise GenticketsError(f"{what} does not say which model it is for: add --recipe recipes/….yaml")
    if not what.is_file() and (recipe is not None or overrides):
        raise GenticketsError(f"{what}: --recipe and key=value go with a ticket file; a level knows its recipe")
    check_output(output, what)
    format = shipping.format_asked(output)
    if recipe is None:
        shipment = shipping.of_level(what, allow_code)
    else:
        shipment = shipping.of_ticket(what, recipe, overrides or (), allow_code)
    if component is not None or format is not None:
        for words in shipping.export_component(shipment, shipping.one_component(shipment, component), output, format):
            out.print(words)
        return
    shrunk = shipping.shrink_to(shipment, output)
    out.print(shipping.shrunk_table(shrunk))
    for words in (*shrunk.words, *([shipping.reading_words()] if shrunk.time else [])):
        out.print(words)
    out.print(f"results: {output} ({shrunk.bytes:,} bytes); {shipping.reader_words(shrunk, output)} reads it")


@app.command(epilog="Example: gentickets export runs/quickstart-gan/seed-0/level-03 --component generator")
def export(
    level: Annotated[Path, typer.Argument(help="A level's folder.", show_default=False)],
    component: Annotated[str, typer.Option(help="Which one: generator, decoder, encoder …", show_default=False)],
    format_: Annotated[
        str | None,
        typer.Option("--format", help="torch (a .pt2 file of torch.export) or onnx; default: what --out ends with."),
    ] = None,
    shrink: Annotated[bool, typer.Option("--shrink/--no-shrink", help="Take out the channels nothing needs.")] = True,
    output: Annotated[
        Path | None,
        typer.Option("--out", help="The file: *.pt2, *.onnx, or *.safetensors for weights; default: COMPONENT.pt2."),
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Write one component of a trained level as a program that runs without gentickets, for batches of any size.

    The name of the file says the format: .pt2 (torch.export), .onnx, or .safetensors for the weights alone.
    """
    from gentickets.channels.export import SUFFIXES, as_format
    from gentickets.lab import shipping
    from gentickets.lab.run.outputs import check_output

    file = output or Path(f"{component}{SUFFIXES[as_format(format_ or 'torch')]}")
    chosen = shipping.format_asked(file, format_)
    check_output(file)
    for words in shipping.export_component(shipping.of_level(level, allow_code), component, file, chosen, shrink):
        out.print(words)
