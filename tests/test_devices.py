"""One training on several devices: what two processes train together is what one trains alone."""

import multiprocessing
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import forked  # noqa: F401 - the processes are forked from a server that has torch
import two_ranks
from gentickets.compiled import missing
from gentickets.errors import GenticketsError, HardwareError, RecipeError
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run import ranks
from gentickets.lab.run.hardware import make_fabric
from gentickets.lab.run.parcels import packed, unpacked
from gentickets.lab.run.prepare import load_data
from gentickets.lab.run.trainer import Trainer
from gentickets.lab.task import build_model
from gentickets.masks.names import clone, named_state
from gentickets.masks.value import Masks
from gentickets.objectives import Autoencoding
from gentickets.pruning.prune import prune
from gentickets.pruning.scores import magnitude
from gentickets.search.rigl import DropAndGrow
from gentickets.training import Settings, train
from gentickets.training.whole_batch import WholeDraws, first_axis_of

RECIPE = {
    "name": "two",
    "model": {"name": "linear-autoencoder", "width": 12, "depth": 1, "latent": 3},
    "data": {"source": "digits", "size": 8, "limit": 100},
    "objective": {"name": "autoencoding"},
    "training": {"steps": 12, "batch_size": 8, "accelerator": "cpu"},
    "evaluation": {"features": "none"},
}

SNGAN = {"name": "paper-sngan", "width": 4, "latent": 3, "depth": 1}


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
    assert bool(expected.get("sparse")) == (name == "ae_on_live_weights")


def test_a_stop_on_one_of_them_stops_both_and_what_goes_on_is_the_uninterrupted_training(together):
    assert both(together, "stopped_and_gone_on_with")["stopped at"] == 3


def test_both_end_where_one_diverges(together):
    assert both(together, "diverged_by_word_of_the_last_rank")["both"]
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


# -- draws ----------------------------------------------------------------------------------------------------

DRAWS = {
    "randn": lambda images, rng: torch.randn(images.shape, generator=rng),
    "rand": lambda images, rng: torch.rand(len(images), 1, 1, generator=rng),
    "randint": lambda images, rng: torch.randint(3, 50, (len(images),), generator=rng),
    "normal": lambda images, rng: torch.normal(1.0, 2.0, (3, len(images)), generator=rng),
    "randn_like": lambda images, rng: torch.randn_like(images),
    "bernoulli": lambda images, rng: torch.bernoulli(images, 0.3, generator=rng),
    "in place": lambda images, rng: torch.empty_like(images).exponential_(2.0, generator=rng),
    "normal of means": lambda images, rng: torch.normal(images, images + 1, generator=rng),
    "normal of deviations": lambda images, rng: torch.normal(0.5, images, generator=rng),
    "Normal": lambda images, rng: torch.distributions.Normal(0.0, 1.0).sample(images.shape),
    "dropout": lambda images, rng: F.dropout(images, 0.4),
    "channels": lambda images, rng: F.dropout2d(images[:, :, None], 0.4),
    "alpha": lambda images, rng: F.alpha_dropout(images, 0.4, training=True),
    "one for all": lambda images, rng: torch.rand(2, generator=rng),
}


@pytest.mark.parametrize("layout", ["as images lie", "batch innermost"])
@pytest.mark.parametrize("name", DRAWS)
def test_what_each_rank_draws_is_its_share_of_what_one_process_does(name, layout):
    size, each, draw = 3, 4, DRAWS[name]
    whole = torch.rand(size * each, 5, 7, generator=torch.Generator().manual_seed(2))

    def laid(images):
        return images.permute(1, 2, 0).contiguous().permute(2, 0, 1) if layout == "batch innermost" else images

    def drawn(images, rank, size):
        torch.manual_seed(7)
        rng = torch.Generator().manual_seed(7)
        with WholeDraws(first_axis_of([each]), rank, size, []):
            return draw(laid(images), rng), torch.rand((), generator=rng), torch.rand(())

    expected, *after = drawn(whole, 0, 1)
    parts = [drawn(part, rank, size) for rank, part in enumerate(whole.chunk(size))]
    assert all(found[1:] == tuple(after) for found in parts)  # all generators stand where one process's does
    if name == "one for all":
        assert all(torch.equal(found[0], expected) for found in parts)
    else:
        axis = 1 if name == "normal" else 0
        assert torch.equal(torch.cat([found[0] for found in parts], axis), expected)


@pytest.mark.parametrize(
    "draw",
    [
        lambda images: torch.multinomial(torch.ones(5), 2),
        lambda images: torch.poisson(images),
        lambda images: torch.bernoulli(images),
        lambda images: torch.distributions.Gamma(images + 1, 1.0).sample(),
        lambda images: F.rrelu(-images, training=True),
    ],
)
def test_an_operation_that_cannot_be_shared_out_is_refused_where_it_draws(draw):
    with (
        WholeDraws(first_axis_of([4]), 0, 2, []),
        pytest.raises(
            GenticketsError, match=r"^torch.\w+ is drawn while a loss is computed, of which 2 devices cannot"
        ),
    ):
        draw(torch.rand(4, 5))
    with WholeDraws(first_axis_of([4]), 0, 2, []):  # and not where it might
        F.scaled_dot_product_attention(*torch.rand(3, 1, 1, 4, 5))
        F.dropout(torch.rand(4, 5), 0.5, training=False)


