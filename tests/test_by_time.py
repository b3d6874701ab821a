"""Tickets of regions of time, found and trained apart, and judged as one model."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gentickets as gt
from gentickets.errors import RecipeError
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run.pieces import Piece
from gentickets.lab.run.prepare import prepared
from gentickets.lab.run.seed import SeedRun, steps_of_seed
from gentickets.lab.run.sharing import Donors
from gentickets.lab.run.stage import load_data, make_judge
from gentickets.lab.shipping import of_level
from gentickets.lab.study.study import read_study
from gentickets.models.by_time import ByTime
from gentickets.objectives import Denoising
from tests.made_runs import begin


class Told(nn.Module):
    """Gives its number, beside the time that it was asked at."""

    def __init__(self, number):
        super().__init__()
        self.number = nn.Parameter(torch.tensor(float(number)))

    def forward(self, images, times, *more):
        return (
            images * 0
            + self.number
            + times[:, None, None, None] / 1000
            + sum(each[:, None, None, None] for each in more)
        )


@settings(max_examples=40, deadline=None)
@given(
    inner=st.sets(st.integers(1, 99), max_size=4),
    times=st.lists(st.integers(0, 99), min_size=1, max_size=8),
    labelled=st.booleans(),
)
def test_each_image_is_told_by_the_network_of_its_time(inner, times, labelled):
    starts = [0, *sorted(inner)]
    model = ByTime([Told(number) for number in range(len(starts))], starts)
    given, images = torch.tensor(times), torch.zeros(len(times), 1, 2, 2)
    more = (torch.arange(len(times)) * 10,) if labelled else ()
    found = model(images, given, *more)[:, 0, 0, 0]
    wanted = [sum(start <= time for start in starts) - 1 + time / 1000 for time in times]
    wanted = torch.tensor(wanted) + (more[0] if labelled else 0)
    assert torch.allclose(found, wanted.float())
    found.sum().backward()
    asked = {sum(start <= time for start in starts) - 1 for time in times}
    assert {number for number, one in enumerate(model.networks) if one.number.grad is not None} == asked


@pytest.mark.parametrize("starts", [[1, 2], [0, 0], [0], [0, 3, 2]])
def test_starts_that_are_no_regions_are_refused(starts):
    with pytest.raises(ValueError, match="rising from 0"):
        ByTime([Told(0), Told(1)], starts)


def test_a_denoiser_of_some_times_is_trained_and_judged_on_these_alone():
    asked = []

    class Listens(nn.Module):
        def forward(self, images, times):
            asked.append(times)
            return images * 0

    model, images = nn.ModuleDict({"denoiser": Listens()}), torch.zeros(64, 1, 4, 4)
    some = Denoising(timesteps=100, times=[30, 37])
    for seed in range(4):
        next(some.losses(model, images, torch.Generator().manual_seed(seed)))
        some.measures()["denoising_loss_30_37"].of(model, images, torch.Generator().manual_seed(seed))
    assert set(torch.cat(asked).tolist()) == set(range(30, 37))
    assert some.example_inputs(model, images)["denoiser"][1][0] == 33
    assert not some.can_sample
    with pytest.raises(gt.GenticketsError, match="times="):
        some.sample(model, 2, torch.Generator())
    assert list(Denoising().measures()) == ["denoising_loss"]


@pytest.mark.parametrize("times", [[5, 5], [9, 3], [0, 101]])
def test_times_that_there_are_not_are_refused_with_their_key(times):
    with pytest.raises(ValueError, match="times="):
        Denoising(timesteps=100, times=times)
    with pytest.raises(RecipeError, match=r"objective\.times"):
        make_recipe({**BASE, "name": "none", "objective": {**BASE["objective"], "times": times}})


TINY = """
import torch
from torch import nn

