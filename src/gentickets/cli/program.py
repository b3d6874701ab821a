"""What all commands share: the program, where it prints, the options that several take, how far a training is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gentickets.lines import Lines
from gentickets.terminal import Terminal

app = typer.Typer(
    help="Finds winning lottery tickets in deep generative models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Terminal()
err = Terminal(stderr=True)

NOTHING_TRAINED = 3
"""The exit code where every level diverged or was cut in two."""


RecipeFile = Annotated[
    Path, typer.Argument(help="A recipe: a file, or one that `list recipes` names: quickstart/gan.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Keys of the recipe to override: training.steps=500; `gentickets list keys` shows all.", show_default=False
    ),
]
A_TICKET = "runs/quickstart-gan/seed-0/level-03/ticket.safetensors"
Budget = Annotated[
    str | None,
    typer.Option("--budget", help="One that the recipe has; all have full: as it stands.", show_default=False),
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


def load_the_lab() -> float:
    """Loads what trains and judges; the seconds that it took, which is what starting a process takes."""
    begun = perf_counter()
    for name in ("gentickets.lab.run.prepare", "gentickets.lab.report", "gentickets.lab.study.study"):
        import_module(name)
    return perf_counter() - begun


def renewed_page(folder: Path) -> Path:
    """Writes a run's page; of several commands one at a time, so that the last one shows all that there is."""
    from gentickets.lab.report import write_report
    from gentickets.lab.run.folder import locked

    with locked(folder, wait=True):
        return write_report([folder])


def check_trained(runs: Iterable[Path]) -> None:
    """Leaves with an exit code of its own where no level of any of the runs was trained to its end."""
    from gentickets.lab.results.reading import read_run

    levels = [level for run in runs for level in read_run(run).levels]
    if levels and not any(level.status == "complete" for level in levels):
        err.print(f"nothing was trained to its end: {levels[0].status}: {levels[0].reason}")
        raise typer.Exit(NOTHING_TRAINED)


@contextmanager
def progress() -> Iterator[Progress]:
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


class Teller:
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
