"""The page on fine-tuning: each of its files is run as it stands, and its table is what its file prints."""

import re
import runpy
from pathlib import Path

import pytest
import torch

import gentickets as gt
from gentickets.masks.names import as_model

PAGE = (Path(__file__).parents[1] / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
FILES = {code.split("\n", 1)[0][2:]: code for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)}
HEAVY = {"denoiser.py": "diffusers", "on_lightning.py": "lightning", "lora.py": "peft"}
"""What needs a package that `make test` does not have."""


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run_(name):
        monkeypatch.chdir(tmp_path)
        (tmp_path / name).write_text(FILES[name], encoding="utf-8")
        with torch.random.fork_rng(devices=[]):
            return runpy.run_path(str(tmp_path / name))

    return run_


def test_each_is_short():
    assert set(FILES) > set(HEAVY)
    assert all(len(code.splitlines()) <= 70 for code in FILES.values())


@pytest.mark.parametrize("name", sorted(set(FILES) - set(HEAVY)))
def test_a_file_of_the_page_leaves_zeros_at_zero(name, run, capsys):
    found = run(name)
    model = as_model(found["model"])
    masks = found["masks"]
    masks.audit(model)
    assert gt.Masks.of_zeros(model, include=list(masks)) <= masks
    if name == "own_adapter.py":
        check_table(capsys.readouterr().out)


@pytest.mark.models
@pytest.mark.parametrize("name", sorted(HEAVY))
def test_a_file_with_packages_of_others_leaves_zeros_at_zero(name, run):
    pytest.importorskip(HEAVY[name])
    found = run(name)
    model = found["merged"] if name == "lora.py" else found["model"]
    found["masks"].audit(model)
    assert gt.Masks.of_zeros(model) == found["masks"]


def check_table(printed):
    """Rounded as on the page; another machine's sums may differ by a few per cent."""
    said = PAGE.partition("the pruned network before")[2].partition("```")[0]
    wanted = [float(cell) for cell in re.findall(r"0\.\d+", said)]
    found = [float(number) for number in re.findall(r"0\.\d+", printed)]
    assert found == pytest.approx(wanted, rel=0.15)
