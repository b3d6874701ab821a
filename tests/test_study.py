"""Studies: arms as runs, the dense training shared, small dense nets of the tickets' sizes, and what they say."""

import csv
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import gentickets as gt
from campaign import keeping
from gentickets import models
from gentickets.catalogue import Named
from gentickets.cli import main
from gentickets.cli.finding import show_study
from gentickets.errors import HardwareError, RecipeError
from gentickets.lab.recipe import make_recipe, read_recipe
from gentickets.lab.recipe.older import SHORT
from gentickets.lab.report import unjudged, write_study
from gentickets.lab.results.baseline import Lag
from gentickets.lab.results.reading import Cost, Evaluations
from gentickets.lab.results.words import join
from gentickets.lab.run import folder as disk
from gentickets.lab.run import hardware, plan, publishing, trainer
from gentickets.lab.run.prepare import prepared
from gentickets.lab.run.stage import load_data
from gentickets.lab.run.work import run_all
from gentickets.lab.study.comparison import read_comparison, write_study_csv
from gentickets.lab.study.small_dense import NEAR, parameters_of, same_size, sizes
from gentickets.lab.study.study import COMPARED, METHODS, read_study, run_study
from gentickets.lab.task import build_model
from made_runs import make_run

TABLE2 = Path(__file__).parent.parent / "recipes" / "paper" / "table2.yaml"
TINY = {
    "name": "tiny",
    "model": {"name": "linear-autoencoder", "width": 16, "depth": 1, "latent": 4},
    "data": {"source": "digits", "size": 8},
    "objective": {"name": "autoencoding"},
    "evaluation": {"classifiers": 1},
    "training": {"steps": 20, "batch_size": 16, "lr": 0.003},
    "search": {"rounds": 2, "fraction": 0.5, "rewind_step": 4},
    "controls": {"levels": [2], "redrawn_weights": False},
    "budgets": {"smoke": {"training.steps": 6, "search": {"rewind_step": 2}}, "desk": {"seeds": [0, 1]}},
}
STUDY = TINY | {
    "study": {
        "arms": {
            "imp": {"title": "IMP"},
            "encoder": {"search": {"components": ["encoder"]}, "controls.levels": []},
            "snip": {"search.method": "snip", "controls.levels": []},
            "rewound-to-0": {"search.rewind_step": 0, "controls.levels": []},
        },
        "published": {
            "source": "a paper",
            "metric": "FID (Inception features)",
            "rows": [
                {"technique": "Unpruned", "arm": "dense", "metric": 40, "weights": 1000, "flops": 1e16},
                {"technique": "Iterative", "arm": "imp", "metric": 50, "weights": 200},
                {"technique": "Pruned at once", "arm": "snip", "level": 1, "metric": 60},
            ],
        },
    },
}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GENTICKETS_CACHE", str(tmp_path_factory.getbasetemp() / "study-cache"))
    monkeypatch.setattr(plan, "CLOCK_SECONDS", 0.01)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def file(tmp_path):
    """Writes a recipe or study file."""

    def write(content):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture
def trained(monkeypatch):
    """What is trained, call by call: (level folder, whether its masks are dense, the steps)."""
    calls = []
    original = trainer.train

    def counting(model, objective, batches, given, **options):
        place = options["checkpoint"].path.parent
        level = re.fullmatch(r"\.(level-[^.]+)(\.\d+)?\.partial", place.name)[1]
        dense = options["masks"].alive == options["masks"].total
        calls.append((f"{place.parent.parent.name}/{level}", dense, options["start_step"], options["end_step"]))
        return original(model, objective, batches, given, **options)

    monkeypatch.setattr(trainer, "train", counting)
    return calls


def run(study, folder, stages=None, stop_at=None):
    """Runs a study in this process; raises `KeyboardInterrupt` where stage `stop_at` first trains."""

    def begin(stage):
        if stages is not None:
            stages.append((stage.label, stage.shared))
        return stopped if stage.index == stop_at else lambda event: None

    def stopped(event):
        raise KeyboardInterrupt

    run_study(study, folder, begin)


