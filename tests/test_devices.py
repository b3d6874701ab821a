"""One training on several devices: what two processes train together is what one trains alone."""

import multiprocessing

import pytest
import torch
from torch import Tensor

import forked  # noqa: F401 - the processes are forked from a server that has torch
import two_ranks
from gentickets.compiled import missing
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


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What each of two processes made of every case."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=two_ranks.work, args=(rank, folder), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    return {
        name: [torch.load(folder / f"{name}.{rank}", weights_only=False) for rank in (0, 1)]
        for name in two_ranks.CASES
        if (folder / f"{name}.1").exists()
    }


def both(together, name):
    """What the first rank made of a case; the other one the same, to the bit."""
    assert name in together, f"they did not come to {name}"
    first, other = together[name]
    assert first.keys() == other.keys()
    for key in first.keys() - {"seconds"}:
        same = torch.equal if isinstance(first[key], Tensor) else lambda a, b: a == b
        assert same(first[key], other[key]), key
    return first


@pytest.mark.parametrize("name", [*two_ranks.FAMILIES, "moving_masks", "ended_by_a_hook"])
def test_two_processes_train_what_one_does(together, name, tmp_path):
    if name == "ae_on_live_weights" and missing() is not None:
        pytest.skip("no kernels were compiled")
    found, expected = both(together, name), two_ranks.alone(name, tmp_path)
    assert found.keys() - {"seconds"} == expected.keys()
    for key, wanted in expected.items():
        if isinstance(wanted, Tensor):
            torch.testing.assert_close(
                found[key], wanted, atol=1e-5, rtol=0, msg=lambda said, key=key: f"{key}: {said}"
            )
        else:
            assert found[key] == wanted, key
    assert any(isinstance(wanted, Tensor) for wanted in expected.values())


def test_a_stop_on_one_of_them_stops_both_and_what_goes_on_is_the_uninterrupted_training(together):
    assert both(together, "stopped_and_gone_on_with")["stopped at"] == 3


def test_both_end_where_one_diverges(together):
    assert both(together, "diverged_on_the_last_rank")["refused"].startswith(
        "Diverged: step 1: the loss of encoder+dec"
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sum", "Summed on 2 devices computes something else than on one: a gradient of encoder+decoder differs by 50"),
        ("mixing", "Mixed on 2 devices computes something else than on one: a gradient of"),
        ("permutation", "torch.randperm is drawn while a loss is computed"),
        ("ambiguous_draw", "which side of a draw of the shape (4,) is the batch (take another training batch_size)"),
        ("norm_by_hand", "Autoencoding on 2 devices computes something else than on one"),
        ("share", "a batch of 7 images cannot be shared out equally among 2 devices: take a batch_size that 2 divides"),
        (
            "shards",
            "the images of step 0 differ between the 2 processes that train together: give each process the whol",
        ),
        ("other_weights", "the model's weights differ between the 2 processes that train together: draw them after"),
        ("other_masks", "settings, masks, steps or objective differ between the processes that train together"),
        ("wrapped", "the model is wrapped in DistributedDataParallel, past which objectives call its components"),
        ("wrapped_and_no_fabric", "the model is wrapped in DistributedDataParallel, past which objectives"),
        ("wrapped_component", "model.encoder is wrapped in DistributedDataParallel, past which"),
    ],
)
def test_what_two_processes_would_train_otherwise_is_refused(together, name, words):
    assert words in both(together, f"refused_{name}")["refused"]


# -- one device, whatever there is around it ------------------------------------------------------------------


def test_slurm_with_several_tasks_changes_nothing_for_a_training_on_one_device(monkeypatch):
    for name, value in {"NTASKS": "2", "JOB_NAME": "tickets", "JOB_ID": "7", "PROCID": "1", "LOCALID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert make_fabric(make_recipe(RECIPE)).world_size == 1
    assert train(two_ranks.autoencoder(), Autoencoding(), two_ranks.Source(), Settings(steps=1)).step == 1
