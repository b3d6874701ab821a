"""A recipe to start from: whatever it is asked for, what is written runs as it stands, or one line says why not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gentickets.lab.recipe import read_keys
from gentickets.lab.recipe.keys import keys
from test_own_code import refused, run_program

NETS = """
import torch
from torch import nn


def gan(width: int = 8):
    generator = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 64), nn.Unflatten(1, (1, 8, 8)))
    return {"generator": generator, "discriminator": nn.Sequential(nn.Flatten(), nn.Linear(64, 1))}


class Coding(nn.Linear):
    def forward(self, images):
        return super().forward(images.flatten(1))


class Halving(Coding):
    def forward(self, images):
        return super().forward(images).chunk(2, 1)


def coder(size, channels, encoder, outputs):
    pixels = channels * size * size
    back = nn.Sequential(nn.Linear(6, pixels), nn.Unflatten(1, (channels, size, size)))
    return {"encoder": encoder(pixels, outputs), "decoder": back}


def autoencoder(size, channels):
    return coder(size, channels, Coding, 6)


def vae(size, channels, latent: int = 6):
    return coder(size, channels, Halving, 12)


def wrong(size, channels):
    return coder(size, channels, Coding, 7)


def others():
    return {"net": nn.Linear(2, 2), "head": nn.Linear(2, 2)}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with nets and a folder of 40 colour images, 20x18."""
    folder = tmp_path_factory.mktemp("init")
    (folder / "nets.py").write_text(NETS)
    (folder / "faces").mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 256, (18, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "faces" / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def _cache(place, monkeypatch):
    monkeypatch.setenv("GENTICKETS_CACHE", str(place / "cache"))


def written(place: Path, name: str, *arguments: str) -> tuple[dict, str]:
    """The keys of the recipe that is written, and what is told."""
    code, said, err = run_program(place, "init", *arguments, "--out", f"{name}.yaml")
    assert (code, err) == (0, "")
    return read_keys(place / f"{name}.yaml", allow_code=True), said


def test_the_recipe_for_a_folder_and_a_model_of_ones_own_runs(place):
    raw, said = written(place, "gan", "faces", "--model", "nets.py:gan")
    assert "images: 36 to train on and 4 held out, of side 18: data.size=8, data.channels=1\n" in said
    assert "objective: adversarial, guessed from the components generator, discriminator\n" in said
    assert said.endswith("gentickets find gan.yaml --plan --allow-code\n")
    assert raw["model"] == {"name": "nets.py:gan", "width": 8}
    assert raw["data"] == {"source": "faces", "size": 8, "channels": 1}
    assert raw["objective"] == {"name": "adversarial", "latent_size": 5}
    assert raw["training"]["batch_size"] < 36
    code, planned, _ = run_program(place, *said.splitlines()[-1].split()[1:])
    assert code == 0
    assert planned.startswith("faces-gan: 36 trainings")
    short = ["training.steps=4", "search.rewind_step=0", "search.rounds=1", "seeds=[0]", "evaluation.samples=16"]
    command = [sys.executable, "-m", "gentickets", "find", "gan.yaml", "--allow-code", *short]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (place / "runs/faces-gan/seed-0/level-01/metrics.json").is_file()


@pytest.mark.parametrize(
    ("model", "source", "objective", "shape"),
    [
        ("nets.py:autoencoder", "faces", "autoencoding", (18, 3)),
        ("nets.py:vae", "faces", "elbo", (18, 3)),
        ("conv-vae", "faces", "elbo", (16, 3)),
        ("linear-autoencoder", "digits", "autoencoding", (8, 1)),
        ("dcgan", "digits", "adversarial", (8, 1)),
        ("unet", "digits", "denoising", (8, 1)),
    ],
)
def test_sizes_are_looked_up_and_the_objective_is_tried(place, model, source, objective, shape):
    name = f"{source}-{model.rpartition(':')[2]}"
    width = [] if model.startswith("nets") else ["model.width=4"]
    raw, _ = written(place, name, source, "--model", model, *width)
    assert raw["objective"]["name"] == objective
    assert (raw["data"]["size"], raw["data"]["channels"]) == shape
    assert raw["name"] == name
    fewer = ["training.batch_size=2", "evaluation.classifiers=1"]
    code, said, err = run_program(place, "find", f"{name}.yaml", "--plan", "--allow-code", *fewer)
    assert code == 0, err
    assert "trainings" in said


def test_every_key_has_its_meaning(place):
    raw, _ = written(place, "meanings", "digits", "--model", "dcgan", "model.width=4", "training.ema=0.99")
    text = (place / "meanings.yaml").read_text()
    above, found = "", {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        key, _, comment = line.partition("  # ") if line.strip() else ("", "", "")
        key, value = key.split(":", 1)
        if not value.strip():
            above = key
            continue
        found[f"{above}.{key.strip()}" if key.startswith(" ") else key] = comment
    dotted = {f"{part}.{key}" for part, below in raw.items() if isinstance(below, dict) for key in below}
    assert set(found) == dotted | {key for key, value in raw.items() if not isinstance(value, dict)}
    meanings: dict[str, set[str]] = {}
    for key in keys():
        meanings.setdefault(key.name, set()).add(key.meaning)
    for key, comment in found.items():
        assert any(comment.startswith(meaning) for meaning in meanings[key]), (key, comment)
    assert raw["training"]["ema"] == 0.99
    epochs = raw["training"]["steps"] * raw["training"]["batch_size"] / 1438
    assert f"Here: {epochs:.3g} times through 1,438 training images." in found["training.steps"]


def test_what_is_said_is_kept_and_what_is_there_stays(place):
    said = ["name=mine", "training={steps: 40, lr: 0.5}", "seeds=[7]", "search={rounds: 1, criterion: random}"]
    raw, _ = written(place, "said", "digits", "--model", "nets.py:gan", *said, "data.limit=30")
    assert (raw["name"], raw["training"]["steps"], raw["training"]["lr"], raw["seeds"]) == ("mine", 40, 0.5, [7])
    assert (raw["search"]["rounds"], raw["search"]["criterion"]) == (1, "random")
    before = (place / "said.yaml").read_bytes()
    found = refused(place, "init", "digits", "--model", "nets.py:gan", "--out", "said.yaml")
    assert "--out said.yaml is there already, and init overwrites nothing: name another file" in found
    assert (place / "said.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("faces", "init needs a --model: my.py:name"),
        ("faces --model nets.py:others", r"components net, head, and no objective is for these: .*adversarial \(gen"),
        (
            "faces --model nets.py:wrong",
            r"takes no step: objective.name=elbo, .*; objective.name=kl-autoencoding, .*; and 22 more",
        ),
        (
            "faces --model nets.py:vae --objective adversarial",
            "needs generator, discriminator; .* has encoder, dec",
        ),
        ("faces --model nets.py:vae --objective elbow", "'elbow' is none of .*did you mean elbo"),
        ("faces --model nets.py:va", r"'va' is not there; nets.py has gan, .*\(did you mean vae\?\)"),
        ("nowhere --model nets.py:vae", "source: 'nowhere' does not exist"),
        ("faces --model nets.py:gan data.size=16", "takes no step: objective.name=adversarial, data.size=16"),
        ("faces --model dcgan data.size=9", "the models take images of side 8, 16, 28, 32, 64"),
        ("faces --model dcgan width=8", "unknown key width"),
        ("faces --model dcgan data.sizes=8", r"unknown key data.sizes; .*did you mean size\?"),
        ("faces --model dcgan model.widths=8", r"model.widths: dcgan takes width.*did you mean width\?"),
    ],
)
def test_what_does_not_go_together_is_refused(place, arguments, message):
    found = refused(place, "init", *arguments.split(), "--out", "refused.yaml")
    assert re.search(message, found), found
    assert not (place / "refused.yaml").exists()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("data=digits", "data='digits': keys and values are needed below it"),
        ("training=3", "training=3: keys and values are needed below it"),
        ("training.steps=long", "training.steps='long': input should be a valid integer"),
        ("data.size=big", "data.size='big': input should be a valid integer"),
        ("objective.beta=3", "objective.name is missing, such as objective: {name: adversarial}"),
        ("search.method=nosuch", "search.method='nosuch' is none of imp"),
        ("seeds=3", r"seeds=3: a list is needed: seeds=[3]"),
    ],
)
def test_what_is_said_is_checked_as_in_any_recipe(place, said, message):
    assert message in refused(place, "init", "digits", "--model", "dcgan", said, "--out", "refused.yaml")


def test_only_what_a_method_takes_is_written(place):
    raw, _ = written(place, "early", "digits", "--model", "nets.py:gan", "search=at-init")
    assert raw["search"] == {"method": "at-init", "criterion": "magnitude", "rounds": 5, "fraction": 0.4}
