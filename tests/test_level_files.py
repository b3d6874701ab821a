"""The files of a level: nothing is written of a model that is not as sparse as its masks, and prices stay apart."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import gentickets as gt
from gentickets.data import ImageSet
from gentickets.lab.judging import Judge
from gentickets.lab.recipe import EvaluationPart
from gentickets.lab.run import folder as disk
from gentickets.lab.run.level import Made, measure_level, read_price, write_level, write_untrained
from gentickets.lab.run.trainer import Outcome, Price
from gentickets.lab.run.validation import BEST
from gentickets.masks.names import clone, named_state

PIXELS = torch.randint(0, 256, (12, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
IMAGES = ImageSet.from_arrays("noise", PIXELS)
FIND, TRAIN = Price(1.0, 20.0, 3.0), Price(4.0, 50.0, 6.0)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, (1, 4, 4)))


@pytest.fixture
def judge():
    return Judge(gt.Autoencoding(), IMAGES, IMAGES, EvaluationPart(features="none"))


@pytest.fixture
def made():
    model = Tiny()
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.5)
    ticket = gt.Ticket(masks, model, {"level": 2})
    return Made(3, 2, "ticket", ticket, ticket.install(clone(model)), masks, (4, 9))


def write(folder, made, judge, outcome=None):
    inputs = gt.Autoencoding().example_inputs(made.model, IMAGES.images(range(2)))
    write_level(folder, made, outcome or Outcome(find=FIND, train=TRAIN, images=40), None, judge, inputs)
    return json.loads((folder / "metrics.json").read_text())


def test_nothing_is_written_of_a_model_with_a_stray_weight(made, judge, tmp_path):
    with torch.no_grad():
        made.model.encoder[1].weight[~made.masks["encoder.1.weight"]] = 1e-30
    with pytest.raises(gt.MaskError, match=r"encoder\.1\.weight"):
        write(tmp_path, made, judge)
    assert list(tmp_path.iterdir()) == []


def test_a_level_says_whose_it_is_and_what_it_took(made, judge, tmp_path):
    found = write(tmp_path, made, judge)
    place = ("seed", "level", "arm", "start_step", "end_step", "status", "primary")
    assert [found[key] for key in place] == [3, 2, "ticket", 4, 9, "complete", "reconstruction_mse"]
    assert (found["alive"], found["total"], found["sparsity"]) == (48, 96, 0.5)
    assert {name: layer["alive"] for name, layer in found["layers"].items()} == made.masks.counts()
    for name, part in found["components"].items():
        assert part == {"alive": made.masks.select(name).alive, "total": 48}
    names = ("find_flops", "find_live_flops", "train_flops", "train_live_flops")
    assert [found["cost"][name] for name in names] == [20.0, 3.0, 50.0, 6.0]
    timing = json.loads((tmp_path / "timing.json").read_text())
    assert (timing["find_seconds"], timing["train_seconds"], timing["images"]) == (1.0, 4.0, 40)
    assert (read_price(tmp_path, "find"), read_price(tmp_path, "train")) == (FIND, TRAIN)
    error = (made.model.decoder(made.model.encoder(IMAGES.images())) - IMAGES.images()).square().mean()
    assert found["metrics"]["reconstruction_mse"]["value"] == pytest.approx(float(error.detach()), rel=1e-5)
    assert (tmp_path / "samples.png").exists()


def test_what_diverged_is_kept_and_not_judged(made, judge, tmp_path):
    found = write(tmp_path, made, judge, Outcome(status="diverged", reason="step 3: the loss is nan"))
    assert (found["status"], found["reason"], found["metrics"]) == ("diverged", "step 3: the loss is nan", {})
    assert (tmp_path / "trained.safetensors").exists()
    assert not (tmp_path / "samples.png").exists()


def test_a_level_that_was_not_trained_keeps_what_finding_it_took(made, tmp_path):
    write_untrained(tmp_path, 3, 2, "ticket", made.ticket, "reconstruction_mse", "cut", FIND)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert (found["status"], found["reason"], found["metrics"], found["cost"]) == ("disconnected", "cut", {}, None)
    assert gt.Ticket.load(tmp_path / "ticket.safetensors").masks == made.masks
    assert read_price(tmp_path, "find") == Price(1.0)
    assert read_price(tmp_path, "train") == Price()


def test_averages_are_judged_and_the_raw_and_the_best_weights_beside_them(made, judge, tmp_path):
    """Each is a model of its own: the three values are those of the three models, in their places."""
    models = {"": clone(made.model), "_raw": made.model, "_best": clone(made.model)}
    with torch.no_grad():
        for factor, model in zip((0.5, 1.0, 2.0), models.values(), strict=True):
            model.decoder[0].bias.mul_(0).add_(factor)
    disk.save_weights(tmp_path / "averaged.safetensors", named_state(models[""]))
    disk.save_weights(tmp_path / BEST, named_state(models["_best"]))
    found = {one.key: one.value for one in measure_level(tmp_path, made.model, judge)}
    assert found == {
        f"reconstruction_mse{ending}": pytest.approx(judge.measure(clone(model))[0].value)
        for ending, model in models.items()
    }
    assert len(set(found.values())) == 3


def test_the_averages_of_a_training_are_written(made, judge, tmp_path):
    average = nn.Module()
    average.decoder = clone(made.model.decoder)
    outcome = replace(Outcome(find=FIND), averaged=average)
    found = write(tmp_path, made, judge, outcome)
    assert set(found["metrics"]) == {"reconstruction_mse", "reconstruction_mse_raw"}
    written = disk.load_weights(tmp_path / "averaged.safetensors")
    assert set(written) == {"decoder.0.weight", "decoder.0.bias"}


def test_prices_add_up_term_by_term():
    assert Price(5.0, 70.0, 9.0) == FIND + TRAIN
