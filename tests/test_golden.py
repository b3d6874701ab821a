"""Small whole trainings against numbers that are stored: what they compute, and not only that two runs agree.

Stored are losses, how far each tensor moved, and a few of its weights, in `golden.json`; kept counts are exact, floats
have a tolerance that other processors keep. A change that is meant to change a training writes them anew, with
`python tests/test_golden.py`, and says why they changed.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gentickets as gt
from gentickets import models
from gentickets.data import ImageSet
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run.seed import SeedRun
from gentickets.lab.run.stage import load_data, make_judge
from gentickets.masks.names import clone, named_state
from gentickets.objectives import ELBO, Adversarial, Autoencoding, Denoising, GainPenalty
from gentickets.training.loop import Settings, train

STORED = Path(__file__).with_name("golden.json")
RELATIVE, ABSOLUTE = 2e-4, 2e-6
"""Processors round differently (sums in other orders, other instructions): by some 1e-6 after these few steps."""

IMAGES = torch.rand(48, 1, 8, 8, generator=torch.Generator().manual_seed(11)) * 2 - 1
TRAINING = Settings(
    steps=9,
    batch_size=8,
    lr=2e-3,
    betas=(0.7, 0.95),
    weight_decay=0.05,
    schedule="cosine",
    warmup_steps=3,
    execution="dense",
    seed=3,
)


class Rows:
    """So many images a step, as they follow each other."""

    def __init__(self, count: int = 8):
        self.count = count

    def at(self, step: int) -> torch.Tensor:
        return IMAGES[(torch.arange(self.count) + self.count * step) % len(IMAGES)]


def drawn(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return build()


def moved(before: nn.Module, after: nn.Module) -> dict[str, Any]:
    """Of each tensor: how far it moved, its mean, and its first and last number."""
    start, found = named_state(before), {}
    for name, tensor in named_state(after).items():
        values = tensor.detach().double()
        far = (values - start[name].detach().double()).norm()
        found[name] = [float(x) for x in (far, values.mean(), values.flatten()[0], values.flatten()[-1])]
    return found


def trained(model: nn.Module, objective: gt.Objective, batches: Any = None, **options: Any) -> dict[str, Any]:
    start, losses = clone(model), []
    settings = options.pop("settings", TRAINING)
    train(
        model,
        objective,
        batches or Rows(),
        settings,
        report_every=1,
        on_progress=lambda progress: losses.append(dict(progress.losses)),
        **options,
    )
    return {"losses": losses, "weights": moved(start, model)}


def autoencoder() -> nn.Module:
    return drawn(lambda: models.linear_autoencoder(8, 1, width=12, latent=3))


def the_autoencoder() -> dict[str, Any]:
    return trained(autoencoder(), Autoencoding())


def the_vae() -> dict[str, Any]:
    vae = drawn(lambda: models.conv_vae(8, 1, width=4, latent=3))
    return trained(vae, ELBO(3, beta=0.5, scale=0.4, warmup_steps=6))


def the_gan() -> dict[str, Any]:
    gan = drawn(lambda: models.dcgan(8, 1, width=4, latent=3, critic_norm=False))
    rates = {"generator": 1e-3, "discriminator": 3e-3}
    settings = Settings(steps=6, batch_size=8, lr=rates, betas=(0.5, 0.9), schedule="linear", clip_norm=0.5, seed=1)
    return trained(gan, Adversarial(3, n_critic=2), Rows(16), settings=settings)


def the_wasserstein_gan() -> dict[str, Any]:
    gan = drawn(lambda: models.dcgan(8, 1, width=4, latent=3, critic_norm=False))
    objective = GainPenalty(Adversarial(3, "wasserstein", gradient_penalty=10.0), strength=0.01)
    return trained(gan, objective, settings=Settings(steps=4, batch_size=8, lr=1e-3, betas=(0.0, 0.9), seed=2))


def the_denoiser() -> dict[str, Any]:
    unet = drawn(lambda: models.unet(8, 1, width=4, groups=2))
    objective = Denoising("v", sampling_steps=4)
    found = trained(unet, objective)
    with torch.no_grad():
        samples = objective.sample(unet.eval(), 3, torch.Generator().manual_seed(6)).double()
    return {**found, "samples": [float(samples.mean()), float(samples.std()), float(samples[0, 0, 3, 4])]}


def a_masked_training() -> dict[str, Any]:
    model = autoencoder()
    masks = gt.prune(gt.magnitude(model), fraction=0.6)
    return {"kept": masks.counts(), **trained(model, Autoencoding("l1"), masks=masks)}


def a_round_of_imp() -> dict[str, Any]:
    def step(model: nn.Module, masks: gt.Masks, start_step: int, end_step: int) -> None:
        train(model, Autoencoding(), Rows(), TRAINING, masks=masks, start_step=start_step, end_step=end_step)

    dense, ticket = gt.imp(autoencoder, step, steps=9, rounds=1, fraction=0.3, rewind_step=2)
    rewound = ticket.ticket.install(clone(dense.model))
    return {
        "kept": ticket.masks.counts(),
        "sparsity": ticket.masks.sparsity,
        "rewound": moved(autoencoder(), rewound),
        "weights": moved(rewound, ticket.model),
    }


TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": "linear-autoencoder", "width": 12, "depth": 1, "latent": 3},
    "data": {"source": "digits", "size": 8, "limit": 200, "flip": True},
    "objective": {"name": "autoencoding"},
    "training": {"steps": 12, "batch_size": 16, "lr": 0.003, "execution": "dense"},
    "search": {"rounds": 2, "fraction": 0.5, "rewind_step": 3},
    "controls": {"levels": [2]},
    "evaluation": {"features": "none"},
}


def a_seed_of_a_run() -> dict[str, Any]:
    """What a run of a recipe writes of its levels, seconds aside."""
    recipe = make_recipe(TINY)
    train_images, held_out = load_data(recipe.data)
    with tempfile.TemporaryDirectory() as folder:
        judge = make_judge(recipe, train_images, held_out)
        SeedRun(recipe, Path(folder), 5, train_images, judge).run()
        return {
            "images": described(train_images),
            "held out": described(held_out),
            **{path.parent.name: level(path.parent) for path in sorted(Path(folder).glob("seed-5/*/metrics.json"))},
        }


def described(images: ImageSet) -> list[float]:
    return [len(images), float(images.pixels.astype(float).mean()), float(images.pixels.astype(float).std())]


def level(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "metrics.json").read_text())
    timing = json.loads((folder / "timing.json").read_text())
    curve = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    found["layers"] = {name: layer["alive"] for name, layer in found["layers"].items()}
    return {
        **{key: found[key] for key in ("status", "alive", "layers", "sparsity", "start_step", "end_step")},
        "metrics": {key: metric["value"] for key, metric in found["metrics"].items()},
        "images": timing["images"],
        "losses": [row["losses"] for row in curve],
    }


RUNS = {
    run.__name__: run
    for run in (
        the_autoencoder,
        the_vae,
        the_gan,
        the_wasserstein_gan,
        the_denoiser,
        a_masked_training,
        a_round_of_imp,
        a_seed_of_a_run,
    )
}


def differences(found: Any, expected: Any, place: str = "") -> Iterator[str]:
    """Where two results differ: floats by more than the tolerance, everything else at all."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if list(found) != list(expected):
            yield f"{place}: {list(found)} and not {list(expected)}"
        for key in expected.keys() & found.keys():
            yield from differences(found[key], expected[key], f"{place}/{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from differences(one, other, f"{place}/{index}")
    elif isinstance(expected, float) and isinstance(found, float):
        if not math.isclose(found, expected, rel_tol=RELATIVE, abs_tol=ABSOLUTE):
            yield f"{place}: {found} and not {expected}"
    elif found != expected:
        yield f"{place}: {found} and not {expected}"


@pytest.mark.parametrize("name", RUNS)
def test_a_training_gives_the_numbers_that_it_gave(name, tmp_path, monkeypatch):
    monkeypatch.setenv("GENTICKETS_CACHE", str(tmp_path))
    expected = json.loads(STORED.read_text())[name]
    found = json.loads(json.dumps(RUNS[name]()))
    assert list(differences(found, expected)) == []


def test_the_comparison_sees_what_differs():
    assert list(differences({"a": [1.0, 2]}, {"a": [1.0 + 1e-6, 2]})) == []
    for other in ({"a": [1.001, 2]}, {"a": [1.0, 3]}, {"a": [1.0]}, {"b": [1.0, 2]}, {"a": [math.nan, 2]}, {}):
        assert list(differences(other, {"a": [1.0, 2]})), other


if __name__ == "__main__":
    torch.set_num_threads(1)
    written = {name: run() for name, run in RUNS.items()}
    STORED.write_text(json.dumps(written, indent=1) + "\n")
