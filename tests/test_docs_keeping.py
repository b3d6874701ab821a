"""The section on keeping a smaller net: its files are written down and run, and its command too."""

import os
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

from forked import run_program

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("\n# Keeping a smaller net\n")[2]
FILES = {code.split("\n", 1)[0][2:]: code for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)}


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name, code in FILES.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_net", None)


def test_what_is_run_is_what_is_shown():
    assert list(FILES) == ["my_net.py", "keep.py", "keep_pretrained.py"]


def test_a_network_of_ones_own_is_kept(here):
    runpy.run_path("keep.py")
    program = torch.export.load(here / "small.pt2").module()
    assert program(torch.randn(3, 3, 16, 16), torch.randn(3, 8)).shape == (3, 3, 16, 16)


def test_the_command_says_what_would_go(here):
    (words,) = [shlex.split(line)[1:] for line in re.findall(r"```bash\n(.*?)\n```", PAGE)]
    done = run_program(words, here, {**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "at half of the channels of every layer 531 of 1,059 parameters" in done.stdout, done.stdout


@pytest.mark.models
@pytest.mark.filterwarnings("ignore")
def test_models_of_other_packages_are_kept(here, capsys):
    pytest.importorskip("diffusers")
    runpy.run_path("keep_pretrained.py")
    first, second = capsys.readouterr().out.strip().splitlines()
    assert first.strip() == "AutoencoderTiny.from_pretrained('small-tiny')"
    assert second.startswith("gentickets.load_small('small-kl', make_model=AutoencoderKL) no config says encoder.")
