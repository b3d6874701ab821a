"""One training on several devices: what two processes train together is what one trains alone."""

import pytest
import torch

from gentickets import models
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run.trainer import make_fabric
from gentickets.objectives import Autoencoding
from gentickets.training import Settings, train

RECIPE = {
    "name": "two",
    "model": {"name": "linear-autoencoder", "width": 12, "depth": 1, "latent": 3},
    "data": {"source": "digits", "size": 8, "limit": 100},
    "objective": {"name": "autoencoding"},
    "training": {"steps": 12, "batch_size": 8, "accelerator": "cpu"},
    "evaluation": {"features": "none"},
}


class Source:
    """Batches by step, as `data.Batches` gives them."""

    def at(self, step):
        return torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(step)) * 2 - 1


def autoencoder():
    torch.manual_seed(1)
    return models.linear_autoencoder(8, 1, width=8, latent=2)


# -- one device, whatever there is around it ------------------------------------------------------------------


def test_slurm_with_several_tasks_changes_nothing_for_a_training_on_one_device(monkeypatch):
    for name, value in {"NTASKS": "2", "JOB_NAME": "tickets", "JOB_ID": "7", "PROCID": "1", "LOCALID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert make_fabric(make_recipe(RECIPE)).world_size == 1
    assert train(autoencoder(), Autoencoding(), Source(), Settings(steps=1)).step == 1
