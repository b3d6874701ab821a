"""Methods and objectives of one's own go on where they stopped; what they give wrongly is a line."""

import re
from pathlib import Path

import pytest

from forked import run_program

PAGE = (Path(__file__).parents[1] / "docs" / "own.md").read_text(encoding="utf-8")
CODE = {code.split("\n", 1)[0][2:]: code for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)}
CODE["mine.py"] = '''
from dataclasses import dataclass
import gentickets as gt
from gentickets.search.method import Ladder

@dataclass(frozen=True)
class Told(gt.Autoencoding):
    """With a size that nobody tells but the model."""
    latent_size: int | None = None
    other: float | None = None
    """A key that another objective has not."""

@dataclass(frozen=True)
class Nothing(Ladder):
    """Forgets to yield."""
    def levels(self, work, last): ...

@dataclass(frozen=True)
class Three(Ladder):
    """Yields what is none."""
    def levels(self, work, last): yield 3

@dataclass(frozen=True)
class Ends(Ladder):
    """Ends early."""
    def levels(self, work, last): return iter(())

def none(net, alive): ...
def floats(net, alive): return {name: 1.0 for name in alive}
def shapes(net, alive): return {name: alive[name].float().flatten() for name in alive}
def magnitudes(net): return gt.magnitude(net)
def raises(net, alive): return 1 / 0
'''
SHORT = [
    "name=own", "data.size=8", "data.limit=150", "training.steps=12", "search.rounds=2", "controls.levels=[1]",
    "seeds=[0]",    "evaluation.features=none", "evaluation.metrics=[reconstruction_mse]",
]  # fmt: skip


@pytest.fixture
def program(tmp_path):
    for name, code in CODE.items():
        (tmp_path / name).write_text(code, encoding="utf-8")

    def run(*words):
        environment = {"PATH": "/usr/bin", "HOME": str(tmp_path), "GENTICKETS_CACHE": str(tmp_path / "cache")}
        return run_program(["find", "quickstart/autoencoder", *SHORT, *words], tmp_path, environment)

    return run


@pytest.mark.parametrize(
    "words",
    [
        ("search={method: 'my_search.py:Slowing', rewind_step: 2}",),
        ("objective=mine.py:Told", "search.rewind_step=2"),
        ("search.criterion=my_criterion.py:relative", "search.rewind_step=2"),
        ("search.criterion=mine.py:magnitudes", "search.rewind_step=2"),
    ],
)
def test_the_same_command_goes_on(words, program, tmp_path):
    first = program(*words)
    assert first.returncode == 0, first.stderr
    again = program(*words)
    assert again.returncode == 0, again.stderr
    assert "going on with" in again.stdout
    more = program(*words, "search.rounds=3", "controls.levels=[1]")
    assert more.returncode == 0, more.stderr
    assert (tmp_path / "runs" / "own" / "seed-0" / "level-03").is_dir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "search={method: 'mine.py:Nothing'}",
            r"search\.method=mine\.py:Nothing: levels\(\) gave NoneType: let it yield",
        ),
        ("search={method: 'mine.py:Three'}", r"levels\(\) yielded int for level 0: yield a Level"),
        ("search={method: 'mine.py:Ends'}", r"levels\(\) ended before level 0"),
        ("search.criterion=mine.py:none", r"search\.criterion=mine\.py:none: the criterion gave NoneType: a dict"),
        ("search.criterion=mine.py:floats", r"gave float for '.*weight': a tensor of the weight's shape"),
        ("search.criterion=mine.py:shapes", r"search\.criterion=mine\.py:shapes: scores of .* shape"),
        ("search.criterion=mine.py:raises", r"mine\.py.*line \d+: ZeroDivisionError"),
    ],
)
def test_what_is_given_wrongly_is_a_line_before_anything_is_trained(words, message, program, tmp_path):
    done = program(words, *([] if "method" in words else ["search.rewind_step=2"]))
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "runs").glob("own/seed-0/level-*"))
