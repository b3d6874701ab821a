"""The linear autoencoder on MNIST beside the authors' code.

    python -m campaign.beside_authors theirs.py train.parquet out.csv

`theirs.py` is `autoencoder.py` of github.com/NehaKalibhat/autoencoder-pytorch at 7b31cca, which has no licence and so
does not come along. It is run as it is, on the CPU, with the paper's linear network in the place of its own. Beside it
`gt.prune` and `masks.hold` on the same starts, images and order of batches: as they are, and with one after another of
what that code does otherwise. Three rounds of 53.75 %, each from step 0.

A row of the csv: variant, seed, sparsity, mean squared error on 1,000 images that nobody trained on.
"""

from __future__ import annotations

import csv
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import gentickets as gt
from gentickets.data import load_splits
from gentickets.models.paper import paper_linear_ae

SEEDS, EPOCHS, BATCH, ROUNDS, SHARE = 5, 14, 128, 3, 0.5375
LR, WEIGHT_DECAY = 1e-3, 1e-5
ABSENT = ("torchvision", "torchvision.transforms", "torchvision.datasets", "torchvision.utils", "matplotlib.pyplot")


class Loader:
    """The images in an order of its own each time; of one seed the same for every variant."""

    def __init__(self, images: Tensor, seed: int):
        self.images, self.seed, self.passes = images, seed, 0

    def __iter__(self) -> Iterator[tuple[Tensor, None]]:
        order = torch.randperm(
            len(self.images), generator=torch.Generator().manual_seed(1000 * self.seed + self.passes)
        )
        self.passes += 1
        return ((self.images[rows], None) for rows in order.split(BATCH))


def start(seed: int) -> Any:
    torch.manual_seed(seed)
    return paper_linear_ae(28, 1)


def error(model: Any, images: Tensor) -> float:
    with torch.no_grad():
        return float((model.decoder(model.encoder(images)) - images).square().mean())


def ours(
    seed: int, train: Tensor, test: Tensor, decay: float = 0.0, biases: bool = False, late: bool = False
) -> list[float]:
    """Errors of the dense network and of each ticket.

    `late`: the first pass goes through all weights, and masks follow the steps, as where a state dict is multiplied.
    """
    model, loader, found = start(seed), Loader(train, seed), []
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks: gt.Masks | None = None
    for level in range(ROUNDS + 1):
        if level:
            scores = {name: w.detach().abs() for name, w in model.named_parameters() if biases or w.dim() > 1}
            masks = gt.prune(scores, fraction=SHARE, within=masks)
        model.load_state_dict(first)
        optimizer = torch.optim.Adam(model.parameters(), lr=LR, weight_decay=decay)
        with nullcontext() if masks is None or late else masks.hold(model, optimizer):
            for _ in range(EPOCHS):
                for images, _ in loader:
                    loss = (model.decoder(model.encoder(images)) - images).square().mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    if masks is not None and late:
                        masks.apply_(model)
        found.append(error(model, test))
    return found


@contextmanager
def standing_in(modules: dict[str, types.ModuleType]) -> Iterator[None]:
    """These in the place of packages, and the others that are loaded meanwhile stay."""
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)


def theirs(code: str, seed: int, train: Tensor, test: Tensor) -> list[float]:
    """The same of the authors' code.

    It writes its files into a folder, among them the dense network's, which each of its trainings writes anew: renamed
    here, or a second chain in that folder would take a pruned network for the dense one.
    """
    absent = {name: types.ModuleType(name) for name in ABSENT}
    absent["torchvision.datasets"].__dict__.update(MNIST=None, CIFAR10=None)
    absent["torchvision"].__dict__.update(
        transforms=absent["torchvision.transforms"], datasets=absent["torchvision.datasets"]
    )
    absent["torchvision.utils"].__dict__["save_image"] = lambda *_: None
    stays: Callable[..., Any] = lambda self, *_: self  # noqa: E731
    with (
        tempfile.TemporaryDirectory() as folder,
        standing_in(absent),
        patch.object(nn.Module, "cuda", stays),
        patch.object(Tensor, "cuda", stays),
    ):
        names: dict[str, Any] = {"__name__": "theirs"}
        exec(compile(code, "theirs", "exec"), names)
        drawn = iter(range(seed, 10**9, 1000))  # they draw a network before each round, and load the start over it

        class Linear(names["autoencoder"]):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                net = start(next(drawn))
                self.encoder, self.decoder = net.encoder, net.decoder
                self.optimizer = torch.optim.Adam(self.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)

            def log(self, message: str) -> None:
                """Not to a file."""

        names.update(path=folder, num_epochs=EPOCHS, dataloader=Loader(train, seed), test_input=test[:8])
        model = names["model"] = Linear()
        model.train(prune=False, init_state=None, init_with_old=True)
        found, trains = [error(model, test)], model.train

        def judged(**options: Any) -> None:
            trains(**options)
            found.append(error(model, test))

        model.train = judged
        os.rename(f"{folder}/autoencoder.pth", f"{folder}/dense.pth")
        model.iterative_prune(f"{folder}/before_train.pth", f"{folder}/dense.pth", ROUNDS, percent=100 * SHARE)
    return found


def main(code: str, mnist: str, out: str) -> None:
    torch.set_num_threads(1)
    train, test = (part.images(range(len(part))) for part in load_splits(mnist, size=28))
    text = Path(code).read_text()
    variants: dict[str, Callable[[int], list[float]]] = {
        "authors' code": lambda seed: theirs(text, seed, train, test),
        "gentickets": lambda seed: ours(seed, train, test),
        "weight decay": lambda seed: ours(seed, train, test, decay=WEIGHT_DECAY),
        "biases pruned": lambda seed: ours(seed, train, test, biases=True),
        "masks after the step": lambda seed: ours(seed, train, test, late=True),
        "all three": lambda seed: ours(seed, train, test, WEIGHT_DECAY, biases=True, late=True),
    }
    sparsities = [round(1 - (1 - SHARE) ** level, 4) for level in range(ROUNDS + 1)]
    with Path(out).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["variant", "seed", "sparsity", "mse"])
        for seed in range(SEEDS):
            for name, run in variants.items():
                table.writerows([name, seed, s, f"{e:.6f}"] for s, e in zip(sparsities, run(seed), strict=True))
                file.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