def method_of(recipe):
    """How an arm is called: by the criterion where it prunes before training."""
    criterion = recipe.search.told("criterion", None)
    short = {criterion: name for name, criterion in SHORT.items()}
    return short[criterion.name] if recipe.search.method == "at-init" else recipe.search.method


# -- what a file says ---------------------------------------------------------------------------------------


def test_a_budget_comes_first_then_the_command_then_the_arm(file):
    path = file(STUDY)
    steps = {arm.label: arm.recipe.training.steps for arm in read_study(path, budget="smoke").arms}
    assert set(steps.values()) == {6}
    assert read_study(path, ["training.steps=9"], budget="smoke").arms[0].recipe.training.steps == 9
    arms = {arm.label: arm.recipe for arm in read_study(path, ["search.rewind_step=5"]).arms}
    assert {label: arm.build_method().rewind_step for label, arm in arms.items()} == {
        "imp": 5, "encoder": 5, "snip": 0, "rewound-to-0": 0,
    }  # fmt: skip
    assert read_study(path, ["study.arms.snip.search.rounds=1"]).arms[2].recipe.search.rounds == 1
    assert read_recipe(path, budget="desk").seeds == [0, 1]
    assert read_recipe(path, budget="full") == read_recipe(path)


def test_a_budget_can_change_an_arm_however_its_keys_are_written(file):
    budgets = {"smoke": {"study.arms": {"snip.search.rounds": 1, "encoder": {"search": {"rounds": 1}}}}}
    arms = read_study(file(STUDY | {"budgets": budgets}), budget="smoke").arms
    assert [arm.recipe.search.rounds for arm in arms] == [2, 1, 1, 2]
    assert [arm.recipe.search.method for arm in arms] == ["imp", "imp", "at-init", "imp"]


