"""The moving average of a network's weights, which is a network that can be used at any time.

Spectral norm keeps two vectors beside a weight, the estimate of its first singular pair. A mean of such vectors is
nothing: they belong to one weight. So an average takes none over; it computes those of its own weights, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm as OldSpectralNorm
from torch.nn.utils.weight_norm import WeightNorm as OldWeightNorm
from torch.optim.swa_utils import AveragedModel

from gentickets.evaluating import evaluating
from gentickets.masks.names import clone, unwrap
from gentickets.sparse.layers import SparseLayer
from gentickets.sparse.spectral import LiveSpectralNorm


def decay_at(decay: float, updates: int) -> float:
    """The decay of an update that `updates` others came before: `min(decay, (1 + t) / (10 + t))`, warmed up.

    As in TensorFlow's `ExponentialMovingAverage` with `num_updates`: the average forgets its first weights, which
    no training has touched, within a few steps, and is always of about the last tenth of what came before it, until
    `decay` asks for less. The first update takes the weights as they are: decay 0.
    """
    return min(decay, (1 + updates) / (10 + updates)) if updates else 0.0


def weight_of_start(decay: float, updates: int) -> float:
    """How much the weights of the first update still weigh in the average after so many updates, 0 to 1."""
    share = 1.0
    for before in range(1, updates):
        share *= decay_at(decay, before)
        if share < 1e-9:
            return 0.0
    return share


class Average(AveragedModel):
    """The exponential moving average of a network, by `decay` (see `decay_at`).

    Floating-point parameters and buffers are averaged, but for buffers that began with values that are not finite
    (masks of attention); whole numbers (counts of batches) are those of the network. The singular vectors of spectral
    norms are those of the averaged weights (see `settle`), by the time that anyone reads them: through a forward
    pass, `module`, `modules()` or `state_dict()`. They follow from the weights alone, whoever looked when.
    """

    def __init__(self, network: nn.Module, decay: float):
        super().__init__(network)
        self.decay = decay
        own = set(map(id, _vectors(self.network)))
        self._is_mean = [
            (tensor.is_floating_point() or tensor.is_complex())
            and id(tensor) not in own
            and (isinstance(tensor, nn.Parameter) or bool(tensor.isfinite().all()))
            for tensor in _tensors(self.network)
        ]
        self._has_vectors, self._is_settled = bool(own), False

    @property
    def network(self) -> nn.Module:
        """The averaged network, whose weights are always right and whose singular vectors may be of another time."""
        found = self._modules["module"]
        assert found is not None
        return found

    @property
    def module(self) -> nn.Module:  # type: ignore[override]
        """The averaged network, singular vectors and all."""
        if not self._is_settled:
            self.settle()
        return self.network

    def unsettle(self) -> None:
        """Takes note that its weights were written from outside: the singular vectors are no longer theirs."""
        self._is_settled = False

    def settle(self) -> None:
        """Makes the singular vectors those of the averaged weights."""
        if self._has_vectors:
            settle(self.network)
        self._is_settled = True

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Takes the network's weights into the average."""
        kept = decay_at(self.decay, int(self.n_averaged))
        means: tuple[list[Tensor], list[Tensor]] = ([], [])
        for mine, other, is_mean in zip(_tensors(self.network), _tensors(model), self._is_mean, strict=True):
            if is_mean and kept:
                means[0].append(mine.detach())
                means[1].append(other.detach().to(mine.device))
            else:
                mine.detach().copy_(other.detach())
        if means[0]:
            torch._foreach_lerp_(*means, 1 - kept)
        self.n_averaged += 1
        self._is_settled = False

    def named_modules(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Module]]:
        assert self.module is not None  # settles it
        yield from super().named_modules(*args, **options)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        assert self.module is not None  # settles it
        return super().state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        self._is_settled = False
        return super().load_state_dict(*args, **options)


def settle(model: nn.Module) -> nn.Module:
    """Makes the singular vectors of every spectral norm in `model` those of its weights, exactly; returns it.

    By the eigenvectors of the smaller Gram matrix, in double precision: they follow from the weights alone. Weights
    that are not finite keep the vectors that they have. What old-style norms leave in a layer is made anew.
    """
    with evaluating(model):
        for layer in model.modules():
            for matrix, left, right in _spectral(layer):
                _first_singular_vectors(matrix, left, right)
            for hook in layer._forward_pre_hooks.values():
                if isinstance(hook, OldSpectralNorm):
                    setattr(layer, hook.name, hook.compute_weight(layer, do_power_iteration=False))
                elif isinstance(hook, OldWeightNorm):
                    setattr(layer, hook.name, hook.compute_weight(layer))
    return model


def _vectors(model: nn.Module) -> list[Tensor]:
    return [vector for layer in model.modules() for _, *pair in _spectral(layer) for vector in pair]


def _spectral(layer: nn.Module) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Every spectral norm of a layer: its matrix, and the left and the right vector."""
    if isinstance(layer, SparseLayer):
        if isinstance(layer.norm, LiveSpectralNorm):
            dense = layer.values.new_zeros(layer.pattern.shape)
            dense.view(-1)[torch.from_numpy(layer.pattern.places)] = layer.values.detach()
            yield dense.flatten(1), layer.norm.left, layer.norm.right
        return
    for chain in getattr(layer, "parametrizations", None) or ():
        yield from _spectral_in(layer.parametrizations[chain])  # type: ignore[index]
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, OldSpectralNorm):
            weight, left, right = (getattr(layer, hook.name + what) for what in ("_orig", "_u", "_v"))
            yield _matrix(weight.detach(), hook.dim), left, right


def _spectral_in(chain: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The spectral norms among stacked parametrisations: each is of what those before it made."""
    if not any(isinstance(step, _SpectralNorm) for step in chain):
        return
    names = ["original"] if chain.is_tensor else [f"original{number}" for number in range(chain.ntensors)]
    value = [getattr(chain, name).detach() for name in names]
    for step in chain:
        if isinstance(step, _SpectralNorm) and value[0].dim() > 1:  # of a vector it is the length, exactly
            yield _matrix(value[0], step.dim), step._u, step._v
        value = [step(*value)]


def _matrix(weight: Tensor, axis: int) -> Tensor:
    return weight.movedim(axis, 0).flatten(1)


@torch.no_grad()
def _first_singular_vectors(matrix: Tensor, left: Tensor, right: Tensor) -> None:
    """Writes the singular vectors of the largest singular value into `left` and `right`."""
    if not matrix.isfinite().all() or not matrix.any():
        return
    exact = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    if exact.shape[0] <= exact.shape[1]:
        one = torch.linalg.eigh(exact @ exact.mH).eigenvectors[:, -1]
        other = exact.mH @ one
    else:
        other = torch.linalg.eigh(exact.mH @ exact).eigenvectors[:, -1]
        one = exact @ other
    left.copy_(one / one.norm())
    right.copy_(other / other.norm())


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def with_averages(model: nn.Module, averaged: nn.Module) -> nn.Module:
    """A copy of `model` in which the averaged components stand in the place of the raw ones."""
    copy = clone(model)
    for name, average in averaged.named_children():
        setattr(unwrap(copy), name, clone(unwrap(average)))
    return copy
