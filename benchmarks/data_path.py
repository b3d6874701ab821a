"""From images to batches, and a whole epoch with all that belongs to it."""

from __future__ import annotations

import io
import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import gentickets as gt
from benchmarks.contest import Contender, Contest, benchmark
from benchmarks.masked_step import reloaded
from benchmarks.steps import BATCH, Net, Step, build, default
from gentickets import models
from gentickets.data import Batches, ImageSet
from gentickets.training.loop import Settings, train

# That four workers are more than some machines have cores for is part of the usual way.
warnings.filterwarnings("ignore", message="This DataLoader will create")

MNIST = "BENCHMARK_MNIST"
"""The environment variable that may name a parquet file of MNIST's images; else they are made up."""
LOOP_STEPS = {"linear-ae": 200}
"""So many that a training's start hardly counts, in a second or more."""
PASS = 32 * BATCH
"""Images in one pass through a loader."""


class EncodedImages(Dataset[Tensor]):
    """The usual data set: each image is decoded and transformed when it is asked for."""

    def __init__(self, encoded: Sequence[bytes]):
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Tensor:
        pixels = np.array(Image.open(io.BytesIO(self.encoded[index])))
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return torch.from_numpy(pixels.copy()).float().div(255).sub(0.5).div(0.5)


@benchmark(quick={"width": (8,), "workers": (0,)})
def data_input(width: int = 64, workers: int = 4) -> Contest:
    """One batch of 64 colour images of side 32, in steps of the DCGAN that it feeds."""
    encoded = _coloured(PASS)
    batches = Batches(_decoded(encoded), BATCH, 0)
    contenders = {
        "DCGAN step": Contender(Step(build("dcgan", width=width))),
        "gentickets Batches": Contender(_endless(batches), at_most={"ratio": 0.03}),
    }
    for count in sorted({0, workers}):
        loader = DataLoader(
            EncodedImages(encoded), BATCH, shuffle=True, num_workers=count, persistent_workers=count > 0
        )
        # A whole pass at a time: batches fetched ahead while others are timed would look free.
        contenders[f"DataLoader, {count} workers"] = Contender(partial(_consume, loader), per=len(loader))
    return Contest("DCGAN step", contenders)


@benchmark(quick={"images": (256,), "workers": (0,)})
def epoch(images: int = 10_000, workers: int = 4) -> Contest:
    """An epoch of the linear autoencoder 784-128-64-12-3 on digits at 90 % sparsity.

    The usual way: a DataLoader, Adam as it comes, the state dictionary masked and loaded after each step.
    """
    encoded = _digits(images)
    usual, ours = _small_linear_ae(), _small_linear_ae()
    masks = gt.prune(gt.magnitude(ours.model), to_sparsity=0.9, scope="layer")
    masks.apply_(usual.model)
    step = Step(usual, default, reloaded(usual, masks))
    loader = DataLoader(EncodedImages(encoded), BATCH, shuffle=True, num_workers=workers)
    batches = Batches(_decoded(encoded), BATCH, 0)
    settings = Settings(steps=len(loader), batch_size=BATCH, lr=ours.lr)

    def usual_epoch() -> None:
        for batch in loader:
            step.on(batch)

    return Contest(
        "the usual way",
        {
            "the usual way": Contender(usual_epoch),
            "gentickets train": Contender(
                lambda: train(ours.model, ours.objective, batches, settings, masks=masks), at_most={"ratio": 1 / 6}
            ),
        },
    )


@benchmark({"net": ("linear-ae", "vae", "dcgan")}, {"net": ("tiny-ae",)})
def training_loop(net: str) -> Contest:
    """`train` against a bare loop over the same batches: what checks, reports, schedules and its start cost."""
    plain, ours, steps = build(net), build(net), LOOP_STEPS.get(net, 20)
    channels, size = plain.batch.shape[1], plain.batch.shape[2]
    pixels = np.random.default_rng(0).integers(0, 256, (PASS, channels, size, size), dtype=np.uint8)
    batches = Batches(ImageSet.from_arrays("noise", pixels), BATCH, 0)
    settings = Settings(steps=steps, batch_size=BATCH, lr=ours.lr, betas=ours.betas)
    step = Step(plain)

    def loop() -> None:
        for number in range(steps):
            step.on(batches.at(number))

    return Contest(
        "bare loop",
        {
            "bare loop": Contender(loop, per=steps),
            "gentickets train": Contender(lambda: train(ours.model, ours.objective, batches, settings), per=steps),
        },
    )


def _small_linear_ae() -> Net:
    torch.manual_seed(0)
    model = models.linear_autoencoder(28, 1, hidden=[128, 64, 12], latent=3)
    return Net(model, gt.Autoencoding(), torch.zeros(BATCH, 1, 28, 28))


def _endless(batches: Batches) -> Callable[[], Tensor]:
    steps = itertools.count()
    return lambda: batches.at(next(steps))


def _consume(loader: DataLoader[Tensor]) -> None:
    for _ in loader:
        pass


def _decoded(encoded: Sequence[bytes]) -> ImageSet:
    pixels = np.stack([np.array(Image.open(io.BytesIO(content))) for content in encoded])
    return ImageSet.from_arrays("images", pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2))


def _coloured(count: int) -> list[bytes]:
    """Smooth colour images of side 32 as PNG files."""
    small = np.random.default_rng(0).integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    return [_png(Image.fromarray(each).resize((32, 32), Image.Resampling.BICUBIC)) for each in small]


def _digits(count: int) -> list[bytes]:
    """MNIST's encoded images where a file of them is named, else scikit-learn's small digits scaled up to 28x28."""
    if MNIST in os.environ:
        import pyarrow.parquet as pq

        column = pq.read_table(Path(os.environ[MNIST]), columns=["image"]).column("image")
        return [each["bytes"] for each in column.slice(0, count).to_pylist()]
    from sklearn.datasets import load_digits

    small = (load_digits().images * (255 / 16)).astype(np.uint8)
    files = [_png(Image.fromarray(each).resize((28, 28), Image.Resampling.BICUBIC)) for each in small]
    return list(itertools.islice(itertools.cycle(files), count))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