def test_a_plain_recipe_is_compared_by_the_methods_of_the_field(file):
    path = file(TINY)
    study = read_study(path)
    assert (study.name, tuple(arm.label for arm in study.arms)) == ("tiny-compare", COMPARED)
    assert [method_of(arm.recipe) for arm in study.arms] == [arm.label for arm in study.arms]
    for arm in read_study(path, methods=METHODS).arms:
        method = arm.recipe.build_method()
        assert method.rewind_step == (4 if arm.label in ("imp", "one-shot", "few-images", "block-rates") else 0)
        assert method.sparsity_at(method.rounds) == pytest.approx(0.75)
        # Pruning at random is the random mask: it is not its own control.
        assert arm.recipe.controls.random_mask is (arm.label != "random-at-init")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"budget": "week"}, "--budget week: .* knows smoke, desk, full"),
        ({"budgets": {"smoke": 3}}, {}, "budgets: names are needed here"),
        ({}, {"methods": ["imp", "luck"]}, "--methods: 'luck' is none of imp, one-shot, early-bird"),
        ({"study": {"arms": {"a": {"search.method": "luck"}}}}, {}, "arm a: search.method='luck'"),
        ({"study": {"arms": {"a": {"search.speed": 1}}}}, {}, "arm a: search.speed: imp takes rounds, fraction"),
        ({"study": {"arms": {"a/b": {}}}}, {}, "study.arms"),
        ({"study": {"arms": {}}}, {}, "study.arms"),
        ({"study": {"arms": {"dense": {}}}}, {}, "'dense' is what the controls are called"),
        ({"study": {"arms": {"small-dense-12": {}}}}, {}, "'small-dense-12' is what the controls are called"),
        (
            {"study": {"arms": {"a": {}}, "small": True}},
            {},
            "study.unknown key small; known here: arms, parts, small_dense",
        ),
        ({"study": {"arms": {"a": {}}}}, {"methods": ["imp"]}, "names its own arms"),
        (
            {"study": {"arms": {"a": {}, "b": {"evaluation.margin": 0.5}}}},
            {},
            r"unequal evaluation.margin \(a: 0.05, b: 0.5\); say one for all",
        ),
        (
            {"study": STUDY["study"] | {"arms": {"imp": {}}}},
            {},
            "no arm 'snip'; there are dense, imp",
        ),
    ],
)
def test_a_mistake_is_one_line(file, changes, options, message):
    with pytest.raises(RecipeError, match=message) as caught:
        read_study(file(TINY | changes), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("budget", ["smoke", "desk", "full"])
def test_the_papers_table_is_a_study_with_all_its_rows(budget):
    study = read_study(TABLE2, budget=budget)
    assert [method_of(arm.recipe) for arm in study.arms] == ["imp", "early-bird", "early-bird", "snip", "grasp"]
    assert study.arms[2].recipe.training.precision == "bf16-mixed"
    imp, snip = study.arms[0].recipe.build_method(), study.arms[3].recipe.build_method()
    assert imp.sparsity_at(imp.rounds) == pytest.approx(snip.fraction, abs=2e-3)
    assert [(row.metric, row.flops) for row in study.published.rows] == [
        (37.71, 1.12e16), (37.77, 1.16e16), (33.49, 0.13e16), (34.28, 0.13e16), (56.02, 1.12e16), (65.53, 1.12e16),
    ]  # fmt: skip


# -- the dense training is shared ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that ran without a stop: its folder, and what was trained."""
    home = tmp_path_factory.mktemp("study")
    (home / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    patch = pytest.MonkeyPatch()
    patch.setenv("GENTICKETS_CACHE", str(tmp_path_factory.getbasetemp() / "study-cache"))
    patch.setattr(plan, "CLOCK_SECONDS", 0.01)
    calls, stages = [], []
    original = trainer.train

    def counting(*positional, **options):
        calls.append((options["checkpoint"].path.parent, options["masks"].alive == options["masks"].total))
        return original(*positional, **options)

    patch.setattr(trainer, "train", counting)
    threads = torch.get_num_threads()
    run(read_study(home / "study.yaml"), home / "runs" / "tiny", stages)
    torch.set_num_threads(threads)
    patch.undo()
    return home / "runs" / "tiny", calls, dict(stages)


def test_arms_that_train_alike_share_one_dense_training(whole):
    folder, calls, shared = whole
    dense = [place.parent.parent.name for place, is_dense in calls if is_dense]
    # imp's dense training runs in two calls, to the rewind step and on; another rewind step is another training.
    assert [label for label in dense if not label.startswith("small")] == ["imp", "imp", "rewound-to-0"]
    arms = {label: of for label, of in shared.items() if not label.startswith("small-dense-")}
    assert arms == {"imp": {}, "encoder": {0: "imp"}, "snip": {0: "imp"}, "rewound-to-0": {}}
    timings = {arm: disk.read_json(folder / arm / "seed-0" / "level-00" / "timing.json") for arm in ("imp", "snip")}
    assert timings["snip"] == timings["imp"] | {"shared_from": "imp"}


def test_the_campaign_keeps_the_table_of_a_study(whole, tmp_path):
    folder, *_ = whole
    write_study_csv(read_comparison(folder))
    keeping.keep(folder, tmp_path, "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.csv"]  # its metric is no mean over networks
    assert (tmp_path / "tiny.csv").read_bytes() == (folder / "study.csv").read_bytes()


def test_the_table_of_a_study_says_where_each_training_could_have_stopped(whole):
    folder, *_ = whole
    found = read_comparison(folder)
    assert "early_stopping_step" not in write_study_csv(found).read_text()
    first, *others = found.rows
    watched = [replace(result, validation=Evaluations([5, 9], [2.0, 1.0], 9, 7)) for result in first.results]
    rows = csv.DictReader(
        write_study_csv(replace(found, rows=[replace(first, results=tuple(watched)), *others])).read_text().splitlines()
    )
    assert [row["early_stopping_step"] for row in rows][: len(watched) + 1] == [*["7"] * len(watched), ""]
    write_study_csv(found)


def test_the_rows_of_a_study_are_those_that_its_verdicts_rest_on(whole):
    folder, *_ = whole
    comparison = read_comparison(folder)
    for arm, verdict in comparison.verdicts.items():
        rows = {row.level: row for row in comparison.of(arm)}
        assert rows.keys() == {level.level for level in verdict.levels}
        for level in verdict.levels:
            assert (rows[level.level].to_dense, rows[level.level].not_worse) == (level.to_dense, level.not_worse)


def test_arms_without_a_dense_model_to_compare_with_are_told_together(whole, monkeypatch, capsys):
    folder, *_ = whole
    monkeypatch.setattr("gentickets.lab.results.verdict.lag_of", lambda *_: Lag(1.5, 1.2))
    comparison = read_comparison(folder)
    (said,) = unjudged(comparison)
    titles = comparison.record.arms
    assert said.startswith(f"{join(titles[arm] for arm in comparison.verdicts)}: No verdict: the average of the dense")
    assert {row.not_worse for row in comparison.rows} == {None}
    show_study(folder)
    assert " ".join(said.split()) in " ".join(capsys.readouterr().out.split())
    monkeypatch.undo()
    assert unjudged(read_comparison(folder)) == []


@pytest.mark.parametrize("label", ["encoder", "snip"])
def test_a_shared_dense_level_changes_nothing_of_an_arms_tickets(whole, label, tmp_path):
    """The arm run by itself, with a dense training of its own, has the same tickets and the same trained weights."""
    folder, *_ = whole
    recipe = disk.read_run_recipe(folder / label)
    run_all([prepared(recipe, tmp_path / "alone")], lambda event: None)
    for level in ("level-00", "level-01", "level-02"):
        ours, alone = (place / "seed-0" / level for place in (folder / label, tmp_path / "alone"))
        tickets = [gt.Ticket.load(place / "ticket.safetensors") for place in (ours, alone)]
        assert tickets[0].masks == tickets[1].masks
        assert tickets[0].origin == tickets[1].origin
        for name, weight in tickets[0].weights.items():
            assert torch.equal(weight, tickets[1].weights[name]), (level, name)
        if level != "level-00" or label == "encoder":
            trained = [disk.load_weights(place / "trained.safetensors") for place in (ours, alone)]
            assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[1])
            metrics = [disk.read_metrics(place) for place in (ours, alone)]
            assert metrics[0] == metrics[1]


def test_an_arm_that_prunes_at_initialisation_starts_from_the_initial_weights(whole):
    folder, *_ = whole
    recipe = disk.read_run_recipe(folder / "snip")
    initial = build_model(recipe, load_data(recipe.data)[0], 0).state_dict()
    for level in ("level-00", "level-01"):
        ticket = gt.Ticket.load(folder / "snip" / "seed-0" / level / "ticket.safetensors")
        assert ticket.origin["rewind_step"] == 0
        assert all(torch.equal(ticket.weights[name], tensor) for name, tensor in initial.items())


def test_what_was_taken_over_is_not_overwritten_by_its_donor(whole):
    """Linked files share their content; a level that is judged again replaces its files, and leaves the other arm's."""
    folder, *_ = whole
    donor, taken = (folder / arm / "seed-0" / "level-00" / "trained.safetensors" for arm in ("imp", "encoder"))
    before = taken.read_bytes()
    assert donor.read_bytes() == before
    kept = donor.read_bytes()
    disk.save_weights(donor, {"other": torch.zeros(3)})
    assert taken.read_bytes() == before
    donor.write_bytes(kept)


# -- going on -----------------------------------------------------------------------------------------------


def rows_without_seconds(folder):
    rows = list(csv.DictReader(write_study_csv(read_comparison(folder)).read_text().splitlines()))
    return [{key: value for key, value in row.items() if not key.endswith("_seconds")} for row in rows]


def test_a_study_killed_between_arms_goes_on_and_ends_as_if_it_had_not_been(whole, file, trained, tmp_path):
    study = read_study(file(STUDY))
    folder = tmp_path / "runs" / "tiny"
    with pytest.raises(KeyboardInterrupt):
        run(study, folder, stop_at=2)
    assert {label for label, *_ in trained} == {
        "imp/level-00", "imp/level-01", "imp/level-02", "imp/level-02-random_mask",
        "encoder/level-01", "encoder/level-02", "snip/level-01",
    }  # fmt: skip
    comparison = read_comparison(folder)
    assert comparison.unread == ("rewound-to-0",)
    assert "Nothing is complete yet of rewound-to-0" in write_study(comparison).read_text()
    # As a kill in the middle of taking over the dense level leaves it.
    shutil.rmtree(folder / "snip" / "seed-0" / "level-00")
    half = publishing.partial_of(folder / "snip" / "seed-0" / "level-00")
    half.mkdir()
    (half / "ticket.safetensors").write_bytes(b"half a ticket")
    trained.clear()
    run(study, folder)
    assert not [label for label, *_ in trained if label.startswith(("imp/", "encoder/"))]
    assert not [label for label, *_ in trained if label == "snip/level-00"]
    assert rows_without_seconds(folder) == rows_without_seconds(whole[0])
    trained.clear()
    run(study, folder)
    assert trained == []


def test_arms_of_another_recipe_are_refused_and_so_is_a_run(whole, file):
    folder, *_ = whole
    with pytest.raises(RecipeError, match=r"training.steps \(20 there, 21 here\)"):
        run(read_study(file(STUDY), ["training.steps=21"]), folder)
    with pytest.raises(RecipeError, match="is a single run"):
        run(read_study(file(STUDY)), folder / "imp")
    run(read_study(file(STUDY)), folder)  # the record is that of the study again


# -- small dense nets ---------------------------------------------------------------------------------------

SHAPE = (1, 16, 16)
NETS = [
    {"name": "linear-autoencoder", "width": 40, "depth": 3, "latent": 4},
    {"name": "linear-autoencoder", "hidden": [24, 12, 7], "latent": 3},
    {"name": "dcgan", "width": 12, "latent": 8},
    {"name": "conv-vae", "width": 9},
]


@pytest.mark.parametrize("net", NETS, ids=lambda net: "-".join(map(str, net.values())))
@settings(max_examples=15)
@given(target=st.integers(1, 60_000))
def test_the_small_dense_net_is_the_closest_of_all_widths(net, target):
    """Against a look at every width, each net built for real."""
    key = "hidden" if "hidden" in net else "width"
    full = max(net["hidden"]) if key == "hidden" else net["width"]
    best = None
    for width in range(1, full + 1):
        value = [max(1, round(side * width / full)) for side in net["hidden"]] if key == "hidden" else width
        options = {name: option for name, option in net.items() if name != "name"} | {key: value}
        try:
            built = models.CATALOGUE[net["name"]](16, 1, **options)
        except ValueError:
            continue
        count = sum(parameter.numel() for parameter in built.parameters())
        if best is None or abs(count - target) < abs(best - target):
            best = count
    found = same_size(Named.of("model", net), SHAPE, target)
    assert found is not None
    assert (found[1], parameters_of(found[0], SHAPE)) == (best, best)


def test_widths_that_cannot_be_built_are_passed(tmp_path):
    """Of a model of one's own, whose width is found in its signature."""
    (tmp_path / "even.py").write_text(
        "from torch import nn\n"
        "def only_even(width=16):\n"
        "    if width % 2:\n"
        "        raise ValueError('odd')\n"
        "    return nn.ModuleDict({'encoder': nn.Linear(width, 10, bias=False)})\n"
    )
    part = Named("model", f"{tmp_path / 'even.py'}:only_even")
    for target in range(1, 200):
        best = min((10 * width for width in range(2, 17, 2)), key=lambda count: (abs(count - target), count))
        assert same_size(part, SHAPE, target)[1] == best


def test_what_another_study_has_trained_is_not_trained_again(file, tmp_path):
    """The same chain, of fewer rounds, with its controls: linked from a study beside, to the byte, and marked."""
    plain = {"small_dense": False}
    first = TINY | {"name": "first", "study": {"arms": {"imp": {}}, **plain}}
    second = TINY | {
        "name": "second",
        "study": {"arms": {"short": {"search.rounds": 1}, "other": {"search.scope": "layer"}}, **plain},
    }
    stages = []
    for content in (first, second):
        run(read_study(file(content)), tmp_path / "runs" / content["name"], stages)
    seeds = TINY.get("seeds", [0])
    assert stages == [
        ("imp", {}), ("short", dict.fromkeys(seeds, "first/imp")), ("other", dict.fromkeys(seeds, "first/imp"))
    ]  # fmt: skip
    alone = tmp_path / "alone" / "second"
    run(read_study(file(second)), alone)
    for place in sorted((alone / "short").glob("seed-*/level-*")):
        taken = tmp_path / "runs" / "second" / place.relative_to(alone)
        timing = disk.read_json(taken / "timing.json")
        assert (timing["shared_from"], taken.joinpath("metrics.json").exists()) == ("first/imp", True)
        for name in ("trained.safetensors", "samples.png"):
            assert (taken / name).read_bytes() == (place / name).read_bytes()
    results = [(where / "short" / "results.csv").read_bytes() for where in (alone, tmp_path / "runs" / "second")]
    assert results[0] == results[1]


def test_each_size_of_ticket_has_a_small_dense_net(whole):
    folder, *_ = whole
    comparison = read_comparison(folder)
    wanted = sizes(list(comparison.runs.values()))
    assert len(wanted) == len(comparison.small) >= 1
    ticket = comparison.of("imp")[-1]
    row = min((r for r in comparison.rows if r.kind == "small_dense"), key=lambda r: abs(r.parameters - ticket.alive))
    assert row.sparsity == ticket.sparsity
    for label, run_ in comparison.small.items():
        alive = Named.of("model", run_.recipe["model"])
        assert parameters_of(alive, (1, 8, 8)) == int(label.rpartition("-")[2]) == run_.levels[0].cost.parameters
        assert (run_.recipe["training"]["steps"], run_.levels[0].start_step) == (20, 0)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=12))
