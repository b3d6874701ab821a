"""The program in a process of its own that has torch loaded already: forked from a clean server, much sooner.

For what needs a process and not its start. `test_startup.py`, `test_signals.py` and `test_command_line.py` start anew.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(["gentickets.lab.report", "gentickets.lab.study.study"])  # no cli: it reads COLUMNS


def run_program(
    arguments: list[str], folder: Path, environment: Mapping[str, str], timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Runs `gentickets` with these arguments in a folder, to its end."""
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        process = _FORKING.Process(target=_run, args=(arguments, str(folder), dict(environment), str(out), str(err)))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
        told = [path.read_text() if path.exists() else "" for path in (out, err)]
        return subprocess.CompletedProcess(["gentickets", *arguments], process.exitcode or 0, *told)


def _run(arguments: list[str], folder: str, environment: Mapping[str, str], out: str, err: str) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.argv = ["gentickets", *arguments]
    from gentickets.cli import main

    main()