class Denoiser(nn.Module):
    image_shape = (1, 8, 8)

    def __init__(self, width):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.GroupNorm(width, width)
        self.time, self.out = nn.Linear(1, width), nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, images, times):
        told = self.time(times[:, None] / 100)[:, :, None, None]
        return self.out(torch.relu(self.norm(self.stem(images)) + told))

def tiny(width: int = 4):
    return {"denoiser": Denoiser(width)}
"""


@pytest.fixture(scope="module", autouse=True)
def tiny_model(tmp_path_factory):
    """What the recipes name is a file in the current folder."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "tiny.py").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


BASE = {
    "model": {"name": "tiny.py:tiny"},
    "data": {"source": "digits", "size": 8, "limit": 60},
    "objective": {"name": "denoising", "timesteps": 100, "sampling_steps": 4},
    "training": {"steps": 8, "batch_size": 8, "ema": 0.5},
    "search": {
        "method": "early-bird", "rounds": 1, "granularity": "channel", "scope": "layer", "fraction": 0.5, "interval": 1,
    },
    "evaluation": {"features": "none"},
    "controls": {"levels": [1]},
}  # fmt: skip


def part(name, times, **more):
    return make_recipe({**BASE, "name": name, "objective": {**BASE["objective"], "times": times}, **more})


def whole(name, source, **more):
    return make_recipe({**BASE, "name": name, "search": {"method": "by-time", "source": source}, **more})


def seed_run(recipe, runs):
    train, held_out = load_data(recipe.data)
    folder = runs / recipe.name
    begin(folder, recipe)
    return SeedRun(recipe, folder, 0, train, make_judge(recipe, train, held_out))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for recipe in (part("early", [40, 100]), part("late", [0, 40])):
        seed_run(recipe, folder).run()
    # The same again as a run of other times, and as one without a control.
    for name in ("overlapping", "apart"):
        shutil.copytree(folder / "early", folder / name)
    begin(folder / "overlapping", part("overlapping", [30, 100]))
    shutil.rmtree(folder / "apart" / "seed-0" / "level-01-random_mask")
    return folder


@pytest.fixture(scope="module")
def together(runs):
    made = seed_run(whole("together", ["early", "late"]), runs)
    made.run()
    return made


def read(place, name):
    return json.loads((place / name).read_text())


@pytest.mark.parametrize("arm", ["ticket", "random_mask", "redrawn_weights"])
def test_the_whole_gives_at_each_time_what_the_regions_own_model_gives(arm, runs, together):
    model = together.judged(1, arm)
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for name, times in (("late", [0, 20, 39]), ("early", [40, 41, 99])):
        own = seed_run(part(name, [0, 40] if name == "late" else [40, 100]), runs).judged(1, arm)
        for time in times:
            asked = images, torch.full((6,), time)
            with torch.no_grad():
                assert torch.equal(model.denoiser(*asked), own.denoiser(*asked))


def test_all_seconds_count_search_and_training_of_every_region(runs, together):
    place = "seed-0/level-01"
    mine = read(together.folder / "level-01", "timing.json")
    theirs = [read(runs / name / place, "timing.json") for name in ("early", "late")]
    for key in ("find_seconds", "train_seconds"):
        assert mine[key] == pytest.approx(sum(one[key] for one in theirs)) != 0
    mine, theirs = (
        [read(run / place, "metrics.json")["cost"] for run in whose]
        for whose in ([runs / "together"], [runs / "early", runs / "late"])
    )
    for key in ("find_flops", "train_flops", "parameters", "alive_parameters"):
        assert mine[0][key] == pytest.approx(sum(one[key] for one in theirs), rel=1e-3)
    control = read(runs / "together" / f"{place}-random_mask", "timing.json")
    ticket = read(runs / "together" / place, "timing.json")
    assert control["find_seconds"] == ticket["find_seconds"]


def test_it_is_judged_over_all_times_and_makes_samples(together):
    metrics = read(together.folder / "level-01", "metrics.json")
    assert metrics["primary"] == "denoising_loss"
    assert metrics["metrics"]["denoising_loss"]["value"] > 0
    assert (together.folder / "level-01" / "samples.png").exists()
    assert steps_of_seed(together.recipe) == 8  # the dense model's own: nothing else is trained


