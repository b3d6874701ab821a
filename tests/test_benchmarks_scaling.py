"""The scaling curves: that the command measures, computes and draws all of them; not how fast anything is."""

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from gentickets.compiled import missing

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `benchmarks` is no part of what is installed

from benchmarks.contest import Contest  # noqa: E402
from benchmarks.pairs import Spread, Timing  # noqa: E402
from benchmarks.scaling import Extent, by_batch, by_rounds, by_sparsity, running_means  # noqa: E402


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """The document and the figure of a quick run."""
    folder = tmp_path_factory.mktemp("scaling")
    out, figure = folder / "new" / "scaling.json", folder / "new" / "scaling.svg"
    options = ["--quick", "--threads", "1", "--out", str(out), "--figure", str(figure)]
    command = [sys.executable, "-m", "benchmarks.scaling", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == sum(map(len, json.loads(out.read_text())["panels"].values()))
    return json.loads(out.read_text()), figure


def test_every_curve_has_its_points(quick: tuple[dict, Path]) -> None:
    document, _ = quick
    assert (document["machine"]["threads"], document["machine"]["torch"]) == (1, torch.__version__)
    panels = document["panels"]
    assert {row["way"] for row in panels["size"]} == {"dense", "masked dense", "accelerated"}
    assert [row["batch"] for row in panels["batch"]] == [16, 16, 32, 32]
    assert [row["sparsity"] for row in panels["sparsity"] if row["way"] == "accelerated"] == [0.0, 0.9]
    pruned = [row["sparsity"] for row in panels["rounds"] if row["way"] == "accelerated"]
    assert pruned == pytest.approx([0, 0.2, 0.36, 0.488])
    for row in (row for rows in panels.values() for row in rows):
        for spread in (row["ratio"], row["ms"]):
            assert 0 < spread["q25"] <= spread["median"] <= spread["q75"] < math.inf


@pytest.mark.skipif(missing() is not None, reason="no sparse kernels were built")
def test_accelerated_nets_hold_their_live_weights_alone(quick: tuple[dict, Path]) -> None:
    for dense, masked, accelerated in zip(*[iter(quick[0]["panels"]["size"])] * 3, strict=True):
        # Four float32 numbers a weight, and biases.
        assert 16 * dense["weights"] < dense["bytes"] < 17 * dense["weights"]
        assert masked["bytes"] == dense["bytes"]
        assert accelerated["bytes"] < 0.1 * dense["bytes"]
        assert accelerated["index_bytes"] > 0 == dense["index_bytes"]


def test_the_figure_has_five_charts_whose_text_is_text(quick: tuple[dict, Path]) -> None:
    file = quick[1]
    assert file.stat().st_size < 150_000
    root = ET.parse(file).getroot()
    assert len([each for each in root.iter() if (each.get("id") or "").startswith("axes_")]) == 5
    said = {(each.text or "").strip() for each in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"dense", "masked dense", "accelerated", "weights", "batch", "MB"} <= said
    assert any("from measured steps" in text for text in said)


TINY = Extent(nets=("tiny-ae",), sparsities=(0.5,), batch_net="tiny-ae", batches=(32, 64), ladder_net="tiny-ae")


def made_up(ratios: list[float], seen: list[Contest]):
    """A pace that runs every contender once and gives these ratios, the last of them for ever."""

    def pace(contest: Contest) -> dict[str, Timing]:
        seen.append(contest)
        for contender in contest.contenders.values():
            contender.run()
        spreads = [Spread(ratio, ratio, ratio) for ratio in ratios]
        spreads += spreads[-1:] * (len(contest.contenders) - len(ratios))
        return dict(zip(contest.contenders, (Timing(spread, spread) for spread in spreads), strict=True))

    return pace


def test_a_ladder_takes_the_mean_of_its_rounds() -> None:
    assert running_means([1.0, 0.5, 0.3]) == pytest.approx([1.0, 0.75, 0.6])
    # The dense reference, then for each round the masked and the accelerated net.
    rows = by_rounds(Extent(rounds=2, ladder_net="tiny-ae"), made_up([1.0, 1.0, 1.0, 1.2, 0.6, 1.1, 0.2], []))
    ladders = {(row["way"], row["round"]): row["ladder"] for row in rows if "ladder" in row}
    assert ladders["masked dense", 2] == pytest.approx(1.1)
    assert ladders["accelerated", 1] == pytest.approx(0.8)
    assert ladders["accelerated", 2] == pytest.approx(0.6)


def test_every_step_is_at_the_sparsity_and_batch_that_its_point_says() -> None:
    seen: list[Contest] = []
    (dense, pruned) = by_sparsity(TINY, made_up([1.0], seen))
    assert (dense["sparsity"], pruned["sparsity"]) == (0.0, 0.5)
    by_batch(TINY, made_up([1.0], seen))
    dense_net, pruned_net = (contender.run.net.model for contender in seen[0].contenders.values())
    assert zeros(dense_net) == 0
    assert zeros(pruned_net) == pytest.approx(0.5, abs=0.01)
    sizes = [(contender.per, len(contender.run.net.batch)) for contender in seen[1].contenders.values()]
    assert sizes == [(64, 64)] * 2 + [(32, 32)] * 2


def zeros(model: torch.nn.Module) -> float:
    weights = torch.cat([weight.detach().flatten() for weight in model.parameters() if weight.dim() > 1])
    return float((weights == 0).float().mean())
