"""What a training leaves behind: rates, seconds, the curve, checkpoints. The clock is told here, not real."""

import json
from pathlib import Path

import pytest

from gentickets.training import progress
from gentickets.training.progress import Checkpoint, Curve, Meter, Progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds as this test tells them."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "perf_counter", lambda: Clock.now)
    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_seconds_are_those_before_a_resumption_and_since_without_what_hooks_took(clock):
    meter = Meter(images=30, seconds=50.0)
    clock.now += 8
    assert meter.seconds == 58
    with meter.looking():
        clock.now += 3
    clock.now += 1
    assert (meter.seconds, meter.looked, meter.images) == (59, 3, 30)


def test_the_rate_is_that_since_it_was_last_asked(clock):
    meter = Meter(images=30, seconds=50.0)
    for images, seconds, rate in ((40, 4, 10), (60, 2, 30), (0, 5, 0)):
        meter.images += images
        clock.now += seconds
        assert meter.rate() == pytest.approx(rate)


def test_a_checkpoint_is_due_every_so_many_seconds_since_the_last(clock, tmp_path):
    checkpoint = Checkpoint(tmp_path / "c.pt", "key", every=20.0)
    assert not checkpoint.due()
    clock.now += 19
    assert not checkpoint.due()
    clock.now += 1
    assert checkpoint.due()
    checkpoint.save({"step": 1})
    assert not checkpoint.due()
    clock.now += 20
    assert checkpoint.due()


def test_there_is_no_state_where_nothing_was_saved(tmp_path):
    assert Checkpoint(tmp_path / "c.pt", "key").load() is None


def test_a_curve_has_a_line_a_report(tmp_path):
    curve = Curve(tmp_path / "curve.jsonl")
    curve.rewind(0)
    assert curve.path.read_text() == ""
    curve.add(Progress(20, {"encoder": 0.123456789}, 812.3456))
    curve.add(Progress(40, {"encoder": 1e-9 / 3}, 0.0))
    rows = [json.loads(line) for line in curve.path.read_text().splitlines()]
    assert rows == [
        {"step": 20, "losses": {"encoder": 0.123457}, "images_per_second": 812.3},
        {"step": 40, "losses": {"encoder": 3.33333e-10}, "images_per_second": 0.0},
    ]


@pytest.mark.parametrize(("step", "kept"), [(0, []), (19, []), (20, [20]), (39, [20]), (40, [20, 40]), (99, [20, 40])])
def test_a_curve_keeps_what_lies_before_a_resumption(tmp_path: Path, step, kept):
    curve = Curve(tmp_path / "curve.jsonl")
    curve.path.write_text('{"step": 20}\n{"step": 40}\n{"step": 6')
    curve.rewind(step)
    assert [json.loads(line)["step"] for line in curve.path.read_text().splitlines()] == kept
