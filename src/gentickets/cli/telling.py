"""Commands that show something, or write a recipe to start from."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from gentickets.cli.finding import show_study
from gentickets.cli.program import A_TICKET, Overrides, RunsFolder, app, err, out
from gentickets.errors import GenticketsError


@app.command(epilog="Example: gentickets report runs/quickstart-*  --out quickstart.html")
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, several make one page; or a study's.", show_default=False)
    ],
    output: Annotated[Path | None, typer.Option("--out", help="The page to write.")] = None,
) -> None:
    """Write the page that shows whether the tickets won, from what is complete so far."""
    if output is not None and (output.is_dir() or output.suffix.lower() not in (".html", ".htm")):
        raise GenticketsError(f"--out {output}: a file is needed, whose name ends in .html")
    from gentickets.lab.report import verdict_table, write_report
    from gentickets.lab.results.reading import read_run
    from gentickets.lab.results.tables import write_csv

    if len(runs) == 1 and output is None and (runs[0] / "study.yaml").is_file():
        show_study(runs[0])
        return
    single = [folder for folder in runs if (folder / "origin.json").is_file() and not (folder / "recipe.yaml").exists()]
    if single and len(single) < len(runs):  # what a shell's * finds
        err.print(f"left out, as `gentickets train` made them: {', '.join(map(str, single))}")
        runs = [folder for folder in runs if folder not in single]
    read = [read_run(folder) for folder in runs]
    for run in read:
        write_csv(run)
    page = write_report(read, output)
    out.print(verdict_table(read))
    out.print(f"report:  {page}")


@app.command(epilog="Example: gentickets init digits --model dcgan --out my-first.yaml")
def init(
    source: Annotated[
        str, typer.Argument(help="The images: a folder, or whatever else `list data` names.", show_default=False)
    ],
    overrides: Overrides = None,
    model: Annotated[
        str, typer.Option("--model", help="A model's name, or my.py:name, which is run.", show_default=False)
    ] = "",
    objective: Annotated[
        str | None, typer.Option("--objective", help="What it is trained for; default: guessed.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option("--out", help="The recipe to write; nothing is overwritten.")] = Path(
        "recipe.yaml"
    ),
) -> None:
    """Write a recipe to start from, for your images and your model, with what every key means."""
    if not model:
        raise GenticketsError("init needs a --model: my.py:name, or one that `gentickets list models` shows")
    if os.path.lexists(output):
        raise GenticketsError(f"--out {output} is there already, and init overwrites nothing: name another file")
    from gentickets.lab.starting import starter

    made = starter(source, model, objective, overrides or ())
    with output.open("x", encoding="utf-8") as file:
        file.write(made.text)
    for words in made.told:
        out.print(words)
    out.print(f"results: {output}; what it will take:")
    allowed = ["--allow-code"] if made.names_code else []
    out.print(shlex.join(["gentickets", "find", str(output), "--plan", *allowed]))


@app.command(epilog=f"Example: gentickets inspect {A_TICKET}")
def inspect(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            help="A ticket file, or the folder of a level, a run or a study; with --model, key=value of the model.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A model's name, or my.py:name, which is run.", show_default=False)
    ] = None,
    size: Annotated[int, typer.Option(min=1, help="With --model: the side of its images, in pixels.")] = 16,
    channels: Annotated[int, typer.Option(min=1, help="With --model: 1 grey, 3 in colour.")] = 1,
    example: Annotated[
        str | None,
        typer.Option("--example", help="With --model: my.py:name, which gives what it is run on; default: guessed."),
    ] = None,
) -> None:
    """Show what is in a ticket or a level, or where a run stands; checks a ticket's digest on the way.

    With --model: which components a model has, what of them can be pruned, and what cannot and why; which channels
    could go, and what pins the others.
    """
    from gentickets.lab.listings import model_words, what_is_in

    given = what or []
    if model is None and len(given) != 1:
        raise GenticketsError("inspect takes one file or folder, or --model my.py:name with its key=value")
    shown = what_is_in(Path(given[0])) if model is None else model_words(model, given, size, channels, example)
    for part in shown:
        out.print(part)


@app.command("list", epilog="Example: gentickets list models")
def list_(
    what: Annotated[
        str, typer.Argument(help="models, objectives, methods, criteria, arounds, data, recipes, keys or runs.")
    ] = "models",
    runs: RunsFolder = Path("runs"),
) -> None:
    """List what recipes can name, data sources, recipes, the keys of recipes, or runs."""
    from gentickets.lab.listings import LISTINGS

    if what not in LISTINGS:
        raise GenticketsError(f"list {what!r}: one of {', '.join(LISTINGS)}")
    out.print(LISTINGS[what](runs))
