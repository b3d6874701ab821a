"""The main job through the command line, as a user meets it; failures injected."""

import contextlib
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import gentickets as gt
from forked import run_program
from gentickets.durations import parse_time
from gentickets.lab.recipe import make_recipe
from gentickets.lab.results.reading import read_run
from gentickets.lab.results.verdict import judge
from gentickets.lab.results.verdict_words import headline
from gentickets.lab.run import folder as disk
from gentickets.lab.run import prepare as run_module
from gentickets.lab.run import publishing
from gentickets.lab.run.plan import Plan, fit

TINY = {
    "name": "tiny",
    "model": {"name": "linear-autoencoder", "width": 16, "depth": 1, "latent": 4},
    "data": {"source": "digits", "size": 8},
    "objective": {"name": "autoencoding"},
    "evaluation": {"classifiers": 1},
    "training": {"steps": 40, "batch_size": 16, "lr": 0.003, "checkpoint_seconds": 0.0},
    "search": {"rounds": 3, "fraction": 0.5, "rewind_step": 5},
    "controls": {"levels": [2]},
    "seeds": [0],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def gentickets(tmp_path, cache):
    """Runs the program in an empty folder and returns the finished process."""
    begun = []

    def run(*arguments, recipe=TINY, expect=0, wait=True):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        environment = {**os.environ, "GENTICKETS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        if wait:
            done = run_program(list(map(str, arguments)), tmp_path, environment)
            assert done.returncode == expect, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
            assert "Traceback" not in done.stderr + done.stdout
            return done
        command = [sys.executable, "-c", "from gentickets.cli import main; main()", *map(str, arguments)]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        begun.append(process)
        return process

    yield run
    for process in begun:
        process.kill()  # of a test that failed half-way


def one_line(process):
    """The last line on stderr, progress aside."""
    return process.stderr.strip().splitlines()[-1]


def test_find_report_inspect_evaluate_and_list(gentickets, tmp_path):
    done = gentickets("find", "recipe.yaml", "seeds=[0, 1]")
    run = tmp_path / "runs" / "tiny"
    assert "12 trainings" in done.stdout
    assert str(Path("runs/tiny/report.html")) in done.stdout
    levels = sorted(p.name for p in (run / "seed-1").iterdir())
    assert levels == [
        "level-00", "level-01", "level-02", "level-02-random_mask", "level-02-redrawn_weights", "level-03",
        "rewind.json", "rewind.safetensors",
    ]  # fmt: skip
    rows = (run / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 6
    images = [json.loads((run / "seed-1" / level / "timing.json").read_text())["images"] for level in levels[:2]]
    assert images == [40 * 16, 35 * 16]
    metrics = json.loads((run / "seed-0" / "level-03" / "metrics.json").read_text())
    assert metrics["status"] == "complete"
    assert metrics["sparsity"] == pytest.approx(0.875, abs=1e-3)
    assert metrics["metrics"]["reconstruction_mse"]["samples"] == 359
    ticket = gt.Ticket.load(run / "seed-0" / "level-03" / "ticket.safetensors")
    trained = disk.load_weights(run / "seed-0" / "level-03" / "trained.safetensors")
    for name, mask in ticket.masks.items():
        assert not trained[name][~mask].any()
    control = gt.Ticket.load(run / "seed-0" / "level-02-redrawn_weights" / "ticket.safetensors")
    assert control.masks == gt.Ticket.load(run / "seed-0" / "level-02" / "ticket.safetensors").masks

    before = (run / "results.csv").read_bytes()
    assert "going on with" in gentickets("find", "recipe.yaml", "seeds=[0, 1]").stdout
    assert (run / "results.csv").read_bytes() == before
    gentickets("evaluate", "runs/tiny")
    assert (run / "results.csv").read_bytes() == before
    assert "sparsity 87.5" in gentickets("inspect", "runs/tiny/seed-0/level-03/ticket.safetensors").stdout
    assert "random_mask" in gentickets("inspect", "runs/tiny").stdout
    page = gentickets("report", "runs/tiny", "--out", "page.html").stdout
    assert "page.html" in page
    assert headline(judge(read_run(run))) in " ".join(html.unescape((tmp_path / "page.html").read_text()).split())
    assert "tiny" in gentickets("list", "runs").stdout
    assert "linear-autoencoder" in gentickets("list", "models").stdout

    # A longer ladder goes on from what is there.
    gentickets("find", "recipe.yaml", "seeds=[0, 1]", "search.rounds=4")
    assert (run / "seed-1" / "level-04").exists()


def has_begun(level: Path) -> bool:
    curve = publishing.partial_of(level) / "curve.jsonl"
    return curve.exists() and curve.stat().st_size > 0


def test_ctrl_c_keeps_what_is_computed_and_says_how_to_go_on(gentickets, tmp_path):
    recipe = {
        **TINY,
        "training": {**TINY["training"], "steps": 4000, "checkpoint_seconds": 1e6},
    }
    process = gentickets("find", "recipe.yaml", recipe=recipe, wait=False)
    level = tmp_path / "runs" / "tiny" / "seed-0" / "level-00"
    while process.poll() is None and not has_begun(level.with_name("level-01")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "the same command goes on from here" in err
    assert (publishing.partial_of(level.with_name("level-01")) / publishing.CHECKPOINT).exists()


def test_train_dense_and_from_a_ticket(gentickets, tmp_path):
    gentickets("find", "recipe.yaml")
    ticket = "runs/tiny/seed-0/level-03/ticket.safetensors"
    done = gentickets("train", "recipe.yaml", "--ticket", ticket, "--name", "again")
    assert "reconstruction MSE" in done.stdout
    again = disk.load_weights(tmp_path / "runs" / "again" / "seed-0" / "trained" / "trained.safetensors")
    found = disk.load_weights(tmp_path / "runs" / "tiny" / "seed-0" / "level-03" / "trained.safetensors")
    assert all(torch.equal(tensor, found[name]) for name, tensor in again.items())
    redrawn = "runs/tiny/seed-0/level-02-redrawn_weights"
    line = one_line(
        gentickets("train", "recipe.yaml", "--ticket", f"{redrawn}/ticket.safetensors", "--name", "again", expect=2)
    )
    assert "was trained from another ticket" in line
    gentickets("train", "recipe.yaml", "--ticket", f"{redrawn}/ticket.safetensors", "--name", "redrawn")
    again = disk.load_weights(tmp_path / "runs" / "redrawn" / "seed-0" / "trained" / "trained.safetensors")
    found = disk.load_weights(tmp_path / redrawn / "trained.safetensors")
    assert all(torch.equal(tensor, found[name]) for name, tensor in again.items())
    assert "gentickets train" in one_line(gentickets("find", "recipe.yaml", "name=again", expect=2))
    gentickets("train", "recipe.yaml", "--name", "dense")
    line = one_line(gentickets("train", "recipe.yaml", "model.width=32", "--ticket", ticket, "--name", "x", expect=2))
    assert "another architecture" in line
    assert "(16, 64)" in line
    assert "(32, 64)" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["find", "absent.yaml"], "cannot read recipe absent.yaml"),
        (["find", "recipe.yaml", "training.stesp=3"], "unknown key training.stesp"),
        (["find", "recipe.yaml", "data.source=absent.parquet"], "absent.parquet"),
        (["find", "recipe.yaml", "data.source=nothing-like-this"], "nothing-like-this"),
        (
            ["find", "recipe.yaml", "data.size=20", "model={name: conv-vae}", "objective={name: elbo}"],
            "size=20",
        ),
        (["find", "recipe.yaml", "objective={name: adversarial}"], "needs generator, discriminator"),
        (["find", "recipe.yaml", "evaluation.primary=fid"], "evaluation.primary='fid'"),
        (["find", "recipe.yaml", "--time", "soon"], "--time 'soon'"),
        (["find", "recipe.yaml", "training.precision=16-mixed"], "16-mixed"),
        (["find", "--what"], "no such option"),
        (["inspect", "absent.ticket"], "absent.ticket"),
        (["inspect", "recipe.yaml"], "no ticket"),
        (["report", "absent"], "absent"),
        (["evaluate", "absent"], "absent is no run"),
        (["list", "wonders"], "list 'wonders'"),
    ],
)
def test_bad_input_is_one_clear_line(gentickets, arguments, message):
    done = gentickets(*arguments, expect=2)
    assert message.lower() in one_line(done).lower()
    assert len([line for line in done.stderr.strip().splitlines() if line.strip()]) == 1


def test_a_run_folder_of_another_recipe_says_which_keys_differ(gentickets):
    gentickets("find", "recipe.yaml", "search.rounds=1", "controls.levels=[]")
    line = one_line(gentickets("find", "recipe.yaml", "training.steps=50", "model.width=8", expect=2))
    assert "training.steps (40 there, 50 here)" in line
    assert "model.width (16 there, 8 here)" in line
    gentickets("find", "recipe.yaml", "training.steps=50", "--fresh")


def test_after_another_evaluation_the_old_one_is_another_recipe(gentickets, tmp_path):
    recipe = {
        **TINY,
        "model": {"name": "dcgan", "width": 4, "latent": 4},
        "objective": {"name": "adversarial"},
        "search": {**TINY["search"], "rounds": 1, "fraction": 0.3},
        "controls": {"levels": []},
        "evaluation": {"samples": 64, "classifiers": 1},
    }
    gentickets("find", "recipe.yaml", recipe=recipe)
    assert "_spread" not in (tmp_path / "runs" / "tiny" / "results.csv").read_text()
    assert "classifiers" in one_line(gentickets("evaluate", "runs/tiny", "--classifiers", "0", expect=2))
    gentickets("evaluate", "runs/tiny", "--samples", "80", "--classifiers", "2", recipe=recipe)
    rows = (tmp_path / "runs" / "tiny" / "results.csv").read_text()
    assert ",80," in rows
    assert ",64," not in rows
    assert ",frechet_spread," in rows
    line = one_line(gentickets("find", "recipe.yaml", "search.rounds=2", recipe=recipe, expect=2))
    assert "evaluation.samples (80 there, 64 here)" in line
    gentickets(
        "find", "recipe.yaml", "search.rounds=2", "evaluation.samples=80", "evaluation.classifiers=2", recipe=recipe
    )


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow", "magnitude-at-init", "random-at-init"])
def test_every_way_of_pruning_at_initialisation_runs(gentickets, tmp_path, method):
    recipe = {**TINY, "search": {"method": method, "rounds": 1, "fraction": 0.5}, "controls": {"levels": []}}
    gentickets("find", "recipe.yaml", recipe=recipe)
    metrics = json.loads((tmp_path / "runs" / "tiny" / "seed-0" / "level-01" / "metrics.json").read_text())
    assert metrics["status"] == "complete"
    assert metrics["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert (metrics["start_step"], metrics["end_step"]) == (0, 40)


@pytest.mark.parametrize("method", ["one-shot", "snip"])
def test_methods_that_prune_from_one_model_go_on(gentickets, tmp_path, method):
    search = {"method": method, "rounds": 1, "fraction": 0.3, "rewind_step": 5 if method == "one-shot" else 0}
    recipe = {**TINY, "search": search, "controls": {"levels": []}}
    gentickets("find", "recipe.yaml", recipe=recipe)
    gentickets("find", "recipe.yaml", "search.rounds=2", recipe=recipe)
    seed = tmp_path / "runs" / "tiny" / "seed-0"
    metrics = json.loads((seed / "level-02" / "metrics.json").read_text())
    assert metrics["status"] == "complete"
    assert metrics["sparsity"] == pytest.approx(1 - 0.7**2, abs=1e-3)
    assert (metrics["start_step"], metrics["end_step"]) == (5 if method == "one-shot" else 0, 40)


@pytest.mark.parametrize(("retrain", "span"), [("learning-rate", (5, 40)), ("fine-tune", (40, 75))])
def test_retraining_without_rewinding_the_weights(gentickets, tmp_path, retrain, span):
    gentickets("find", "recipe.yaml", f"search.retrain={retrain}", "search.rounds=1", "controls.levels=[1]")
    seed = tmp_path / "runs" / "tiny" / "seed-0"
    for level in ("level-01", "level-01-random_mask"):
        metrics = json.loads((seed / level / "metrics.json").read_text())
        assert (metrics["start_step"], metrics["end_step"]) == span
    gentickets("train", "recipe.yaml", "--ticket", seed / "level-01" / "ticket.safetensors", "--name", "again")
    again = disk.load_weights(tmp_path / "runs" / "again" / "seed-0" / "trained" / "trained.safetensors")
    found = disk.load_weights(seed / "level-01" / "trained.safetensors")
    assert all(torch.equal(tensor, found[name]) for name, tensor in again.items())


def test_a_ticket_travels_and_is_trained(gentickets, tmp_path):
    vae = {
        **TINY,
        "model": {"name": "conv-vae", "width": 4, "latent": 4},
        "objective": {"name": "elbo"},
        "search": {"rounds": 1, "fraction": 0.3},
        "controls": {"levels": []},
        "evaluation": {"samples": 64, "classifiers": 1},
    }
    gan = {
        **vae,
        "name": "other",
        "model": {"name": "dcgan", "width": 4, "latent": 4},
        "objective": {"name": "adversarial"},
    }
    gentickets("find", "recipe.yaml", recipe=vae)
    ticket = "runs/tiny/seed-0/level-01/ticket.safetensors"
    done = gentickets("transfer", ticket, "recipe.yaml", "decoder=generator", "--out", "moved.ticket", recipe=gan)
    assert "moved.ticket" in done.stdout
    gentickets("train", "recipe.yaml", "--ticket", "moved.ticket", recipe=gan)
    trained = disk.load_weights(tmp_path / "runs" / "other-train" / "seed-0" / "trained" / "trained.safetensors")
    moved = gt.Ticket.load(tmp_path / "moved.ticket")
    assert moved.masks.components == ("generator",)
    assert all(not trained[name][~mask].any() for name, mask in moved.masks.items())
    line = one_line(
        gentickets("transfer", ticket, "recipe.yaml", "decoder=generator", "model.width=8", recipe=gan, expect=2)
    )
    assert "cannot travel" in line


def test_a_cut_component_ends_the_ladder_and_is_recorded(gentickets, tmp_path):
    recipe = {
        **TINY,
        "search": {"rounds": 4, "fraction": 0.97, "rewind_step": 5},
        "controls": {"levels": [1]},
    }
    gentickets("find", "recipe.yaml", recipe=recipe)
    found = {
        path.parent.name: json.loads(path.read_text())
        for path in (tmp_path / "runs" / "tiny" / "seed-0").glob("level-*/metrics.json")
    }
    cut = [m for m in found.values() if m["status"] == "disconnected" and m["arm"] == "ticket"]
    assert len(cut) == 1
    assert re.search(r"component '(encoder|decoder)' has no live path .* layer '(encoder|decoder)\.", cut[0]["reason"])
    assert (tmp_path / "runs" / "tiny" / "report.html").exists()


@pytest.mark.parametrize("on_failure", ["continue", "stop"])
def test_a_diverging_training_is_recorded_and_the_search_goes_on_or_ends(gentickets, tmp_path, on_failure):
    recipe = {**TINY, "on_failure": on_failure, "training": {**TINY["training"], "lr": 1e30}}
    done = gentickets("find", "recipe.yaml", recipe=recipe, expect=3)
    assert "nothing was trained to its end: diverged" in done.stderr
    assert (tmp_path / "runs" / "tiny" / "report.html").exists()
    assert "diverged" in (tmp_path / "runs" / "tiny" / "results.csv").read_text()
    run = tmp_path / "runs" / "tiny" / "seed-0"
    first = json.loads((run / "level-00" / "metrics.json").read_text())
    assert first["status"] == "diverged"
    assert "step" in first["reason"]
    assert (run / "level-03").exists() == (on_failure == "continue")


def test_no_space_left_loses_nothing(gentickets, tmp_path):
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs the right to mount a small file system")
    small = tmp_path / "runs"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    wider = {**TINY, "model": {**TINY["model"], "width": 64}}
    try:
        gentickets("find", "recipe.yaml", "search.rounds=0", recipe=wider)
        # Another program's file, once the plan has been made.
        with (small / "foreign").open("wb", buffering=0) as foreign, contextlib.suppress(OSError):
            while foreign.write(bytes(4096)):
                pass
        line = one_line(gentickets("find", "recipe.yaml", recipe=wider, expect=2))
        assert "no space left" in line.lower()
        assert (small / "tiny" / "seed-0" / "level-00" / "metrics.json").exists()
        assert not (small / "tiny" / "seed-0" / "level-03").exists()
        (small / "foreign").unlink()
        gentickets("find", "recipe.yaml", recipe=wider)
        assert (small / "tiny" / "report.html").exists()
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_plan_and_a_refused_fresh_start_leave_the_folder_as_it_was(gentickets, tmp_path):
    run = tmp_path / "runs" / "tiny"
    for extra in ([], ["--fresh"]):
        assert "trainings" in gentickets("find", "recipe.yaml", "--plan", "--time", "1h", *extra).stdout
        assert not run.exists()
    gentickets("find", "recipe.yaml", "search.rounds=0")
    before = sorted(run.iterdir())
    gentickets("find", "recipe.yaml", "--fresh", "data.source=nothing-like-this", expect=2)
    gentickets("find", "recipe.yaml", "--fresh", "--plan")
    assert sorted(run.iterdir()) == before
    other = tmp_path / "runs" / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("no run")
    line = one_line(gentickets("find", "recipe.yaml", "name=other", "--fresh", expect=2))
    assert "is no run" in line
    assert (other / "thesis.txt").exists()


def test_a_run_that_was_fitted_says_so_when_it_goes_on(gentickets, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "measure", lambda *_: Plan(0.001, 0.01, 1, 200, 0.21, 1000, 1000))
    asked = make_recipe({**TINY, "training": {**TINY["training"], "steps": 200}, "search": {"rounds": 0}})
    ready = run_module.prepared(asked, tmp_path / "runs" / "tiny", seconds=0.155)
    assert ready.recipe.training.steps == 140
    done = gentickets("find", "recipe.yaml", "training.steps=200", "search={rounds: 0}")
    assert "given up to fit into the time: training.steps 200 → 140" in done.stdout
    assert gt.Ticket.load(next((tmp_path / "runs" / "tiny").rglob("ticket.safetensors"))) is not None


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes through /proc")
def test_a_seed_whose_process_is_killed_is_one_line(gentickets, tmp_path):
    recipe = {**TINY, "seeds": [0, 1], "training": {**TINY["training"], "steps": 10**6}}
    process = gentickets("find", "recipe.yaml", recipe=recipe, wait=False)
    level = tmp_path / "runs" / "tiny" / "seed-0" / "level-00"
    while process.poll() is None and not (publishing.partial_of(level) / publishing.CHECKPOINT).exists():
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in err
    assert "killed from outside" in err


def test_two_commands_on_one_folder_do_not_meet(tmp_path):
    with (
        disk.locked(tmp_path / "run"),
        pytest.raises(gt.GenticketsError, match="another command"),
        disk.locked(tmp_path / "run"),
    ):
        pass


def test_a_level_is_complete_or_absent(tmp_path):
    place = tmp_path / "level-00"
    with contextlib.suppress(RuntimeError), publishing.building(place) as partial:
        (partial / "half.txt").write_text("half")
        raise RuntimeError
    assert not place.exists()
    (publishing.partial_of(place) / ".ticket.safetensors.1.ab.partial").write_text("of a command that was killed")
    with publishing.building(place) as partial:
        assert (partial / "half.txt").exists()
        (partial / publishing.CHECKPOINT).write_text("state")
    assert sorted(p.name for p in place.iterdir()) == ["SHA256SUMS", "half.txt"]


def test_a_time_budget_gives_up_steps_first_then_rounds():
    recipe = make_recipe({**TINY, "training": {"steps": 1000}, "search": {"rounds": 8, "rewind_step": 100}})
    plan = Plan(0.1, 1.0, 1, 1, 1e6, 10**6, 10**6)
    easy, _, nothing = fit(recipe, plan, 10_000, workers=1)
    assert (easy, nothing) == (recipe, ())
    fitted, new, lost = fit(recipe, plan, 700, workers=1)
    assert new.seconds <= 700
    assert 500 <= fitted.training.steps < 1000
    assert fitted.search.rounds == 8
    assert any("training.steps 1,000" in words for words in lost)
    shorter, new, lost = fit(recipe, plan, 300, workers=1)
    assert new.seconds <= 300
    assert shorter.search.rounds < 8
    assert any("search.rounds 8" in words for words in lost)
    assert any("controls at 1 levels → 0" in words for words in fit(recipe, plan, 230, workers=1)[2])
    only_dense = make_recipe({**TINY, "search": {"rounds": 0}})
    assert fit(only_dense, plan, 10_000, workers=1)[0] == only_dense
    with pytest.raises(gt.RecipeError, match="too short"):
        fit(recipe, plan, 1, workers=1)


def test_durations():
    assert [parse_time(t) for t in ("2h", "90m", "1h30m", "45s", "1.5h")] == [7200, 5400, 5400, 45, 5400]
    for wrong in ("", "soon", "-3h", "0s", "10", "1.2.3h"):
        with pytest.raises(gt.RecipeError, match="duration"):
            parse_time(wrong)
