"""Commands for a run that several work on: join it, see where it stands, what more workers are worth, merge seeds."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from typing import Annotated

import typer

from gentickets.cli.finding import show_study
from gentickets.cli.program import (
    AllowCode,
    Budget,
    Overrides,
    RecipeFile,
    Teller,
    app,
    check_trained,
    load_the_lab,
    out,
    progress,
    renewed_page,
)

_WATCH_SECONDS = 5.0


@app.command(epilog="Example: gentickets work runs/quickstart-gan")
def work(
    run: Annotated[
        Path, typer.Argument(help="The folder of a run that `find` has begun, or of a study.", show_default=False)
    ],
    piece: Annotated[
        str | None,
        typer.Option("--piece", help="Make this one alone: seed-0/level-03; of a study: ARM/…", show_default=False),
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Work on a run beside others: on any machine that sees its folder, in any number of processes.

    It takes one piece after the other (a level, or a control) until none is left, and waits for what others make.
    With --piece: that one, once what it builds on is there. `find` of the same recipe joins a run too.
    """
    load_the_lab()
    from gentickets.lab.run.prepare import joined
    from gentickets.lab.run.work import make_piece, run_all
    from gentickets.lab.study.study import joined_arm, joined_runs

    is_study = (run / "study.yaml").is_file()
    with progress() as bars:
        if piece is not None:
            arm, _, name = piece.partition("/") if is_study else ("", "", piece)
            ready = joined_arm(run, arm, allow_code) if is_study else joined(run, allow_code)
            out.print(make_piece(ready, name, Teller(bars, ready.recipe.training.steps)))
            return
        runs = joined_runs(run, allow_code)
        tellers = {
            ready.folder.name: Teller(bars, ready.recipe.training.steps, f"{ready.folder.name}, " if is_study else "")
            for ready in runs
        }
        run_all(runs, lambda event: tellers[event.run](event))
    if is_study:
        show_study(run)
    else:
        out.print(f"results: {run / 'results.csv'}\nreport:  {renewed_page(run)}")
    check_trained([ready.folder for ready in runs])


@app.command(epilog="Example: gentickets status runs/quickstart-gan --watch")
def status(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a study's.", show_default=False)],
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds, until all is done.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Every piece, also what is done and what waits.")] = False,
) -> None:
    """Show where a run stands: what is done, running (where, how long, how fast), waiting or failed (why), time
    left.

    That a worker of another machine is silent can be seen by --watch alone, after a lease of three minutes.
    """
    from gentickets.lab.listings import status_words
    from gentickets.lab.run.status import Watch, statuses

    watches: dict[Path, Watch] = {}
    while True:
        found = statuses(run, watches)
        for one in found:
            for part in status_words(one, every):
                out.print(part)
        if not watch or all(one.is_complete for one in found):
            return
        sleep(_WATCH_SECONDS)


@app.command(epilog="Example: gentickets plan paper/table2 --budget desk --workers 16 --devices 4")
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option(min=1, max=100_000, help="Up to how many processes work on it.")] = 8,
    devices: Annotated[
        int | None, typer.Option(min=1, help="How many devices they share; default: one each.", show_default=False)
    ] = None,
    budget: Budget = None,
    allow_code: AllowCode = False,
) -> None:
    """Say what more workers are worth, before any is asked for: wall clock, waiting, price, the longest chain.

    A few steps are measured here; the rest is played through by the rules that workers go by. Nothing is written.
    """
    from gentickets.lab.recipe import check_keys, is_study, read_recipe

    check_keys(recipe, overrides or (), budget, allow_code)
    loading = load_the_lab()
    from gentickets.lab.listings import scaling_words
    from gentickets.lab.run.prepare import prepared
    from gentickets.lab.run.scaling import longest, scaled
    from gentickets.lab.study.study import read_study

    if is_study(recipe):
        recipes = [arm.recipe for arm in read_study(recipe, overrides or (), None, budget, allow_code).runs]
    else:
        recipes = [read_recipe(recipe, overrides or (), budget, allow_code)]
    with TemporaryDirectory() as nowhere:
        made = [prepared(one, Path(nowhere) / one.name, dry=True, loading_seconds=loading) for one in recipes]
    plans = [ready.plan for ready in made if ready.plan is not None]
    for part in scaling_words(scaled(recipes, plans, workers, devices), longest(recipes, plans), plans):
        out.print(part)


@app.command(epilog="Example: gentickets merge runs/own-0 runs/own-1 runs/own-2 --out runs/own")
def merge(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders of one recipe, with other seeds.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--out", help="The run folder to make.", show_default=False)],
) -> None:
    """Make one run of several that were made apart, each with seeds of its own; they stay as they are."""
    from gentickets.lab.report import verdict_table
    from gentickets.lab.run.merging import merge as merge_runs
    from gentickets.lab.run.work import write_results

    for words in merge_runs(runs, output):
        out.print(words)
    write_results(output)
    page = renewed_page(output)
    out.print(verdict_table([output]))
    out.print(f"results: {output / 'results.csv'}\nreport:  {page}")