def test_sizes_near_each_other_are_one(counts):
    def of_size(alive):
        run = make_run({0: (1.0,), 1: (1.0,)}, seeds=1)
        for result in run.levels:
            object.__setattr__(result, "cost", Cost(alive, alive, 1.0, 1.0, 1, 1))
        run.recipe["controls"] = {"levels": [1]}
        return run

    found = sizes([of_size(alive) for alive in counts])
    assert all(later < (1 - NEAR) * earlier for earlier, later in itertools.pairwise(found))
    assert all(any((1 - NEAR) * size <= alive <= size for size in found) for alive in counts)


# -- through the command line -------------------------------------------------------------------------------


def test_a_study_on_the_command_line(tmp_path, tmp_path_factory, monkeypatch, capsys):
    """`find` on a study file with a budget: one table, one page, ours beside what was published; then errors."""
    arms = {"imp": {}, "snip": {"search.method": "snip"}}
    content = STUDY | {"study": STUDY["study"] | {"small_dense": False, "arms": arms}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    cache = str(tmp_path_factory.getbasetemp() / "study-cache")
    environment = {**os.environ, "GENTICKETS_CACHE": cache, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    program = [sys.executable, "-c", "from gentickets.cli import main; main()"]
    command = [*program, "find", "study.yaml", "--budget", "smoke", "controls.levels=[]"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "2 of 2, snip" in done.stderr
    assert "the dense model is that of imp" in done.stderr
    for words in ("Iterative", "50.0", "(1.25×)", "Pruned at once", "FID (Inception features)"):
        assert words in done.stdout
    assert "Ours: reconstruction MSE" in done.stdout
    folder = tmp_path / "runs" / "tiny"
    rows = list(csv.DictReader((folder / "study.csv").read_text().splitlines()))
    assert {row["arm"] for row in rows} == {"imp", "snip"}
    assert all(row["reconstruction_mse"] for row in rows)
    assert all(row["train_flops"] and row["find_seconds"] for row in rows)
    assert (folder / "imp" / "report.html").exists()
    (folder / "study.html").unlink()

    def inside(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["gentickets", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, capsys.readouterr()

    assert inside("report", "runs/tiny")[0] in (0, None)
    assert (folder / "study.html").exists()
    for arguments, message in (
        (["compare", "study.yaml", "--budget", "week"], "knows smoke, desk, full"),
        (["compare", "study.yaml", "--methods", "snip"], "names its own arms"),
        (["find", "study.yaml", "--time", "2h"], "is a study: take --budget"),
    ):
        code, said = inside(*arguments)
        assert (code, len(said.err.strip().splitlines())) == (2, 1)
        assert message in said.err


def test_a_study_with_arms_that_fail_still_has_its_tables(file, tmp_path):
    """One arm prunes until nothing flows, another diverges: rows without values, said to have failed."""
    content = TINY | {
        "controls": {"levels": [1]},
        "study": {
            "arms": {
                "imp": {},
                "cut": {"search": {"rounds": 1, "fraction": 0.9999}, "controls.levels": [1]},
                "diverging": {"training.lr": 1e9, "search.rounds": 1},
            },
        },
    }
    folder = tmp_path / "runs" / "tiny"
    run(read_study(file(content)), folder)
    statuses = {arm: disk.read_metrics(folder / arm / "seed-0" / "level-01")["status"] for arm in ("imp", "cut")}
    assert statuses == {"imp": "complete", "cut": "disconnected"}
    comparison = read_comparison(folder)
    cut = comparison.of("cut")[0]
    assert (cut.point.mean, cut.point.disconnected, cut.not_worse) == (None, 1, "refuted")
    page = write_study(comparison).read_text()
    assert "cut, seed 0, level 1, ticket disconnected" in page
    assert "1 failed" in page
    rows = json.loads(json.dumps(rows_without_seconds(folder)))
    assert [row["status"] for row in rows if row["arm"] == "cut" and row["level"] == "1"] == ["disconnected"]


def test_the_arms_recipes_are_valid_by_themselves(file):
    for arm in read_study(file(STUDY)).arms:
        assert make_recipe(arm.recipe.dump()) == arm.recipe


def test_an_arm_that_the_machine_cannot_run_is_left_out_with_its_reason(file, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "has_bfloat16", lambda accelerator: False)
    raw = {**TINY, "study": {"arms": {"imp": {}, "mixed": {"training.precision": "bf16-mixed"}}, "small_dense": False}}
    study = read_study(file(raw))
    left_out = run_study(study, tmp_path / "out", lambda stage: lambda event: None)
    assert list(left_out) == ["mixed"]
    assert "no bfloat16" in left_out["mixed"]
    assert list(read_comparison(tmp_path / "out").runs) == ["imp"]


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_precision_that_the_machine_lacks_is_refused_where_every_arm_needs_it(precision, file, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "has_bfloat16", lambda accelerator: False)
    raw = {**TINY, "training": {**TINY["training"], "precision": precision, "accelerator": "cpu"}}
    with pytest.raises(HardwareError, match=f"training.precision={precision}: this cpu has no .* 32-true"):
        run_study(read_study(file(raw), methods=["imp"]), tmp_path / "other", lambda stage: lambda event: None)
