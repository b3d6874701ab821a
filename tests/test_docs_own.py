"""The page on things of one's own: each of its files is written down, and each of its commands is run."""

import os
import re
import shlex
from pathlib import Path

import pytest

from forked import run_program

PAGE = (Path(__file__).parents[1] / "docs" / "own.md").read_text(encoding="utf-8")
FILES = {code.split("\n", 1)[0][2:]: code for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)}
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"```bash\n(.*?)\n```", PAGE)]
SHORT = [
    "data.size=8", "training.steps=12", "search.rewind_step=2", "search.rounds=2", "controls.levels=[2]", "seeds=[0]",
    "evaluation.samples=128", "evaluation.classifiers=1", "data.limit=200",
]  # fmt: skip


def test_each_is_short():
    assert set(FILES) == {"my_gan.py", "my_criterion.py", "my_gradients.py", "my_search.py"}
    assert all(len(code.splitlines()) <= 40 for code in FILES.values())


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[2])
def test_every_command_of_the_page_runs(words, tmp_path):
    for name, code in FILES.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    done = run_program([*words, *SHORT], tmp_path, {**os.environ, "GENTICKETS_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / words[2].partition("=")[2] / "report.html").exists()
