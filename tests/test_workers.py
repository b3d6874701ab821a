"""Several workers on one run or study, in one process: who waits for whom, who gives way, what must not be mixed."""

from __future__ import annotations

import json
import re
import shutil
import time
import warnings
from dataclasses import replace

import pytest
import torch

from gentickets.errors import GenticketsError, RecipeError
from gentickets.lab.executors.order import ToDo
from gentickets.lab.recipe import make_recipe
from gentickets.lab.report import page
from gentickets.lab.run import again, plan, publishing
from gentickets.lab.run import folder as disk
from gentickets.lab.run.again import evaluate_again
from gentickets.lab.run.claims import Claims
from gentickets.lab.run.keeping import let_go
from gentickets.lab.run.level import measure_level
from gentickets.lab.run.pieces import Board, Piece
from gentickets.lab.run.prepare import joined, prepared
from gentickets.lab.run.status import Watch, statuses
from gentickets.lab.run.work import Worker, make_piece, run_all, write_results
from gentickets.lab.study.study import read_study, run_study
from gentickets.search.imp import Imp

TINY = {
    "name": "tiny",
    "model": {"name": "linear-autoencoder", "width": 8, "depth": 1, "latent": 4},
    "data": {"source": "digits", "size": 8, "limit": 200},
    "objective": {"name": "autoencoding"},
    "training": {"steps": 12, "batch_size": 16, "lr": 0.003, "threads": 1},
    "search": {"rounds": 2, "fraction": 0.4, "rewind_step": 3},
    "controls": {"levels": [1]},
    "evaluation": {"features": "none"},
    "seeds": [0],
}
CARRIED = {
    "method": "transferred", "source": "imp", "carry": {"decoder": "decoder"}, "rounds": 2, "rewind_step": 3,
}  # fmt: skip
STUDY = {**TINY, "study": {"small_dense": False, "arms": {
    "imp": {"title": "IMP"},
    "carried": {"search": CARRIED, "objective": {"name": "autoencoding"}, "controls.levels": []},
}}}  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GENTICKETS_CACHE", str(tmp_path_factory.getbasetemp() / "workers-cache"))
    monkeypatch.setattr(plan, "CLOCK_SECONDS", 0.01)
    monkeypatch.setattr(plan, "give_back", lambda: None)  # collecting all of pytest's garbage takes half a second
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def begun(tmp_path, **changes):
    recipe = make_recipe({**TINY, **changes})
    return prepared(recipe, tmp_path / recipe.name)


def ignore(event):
    pass


def never():
    return False


def worker(*runs):
    return Worker(runs, ignore, never)


def finish(*runs):
    one = worker(*runs)
    while one.is_anything_left():
        assert one.make_one()


def rows(folder):
    write_results(folder)
    return (folder / "results.csv").read_bytes()


def test_two_workers_take_turns_and_make_what_one_makes(tmp_path):
    finish(alone := begun(tmp_path / "alone"))
    shared = begun(tmp_path / "shared")
    first, second = worker(shared), worker(shared)
    turns = 0
    while first.is_anything_left():
        turns += first.make_one() + second.make_one()
    assert turns == 5
    assert rows(shared.folder) == rows(alone.folder)
    assert not (shared.folder / ".claims").exists()


