"""Commands that train: a run, a study, one model; and what they carry over and judge again."""

from __future__ import annotations

import re
import shlex
import sys
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from gentickets.cli.program import (
    A_TICKET,
    NOTHING_TRAINED,
    AllowCode,
    Budget,
    Detach,
    ExecutorName,
    Overrides,
    PlanOnly,
    RecipeFile,
    Resume,
    RunsFolder,
    Teller,
    ToRay,
    ToSlurm,
    app,
    check_trained,
    err,
    load_the_lab,
    out,
    progress,
    renewed_page,
)
from gentickets.errors import GenticketsError
from gentickets.options import MOST

if TYPE_CHECKING:
    from gentickets.lab.executors import Executor
    from gentickets.lab.study.study import Stage, Study


@app.command(epilog="Example: gentickets find quickstart/gan training.steps=800 name=longer --time 30m")
def find(
    recipe: RecipeFile,
    overrides: Overrides = None,
    time: Annotated[str | None, typer.Option("--time", help="Fit rounds and steps into this: 2h, 90m, 45s.")] = None,
    budget: Budget = None,
    runs: RunsFolder = Path("runs"),
    resume: Resume = True,
    plan_only: PlanOnly = False,
    allow_code: AllowCode = False,
    disk: Annotated[
        str | None, typer.Option("--disk", help="Fit what a new run keeps into this: 2GB, 500MB.", show_default=False)
    ] = None,
    executor: ExecutorName = "local",
    slurm: ToSlurm = None,
    ray: ToRay = None,
    detach: Detach = False,
) -> None:
    """Find winning tickets: the dense model, a ladder of tickets, their controls, and the verdict.

    Of a study, such as paper/table2, it runs every arm: see compare.

    Exit codes of every command: 0 done; 1 a fault of gentickets;
    2 refused, in one line that says the mend; 130 stopped;
    3 every level diverged or was cut in two, as its page shows.
    """
    from gentickets.durations import parse_size, parse_time
    from gentickets.lab.executors import Detached, read_executor
    from gentickets.lab.recipe import check_keys, is_study, read_recipe

    check_keys(recipe, overrides or (), budget, allow_code)  # what is wrong with it is said without waiting for torch
    by = read_executor(executor, slurm or (), ray or (), detach)
    if is_study(recipe):
        if time is not None:
            raise GenticketsError(f"--time fits one run, and {recipe} is a study: take --budget, or training.steps=…")
        if disk is not None:
            raise GenticketsError(f"--disk fits one run, and {recipe} is a study: take keep=ends")
        loading = load_the_lab()
        from gentickets.lab.study.study import read_study

        study = read_study(recipe, overrides or (), None, budget, allow_code)
        run_a_study(study, runs, resume, plan_only, loading, by)
        return
    seconds, most = None if time is None else parse_time(time), None if disk is None else parse_size(disk)
    loading = load_the_lab()
    from gentickets.lab.report import verdict_table
    from gentickets.lab.results.reading import read_run
    from gentickets.lab.run.plan import used_disk, used_memory
    from gentickets.lab.run.prepare import keep_time, prepared
    from gentickets.lab.run.status import Watch

    asked = read_recipe(recipe, overrides or (), budget, allow_code)
    folder = runs / asked.name
    command = shlex.join(["gentickets", *sys.argv[1:]])
    ready = prepared(
        asked,
        folder,
        seconds=seconds,
        fresh=not resume,
        dry=plan_only,
        command=command,
        loading_seconds=loading,
        disk_bytes=most,
    )
    err.print(f"data: {ready.data}")
    if ready.plan is not None:
        out.print(f"{asked.name}: {ready.plan.words()}")
    else:
        said = " and ".join(option for option, given in (("--time", time), ("--disk", disk)) if given is not None)
        out.print(f"{asked.name}: going on with {folder}{f', as it was planned: no say for {said}' if said else ''}")
        if others := Watch(folder).look().counts().get("running"):
            out.print(f"{others} of its pieces are being made by others: `gentickets status {folder}` shows where")
    for lost in ready.gave_up:
        out.print(f"given up to fit into the time: {lost}")
    if ready.recipe.keep != asked.keep:
        out.print("kept on disk: the trained weights of the dense model and the last ticket alone (keep=ends)")
    if plan_only:
        return
    begun = perf_counter()
    try:
        with progress() as bars:
            by.execute([ready], Teller(bars, ready.recipe.training.steps), bars.console.print)
    except Detached as words:
        out.print(f"{words}\nresults: will be in {folder}")
        return
    page = renewed_page(folder)
    out.print(verdict_table([folder]))
    if ready.plan is not None and by.name == "local":
        took, used = (
            perf_counter() - begun,
            used_memory(read_run(folder), ready.workers * ready.recipe.training.devices),
        )
        keep_time(folder, ready.plan, took, used)
        out.print(ready.plan.against(took, used, used_disk(folder)))
    out.print(f"results: {folder / 'results.csv'}\nreport:  {page}")
    check_trained([folder])


