"""The trainer of a seed: whose checkpoint is taken up, what is counted, and what is left of a model that broke."""

import pytest
import torch

import gentickets as gt
from gentickets.compiled import missing
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run.stage import load_data
from gentickets.lab.run.trainer import Price, Trainer
from gentickets.lab.run.validation import BEST
from gentickets.lab.task import build_model
from gentickets.masks.names import clone, named_state
from gentickets.metrics.cost import training_flops
from gentickets.objectives import Frozen
from gentickets.sparse import execution
from gentickets.training import Hook

RAW = {
    "name": "tiny",
    "model": {"name": "linear-autoencoder", "width": 12, "depth": 1, "latent": 3},
    "data": {"source": "digits", "size": 8, "limit": 100},
    "objective": {"name": "autoencoding"},
    "training": {"steps": 12, "batch_size": 8, "execution": "dense", "checkpoint_seconds": 1e9},
    "evaluation": {"features": "none"},
}
GAN = {
    "model": {"name": "dcgan", "width": 4, "latent": 3},
    "objective": {"name": "adversarial", "n_critic": 3},
    "evaluation": {},
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENTICKETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def make(tmp_path):
    """A trainer that has entered a level, its model and masks, and the events that it tells."""

    def build(*, stop=lambda: False, glance=lambda model: 0.0, **changes):
        recipe = make_recipe(RAW | changes)
        images, _ = load_data(recipe.data)
        events = []
        trainer = Trainer(recipe, 0, images, 100, events.append, stop, glance)
        trainer.enter("level-01", tmp_path)
        model = build_model(recipe, images, 0)
        masks = gt.prune(gt.magnitude(model), to_sparsity=0.5)
        masks.apply_(model)
        return trainer, model, masks, events

    return build


def test_a_training_by_another_objective_is_priced_by_that(make):
    trainer, model, masks, _ = make()
    frozen = Frozen(gt.Autoencoding(), kept=("encoder",))
    few = trainer.batches.at(0)[:2]
    whole, each = (training_flops(model, objective, few, masks) for objective in (gt.Autoencoding(), frozen))
    trainer.train(model, masks, 0, 2, objective=frozen)
    assert trainer.outcome.train.flops == pytest.approx(16 * each.dense)
    assert each.dense < whole.dense


def test_a_training_is_counted_in_steps_images_and_flops_dense_and_live(make):
    trainer, model, masks, events = make()
    trainer.done = 7
    trainer.train(model, masks, 3, 12)
    each = training_flops(model, gt.Autoencoding(), trainer.batches.at(0)[:2], masks)
    assert (trainer.done, trainer.outcome.images) == (16, 72)
    assert trainer.outcome.train.flops == pytest.approx(72 * each.dense)
    assert trainer.outcome.train.live_flops == pytest.approx(72 * each.live)
    assert each.live < each.dense
    assert trainer.outcome.find == Price()
    assert (events[-1].done, events[-1].total, events[-1].stage, events[-1].seed) == (16, 100, "level-01", 0)
    trainer.train(model, masks, 0, 2, finding=True)
    assert trainer.outcome.find.flops == pytest.approx(16 * each.dense)
    assert trainer.outcome.train.flops == pytest.approx(72 * each.dense)


def test_a_step_takes_the_batches_of_all_its_losses(make):
    trainer, model, masks, _ = make(**GAN)
    assert len(trainer.batches.at(0)) == 24
    assert trainer.steps_per_epoch == 100 // 24
    trainer.train(model, masks, 0, 2)
    assert trainer.outcome.images == 48


def test_each_level_has_an_account_of_its_own(make, tmp_path):
    trainer, model, masks, _ = make()
    trainer.train(model, masks, 0, 2)
    trainer.enter("level-02", tmp_path)
    assert (trainer.outcome.images, trainer.outcome.train, trainer.done) == (0, Price(), 2)


def test_what_was_trained_before_is_recalled_at_its_price(make):
    trainer, model, masks, _ = make()
    trainer.train(model, masks, 0, 2)
    account = trainer.account()
    again, *_ = make()
    again.recall(2, account)
    assert (again.done, again.outcome.images) == (2, 16)
    assert (again.outcome.train, again.outcome.find) == (trainer.outcome.train, Price())


@pytest.mark.parametrize("change", ["stage", "span", "masks", "finding", "nothing"])
def test_a_checkpoint_is_taken_up_by_its_own_training_alone(make, change, tmp_path):
    asked = iter([False] * 4 + [True] + [False] * 100)
    trainer, model, masks, _ = make(stop=lambda: next(asked))
    with pytest.raises(KeyboardInterrupt):
        trainer.train(model, masks, 0, 10)
    trained = []
    trainer, model, masks, _ = make(stop=lambda: trained.append(1) is not None)
    if change == "stage":
        trainer.enter("level-02", tmp_path)
    if change == "masks":
        masks = gt.prune(gt.magnitude(model), to_sparsity=0.6)
    trainer.train(model, masks, 0, 9 if change == "span" else 10, finding=change == "finding")
    assert len(trained) == {"nothing": 5, "span": 9}.get(change, 10)


def test_a_model_that_broke_goes_back_to_what_its_training_started_from(make):
    trainer, model, masks, _ = make(training={**RAW["training"], "lr": 1e30, "weight_decay": 1e20})
    before = clone(model)
    assert trainer.train(model, masks, 3, 12) is None
    assert trainer.outcome.status == "diverged"
    assert trainer.outcome.reason.startswith("step ")
    assert trainer.done == 9  # they will not be trained
    assert all(torch.equal(tensor, named_state(before)[name]) for name, tensor in named_state(model).items())


def test_a_training_is_judged_as_it_goes_but_not_while_masks_are_sought(make):
    glances = []
    part = {**RAW["evaluation"], "every": 5}
    trainer, model, masks, _ = make(evaluation=part, glance=lambda model: glances.append(1) or 0.0)
    trainer.train(model, masks, 0, 12)
    assert (len(glances), trainer.validation.steps) == (2, [5, 10])
    trainer.train(model, masks, 0, 12, finding=True)
    assert len(glances) == 2


def test_hooks_begin_anew_with_a_training_whose_best_weights_are_lost(make, tmp_path):
    class Counts(Hook):
        def __init__(self):
            self.seen = []

        def after_step(self, state):
            self.seen.append(state.step)
            return False

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = list(state["seen"])

    asked = iter([False] * 6 + [True])
    part = {**RAW["evaluation"], "every": 3}
    trainer, model, masks, _ = make(evaluation=part, stop=lambda: next(asked))
    with pytest.raises(KeyboardInterrupt):
        trainer.train(model, masks, 0, 12, hooks=[Counts()])
    (tmp_path / BEST).write_bytes(b"something else")
    trainer, model, masks, _ = make(evaluation=part)
    counts = Counts()
    with pytest.warns(UserWarning, match="this training begins anew"):
        trainer.train(model, masks, 0, 12, hooks=[counts])
    assert counts.seen == list(range(1, 13))
    assert trainer.validation.steps == [3, 6, 9, 12]


def test_to_be_judged_now_and_then_leaves_a_training_on_its_live_weights(make, monkeypatch):
    if missing() is not None:
        pytest.skip("no kernels were compiled")
    monkeypatch.setattr(
        execution, "faster", lambda model, work, costs: {key: cost.ways[0] for key, cost in costs.items()}
    )
    found, glances = [], []
    for every in (None, 5):
        changes = {
            "evaluation": {**RAW["evaluation"], "every": every},
            "training": {**RAW["training"], "execution": "auto"},
        }
        trainer, model, masks, _ = make(**changes, glance=lambda model: glances.append(clone(model)) or 0.0)
        trainer.train(model, masks, 0, 12)
        assert len(trainer.outcome.sparse_layers) == 4
        found.append(model)
    assert all(torch.equal(tensor, named_state(found[1])[name]) for name, tensor in named_state(found[0]).items())
    for model in glances:
        assert list(named_state(model)) == list(named_state(found[0]))
        masks.audit(model)
