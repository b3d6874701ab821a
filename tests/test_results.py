"""Run folders read back, and the CSV files. `build_run` makes the folders that the report's tests use too."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from gentickets.errors import RecipeError
from gentickets.lab.results.reading import read_run
from gentickets.lab.results.summary import summarise
from gentickets.lab.results.tables import write_csv

CONTROL_LEVELS = (2, 4)
SHAPES = {
    "encoder.trunk.0.weight": [8, 1, 4, 4],
    "encoder.head.weight": [16, 10],
    "decoder.out.weight": [10, 16],
}


def build_run(folder: Path, name: str = "quick", seeds: tuple[int, ...] = (0, 1), levels: int = 6) -> Path:
    """A run folder as training leaves it: two seeds, six levels, both controls, one seed that diverged."""
    recipe = {
        "name": name,
        "model": {"name": "autoencoder"},
        "objective": {"name": "autoencoding"},
        "search": {"method": "imp", "rounds": levels - 1, "fraction": 0.4},
        "seeds": list(seeds),
    }
    origin = {
        "versions": {"gentickets": "0.1.0", "torch": "2.13.0", "python": "3.12.1"},
        "machine": {"cpu": "a processor", "cores": 2, "memory_gib": 8.0, "gpu": None},
        "data": {"name": "digits", "fingerprint": "ab12cd34", "train": 1437, "test": 360, "shape": [1, 8, 8]},
        "command": "gentickets find quickstart",
        "started": "2026-11-24",
        "features": {"name": "digits-classifier features", "accuracy": 0.97},
    }
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "origin.json").write_text(json.dumps(origin))
    for seed in seeds:
        for level in range(levels):
            diverged = level == levels - 1 and seed == seeds[-1]
            build_level(folder, seed, level, "ticket", "diverged" if diverged else "complete")
        for level in CONTROL_LEVELS:
            for arm in ("random_mask", "redrawn_weights"):
                build_level(folder, seed, level, arm)
    return folder


def build_level(run: Path, seed: int, level: int, arm: str, status: str = "complete") -> Path:
    place = run / f"seed-{seed}" / (f"level-{level:02d}" + ("" if arm == "ticket" else f"-{arm}"))
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(json.dumps(metrics_of(seed, level, arm, status)))
    timing = {"train_seconds": 12.5 - level, "evaluate_seconds": 0.8, "images": 32000}
    (place / "timing.json").write_text(json.dumps(timing))
    lines = [
        {
            "step": step,
            "losses": {"autoencoder": (1 + level) * 2.0 ** (-step / 100)},
            "images_per_second": 900.0,
        }
        for step in range(50, 500, 50)
    ]
    (place / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for picture in ("samples.png", "originals.png") if status == "complete" else ():
        Image.new("L", (32, 32), 40 * level).save(place / picture)
    return place


def metrics_of(seed: int, level: int, arm: str, status: str = "complete") -> dict[str, Any]:
    density = 0.6**level
    layers = {}
    for index, (name, shape) in enumerate(SHAPES.items()):
        total = math.prod(shape)
        layers[name] = {
            "alive": round(total * density ** (0.6 + 0.3 * index)),
            "total": total,
            "shape": shape,
        }
    alive, total = (sum(layer[key] for layer in layers.values()) for key in ("alive", "total"))
    worse = {"ticket": 1.0, "random_mask": 1.5, "redrawn_weights": 1.9}[arm] * (1 + 0.001 * level**3)
    mse = (0.012 + 0.001 * seed) * worse * (1 + 2e-4 * seed * level)  # a little chance: seeds that differ
    metrics = {
        "reconstruction_mse": ("reconstruction MSE, held-out images", mse, True),
        "accuracy": ("accuracy of a classifier on the latents", 0.95 / worse, False),
    }
    return {
        "seed": seed,
        "level": level,
        "arm": arm,
        "status": status,
        "reason": None if status == "complete" else "the loss is not finite at step 120",
        "sparsity": 1 - alive / total,
        "alive": alive,
        "total": total,
        "components": {"encoder": {"alive": alive // 2, "total": total // 2}},
        "layers": layers,
        "primary": "reconstruction_mse",
        "metrics": {
            key: {"label": label, "value": value, "samples": 360, "lower_is_better": lower}
            for key, (label, value, lower) in metrics.items()
            if status == "complete"
        },
        "cost": {
            "parameters": total + 30,
            "alive_parameters": alive + 30,
            "flops_dense": 81234.0,
            "flops_sparse": 81234.0 * density,
            "bytes_dense": 4 * total,
            "bytes_sparse": 6 * alive,
        }
        if status == "complete"
        else None,
        "start_step": 50,
        "end_step": 500,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_run(tmp_path / "runs" / "quick")


def test_levels_are_read_in_order_with_all_that_they_hold(folder):
    run = read_run(folder)
    order = [(r.seed, r.level, r.arm) for r in run.levels]
    assert order[:5] == [(0, 0, "ticket"), (0, 1, "ticket"), (0, 2, "ticket"), (0, 2, "random_mask"),
                         (0, 2, "redrawn_weights")]  # fmt: skip
    assert len(order) == 2 * (6 + 4)
    assert (run.name, run.seeds, run.primary, run.depth) == ("quick", (0, 1), "reconstruction_mse", 5)
    assert list(run.metrics()) == ["reconstruction_mse", "accuracy"]
    first = run.levels[0]
    assert first.layers["encoder.trunk.0.weight"].shape == (8, 1, 4, 4)
    assert first.timing is not None
    assert first.timing.train_seconds == 12.5
    assert first.curve()[0]["step"] == 50
    assert first.samples == folder / "seed-0" / "level-00" / "samples.png"
    assert first.cost is not None
    assert first.cost.bytes_dense == 4 * first.total
    assert run.of("ticket", 5)[1].status == "diverged"


def test_what_is_not_complete_is_left_out(folder):
    for name in (".level-06.partial", "level-06.partial", "level-07", "notes"):
        (folder / "seed-0" / name).mkdir()
    (folder / "seed-0" / ".level-06.partial" / "metrics.json").write_text("{")
    (folder / "seed-0" / "level-06.partial" / "metrics.json").write_text("{")
    assert len(read_run(folder).levels) == 20


def test_the_summary_has_means_deviations_and_failures(folder):
    summary = summarise(read_run(folder), "reconstruction_mse")
    dense = summary["ticket", 0]
    assert dense.mean == pytest.approx(0.0125)
    assert dense.deviation == pytest.approx(0.001 / math.sqrt(2))
    assert (dense.n, dense.complete) == (2, True)
    last = summary["ticket", 5]
    assert (last.n, last.diverged, last.missing, last.deviation) == (1, 1, 0, None)


def test_a_value_that_is_not_finite_counts_as_diverged(folder):
    edit_metrics(folder, lambda found: found["metrics"]["reconstruction_mse"].update(value=math.nan))
    assert summarise(read_run(folder), "reconstruction_mse")["ticket", 3].diverged == 1


def test_a_seed_that_the_recipe_asks_for_and_is_not_there_is_missing(folder):
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"seeds": [0, 1, 2]}))
    dense = summarise(read_run(folder), "reconstruction_mse")["ticket", 0]
    assert (dense.n, dense.missing, dense.complete) == (2, 1, False)


def edit_metrics(folder: Path, change: Any) -> Path:
    path = folder / "seed-0" / "level-03" / "metrics.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found.pop("sparsity"), "sparsity"),
        (lambda found: found.update(sparsity=1.5), "sparsity"),
        (lambda found: found.update(alive="many"), "alive"),
        (lambda found: found.update(arm="magic"), "arm"),
        (lambda found: found.update(level=4), "not where it lies"),
        (lambda found: found.update(metrics={}), "without its primary metric"),
        (lambda found: found.update(primary="accuracy"), "in other levels"),
        (lambda found: found["metrics"]["accuracy"].update(lower_is_better=True), "lower_is_better"),
    ],
)
def test_a_broken_metrics_file_is_named_in_one_line(folder, change, words):
    path = edit_metrics(folder, change)
    with pytest.raises(RecipeError) as error:
        read_run(folder)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_metrics_that_are_no_json_are_named(folder):
    path = folder / "seed-1" / "level-02" / "metrics.json"
    path.write_text("{")
    with pytest.raises(RecipeError, match=r"level-02/metrics.json"):
        read_run(folder)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no run"):
        read_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: empty\n")
    with pytest.raises(RecipeError, match="no level is complete"):
        read_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text("- a list\n")
    build_level(tmp_path, 0, 0, "ticket")
    with pytest.raises(RecipeError, match=r"recipe.yaml: holds no mapping"):
        read_run(tmp_path)


def test_equal_runs_give_equal_csv_bytes(folder, tmp_path):
    first = write_csv(read_run(folder)).read_bytes()
    assert write_csv(read_run(folder)).read_bytes() == first
    other = build_run(tmp_path / "elsewhere")
    (other / "seed-0" / "level-00" / "timing.json").unlink()
    assert write_csv(read_run(other)).read_bytes() == first
    assert [path.name for path in folder.iterdir() if path.name.endswith(".partial")] == []


def test_the_csv_holds_the_floats_exactly(folder):
    run = read_run(folder)
    with open(write_csv(run), newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["seed", "level", "arm", "status", "sparsity", "alive", "total", "start_step",
                             "end_step", "accuracy", "accuracy_samples", "reconstruction_mse",
                             "reconstruction_mse_samples"]  # fmt: skip
    for row, result in zip(rows, run.levels, strict=True):
        assert float(row["sparsity"]) == result.sparsity
        if result.status == "complete":
            assert float(row["reconstruction_mse"]) == result.metrics["reconstruction_mse"].value
            assert row["accuracy_samples"] == "360"
        else:
            assert row["reconstruction_mse"] == row["accuracy_samples"] == ""
    timings = (folder / "timings.csv").read_text().splitlines()
    assert timings[:2] == [
        "seed,level,arm,find_seconds,train_seconds,evaluate_seconds,images",
        "0,0,ticket,,12.5,0.8,32000",
    ]


def test_a_run_is_called_by_its_title_and_is_as_deep_as_its_tickets(folder):
    assert read_run(folder).title == "quick"
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"title": "A quick one"}))
    build_level(folder, 0, 7, "random_mask")
    run = read_run(folder)
    assert (run.title, run.name, run.depth) == ("A quick one", "quick", 5)
