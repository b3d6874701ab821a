"""The benchmarks' arithmetic, on clocks that are made up, and that the command runs; not how fast anything is."""

import json
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `benchmarks` is no part of what is installed

from benchmarks import contest, memory, report  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.contest import Benchmark, Contender, Contest  # noqa: E402
from benchmarks.gpu import two_of_four  # noqa: E402
from benchmarks.masked_step import masked_step  # noqa: E402
from benchmarks.pairs import Spread, compare, measure  # noqa: E402


class Clock:
    """Stands still but for what is run."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, *seconds: float, ran: list[str] | None = None, name: str = "") -> Contender:
        """A contender whose runs take these seconds, the last of them for ever."""
        left = list(seconds)

        def run() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]
            if ran is not None:
                ran.append(name)

        return Contender(run)


def test_ratios_are_taken_within_a_round() -> None:
    # The machine is ten times slower in the second round: the ratio of the medians would be 11 / 20.
    timings = compare({"theirs": [2.0, 20.0, 2.0], "ours": [1.0, 10.0, 1.1]}, "theirs")
    assert timings["ours"].ratio == Spread.of([0.5, 0.5, 0.55])
    assert timings["ours"].ratio.median == 0.5
    assert timings["ours"].ms.median == 1100.0
    assert timings["theirs"].ratio == Spread(1.0, 1.0, 1.0)


def test_quartiles() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1.25, 1.75)


@pytest.mark.parametrize(
    ("at_most", "verdict"),
    [(0.9, "missed"), (1.0, "within spread"), (1.1, "within spread"), (1.2, "reached"), (2.0, "reached")],
)
def test_a_target_between_the_quartiles_is_neither_reached_nor_missed(at_most: float, verdict: str) -> None:
    assert Spread(1.1, 1.0, 1.2).verdict(at_most) == verdict


def test_a_measurement_is_repeated_until_it_is_long_enough_and_given_per_run() -> None:
    clock, ran = Clock(), []
    contenders = {"slow": clock.takes(0.05, ran=ran, name="slow"), "fast": clock.takes(0.004, ran=ran, name="fast")}
    timings = measure(Contest("slow", contenders), rounds=4, shortest=0.02, clock=clock)
    assert timings["fast"].ratio.median == pytest.approx(0.08)
    assert timings["fast"].ms.median == pytest.approx(4.0)
    # Two runs before the rounds; then five a measurement, and one.
    assert (ran.count("fast"), ran.count("slow")) == (2 + 4 * 5, 2 + 4)


def test_the_first_run_warms_and_is_not_counted() -> None:
    clock = Clock()
    timings = measure(Contest("a", {"a": clock.takes(0.9, 0.1), "b": clock.takes(9.0, 0.3)}), rounds=3, clock=clock)
    assert timings["b"].ratio.median == pytest.approx(3.0)
    assert timings["a"].ms.q75 == pytest.approx(100.0)


def test_the_time_of_a_contender_that_does_several_units_is_that_of_one() -> None:
    clock = Clock()
    many = Contender(clock.takes(8.0).run, per=16)
    timings = measure(Contest("one", {"one": clock.takes(1.0), "many": many}), rounds=3, clock=clock)
    assert timings["many"].ratio.median == pytest.approx(0.5)


def test_every_round_has_every_contender_once_in_an_order_of_its_own() -> None:
    clock, ran = Clock(), []
    contenders = {name: clock.takes(2.0, ran=ran, name=name) for name in "abcd"}
    measure(Contest("a", contenders), rounds=8, clock=clock)
    rounds = [tuple(ran[start : start + 4]) for start in range(4, len(ran), 4)]
    assert len(rounds) == 8
    assert all(sorted(each) == list("abcd") for each in rounds)
    assert len(set(rounds)) > 1


@pytest.mark.parametrize(("longest", "rounds"), [(0.0, 3), (35.0, 4), (math.inf, 9)])
def test_no_further_round_is_begun_when_time_is_up(longest: float, rounds: int) -> None:
    clock, ran = Clock(), []
    measure(Contest("a", {"a": clock.takes(10.0, ran=ran)}), rounds=9, longest=longest, clock=clock)
    assert len(ran) == 1 + rounds


def test_targets_are_of_ratios_milliseconds_and_figures() -> None:
    clock = Clock()
    at_most = {"ratio": 0.4, "ms": 600.0, "bytes": 10.0}
    ours = Contender(clock.takes(0.5).run, figures={"bytes": 11}, at_most=at_most)
    race = Contest("theirs", {"theirs": clock.takes(1.0), "ours": ours})
    timings = measure(race, rounds=3, clock=clock)
    named = Benchmark("b", lambda: race, False)
    found = report.result(named, race, timings)["contenders"][1]
    assert [(t["of"], t["verdict"]) for t in found["targets"]] == [
        ("ratio", "missed"),
        ("ms", "reached"),
        ("bytes", "missed"),
    ]
    assert found["figures"] == {"bytes": 11}
    assert (
        report.result(Benchmark("b", lambda: race, False), race, timings, judged=False)["contenders"][1]["targets"]
        == []
    )


def test_a_contest_needs_its_reference() -> None:
    with pytest.raises(ValueError, match="none of ours"):
        Contest("theirs", {"ours": Contender(int)})


def test_every_file_of_the_folder_is_found_and_every_name_is_its_own() -> None:
    contest.load()
    names = [each.name for each in contest.benchmarks()]
    assert len(names) == len(set(names))
    assert {"masked-step/dcgan/0.99", "thresholds/50.0", "epoch"} <= set(names)
    assert {each.name for each in contest.chosen(["compiled/vae"])} == {"compiled/vae"}
    assert not [each for each in contest.chosen([]) if each.on_request]


def test_memory_is_that_of_the_call() -> None:
    found = memory.peak_bytes(lambda: torch.ones(25_000_000))
    if found is None:
        pytest.skip("no high-water mark to be had here")
    assert 90e6 < found < 130e6


def test_every_way_of_masking_trains_the_same_network() -> None:
    found = {}
    race = masked_step("tiny-ae", 0.5)
    with race.closing:
        for name, contender in race.contenders.items():
            for _ in range(5):
                contender.run()
            net = contender.run.net
            with torch.no_grad():
                found[name] = net.model(net.batch)
    dense = {name for name in found if name.startswith("dense")}
    assert len(found) - len(dense) == 6
    for name, output in found.items():
        expected = found["dense" if name in dense else "gentickets hold"]
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5, msg=name)
    assert (found["dense"] - found["gentickets hold"]).abs().max() > 1e-3


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def names(document: dict, benchmark: str) -> list[str]:
    (found,) = [each for each in document["benchmarks"] if each["name"] == benchmark]
    return [row["name"] for row in found["contenders"]]


def numbers(rows: Iterable[dict]) -> Iterable[float]:
    for row in rows:
        for spread in (row["ratio"], row["ms"]):
            assert spread["q25"] <= spread["median"] <= spread["q75"]
            yield from spread.values()


def test_the_command_writes_what_it_measured(tmp_path: Path) -> None:
    out = tmp_path / "new" / "bench.json"
    done = run("masked", "saving", "thresholds", "--quick", "--threads", "1", "--rounds", "2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert document["machine"]["threads"] == 1
    assert document["machine"]["torch"] == torch.__version__
    assert document["settings"]["rounds"] == 2
    assert [each["name"] for each in document["benchmarks"]] == [
        "masked-step/tiny-ae/0.9",
        "thresholds/0.1",
        "saving-tickets/16",
    ]
    assert {"dense", "gentickets hold", "torch.nn.utils.prune"} <= set(names(document, "masked-step/tiny-ae/0.9"))
    for each in document["benchmarks"]:
        assert all(0 < number < math.inf for number in numbers(each["contenders"]))
        (reference,) = [row for row in each["contenders"] if row["name"] == each["reference"]]
        assert reference["ratio"] == {"median": 1.0, "q25": 1.0, "q75": 1.0}
    for name in ("masked-step/tiny-ae/0.9", "gentickets hold", "kthvalue"):
        assert name in done.stdout


def test_a_name_that_nothing_has_is_an_error_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["masked", "no-such-thing"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    assert "no-such-thing" in said.err
    assert "masked-step" in said.err


def test_the_list_says_what_runs_on_request_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "compiled/dcgan (on request)" in lines
    assert "masked-step/dcgan/0.9" in lines


def test_two_of_four_keeps_the_two_largest_of_each_four() -> None:
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5, -1.0, -1.0, -1.0, -4.0]])
    kept = two_of_four(weight)
    assert torch.equal(kept[0, :4], torch.tensor([0.0, -3.0, 2.0, 0.0]))
    assert (kept.reshape(-1, 4) != 0).sum(1).tolist() == [2, 2]
    assert kept[0, 7] == -4.0


def test_a_device_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert main(["gpu", "--device", "cuda"]) == 2
    assert "no CUDA device here" in capsys.readouterr().err
    assert main(["gpu", "--device", "foo"]) == 2
    assert "--device foo: cpu or cuda" in capsys.readouterr().err


def test_what_is_asked_of_a_gpu_is_rehearsed_without_one(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = run("gpu", "--quick", "--threads", "1", "--rounds", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert document["machine"]["gpu"] is None
    assert {"eager", "eager, bf16 autocast"} <= set(names(document, "gpu-step/tiny-ae"))
    assert {"torch.func.vmap", "processes"} <= set(names(document, "gpu-together/tiny-ae/2"))


def test_one_that_fails_leaves_the_others_their_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def failing() -> Contest:
        raise ValueError("no such layout")

    ones = [Benchmark("first", failing, False), Benchmark("second", lambda: Contest("a", {"a": Contender(int)}), False)]
    monkeypatch.setattr("benchmarks.__main__.chosen", lambda *_: ones)
    assert main(["--quick", "--out", str(tmp_path / "out.json")]) == 1
    told = capsys.readouterr()
    assert "first: ValueError: no such layout" in told.err
    assert "1 of 2 failed: first" in told.err
    assert [each["name"] for each in json.loads((tmp_path / "out.json").read_text())["benchmarks"]] == ["second"]