def test_a_ticket_has_all_networks_and_says_whose_they_were(runs, together):
    ticket = gt.Ticket.load(together.folder / "level-01" / "ticket.safetensors")
    assert ticket.origin["by_time"]["starts"] == [0, 40]
    assert [one["recipe"] for one in ticket.origin["by_time"]["of"]] == ["late", "early"]
    late = gt.Ticket.load(runs / "late" / "seed-0" / "level-01" / "ticket.safetensors")
    for name in late.masks:
        assert torch.equal(ticket.masks[name.replace("denoiser.", "denoiser.networks.0.")], late.masks[name])


@pytest.mark.parametrize(
    ("source", "more", "said"),
    [
        (
            ["overlapping", "late"],
            {"controls": {"levels": []}},
            r"overlapping \[30, 100\] are not all times from 0 to 100",
        ),
        (["late"], {}, "are not all times"),
        (["early", "late"], {"objective": {**BASE["objective"], "prediction": "v"}}, "'early' has another objective"),
        (["early", "late"], {"model": {**BASE["model"], "width": 8}}, "'early' has another model"),
        (["early", "nowhere"], {}, "'nowhere' is no run"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(source, more, said, runs, tmp_path_factory):
    recipe = whole(f"refused-{len(said)}", source, **more)
    with pytest.raises(RecipeError, match=said):
        seed_run(recipe, runs).run()


def test_a_control_that_a_region_does_not_have_is_missed_by_name(runs):
    with pytest.raises(RecipeError, match=r"level-01-random_mask .* controls.random_mask=false"):
        seed_run(whole("missing", ["apart", "late"]), runs).run()


def test_whoever_works_on_the_whole_waits_for_all_regions_and_for_their_controls(tmp_path):
    recipes = [part("early", [40, 100]), part("late", [0, 40]), whole("whole", ["early", "late"])]
    *regions, ready = [prepared(recipe, tmp_path / recipe.name) for recipe in recipes]
    donors = Donors(replace(ready, donors=tuple(region.folder for region in regions)))
    assert donors.before(Piece(0, 0)) == []
    for piece in (Piece(0, 1), Piece(0, 1, "random_mask"), Piece(0, 1, "redrawn_weights")):
        assert [(run.name, one) for run, one in donors.before(piece)] == [("early", piece), ("late", piece)]
    (tmp_path / "late" / "seed-0" / "level-01").mkdir(parents=True)
    assert [run.name for run, _ in donors.before(Piece(0, 1))] == ["early"]


def test_what_was_put_together_is_handed_out_part_by_part(together):
    with pytest.raises(gt.GenticketsError, match="the same level of each of early, late"):
        of_level(together.folder / "level-01", allow_code=True)


def test_the_same_source_twice_is_refused():
    with pytest.raises(RecipeError, match=r"search\.source=.*each once"):
        whole("twice", ["late", "late"])


def test_parts_of_a_study_are_made_first_and_not_compared(tmp_path):
    file = tmp_path / "study.yaml"
    arms = {"whole": {"search": {"method": "by-time", "source": ["a", "b"]}}}
    parts = {"a": {"objective.times": [0, 40]}, "b": {"objective.times": [40, 100]}}
    file.write_text(json.dumps({**BASE, "name": "study", "study": {"arms": arms, "parts": parts}}))
    study = read_study(file, allow_code=True)
    assert [arm.label for arm in study.runs] == ["a", "b", "whole"]
    assert [arm.label for arm in study.arms] == ["whole"]
    file.write_text(json.dumps({**BASE, "name": "study", "study": {"arms": arms, "parts": {"whole": {}}}}))
    with pytest.raises(RecipeError, match="'whole' is both a part and an arm"):
        read_study(file, allow_code=True)
