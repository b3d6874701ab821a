"""What is asked of a cluster: the fields of a dataclass, said as `key=value` on the command line."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from gentickets.durations import parse_time
from gentickets.errors import GenticketsError
from gentickets.options import Count, NotNegative, Steps

Options = TypeVar("Options")


def _seconds(said: object) -> object:
    if not isinstance(said, str):
        return said
    try:
        return parse_time(said)
    except GenticketsError:
        raise ValueError("it is no duration: write 2h, 90m, 1h30m or 45s") from None


Duration = Annotated[float, BeforeValidator(_seconds)]
"""Seconds, said as 2h, 90m or 45s."""


@dataclass
class SlurmOptions:
    """What is asked of SLURM for each job.

    `time`: after which a job that is not done saves its state and queues again; `notice`: how long before that it is
    told; `cpus`: by default, the threads of a training; `workers`: so many jobs, each of which makes piece after piece,
    in place of a job a piece; `look`: how often the queue is asked; `sbatch`: other options of sbatch, as
    `sbatch.nice=100`.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: Duration = 3600.0
    gpus: Steps = 0
    cpus: Count | None = None
    memory: str | None = None
    workers: Count | None = None
    notice: Duration = 90.0
    look: Duration = 10.0
    sbatch: dict[str, str] = field(default_factory=dict)


@dataclass
class RayOptions:
    """What is asked of Ray.

    `address`: of a cluster that runs, `auto` for the one of this machine; without it one is started here, for as long
    as the command takes. `cpus`, `gpus`: of a task, in parts too, by default the threads of a training and none;
    `retries`: how many times a task is begun again whose worker or machine is gone.
    """

    address: str | None = None
    cpus: NotNegative | None = None
    gpus: NotNegative = 0.0
    retries: Steps = 3


def read_options(kind: type[Options], given: Sequence[str], option: str) -> Options:
    """A `kind` of what was given, each entry with one `key=value` or several with spaces between them.

    A key with a dot goes into the mapping of that name. Raises `GenticketsError` for what is none of them.
    """
    fields = {field.name: field.type == "dict[str, str]" for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    said: dict[str, object] = {}
    try:
        words = [word for entry in given for word in shlex.split(entry)]
    except ValueError as error:
        raise GenticketsError(f"{option} {' '.join(given)}: {error}") from None
    for word in words:
        key, equals, value = word.partition("=")
        part, dot, rest = key.partition(".")
        if not equals or bool(dot) != fields.get(part):
            keys = (f"{name}.KEY" if is_mapping else name for name, is_mapping in fields.items())
            raise GenticketsError(f"{option} {word!r}: key=value is needed, of {', '.join(keys)}")
        if dot:
            said[part] = {**said.get(part, {}), rest: value}  # type: ignore[dict-item]
        else:
            said[key] = value
    try:
        return TypeAdapter(kind).validate_python(said)
    except ValidationError as error:
        first = error.errors()[0]
        raise GenticketsError(f"{option} {first['loc'][0]}={first['input']}: {first['msg']}") from None