def test_who_carries_tickets_over_waits_for_them_and_trains_its_dense_model_meanwhile(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    study = read_study(tmp_path / "study.json")
    run_study(study, tmp_path / "whole", lambda stage: ignore)
    folder = tmp_path / "runs"
    imp, carried = (prepared(arm.recipe, folder / arm.label) for arm in study.arms)
    carried = replace(carried, donors=(imp.folder,))
    elsewhere = Claims(imp.folder)
    held = elsewhere.take("seed-0/level-01")
    one = worker(imp, carried)
    while one.make_one():
        pass
    made = {str(level.relative_to(folder)) for level in folder.glob("*/seed-0/level-*")}
    assert made == {"imp/seed-0/level-00", "carried/seed-0/level-00"}
    with pytest.raises(GenticketsError, match=r"carried/seed-0/level-01 is not ready: it needs .*imp/seed-0/level-01"):
        make_piece(carried, "seed-0/level-01", ignore)
    jobs = ToDo([imp, carried]).left()
    assert jobs["carried/seed-0/level-01"] == ("imp/seed-0/level-01",)
    assert jobs["carried/seed-0/level-02"] == ("carried/seed-0/level-01", "imp/seed-0/level-02")
    held.complete(elsewhere, "seed-0/level-01")
    finish(imp, carried)
    for label in ("imp", "carried"):
        assert rows(folder / label) == (tmp_path / "whole" / label / "results.csv").read_bytes()


def test_tickets_of_a_seed_are_never_taken_from_another_while_its_own_are_to_come(tmp_path):
    source = begun(tmp_path, name="imp", seeds=[0, 1], controls={"levels": []})
    finish(replace(source, recipe=source.recipe.model_copy(update={"seeds": (0,)})))
    carried = begun(tmp_path, name="carried", search=CARRIED, seeds=[1], controls={"levels": []})
    with pytest.raises(RecipeError, match="has no complete level-02 of seed 1: run it first"):
        worker(carried).make_one()
    finish(source)
    finish(carried)
    shutil.rmtree(carried.folder)
    finish(begun(tmp_path, name="carried", search=CARRIED, seeds=[7], controls={"levels": []}))  # of its first


def test_a_donor_that_will_not_make_it_is_not_waited_for(tmp_path):
    """The recipe in its folder has more seeds than this command makes of it: an earlier one asked for them."""
    twin = begun(tmp_path, name="first", seeds=[0, 1], controls={"levels": []})
    fewer = replace(twin, recipe=twin.recipe.model_copy(update={"seeds": (0,)}))
    second = begun(tmp_path, name="second", seeds=[0, 1], controls={"levels": []})
    finish(fewer, replace(second, donors=(twin.folder,)))
    shared = [json.loads((second.folder / f"seed-{seed}/level-02/timing.json").read_text()) for seed in (0, 1)]
    assert [timing.get("shared_from") for timing in shared] == ["first", None]


def test_a_control_that_cannot_be_is_nobodys_work(tmp_path, monkeypatch):
    """As of an early bird that never settles: the run is complete without, to whoever looks."""
    monkeypatch.setattr(Imp, "has_controls", lambda self, work, index: False)
    run = begun(tmp_path)
    finish(run)
    control = Piece(0, 1, "random_mask")
    assert not (run.folder / control.name).exists()
    assert not Board(run.folder, run.recipe).ready()
    status = Watch(run.folder).look()
    assert status.is_complete
    assert {one.state for one in status.pieces if one.piece.arm != "ticket"} == {"left out"}
    assert make_piece(run, control.name, ignore).endswith("not made: its level has no such control")


def test_a_run_that_is_begun_anew_is_no_longer_that_of_who_worked_on_it(tmp_path):
    """In the moment between two pieces nobody has a claim: whoever comes back then must not mix the two."""
    old = begun(tmp_path)
    slow = worker(old)
    assert slow.make_one()
    new = prepared(make_recipe({**TINY, "training": {**TINY["training"], "steps": 14}}), old.folder, fresh=True)
    with pytest.raises(RecipeError, match="was begun anew, or judged anew, by another command"):
        slow.make_one()
    assert not list(old.folder.glob("seed-0/*level*"))
    finish(new)
    assert not (old.folder / ".claims").exists()


def test_a_run_that_is_judged_anew_is_judged_by_one_recipe(tmp_path):
    old = begun(tmp_path)
    slow = worker(old)
    assert slow.make_one()
    evaluate_again(old.folder, {"samples": 50}, ignore)
    with pytest.raises(RecipeError, match="judged anew"):
        slow.make_one()
    finish(joined(old.folder))


def test_who_judges_anew_and_was_stopped_for_long_writes_nothing(tmp_path, monkeypatch):
    run = begun(tmp_path)
    assert worker(run).make_one()
    before = (run.folder / "seed-0/level-00/metrics.json").read_bytes()

    def stopped(*given):
        shutil.rmtree(run.folder / ".claims")  # as others would take it over
        return measure_level(*given)

    monkeypatch.setattr(again, "measure_level", stopped)
    with pytest.raises(GenticketsError, match="was worked on meanwhile"):
        evaluate_again(run.folder, {"samples": 50}, ignore)
    assert (run.folder / "seed-0/level-00/metrics.json").read_bytes() == before
    finish(run)


def test_nothing_is_taken_while_somebody_has_the_run_alone(tmp_path):
    run = begun(tmp_path)
    claims = Claims(run.folder)
    with claims.alone():
        assert not worker(run).make_one()
        with pytest.raises(GenticketsError, match="is being judged or begun anew by process"), claims.alone():
            pass
    held = claims.take("seed-0/level-00")
    with pytest.raises(GenticketsError, match="is being worked on"), Claims(run.folder).alone():
        pass
    held.complete(claims, "seed-0/level-00")
    finish(run)


def wake_where_the_folder_is_gone(place):
    with publishing.building(place, 1) as partial:
        shutil.rmtree(partial)
        disk.write_json(partial / "metrics.json", {"of": "who slept"})


def wake_where_it_is_complete(place):
    with publishing.building(place, 1):
        with publishing.building(place, 2) as faster:
            (faster / "metrics.json").write_text("of who was faster")
        assert not publishing.partial_of(place, 1).exists()
        disk.write_json(publishing.partial_of(place, 1) / "metrics.json", {"of": "who slept"})


@pytest.mark.parametrize("wake", [wake_where_the_folder_is_gone, wake_where_it_is_complete])
def test_a_folder_that_was_removed_and_half_written_again_is_not_published(tmp_path, wake):
    place = tmp_path / "seed-0" / "level-00"
    with pytest.raises(publishing.Published):
        wake(place)
    if place.exists():
        assert (place / "metrics.json").read_text() == "of who was faster"
    assert [entry.name for entry in (tmp_path / "seed-0").iterdir() if entry.name != "level-00"] == []


def test_weights_that_are_let_go_of_while_they_are_checked_are_not_damaged(tmp_path, monkeypatch):
    run = begun(tmp_path, keep="all")
    finish(run)
    place, read = run.folder / "seed-0" / "level-01", publishing.read_file

    def read_and_let_go(path, *most):
        found = read(path, *most)
        if path.name == publishing.SUMS:
            with monkeypatch.context() as another:  # worker, who reads it too
                another.setattr(publishing, "read_file", read)
                let_go(place.parent, "ends")
        return found

    monkeypatch.setattr(publishing, "read_file", read_and_let_go)
    assert publishing.changed_files(place) == []
    assert not (place / "trained.safetensors").exists()


def test_claims_that_were_removed_by_hand_give_nobodys_folder_to_another(tmp_path):
    """As the message says that one may: whoever is stopped there after all goes on in a folder of its own."""
    place = tmp_path / "seed-0" / "level-00"
    stopped = Claims(tmp_path).take("seed-0/level-00", above=publishing.newest_fence(place))
    publishing.partial_of(place, stopped.number).mkdir(parents=True)
    shutil.rmtree(tmp_path / ".claims")
    next_one = Claims(tmp_path).take("seed-0/level-00", above=publishing.newest_fence(place))
    assert next_one.number == 2
    assert not next_one.ended
    publishing.go_on_from(place, next_one.number, next_one.ended)
    assert publishing.partial_of(place, 1).exists()
    assert stopped.look()
    stopped.give_back()  # which ends nobody else's
    assert Claims(tmp_path).is_live("seed-0/level-00")
    next_one.give_back()


def test_only_the_folder_of_one_who_has_ended_is_taken_itself(tmp_path):
    """The last owner is known to have ended, before it built anything; the one before it may only sleep."""
    place, claims = tmp_path / "seed-0" / "level-00", Claims(tmp_path)
    publishing.partial_of(place, 1).mkdir(parents=True)
    publishing.go_on_from(place, 3, {2})
    assert publishing.partial_of(place, 1).exists()
    assert publishing.partial_of(place, 3).exists()
    publishing.go_on_from(place, 4, {2, 3})
    assert not publishing.partial_of(place, 3).exists()
    assert claims.names() == []


def test_a_damaged_level_is_made_again_while_others_work(tmp_path):
    run = begun(tmp_path)
    finish(run)
    before = rows(run.folder)
    other = worker(run)
    (run.folder / "seed-0/level-01/ticket.safetensors").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="dropped, and made again"):
        prepared(make_recipe(TINY), run.folder)
    assert not list((run.folder / "seed-0").glob(".*"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while other.is_anything_left():
            other.make_one()
    assert rows(run.folder) == before


def test_what_was_left_of_complete_pieces_goes_with_the_results(tmp_path):
    run = begun(tmp_path)
    run_all([run], ignore)
    claims = Claims(run.folder)
    claims.take("seed-0/level-01").give_back()
    publishing.partial_of(run.folder / "seed-0/level-01", 3).mkdir()
    write_results(run.folder)
    assert not (run.folder / ".claims").exists()
    assert not list((run.folder / "seed-0").glob(".*partial"))


def test_seeds_that_are_asked_for_at_once_are_all_of_the_run(tmp_path):
    first = begun(tmp_path, seeds=[0], controls={"levels": []})
    second = begun(tmp_path, seeds=[3, 1], controls={"levels": []})
    finish(first)
    finish(second)
    again = begun(tmp_path, seeds=[0], controls={"levels": []})
    assert not worker(again).is_anything_left()
    assert sorted(disk.read_run_recipe(first.folder).seeds) == [0, 1, 3]
    assert {line.split(b",")[0] for line in rows(first.folder).splitlines()[1:]} == {b"0", b"1", b"3"}


@pytest.mark.parametrize(("part", "key"), [("versions", "torch"), ("data", "fingerprint")])
def test_workers_of_other_versions_or_data_are_refused_by_name(tmp_path, part, key):
    run = begun(tmp_path)
    origin = disk.read_origin(run.folder)
    disk.write_json(run.folder / "origin.json", {**origin, part: {**origin[part], key: "another"}})
    with pytest.raises(RecipeError, match=f"{run.folder}.*(torch another|the data of)"):
        run_all([joined(run.folder)], ignore)
    assert not list(run.folder.glob("seed-0/*"))


def test_the_page_of_a_run_in_the_making_says_where_it_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "write_figures", lambda run: [])
    run = begun(tmp_path, controls={"levels": [1], "redrawn_weights": False})
    assert worker(run).make_one()
    assert worker(run).make_one()
    claims = Claims(run.folder)
    held = claims.take("seed-0/level-02")
    claims.take("seed-0/level-01-random_mask").give_back("it <rained>")
    shown = page.write_report([run.folder]).read_text()
    assert "2 done, 1 running, 1 failed of its trainings" in shown
    assert "seed-0/level-02" in shown
    assert "it &lt;rained&gt;" in shown
    held.complete(claims, "seed-0/level-02")
    finish(run)
    assert "Where it stands" not in page.write_report([run.folder]).read_text()


def test_a_silent_worker_of_another_machine_is_told_after_a_lease(tmp_path, monkeypatch):
    monkeypatch.setenv("GENTICKETS_LEASE", "0.5")
    run = begun(tmp_path, controls={"levels": []})
    held = Claims(run.folder, lease_seconds=1e6).take("seed-0/level-00")
    path = run.folder / ".claims" / "seed-0+level-00" / "1"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "another"}))
    watch = Watch(run.folder)
    assert watch.look().counts() == {"running": 1, "waiting": 2}
    deadline = time.monotonic() + 30
    while "running" in (found := watch.look()).counts() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found.counts() == {"stopped": 1, "waiting": 2}
    assert re.fullmatch(r"goes on with .*; process \d+ on .* has been silent for a lease", found.pieces[0].why)
    held.give_back()
    assert watch.look().pieces[0].why == "goes on with the next worker"
    watches = {}
    (tmp_path / "study.yaml").write_text("")
    assert [one.folder.name for one in statuses(tmp_path, watches)] == ["tiny"]
