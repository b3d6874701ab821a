"""The command line: thin. Every command ends by saying where its results lie."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from gentickets import __version__
from gentickets.errors import GenticketsError
from gentickets.interruptions import STOPPED, interruptions
from gentickets.lines import Lines
from gentickets.terminal import Terminal, bear_with_any_encoding

if TYPE_CHECKING:
    from gentickets.lab.executors import Executor
    from gentickets.lab.study.study import Stage, Study

app = typer.Typer(
    help="Finds winning lottery tickets in deep generative models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Terminal()
err = Terminal(stderr=True)

_NOTHING_TRAINED = 3
"""The exit code where every level diverged or was cut in two."""

_WATCH_SECONDS = 5.0

RecipeFile = Annotated[
    Path, typer.Argument(help="A recipe: a file, or one that `list recipes` names: quickstart/gan.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Keys of the recipe to override: training.steps=500; `gentickets list keys` shows all.", show_default=False
    ),
]
_TICKET = "runs/quickstart-gan/seed-0/level-03/ticket.safetensors"
Budget = Annotated[
    str | None, typer.Option("--budget", help="One of the recipe's budgets: smoke, desk, full.", show_default=False)
]
Resume = Annotated[bool, typer.Option("--resume/--fresh", help="Go on with what is there, or start it anew.")]
PlanOnly = Annotated[bool, typer.Option("--plan", help="Only say what it will take.")]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Run the code that a file names (my.py:name); what you type runs anyway.")
]
ExecutorName = Annotated[
    str, typer.Option("--executor", help="Where the pieces are made: local, in processes of this machine; slurm; ray.")
]
ToSlurm = Annotated[
    list[str] | None,
    typer.Option("--slurm", help="What each job asks for: 'partition=gpu time=4h gpus=1'.", show_default=False),
]
ToRay = Annotated[
    list[str] | None,
    typer.Option(
        "--ray", help="The cluster, and what each task asks for: 'address=auto gpus=0.5'.", show_default=False
    ),
]
Detach = Annotated[bool, typer.Option("--detach", help="Leave when the jobs are submitted.")]
RunsFolder = Annotated[Path, typer.Option("--runs", help="Where run folders lie.")]


def main() -> None:
    """The program. A user's mistake is one line on stderr and exit code 2; Ctrl-C is exit code 130; see `find`."""
    bear_with_any_encoding()
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if launched and os.environ["RANK"] != "0":  # the first of them does what is asked
        from gentickets.lab.run.ranks import serve_launched

        serve_launched()
        sys.exit(0)
    asked_to_stop = interruptions()
    asked_to_stop.hear()
    if sys.argv[1:2] == ["help"]:
        sys.argv[1:] = [*sys.argv[2:], "--help"]
    try:
        code = app(standalone_mode=False)
    except GenticketsError as error:
        code = _complain(str(error))
    except KeyboardInterrupt:
        code = STOPPED
    except OSError as error:
        if error.strerror is None:
            raise
        _drop_what_cannot_be_written()
        code = _complain(f"{error.filename or 'what is printed cannot be written'}: {error.strerror}")
    except typer.Abort as error:
        if isinstance(error.__cause__, EOFError):  # typer takes the end of any file for that of the terminal
            raise error.__cause__ from None
        code = STOPPED
    except Exception as error:
        if _is_a(error, "NoArgsIsHelpError"):
            out.print(error.format_message())  # type: ignore[attr-defined]
            code = 0
        elif _is_a(error, "UsageError"):
            code = _complain(f"{error.format_message()}; see --help")  # type: ignore[attr-defined]
        elif (own := _own_fault(error)) is not None:
            code = _complain(own)
        elif asked_to_stop.came:  # an import that was stopped may say so with an error of its own
            code = STOPPED
        else:
            raise
    asked_to_stop.deafen()
    if launched:
        from gentickets.lab.run.ranks import end_launched

        end_launched()
    if code == STOPPED:
        err.print("stopped; the same command goes on from here")
    sys.exit(code)


def _drop_what_cannot_be_written() -> None:
    """Where standard output is full or gone, what Python still holds for it would be a second error, on leaving."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str) -> int:
    err.print(Text.assemble(("gentickets:", "bold red"), f" {' '.join(message.split())}"))
    return 2


def _is_a(error: Exception, name: str) -> bool:
    """Whether typer says so of the call itself: its classes move between its releases."""
    return any(kind.__name__ == name for kind in type(error).__mro__)


def _own_fault(error: Exception) -> str | None:
    """Where in the user's own code an error arose, in words; None where it did not."""
    from gentickets.catalogue import own_fault

    return own_fault(error)