@app.command(epilog="Example: gentickets compare quickstart/vae seeds=[0,1] --methods imp,snip,synflow")
def compare(
    recipe: RecipeFile,
    overrides: Overrides = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Which to compare, with commas between; default: imp, one-shot, snip, grasp, synflow, random-at-init.",
            show_default=False,
        ),
    ] = None,
    budget: Budget = None,
    runs: RunsFolder = Path("runs"),
    resume: Resume = True,
    plan_only: PlanOnly = False,
    allow_code: AllowCode = False,
    executor: ExecutorName = "local",
    slurm: ToSlurm = None,
    ray: ToRay = None,
    detach: Detach = False,
) -> None:
    """Compare ways of finding tickets: the same task by several methods, sparsities and seeds, with all controls.

    The dense model is trained once and shared. A plain recipe is compared by --methods; a study names its own arms.
    """
    from gentickets.lab.executors import read_executor
    from gentickets.lab.recipe import check_keys

    check_keys(recipe, overrides or (), budget, allow_code)
    by = read_executor(executor, slurm or (), ray or (), detach)
    loading = load_the_lab()
    from gentickets.lab.study.study import read_study

    names = [name.strip() for name in methods.split(",") if name.strip()] if methods is not None else None
    study = read_study(recipe, overrides or (), names, budget, allow_code)
    run_a_study(study, runs, resume, plan_only, loading, by)


def run_a_study(study: Study, runs: Path, resume: bool, plan_only: bool, loading: float, by: Executor) -> None:
    """What `compare` does, and `find` of a study."""
    from gentickets.durations import duration
    from gentickets.lab.study.study import run_study

    if by.detach:
        raise GenticketsError("--detach is for a run: what a study does last needs somebody who waits for its jobs")
    folder = runs / study.name
    seconds, data = 0.0, ""
    with progress() as bars:

        def begin(stage: Stage) -> Teller:
            nonlocal seconds, data
            if stage.ready.data != data:
                data = stage.ready.data
                bars.console.print(f"data: {data}")
            seconds += stage.ready.plan.seconds if stage.ready.plan else 0.0
            bars.console.print(_stage_words(stage))
            return Teller(bars, stage.ready.recipe.training.steps, f"{stage.index + 1}/{stage.total} {stage.label}, ")

        command = shlex.join(["gentickets", *sys.argv[1:]])
        how: Any = {"fresh": not resume, "dry": plan_only, "command": command, "loading_seconds": loading}
        left_out = run_study(study, folder, begin, partial(by.execute, say=bars.console.print), **how)
    for label, reason in left_out.items():
        out.print(f"not run: {label}: {reason}")
    if plan_only:
        out.print(f"{study.name}: {len(study.arms)} arms, about {duration(seconds)} in all; less what they share")
        return
    show_study(folder)
    check_trained(folder / arm.label for arm in study.runs if arm.label not in left_out)


def _stage_words(stage: Stage) -> str:
    words = stage.ready.plan.words() if stage.ready.plan else f"going on with {stage.ready.folder}"
    if stage.shared:
        words += f"; the dense model is that of {', '.join(sorted(set(stage.shared.values())))}"
    return f"{stage.index + 1} of {stage.total}, {stage.label}: {words}"


def show_study(folder: Path) -> None:
    """Writes a study's pages and shows its tables."""
    from gentickets.lab.report import (
        published_table,
        published_words,
        study_table,
        transfer_table,
        unjudged,
        write_report,
        write_study,
    )
    from gentickets.lab.run.folder import locked
    from gentickets.lab.study.comparison import read_comparison

    comparison = read_comparison(folder)
    for place in (*comparison.parts, *(run.folder for run in comparison.runs.values())):
        with locked(place, wait=True):  # one command at a time, as `renewed_page`
            write_report([place])
    with locked(folder, wait=True):
        page = write_study(comparison)
    out.print(study_table(comparison))
    for words in unjudged(comparison):
        out.print(words)
    if (table := transfer_table(comparison)) is not None:
        out.print(table)
    if (table := published_table(comparison)) is not None:
        out.print(table)
        for words in published_words(comparison):
            out.print(words)
    out.print(f"results: {folder / 'study.csv'}\nreport:  {page}")


