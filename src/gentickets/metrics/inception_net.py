"""The network behind FID: Inception v3 as in the TensorFlow graph of December 2015, under its PyTorch port's names.

It is Szegedy et al. (2016) with three peculiarities, which are why torchvision's network gives other features:
average pools leave the padding out of the mean, the last block has a max pool where the paper has an average, and
there are 1,008 logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentickets.errors import DataError

SIDE = 299
"""Height and width of the images that the network was trained on."""

_Step = str | tuple[str, ...] | Callable[[Tensor], Tensor]


class FIDInception(nn.Module):
    """From float32 (n, 3, 299, 299) in [-1, 1] to the 2,048 pool features, (n, 2048); `fc` gives their logits.

    Children and parameters are named as in pytorch-fid's and torch-fidelity's weights file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = _Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = _Unit(80, 192, 3)
        self.Mixed_5b = _block_a(192, pooled=32)
        self.Mixed_5c = _block_a(256, pooled=64)
        self.Mixed_5d = _block_a(288, pooled=64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(768, narrow=128)
        self.Mixed_6c = _block_c(768, narrow=160)
        self.Mixed_6d = _block_c(768, narrow=160)
        self.Mixed_6e = _block_c(768, narrow=192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, average)
        self.Mixed_7c = _block_e(2048, maximum)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halved(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(halved(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean(dim=(2, 3))

    def load(self, state: Mapping[str, Tensor], where: str) -> None:
        """Takes the weights of `state`; counters of batches may be there or not.

        Raises `DataError`, one line, that names `where` and the first key that is missing, unknown or ill-shaped.
        """
        counters = {name for name in self.state_dict() if name.endswith("num_batches_tracked")}
        wanted = {name: tensor for name, tensor in self.state_dict().items() if name not in counters}
        for name, tensor in wanted.items():
            if name not in state:
                raise DataError(f"{where}: no weights of the FID Inception network: {name} is missing")
            if state[name].shape != tensor.shape:
                shapes = f"{tuple(state[name].shape)}, not {tuple(tensor.shape)}"
                raise DataError(f"{where}: no weights of the FID Inception network: {name} is {shapes}")
        for name in state:
            if name not in wanted and name not in counters:
                raise DataError(f"{where}: no weights of the FID Inception network: {name} is unknown there")
        self.load_state_dict({name: state[name] for name in wanted}, strict=False)


def average(x: Tensor) -> Tensor:
    """The mean over 3 x 3 places; what lies outside the image does not count."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def maximum(x: Tensor) -> Tensor:
    """The maximum over 3 x 3 places."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


def halved(x: Tensor) -> Tensor:
    """The maximum over 3 x 3 places, at every second place, without padding."""
    return F.max_pool2d(x, 3, stride=2)


class _Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class _Block(nn.Module):
    """Paths side by side, their outputs concatenated by channels.

    A step of a path is a unit's name, a pool, or several names: units side by side on what the path has so far.
    """

    def __init__(self, units: Mapping[str, _Unit], paths: Sequence[Sequence[_Step]]):
        super().__init__()
        for name, unit in units.items():
            self.add_module(name, unit)
        self.paths = paths

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._along(path, x) for path in self.paths], dim=1)

    def _along(self, path: Sequence[_Step], x: Tensor) -> Tensor:
        for step in path:
            if isinstance(step, str):
                x = self.get_submodule(step)(x)
            elif isinstance(step, tuple):
                x = torch.cat([self.get_submodule(name)(x) for name in step], dim=1)
            else:
                x = step(x)
        return x


def _row(inputs: int, outputs: int) -> _Unit:
    return _Unit(inputs, outputs, (1, 7), padding=(0, 3))


def _column(inputs: int, outputs: int) -> _Unit:
    return _Unit(inputs, outputs, (7, 1), padding=(3, 0))


def _block_a(inputs: int, pooled: int) -> _Block:
    units = {
        "branch1x1": _Unit(inputs, 64, 1),
        "branch5x5_1": _Unit(inputs, 48, 1),
        "branch5x5_2": _Unit(48, 64, 5, padding=2),
        "branch3x3dbl_1": _Unit(inputs, 64, 1),
        "branch3x3dbl_2": _Unit(64, 96, 3, padding=1),
        "branch3x3dbl_3": _Unit(96, 96, 3, padding=1),
        "branch_pool": _Unit(inputs, pooled, 1),
    }
    return _Block(
        units,
        [
            ["branch1x1"],
            ["branch5x5_1", "branch5x5_2"],
            ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"],
            [average, "branch_pool"],
        ],
    )


def _block_b(inputs: int) -> _Block:
    units = {
        "branch3x3": _Unit(inputs, 384, 3, stride=2),
        "branch3x3dbl_1": _Unit(inputs, 64, 1),
        "branch3x3dbl_2": _Unit(64, 96, 3, padding=1),
        "branch3x3dbl_3": _Unit(96, 96, 3, stride=2),
    }
    return _Block(units, [["branch3x3"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"], [halved]])


def _block_c(inputs: int, narrow: int) -> _Block:
    units = {
        "branch1x1": _Unit(inputs, 192, 1),
        "branch7x7_1": _Unit(inputs, narrow, 1),
        "branch7x7_2": _row(narrow, narrow),
        "branch7x7_3": _column(narrow, 192),
        "branch7x7dbl_1": _Unit(inputs, narrow, 1),
        "branch7x7dbl_2": _column(narrow, narrow),
        "branch7x7dbl_3": _row(narrow, narrow),
        "branch7x7dbl_4": _column(narrow, narrow),
        "branch7x7dbl_5": _row(narrow, 192),
        "branch_pool": _Unit(inputs, 192, 1),
    }
    return _Block(
        units,
        [
            ["branch1x1"],
            ["branch7x7_1", "branch7x7_2", "branch7x7_3"],
            [f"branch7x7dbl_{place}" for place in range(1, 6)],
            [average, "branch_pool"],
        ],
    )


def _block_d(inputs: int) -> _Block:
    units = {
        "branch3x3_1": _Unit(inputs, 192, 1),
        "branch3x3_2": _Unit(192, 320, 3, stride=2),
        "branch7x7x3_1": _Unit(inputs, 192, 1),
        "branch7x7x3_2": _row(192, 192),
        "branch7x7x3_3": _column(192, 192),
        "branch7x7x3_4": _Unit(192, 192, 3, stride=2),
    }
    return _Block(
        units,
        [["branch3x3_1", "branch3x3_2"], [f"branch7x7x3_{place}" for place in range(1, 5)], [halved]],
    )


def _block_e(inputs: int, pool: Callable[[Tensor], Tensor]) -> _Block:
    units = {
        "branch1x1": _Unit(inputs, 320, 1),
        "branch3x3_1": _Unit(inputs, 384, 1),
        "branch3x3_2a": _Unit(384, 384, (1, 3), padding=(0, 1)),
        "branch3x3_2b": _Unit(384, 384, (3, 1), padding=(1, 0)),
        "branch3x3dbl_1": _Unit(inputs, 448, 1),
        "branch3x3dbl_2": _Unit(448, 384, 3, padding=1),
        "branch3x3dbl_3a": _Unit(384, 384, (1, 3), padding=(0, 1)),
        "branch3x3dbl_3b": _Unit(384, 384, (3, 1), padding=(1, 0)),
        "branch_pool": _Unit(inputs, 192, 1),
    }
    return _Block(
        units,
        [
            ["branch1x1"],
            ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")],
            ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")],
            [pool, "branch_pool"],
        ],
    )
