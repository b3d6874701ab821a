"""`python -m benchmarks [names…]`: see README.md."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import report, steps
from benchmarks.contest import benchmarks, chosen, load
from benchmarks.pairs import measure
from gentickets.files import replace_file


def main(arguments: list[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    load()
    if asked.list:
        for each in benchmarks(asked.quick):
            print(each.name + (" (on request)" if each.on_request else ""))
        return 0
    try:
        selected = chosen(asked.names, asked.quick)
        steps.use(asked.device)
    except LookupError as error:
        print(f"benchmarks: {error.args[0]}", file=sys.stderr)
        return 2
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    rounds, shortest = (min(asked.rounds, 3), 0.001) if asked.quick else (asked.rounds, 0.02)
    document: dict[str, Any] = {
        "machine": report.machine(),
        "settings": {"rounds": rounds, "seconds": asked.seconds, "quick": asked.quick, "cpu time": asked.cpu_time},
        "benchmarks": [],
    }
    failed: list[str] = []
    for each in selected:
        print(each.name, file=sys.stderr, flush=True)
        try:
            contest = each.make()
            clock = time.process_time if asked.cpu_time else time.perf_counter
            with contest.closing:
                timings = measure(contest, rounds, shortest, asked.seconds, clock=clock)
        except ModuleNotFoundError as missing:
            print(f"{each.name}: left out, {missing.name} is not installed", file=sys.stderr, flush=True)
            continue
        except Exception as error:  # the others have not failed
            failed.append(each.name)
            print(f"benchmarks: {each.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        document["benchmarks"].append(report.result(each, contest, timings, judged=not asked.quick))
        if asked.out is not None:  # after each, so that one that fails does not take the others with it
            replace_file(asked.out, (json.dumps(document, indent=1) + "\n").encode())
    report.print_table(document)
    if failed:
        print(f"benchmarks: {len(failed)} of {len(selected)} failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="gentickets beside what it replaces.")
    parser.add_argument("names", nargs="*", help="run those whose name holds one of these (default: all)")
    parser.add_argument("--rounds", type=_positive, default=9, help="rounds, 3 at most with --quick (default: 9)")
    parser.add_argument("--seconds", type=float, default=60.0, help="no further round after so many (default: 60)")
    parser.add_argument("--threads", type=_positive, help="threads of torch (default: as many as torch takes)")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of this process, where others are busy too")
    parser.add_argument("--device", default="cpu", help="where networks are built: cpu (the default) or cuda")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the result there too")
    parser.add_argument("--list", action="store_true", help="list the names and do nothing")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, few rounds: does it run at all?")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
