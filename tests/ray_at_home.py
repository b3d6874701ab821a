"""A cluster of Ray with two nodes on one machine, for tests, in namespaces of its own, on loopback alone.

Ray listens at the machine's outward address whatever it is told; so it has none there. What is tried is a program that
runs inside: `python -m tests.ray_at_home FOLDER WHAT OPTIONS`, which starts the cluster, starts `gentickets find
recipe.yaml` in FOLDER, does WHAT to it (see `DONE_TO_IT`, or `nothing`), and prints as JSON how it ended and what it
said.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # A dead node is noticed within a second; a busy one may be taken for dead, which is what is tried here.
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "4",
}


def missing() -> str | None:
    """Why there can be no such cluster here; None where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "namespaces of one's own need root on Linux"
    if lacking := [name for name in ("unshare", "ip") if shutil.which(name) is None]:
        return f"no {', '.join(lacking)} here"
    return None if find_spec("ray") is not None else "Ray is not installed"


def tried(place: Path, what: str, environment: dict[str, str], options: str = "") -> tuple[int, str]:
    """Does `what` to a run on a cluster of two nodes: how `find` ended, and what it said."""
    inside = f"ip link set lo up && exec {sys.executable} -m tests.ray_at_home {place} {what} '{options}'"
    done = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", inside],
        cwd=Path(__file__).parent.parent, env={**environment, **SETTINGS}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    try:
        code, said = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise AssertionError(f"{done.stdout}{done.stderr}") from None
    return code, said


# -- inside ---------------------------------------------------------------------------------------------------


def _descendants(process: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def _at_work(place: Path, raylet: int) -> bool:
    """Whether a worker of a node holds a claim of the run, and trains."""
    below = set(_descendants(raylet))
    for claim in place.glob("runs/*/.claims/*/*"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            held = claim.name.isdigit() and json.loads(claim.read_text())["process"] in below
            partial = f".{claim.parent.name.partition('+')[2]}*.partial/curve.jsonl"
            if held and any(place.glob(f"runs/*/{claim.parent.name.partition('+')[0]}/{partial}")):
                return True
    return False


def _kill_node(find: subprocess.Popen[str], raylet: int) -> None:
    """The machine is gone: the raylet and all that it had started."""
    for process in [raylet, *_descendants(raylet)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _kill_raylet(find: subprocess.Popen[str], raylet: int) -> None:
    """Ray takes the machine for gone, and its worker trains on: two are at work on one piece."""
    os.kill(raylet, signal.SIGKILL)


def _kill_workers(find: subprocess.Popen[str], raylet: int) -> None:
    for process in _descendants(raylet):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _stop(find: subprocess.Popen[str], raylet: int) -> None:
    find.send_signal(signal.SIGTERM)


DONE_TO_IT: dict[str, Callable[[subprocess.Popen[str], int], None]] = {
    "kill-node": _kill_node,
    "kill-raylet": _kill_raylet,
    "kill-workers": _kill_workers,
    "stop": _stop,
}


def main(place: Path, what: str, options: str) -> None:
    from ray.cluster_utils import Cluster

    how: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster()
    cluster.add_node(**how)
    second = cluster.add_node(**how)
    raylet = second.all_processes["raylet"][0].process.pid
    find = subprocess.Popen(
        [sys.executable, "-m", "gentickets", "find", "recipe.yaml", "--executor", "ray", "--ray",
         f"address={cluster.address} {options}"],
        cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        if what != "nothing":
            while find.poll() is None and not _at_work(place, raylet):
                time.sleep(0.05)
            assert find.poll() is None, "it had ended before anything was done to it"
            DONE_TO_IT[what](find, raylet)
        said, _ = find.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        find.kill()
        said, _ = find.communicate()
    print(json.dumps([find.returncode, said]), flush=True)
    os._exit(0)  # the namespace ends with this process, and all in it


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
