"""Pieces as tasks of Ray, on two nodes of which one is lost: the same results to the byte."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.disturbed import TINY, Program, contents
from tests.ray_at_home import missing, tried

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

RECIPE = {
    **TINY,
    "training": {**TINY["training"], "steps": 2500, "checkpoint_seconds": 1e6},
    "search": {"rounds": 0},
    "controls": {"levels": []},
    "seeds": [0, 1],
}
"""Two pieces, one for each node, of some seconds."""
RUN = Path("runs", "tiny")
SRC = str(Path(__file__).parent.parent / "src")


def at_home(place, what, options=""):
    (place / "recipe.yaml").write_text(json.dumps(RECIPE))
    environment = {**os.environ, "PYTHONPATH": f"{SRC}:{place}", "OMP_NUM_THREADS": "1"}
    return tried(place, what, environment, options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    place = tmp_path_factory.mktemp("undisturbed")
    (place / "recipe.yaml").write_text(json.dumps(RECIPE))
    program = Program(place)
    assert program.ended(300)
    assert program.process.exitcode == 0, program.said
    return contents(place / RUN)


@pytest.mark.parametrize(
    "what",
    [
        "kill-node",
        *(pytest.param(what, marks=pytest.mark.soak) for what in ("kill-raylet", "kill-workers", "nothing")),
    ],
)
def test_what_is_lost_is_begun_again_elsewhere_and_ends_as_the_undisturbed_one(tmp_path, undisturbed, what):
    code, said = at_home(tmp_path, what)
    assert code == 0, said
    assert "Traceback" not in said
    assert contents(tmp_path / RUN) == undisturbed
    assert (tmp_path / RUN / "report.html").exists()


@pytest.mark.soak
def test_asked_to_stop_it_saves_and_goes_on(tmp_path, undisturbed):
    code, said = at_home(tmp_path, "stop")
    assert (code, said.splitlines()[-1]) == (130, "stopped; the same command goes on from here"), said
    assert any((tmp_path / RUN).glob("seed-*/.level-00*.partial/checkpoint.pt"))
    code, said = at_home(tmp_path, "nothing")
    assert code == 0, said
    assert contents(tmp_path / RUN) == undisturbed


@pytest.mark.soak
def test_what_is_lost_for_good_is_told_in_one_line(tmp_path):
    code, said = at_home(tmp_path, "kill-node", "retries=0")
    assert code == 2, said
    assert "Ray has lost its task for good" in said.splitlines()[-1]