@app.command(epilog=f"Example: gentickets train quickstart/gan --ticket {A_TICKET}")
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    ticket: Annotated[Path | None, typer.Option(help="Start from this ticket, and keep to its masks.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST, help="Seed of the weights, the data order and the noise.")] = 0,
    budget: Budget = None,
    runs: RunsFolder = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Name of the folder; default: the recipe's, with -train.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Train one model: dense, or from a ticket. Nothing is pruned.

    RECIPE may be that of a run, such as runs/quickstart-gan/recipe.yaml, with all that was said when it was made.
    """
    from gentickets.lab.recipe import NAME, read_training

    asked = read_training(recipe, overrides or (), budget, allow_code)
    if name is not None and re.fullmatch(NAME, name) is None:
        raise GenticketsError(f"--name {name[:80]!r}: a name of letters, digits, dots, - and _ is needed, no path")
    folder = runs / (name or f"{asked.name}-train")
    from gentickets.lab.run.single import train_one

    with progress() as bars:
        metrics = train_one(asked, folder, seed, ticket, Teller(bars, asked.training.steps), bars.console.print)
    _show_metrics(metrics)
    out.print(f"results: {folder}")
    if metrics["status"] != "complete":
        raise typer.Exit(NOTHING_TRAINED)


def _show_metrics(metrics: dict[str, Any]) -> None:
    table = Table("metric", "value", "images")
    for entry in metrics["metrics"].values():
        table.add_row(entry["label"], f"{entry['value']:.5g}", str(entry["samples"]))
    out.print(table)
    if metrics["status"] != "complete":
        err.print(f"nothing was trained to its end: {metrics['status']}: {metrics['reason']}")


@app.command(
    epilog=f"Example: gentickets transfer {A_TICKET.replace('gan', 'vae')} quickstart/gan "
    "decoder=generator --out moved.ticket model.width=16 model.latent=16"
)
def transfer(
    ticket: Annotated[Path, typer.Argument(help="The ticket that travels.", show_default=False)],
    recipe: RecipeFile,
    components: Annotated[
        list[str], typer.Argument(help="from=to for each component that travels; then key=value.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--out", help="The ticket file to write.")] = Path("transferred.ticket"),
    masks_only: Annotated[bool, typer.Option("--masks-only", help="Leave the weights behind.")] = False,
    exclude: Annotated[list[str] | None, typer.Option(help="What stays behind, such as '*.head.*'.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST, help="Seed of the weights that do not travel.")] = 0,
    budget: Budget = None,
    allow_code: AllowCode = False,
) -> None:
    """Carry a ticket's components into the model of a recipe: a VAE's decoder into a GAN's generator, say."""
    from gentickets.lab.recipe import read_recipe

    if bare := next((entry for entry in components if "=" not in entry), None):
        raise GenticketsError(f"{bare!r} is no from=to: name the component it becomes, such as {bare}={bare}")
    pairs = [entry for entry in components if "." not in entry.partition("=")[0]]
    overrides = [entry for entry in components if entry not in pairs]
    asked = read_recipe(recipe, overrides, budget, allow_code)
    from gentickets.lab.run.outputs import check_output
    from gentickets.lab.run.single import transferred

    check_output(output, ticket)
    mapping = dict(pair.split("=", 1) for pair in pairs)
    moved = transferred(ticket, asked, mapping, not masks_only, seed, exclude or ())
    moved.save(output)
    left = ", ".join(moved.origin["transfer"]["left"]) or "nothing"
    out.print(f"{moved.masks!r}\nleft behind: {left}\nresults: {output}; train it with")
    chosen = ["--budget", budget] if budget is not None else []
    out.print(shlex.join(["gentickets", "train", str(recipe), *overrides, *chosen, "--ticket", str(output)]))


@app.command(epilog="Example: gentickets evaluate runs/quickstart-gan --samples 5000")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    samples: Annotated[int | None, typer.Option(help="How many samples to generate.")] = None,
    features: Annotated[str | None, typer.Option(help="classifier, inception, efficientnet-lite0 or none.")] = None,
    inception_weights: Annotated[Path | None, typer.Option(help="A local file with Inception's weights.")] = None,
    classifiers: Annotated[
        int | None, typer.Option(help="How many classifiers the features are averaged over.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Measure every level of a run again, with other samples, features or more classifiers, and renew its results and
    report."""
    from gentickets.lab.report import verdict_table, write_report
    from gentickets.lab.run.again import evaluate_again

    weights = str(inception_weights) if inception_weights else None
    said = {"samples": samples, "features": features, "inception_weights": weights, "classifiers": classifiers}
    changes = {key: value for key, value in said.items() if value is not None}
    with progress() as bars:
        evaluate_again(run, changes, Teller(bars, None), allow_code)
    page = write_report([run])
    out.print(verdict_table([run]))
    out.print(f"results: {run / 'results.csv'}\nreport:  {page}")