# -- of a recipe ----------------------------------------------------------------------------------------------


def trainer_of(recipe, folder):
    images, _ = load_data(recipe.data)
    made = Trainer(recipe, 0, images, 100, lambda event: None, lambda: False, lambda model: float(folder.stat().st_ino))
    made.enter("level-00", folder)
    return made, build_model(recipe, images, 0)


@pytest.fixture
def alone_again():
    yield
    ranks.dismiss()  # a process has one world of torch.distributed, and other tests make theirs


@pytest.mark.usefixtures("alone_again")
def test_a_recipe_trains_on_two_devices_what_it_does_on_one_and_one_process_writes(tmp_path):
    """Of a discriminator with spectral norms, one training after another, of which one diverges."""
    found = {}
    for devices in (1, 2):
        training = {**RECIPE["training"], "devices": devices, "ema": 0.9}
        raw = {**RECIPE, "training": training, "model": SNGAN, "objective": {"name": "adversarial", "n_critic": 2}}
        recipe = make_recipe({**raw, "evaluation": {"every": 3}})
        (folder := tmp_path / str(devices)).mkdir()
        trainer, model = trainer_of(recipe, folder)
        masks = prune(magnitude(model), fraction=0.5)
        torch.manual_seed(0)
        trainer.train(model, masks, 0, 3)
        broken = clone(model)
        for weight in broken.generator.parameters():
            weight.data.fill_(torch.inf)
        assert trainer.train(broken, Masks.dense(broken), 3, 6) is None
        assert trainer.outcome.reason.startswith("step 3: the loss of discriminator is nan")
        done = trainer.train(model, masks, 3, 6, hooks=[DropAndGrow(0.3, every=2, until=1)], batches=trainer.few(0.5))
        found[devices] = {**named_state(model), **named_state(done.averaged)}, done.masks, sorted(folder.glob("**/*"))
        assert len((folder / "curve.jsonl").read_text().splitlines()) == 2
    (one, masks, files), (two, other, its) = found[1], found[2]
    assert masks == other
    assert [file.name for file in files] == [file.name for file in its]
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)


def test_networks_of_any_parametrisation_come_out_of_a_parcel_as_they_went_in():
    new, old = nn.utils.parametrizations, nn.utils
    made = [new.spectral_norm, new.weight_norm, old.spectral_norm, old.weight_norm, new.orthogonal]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old forms
        network = nn.Sequential(*(norm(nn.Linear(4, 4)) for norm in made))
    network(torch.randn(3, 4))  # whose derived weights are no leaves then
    again, inputs = unpacked(packed(network)), torch.randn(3, 4)
    assert list(named_state(again)) == list(named_state(network))
    assert torch.equal(again(inputs), network(inputs))
    assert torch.equal(again(inputs), network(inputs))  # after another power iteration
    network.score = lambda images: images
    with pytest.raises(GenticketsError, match="cannot be handed to another process"):
        packed(network)


def test_devices_that_share_no_batch_equally_or_are_not_there_are_refused(monkeypatch):
    def of(**training):
        return make_recipe({**RECIPE, "training": {**RECIPE["training"], **training}})

    with pytest.raises(RecipeError, match=r"batch_size=8 cannot be shared out equally among training.devices=3: take"):
        of(devices=3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(HardwareError, match=r"^training.devices=2: this machine has 1 GPUs; take training.devices=1$"):
        make_fabric(of(devices=2, accelerator="cuda"))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(HardwareError, match=r"torchrun started 4 processes; take training.devices=4, or start"):
        make_fabric(of(devices=2, accelerator="cpu"))


# -- one device, whatever there is around it ------------------------------------------------------------------


def test_slurm_with_several_tasks_changes_nothing_for_a_training_on_one_device(monkeypatch):
    for name, value in {"NTASKS": "2", "JOB_NAME": "tickets", "JOB_ID": "7", "PROCID": "1", "LOCALID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert make_fabric(make_recipe(RECIPE)).world_size == 1
    assert train(two_ranks.autoencoder(), Autoencoding(), two_ranks.Source(), Settings(steps=1)).step == 1


def test_what_fabric_says_of_its_precision_is_not_passed_on():
    """In a process of its own: where Fabric writes is settled when it is imported."""
    recipe = {**RECIPE, "training": {**RECIPE["training"], "precision": "bf16-mixed"}}
    code = f"""
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run import hardware
hardware.has_bfloat16 = lambda accelerator: True
hardware.make_fabric(make_recipe({recipe!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
