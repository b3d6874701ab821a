"""Where the pieces of runs are made: in processes of this machine, as jobs of a SLURM cluster, or as tasks of Ray.

Whatever makes them, they are claimed, built and published in the run's folder; an executor decides only where and when
somebody looks at which piece. So it may die, be started twice, or be another one the next time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gentickets.errors import GenticketsError
from gentickets.lab.executors.options import RayOptions, SlurmOptions, read_options

if TYPE_CHECKING:
    from gentickets.lab.run.prepare import Prepared

NAMES = ("local", "slurm", "ray")

_COMMANDS = ("sbatch", "squeue", "scontrol", "srun")


class Detached(Exception):
    """Work was handed over, and nobody waits for it here; its words say how it is followed and ended."""


@dataclass(frozen=True)
class Executor:
    """Who makes the pieces: one of `NAMES`, what is asked of it, and whether somebody waits here until all is done."""

    name: str = "local"
    options: SlurmOptions | RayOptions | None = None
    detach: bool = False

    def execute(
        self, runs: Sequence[Prepared], tell: Callable[[Any], None], say: Callable[[str], None] = lambda words: None
    ) -> None:
        """Makes all that is not there yet of some runs, and writes their results.

        `tell` hears of each training that goes on here, `say` of what goes on elsewhere, in lines. Raises `Detached`
        where it does not wait, and `GenticketsError` where pieces could not be made.
        """
        if isinstance(self.options, SlurmOptions):
            from gentickets.lab.executors.slurm import run_on_slurm

            run_on_slurm(runs, self.options, say, self.detach)
        elif isinstance(self.options, RayOptions):
            from gentickets.lab.executors.ray import run_on_ray

            run_on_ray(runs, self.options, say)
        else:
            from gentickets.lab.run.work import run_all

            run_all(runs, tell)


def read_executor(name: str, slurm: Sequence[str] = (), ray: Sequence[str] = (), detach: bool = False) -> Executor:
    """The executor of a name, with what is asked of SLURM or of Ray as `key=value`; read without torch.

    Raises `GenticketsError` for another name, for options that it does not have, and where what it needs is not here.
    """
    if name not in NAMES:
        raise GenticketsError(f"--executor {name!r}: one of {', '.join(NAMES)}")
    for other, given in (("slurm", slurm), ("ray", ray)):
        if given and name != other:
            raise GenticketsError(f"--{other} {given[0]!r} is for --executor {other}, and this is --executor {name}")
    if detach and name != "slurm":
        raise GenticketsError(f"--detach is for --executor slurm: nobody else would see to what --executor {name} does")
    options: SlurmOptions | RayOptions | None = None
    if name == "slurm":
        options = read_options(SlurmOptions, slurm, "--slurm")
        if lacking := [command for command in _COMMANDS if shutil.which(command) is None]:
            raise GenticketsError(
                f"--executor slurm: no {lacking[0]} here; take it where jobs are submitted, a login node"
            )
    if name == "ray":
        options = read_options(RayOptions, ray, "--ray")
    for module, extra in (("submitit", "slurm"), ("ray", "ray")):
        if name == extra and find_spec(module) is None:
            raise GenticketsError(f"--executor {name} needs {module}: pip install 'gentickets[{extra}]'")
    return Executor(name, options, detach)