def _show_version(wanted: bool) -> None:
    if wanted:
        from gentickets.compiled import missing

        reason = missing()
        out.print(f"gentickets {__version__}{'' if reason is None else f'; masked layers stay dense: {reason}'}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


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
        if time:
            raise GenticketsError(f"--time fits one run, and {recipe} is a study: take --budget, or training.steps=…")
        if disk:
            raise GenticketsError(f"--disk fits one run, and {recipe} is a study: take keep=ends")
        loading = _load_the_lab()
        from gentickets.lab.study.study import read_study

        study = read_study(recipe, overrides or (), None, budget, allow_code)
        _run_study(study, runs, resume, plan_only, loading, by)
        return
    seconds, most = parse_time(time) if time else None, parse_size(disk) if disk else None
    loading = _load_the_lab()
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
        said = " and ".join(option for option, given in (("--time", time), ("--disk", disk)) if given)
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
        with _progress() as bars:
            by.execute([ready], _Teller(bars, ready.recipe.training.steps), bars.console.print)
    except Detached as words:
        out.print(f"{words}\nresults: will be in {folder}")
        return
    page = _renewed_page(folder)
    out.print(verdict_table([folder]))
    if ready.plan is not None and by.name == "local":
        took, used = (
            perf_counter() - begun,
            used_memory(read_run(folder), ready.workers * ready.recipe.training.devices),
        )
        keep_time(folder, ready.plan, took, used)
        out.print(ready.plan.against(took, used, used_disk(folder)))
    out.print(f"results: {folder / 'results.csv'}\nreport:  {page}")
    _check_trained([folder])


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
    _load_the_lab()
    from gentickets.lab.run.prepare import joined
    from gentickets.lab.run.work import make_piece, run_all
    from gentickets.lab.study.study import joined_arm, joined_runs

    is_study = (run / "study.yaml").is_file()
    with _progress() as bars:
        if piece is not None:
            arm, _, name = piece.partition("/") if is_study else ("", "", piece)
            ready = joined_arm(run, arm, allow_code) if is_study else joined(run, allow_code)
            out.print(make_piece(ready, name, _Teller(bars, ready.recipe.training.steps)))
            return
        runs = joined_runs(run, allow_code)
        tellers = {
            ready.folder.name: _Teller(bars, ready.recipe.training.steps, f"{ready.folder.name}, " if is_study else "")
            for ready in runs
        }
        run_all(runs, lambda event: tellers[event.run](event))
    if is_study:
        _show_study(run)
    else:
        out.print(f"results: {run / 'results.csv'}\nreport:  {_renewed_page(run)}")
    _check_trained([ready.folder for ready in runs])


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
    loading = _load_the_lab()
    from gentickets.lab.listings import scaling_words
    from gentickets.lab.run.prepare import prepared
    from gentickets.lab.run.scaling import longest, scaled
    from gentickets.lab.study.study import read_study

    if is_study(recipe):
        recipes = [arm.recipe for arm in read_study(recipe, overrides or (), None, budget, allow_code).arms]
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
    page = _renewed_page(output)
    out.print(verdict_table([output]))
    out.print(f"results: {output / 'results.csv'}\nreport:  {page}")


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
    loading = _load_the_lab()
    from gentickets.lab.study.study import read_study

    names = [name.strip() for name in methods.split(",") if name.strip()] if methods is not None else None
    study = read_study(recipe, overrides or (), names, budget, allow_code)
    _run_study(study, runs, resume, plan_only, loading, by)


def _renewed_page(folder: Path) -> Path:
    """Writes a run's page; of several commands one at a time, so that the last one shows all that there is."""
    from gentickets.lab.report import write_report
    from gentickets.lab.run.folder import locked

    with locked(folder, wait=True):
        return write_report([folder])


def _load_the_lab() -> float:
    """Loads what trains and judges; the seconds that it took, which is what starting a process takes."""
    begun = perf_counter()
    for name in ("gentickets.lab.run.prepare", "gentickets.lab.report", "gentickets.lab.study.study"):
        import_module(name)
    return perf_counter() - begun


def _run_study(study: Study, runs: Path, resume: bool, plan_only: bool, loading: float, by: Executor) -> None:
    """What `compare` does, and `find` of a study."""
    from gentickets.durations import duration
    from gentickets.lab.study.study import run_study

    if by.detach:
        raise GenticketsError("--detach is for a run: what a study does last needs somebody who waits for its jobs")
    folder = runs / study.name
    seconds, data = 0.0, ""
    with _progress() as bars:

        def begin(stage: Stage) -> _Teller:
            nonlocal seconds, data
            if stage.ready.data != data:
                data = stage.ready.data
                bars.console.print(f"data: {data}")
            seconds += stage.ready.plan.seconds if stage.ready.plan else 0.0
            bars.console.print(_stage_words(stage))
            return _Teller(bars, stage.ready.recipe.training.steps, f"{stage.index + 1}/{stage.total} {stage.label}, ")

        command = shlex.join(["gentickets", *sys.argv[1:]])
        how: Any = {"fresh": not resume, "dry": plan_only, "command": command, "loading_seconds": loading}
        left_out = run_study(study, folder, begin, partial(by.execute, say=bars.console.print), **how)
    for label, reason in left_out.items():
        out.print(f"not run: {label}: {reason}")
    if plan_only:
        out.print(f"{study.name}: {len(study.arms)} arms, about {duration(seconds)} in all; less what they share")
        return
    _show_study(folder)
    _check_trained(folder / arm.label for arm in study.arms if arm.label not in left_out)


def _check_trained(runs: Iterable[Path]) -> None:
    """Leaves with an exit code of its own where no level of any of the runs was trained to its end."""
    from gentickets.lab.results.reading import read_run

    levels = [level for run in runs for level in read_run(run).levels]
    if levels and not any(level.status == "complete" for level in levels):
        err.print(f"nothing was trained to its end: {levels[0].status}: {levels[0].reason}")
        raise typer.Exit(_NOTHING_TRAINED)


def _stage_words(stage: Stage) -> str:
    words = stage.ready.plan.words() if stage.ready.plan else f"going on with {stage.ready.folder}"
    if stage.shared:
        words += f"; the dense model is that of {', '.join(sorted(set(stage.shared.values())))}"
    return f"{stage.index + 1} of {stage.total}, {stage.label}: {words}"


def _show_study(folder: Path) -> None:
    """Writes a study's pages and shows its tables."""
    from gentickets.lab.report import (
        published_table,
        published_words,
        study_table,
        transfer_table,
        write_report,
        write_study,
    )
    from gentickets.lab.run.folder import locked
    from gentickets.lab.study.comparison import read_comparison

    comparison = read_comparison(folder)
    for run in comparison.runs.values():
        with locked(run.folder, wait=True):  # one command at a time, as `_renewed_page`
            write_report([run])
    with locked(folder, wait=True):
        page = write_study(comparison)
    out.print(study_table(comparison))
    if (table := transfer_table(comparison)) is not None:
        out.print(table)
    if (table := published_table(comparison)) is not None:
        out.print(table)
        for words in published_words(comparison):
            out.print(words)
    out.print(f"results: {folder / 'study.csv'}\nreport:  {page}")


@app.command(epilog=f"Example: gentickets train quickstart/gan --ticket {_TICKET}")
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    ticket: Annotated[Path | None, typer.Option(help="Start from this ticket, and keep to its masks.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights, the data order and the noise.")] = 0,
    budget: Budget = None,
    runs: RunsFolder = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Name of the folder; default: the recipe's, with -train.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Train one model: dense, or from a ticket. Nothing is pruned.

    RECIPE may be that of a run, such as runs/quickstart-gan/recipe.yaml, with all that was said when it was made.
    """
    from gentickets.lab.recipe import NAME, read_recipe

    asked = read_recipe(recipe, overrides or (), budget, allow_code)
    if name is not None and re.fullmatch(NAME, name) is None:
        raise GenticketsError(f"--name {name[:80]!r}: a name of letters, digits, dots, - and _ is needed, no path")
    folder = runs / (name or f"{asked.name}-train")
    from gentickets.lab.run.single import train_one

    with _progress() as bars:
        metrics = train_one(asked, folder, seed, ticket, _Teller(bars, asked.training.steps), bars.console.print)
    _show_metrics(metrics)
    out.print(f"results: {folder}")
    if metrics["status"] != "complete":
        raise typer.Exit(_NOTHING_TRAINED)


def _show_metrics(metrics: dict[str, Any]) -> None:
    table = Table("metric", "value", "images")
    for entry in metrics["metrics"].values():
        table.add_row(entry["label"], f"{entry['value']:.5g}", str(entry["samples"]))
    out.print(table)
    if metrics["status"] != "complete":
        err.print(f"nothing was trained to its end: {metrics['status']}: {metrics['reason']}")


@app.command(
    epilog=f"Example: gentickets transfer {_TICKET.replace('gan', 'vae')} quickstart/gan "
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
    seed: Annotated[int, typer.Option(help="Seed of the weights that do not travel.")] = 0,
    budget: Budget = None,
    allow_code: AllowCode = False,
) -> None:
    """Carry a ticket's components into the model of a recipe: a VAE's decoder into a GAN's generator, say."""
    from gentickets.lab.recipe import read_recipe

    pairs = [entry for entry in components if "." not in entry.partition("=")[0]]
    overrides = [entry for entry in components if entry not in pairs]
    asked = read_recipe(recipe, overrides, budget, allow_code)
    from gentickets.lab.run.single import transferred

    mapping = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    moved = transferred(ticket, asked, mapping, not masks_only, seed, exclude or ())
    moved.save(output)
    left = ", ".join(moved.origin["transfer"]["left"]) or "nothing"
    out.print(f"{moved.masks!r}\nleft behind: {left}\nresults: {output}; train it with")
    chosen = ["--budget", budget] if budget is not None else []
    out.print(shlex.join(["gentickets", "train", str(recipe), *overrides, *chosen, "--ticket", str(output)]))


@app.command(epilog="Example: gentickets shrink runs/quickstart-gan/seed-0/level-03 --out small.safetensors")
def shrink(
    what: Annotated[Path, typer.Argument(help="A level's folder; or a ticket, with --recipe.", show_default=False)],
    overrides: Overrides = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="The recipe whose model a ticket is for.")] = None,
    output: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("small.safetensors"),
    allow_code: AllowCode = False,
) -> None:
    """Make a ticket's network physically smaller: channels that no live weight needs go, outputs stay the same."""
    from gentickets.lab import shipping

    if what.is_file() and recipe is None:
        raise GenticketsError(f"{what} does not say which model it is for: add --recipe recipes/….yaml")
    if not what.is_file() and (recipe is not None or overrides):
        raise GenticketsError(f"{what}: --recipe and key=value go with a ticket file; a level knows its recipe")
    if recipe is None:
        shipment = shipping.of_level(what, allow_code)
    else:
        shipment = shipping.of_ticket(what, recipe, overrides or (), allow_code)
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
        Path | None, typer.Option("--out", help="The file to write; default: COMPONENT.pt2 or COMPONENT.onnx.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Write one component of a trained level as a program that runs without gentickets, for batches of any size."""
    from gentickets.channels.export import SUFFIXES, as_format, format_of
    from gentickets.lab.shipping import export_component, of_level

    file = output or Path(f"{component}{SUFFIXES[as_format(format_ or 'torch')]}")
    chosen = format_of(file, format_)
    made = export_component(of_level(level, allow_code), component, file, chosen, smaller=shrink)
    out.print(
        f"run on examples and compared: {made.compared:,} numbers, whose largest difference is {made.difference:.1e} "
        "of the largest output"
    )
    out.print(f"results: {made.path} ({made.bytes:,} bytes)")


@app.command(epilog="Example: gentickets evaluate runs/quickstart-gan --samples 5000")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    samples: Annotated[int | None, typer.Option(help="How many samples to generate.")] = None,
    features: Annotated[str | None, typer.Option(help="classifier, inception, efficientnet-lite0 or none.")] = None,
    inception_weights: Annotated[Path | None, typer.Option(help="A local file with Inception's weights.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Measure every level of a run again, with other samples or features, and renew its results and report."""
    from gentickets.lab.report import verdict_table, write_report
    from gentickets.lab.run.again import evaluate_again

    weights = str(inception_weights) if inception_weights else None
    with _progress() as bars:
        evaluate_again(run, samples, features, weights, _Teller(bars, None), allow_code)
    page = write_report([run])
    out.print(verdict_table([run]))
    out.print(f"results: {run / 'results.csv'}\nreport:  {page}")


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
    from gentickets.lab.results.reading import read_run, write_csv

    if len(runs) == 1 and output is None and (runs[0] / "study.yaml").is_file():
        _show_study(runs[0])
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


@app.command(epilog=f"Example: gentickets inspect {_TICKET}")
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
) -> None:
    """Show what is in a ticket or a level, or where a run stands; checks a ticket's digest on the way.

    With --model: which components a model has, what of them can be pruned, and what cannot and why.
    """
    from gentickets.lab.listings import model_words, what_is_in

    given = what or []
    if model is None and len(given) != 1:
        raise GenticketsError("inspect takes one file or folder, or --model my.py:name with its key=value")
    shown = what_is_in(Path(given[0])) if model is None else model_words(model, given, size, channels)
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


# -- whose tickets are ----------------------------------------------------------------------------------------

AnyTicket = Annotated[Path, typer.Argument(help="A ticket file, or a level's folder.", show_default=False)]


@app.command(epilog="Example: gentickets keys my-key")
def keys(
    name: Annotated[Path, typer.Argument(help="The file of the private key; the public one is NAME.pub.")] = Path(
        "gentickets-key"
    ),
) -> None:
    """Make a pair of keys to sign tickets with: ed25519, in the files of OpenSSH. Nothing is overwritten."""
    from gentickets.masks.signing import make_keys

    out.print(f"{make_keys(name)}\nresults: {name}, for you alone; {name}.pub, to be given away")


@app.command(epilog=f"Example: gentickets sign {_TICKET} --key my-key --out signed.ticket")
def sign(
    ticket: AnyTicket,
    key: Annotated[Path, typer.Option("--key", help="Your private key of ed25519: OpenSSH or PEM.")],
    output: Annotated[Path | None, typer.Option("--out", help="The file to write; default: in its place.")] = None,
) -> None:
    """Sign a ticket: whoever has your public key can see that every bit of it is as you signed it."""
    from gentickets.lab import tickets

    place, signed = tickets.sign(ticket, key, output)
    out.print(f"{tickets.signature_words(signed)}\nresults: {place}")


@app.command(epilog="Example: gentickets verify signed.ticket --by my-key.pub")
def verify(
    ticket: AnyTicket,
    by: Annotated[str, typer.Option("--by", help="Their public key: a file, or its fingerprint SHA256:….")],
) -> None:
    """Check that a ticket was signed with a key: 2 is the exit code where it was not, or was changed since."""
    from gentickets.lab import tickets

    found = tickets.verify(ticket, by)
    out.print(f"{ticket}: every bit is as {found.signature.signer if found.signature else by} signed it")


@app.command(epilog="Example: gentickets diff runs/quickstart-gan/seed-0/level-01 runs/quickstart-gan/seed-0/level-02")
def diff(one: AnyTicket, other: AnyTicket) -> None:
    """Compare two tickets: masks beside what chance would give, layer by layer, signs, weights, origins, rounds."""
    from gentickets.lab.tickets import difference_words

    for part in difference_words(one, other):
        out.print(part)


# -- progress -------------------------------------------------------------------------------------------------


@contextmanager
def _progress() -> Iterator[Progress]:
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
        console=err,
        refresh_per_second=4,
        disable=not err.is_terminal,
    ) as bars:
        yield bars


class _Teller:
    """Shows what the seeds tell: one bar a seed; where there is no terminal, a plain line a stage and a minute."""

    def __init__(self, bars: Progress, steps: int | None, prefix: str = ""):
        self._bars, self._steps, self._prefix = bars, steps, prefix
        self._tasks: dict[int, TaskID] = {}
        self._lines: dict[int, Lines] = {}

    def __call__(self, event: Any) -> None:
        rate = f"{event.progress.images_per_second:,.0f} images/s" if event.progress is not None else ""
        if not err.is_terminal:
            line = self._lines.setdefault(event.seed, Lines()).line(event.stage, event.done, event.total, rate)
            if line is not None:
                err.print(f"{self._prefix}seed {event.seed} {line}")
            return
        if event.seed not in self._tasks:
            self._tasks[event.seed] = self._bars.add_task(
                f"{self._prefix}seed {event.seed}", total=event.total, rate="", losses=""
            )
        losses = event.progress.losses if event.progress is not None else {}
        self._bars.update(
            self._tasks[event.seed],
            completed=event.done,
            description=f"{self._prefix}seed {event.seed} {event.stage}",
            rate=rate,
            losses=" ".join(f"{key} {value:.3g}" for key, value in losses.items()),
        )
