"""What a benchmark is: a function that sets up contenders, registered under a name for each of its cases."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Contender:
    """One way of doing the job.

    `run` does it once, set up and warmed; or `per` times, and its time is divided by that. `figures` are numbers beside
    time: bytes, counts, differences. `at_most` are the targets: the largest "ratio" to the reference, "ms", or figure.
    """

    run: Callable[[], object]
    per: int = 1
    figures: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contest:
    """Ways of doing one job, by name; times are compared with that of `reference`.

    `closing` is closed when the contest is over: worker processes, folders, masks that are held.
    """

    reference: str
    contenders: Mapping[str, Contender]
    closing: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        if self.reference not in self.contenders:
            raise ValueError(f"the reference {self.reference!r} is none of {', '.join(self.contenders)}")


@dataclass(frozen=True)
class Benchmark:
    """One case of a benchmark function: `make()` sets its contest up."""

    name: str
    make: Callable[[], Contest]
    on_request: bool


Cases = Mapping[str, Sequence[Any]]
"""Parameter → its values; a benchmark is run for every combination."""

_SUBJECTS: dict[str, tuple[Callable[..., Contest], Cases, Cases, bool]] = {}


def benchmark(
    cases: Cases | None = None, quick: Cases | None = None, on_request: bool = False
) -> Callable[[Callable[..., Contest]], Callable[..., Contest]]:
    """Registers a function as a benchmark for every combination of `cases`; with --quick for those of `quick`.

    `on_request`: left out unless it is asked for by name.
    """

    def register(function: Callable[..., Contest]) -> Callable[..., Contest]:
        subject = function.__name__.replace("_", "-")
        _SUBJECTS[subject] = (function, cases or {}, {**(cases or {}), **(quick or {})}, on_request)
        return function

    return register


def load() -> None:
    """Imports every module of this package: a new file with a benchmark in it is found by itself."""
    for module in pkgutil.iter_modules(importlib.import_module(__package__ or "benchmarks").__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__package__}.{module.name}")


def subjects() -> list[str]:
    """The names of the benchmark functions, without their cases."""
    return list(_SUBJECTS)


def benchmarks(quick: bool = False) -> Iterator[Benchmark]:
    """Every case of every benchmark, named `subject/value/value`."""
    for subject, (function, full, small, on_request) in _SUBJECTS.items():
        cases = small if quick else full
        for values in itertools.product(*cases.values()):
            make = partial(function, **dict(zip(cases, values, strict=True)))
            yield Benchmark("/".join([subject, *map(str, values)]), make, on_request)


def chosen(patterns: Sequence[str], quick: bool = False) -> list[Benchmark]:
    """The benchmarks whose name holds one of `patterns`; without patterns all but those on request.

    Raises `LookupError`, in one line, for a pattern that no name holds.
    """
    known = list(benchmarks(quick))
    for pattern in patterns:
        if not any(pattern in each.name for each in known):
            raise LookupError(f"no benchmark's name holds {pattern!r}; there are {', '.join(subjects())}")
    if not patterns:
        return [each for each in known if not each.on_request]
    return [each for each in known if any(pattern in each.name for pattern in patterns)]
