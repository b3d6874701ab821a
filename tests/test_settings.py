"""Settings of a training that make no sense are refused before it; what only torch minds is not."""

import pytest
import torch
from torch import nn

import gentickets as gt
from gentickets.training.loop import Settings, train


class Ones:
    def at(self, step: int) -> torch.Tensor:
        return torch.ones(2, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ema": 1.5}, r"ema=1\.5"),
        ({"ema": -0.1}, r"ema=-0\.1"),
        ({"ema": float("nan")}, "ema=nan"),
        ({"betas": (0.5, 1)}, "betas="),
        ({"betas": (0.5,)}, "betas="),
        ({"betas": (-0.5, 0.9)}, "betas="),
    ],
)
def test_what_is_out_of_range_is_named(wrong, message):
    with pytest.raises(gt.GenticketsError, match=message):
        Settings(steps=2, **wrong)


def test_betas_may_be_whole_numbers():
    def run(betas) -> nn.Module:
        torch.manual_seed(0)
        model = nn.ModuleDict({"encoder": nn.Linear(4, 2), "decoder": nn.Linear(2, 4)})
        train(model, gt.Autoencoding(), Ones(), Settings(steps=2, batch_size=2, betas=betas))
        return model

    whole, real = run((0, 0.99)), run((0.0, 0.99))
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), real.parameters(), strict=True))
