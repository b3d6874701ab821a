"""What the command line loads, and what the package gives when it is asked: torch only where something needs it."""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gentickets as gt

ROOT = Path(__file__).parent.parent
PROBE = """
import sys
from gentickets.__main__ import main
sys.argv = ["gentickets", *sys.argv[1:]]
try:
    main()
finally:
    heavy = {"torch", "numpy", "scipy", "sklearn", "matplotlib", "pyarrow", "lightning_fabric"} & set(sys.modules)
    print("loaded:", *sorted(heavy))
"""
STOPPED = """
import os, signal, sys
which, sys.argv = sys.argv[1], ["gentickets", "inspect", "x.ticket"]
class Stop:
    def find_spec(self, name, *rest):
        if name == "torch":
            os.kill(os.getpid(), getattr(signal, which))
sys.meta_path.insert(0, Stop())
from gentickets.__main__ import main
main()
"""


def as_from_a_shell():
    """Whoever started these tests, or ran in their process before, may have signals ignored or blocked."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def python(*arguments, folder=ROOT):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=as_from_a_shell,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "--version",
        "find --help",
        "list keys",
        "list recipes",
        "list data",
        "fnd",
        "find absent.yaml",
        "find broken.yaml",
        "find quickstart/gan training.stepz=3",
        "find quickstart/gan model.width=0 objective.beta=1",
        "train quickstart/gan seeds=1",
        "compare quickstart/gan name=..",
        "find quickstart/gan --time soon",
    ],
)
def test_help_listings_and_mistakes_do_not_load_torch(arguments, tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [1,")
    done = python("-c", PROBE, *arguments.split(), folder=tmp_path)
    assert done.stdout.splitlines()[-1] == "loaded:"
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr


def test_to_import_the_package_loads_nothing_and_all_of_it_is_there():
    done = python("-c", "import sys, gentickets; print('torch' in sys.modules, *dir(gentickets))")
    loaded, *names = done.stdout.split()
    assert loaded == "False"
    assert set(gt.__all__) < set(names)
    for name in gt.__all__:
        assert getattr(gt, name).__name__ == name


def test_no_module_has_the_name_of_something_that_the_package_gives():
    modules = {module.name for module in pkgutil.iter_modules(gt.__path__)}
    assert not modules & set(gt.__all__)
    for name in sorted(modules - {"__main__"}):
        if not name.startswith("_"):
            assert getattr(gt, name) is importlib.import_module(f"gentickets.{name}")


def test_what_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'luck'"):
        _ = gt.luck
    with pytest.raises(ImportError, match="luck"):
        exec("from gentickets import luck")


@pytest.mark.parametrize("which", ["SIGINT", "SIGTERM"])
def test_ctrl_c_while_torch_is_loaded_is_one_line(which):
    done = python("-c", STOPPED, which)
    assert done.returncode == 130
    assert done.stderr.splitlines() == ["stopped; the same command goes on from here"]
