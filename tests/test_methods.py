"""From a recipe's `search` to its levels: what each method is given, where it goes on, and what its scoring cost."""

import numpy as np
import pytest
import torch

import gentickets as gt
from gentickets.data import Batches, ImageSet
from gentickets.lab.recipe import parsed
from gentickets.masks.names import named_state
from gentickets.pruning.lamp import lamp
from gentickets.search.method import Work

PIXELS = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (24, 1, 1, 10), dtype=np.uint8)
IMAGES = ImageSet.from_arrays("noise", PIXELS)
INPUTS = {"encoder": torch.zeros(1, 10), "decoder": torch.zeros(1, 3)}


class Flat(gt.Autoencoding):
    """Autoencoding of images as vectors."""

    def losses(self, model, batch, rng):
        return super().losses(model, batch.flatten(1), rng)


class Asked(Batches):
    def __init__(self):
        super().__init__(IMAGES, 4, seed=0)
        self.steps = []

    def at(self, step):
        self.steps.append(step)
        return super().at(step)


class Bench:
    """What a method works with over the tiny autoencoder, and what was asked of it."""

    def __init__(self, make_autoencoder, folder, seed=7):
        self.calls, self.prices, self.batches, self.sources, self.loaded = [], [], Asked(), [], []
        self.make_autoencoder, self.folder, self.known = make_autoencoder, folder, {}
        self.work = Work(
            make_model=self.make,
            initial=self.make,
            train=lambda model, masks, start, end, **more: self.calls.append((start, end)),
            steps=9,
            steps_per_epoch=3,
            objective=Flat(),
            batches=self.batches,
            few=lambda share: self.batches,
            example_inputs=lambda model: INPUTS,
            origin={"recipe": "r"},
            seed=seed,
            account=lambda seconds, flops: self.prices.append((seconds, flops)),
            folder=lambda: folder,
            place=lambda index: folder / f"level-{index:02d}",
            so_far=dict,
            recall=lambda steps, account: None,
            load=self.load,
            source=self.source,
            taken=lambda run, level, arm: pytest.fail("nothing is put together"),
        )

    def make(self):
        torch.manual_seed(3)
        return self.make_autoencoder()

    def load(self, index):
        self.loaded.append(index)
        return self.known[index]

    def source(self, run, level):
        self.sources.append(level)
        place = self.folder / f"source-{level}"
        place.mkdir(exist_ok=True)
        model = self.make()
        masks = gt.prune(gt.magnitude(model, components=["encoder"]), to_sparsity=level / 10)
        gt.Ticket(masks, model).save(place / "ticket.safetensors")
        return place

    def run(self, search, last=-1, known=()):
        self.known = dict(enumerate(known))
        raw = {"name": "r", "model": "linear-autoencoder", "objective": "autoencoding", "search": search}
        return list(parsed(raw).build_method().levels(self.work, last))


@pytest.fixture
def bench(make_autoencoder, tmp_path):
    return Bench(make_autoencoder, tmp_path)


AT_INIT = ("snip", "grasp", "synflow", "magnitude-at-init", "random-at-init")
SEARCHES = {
    "imp": {"rewind_step": 2},
    "one-shot": {"rewind_step": 2},
    "transferred": {"rewind_step": 2, "source": "there", "carry": {"encoder": "encoder"}},
    **{method: {} for method in AT_INIT},
}


@pytest.mark.parametrize("method", SEARCHES)
def test_a_method_gives_its_levels_and_goes_on_after_any(method, make_autoencoder, tmp_path):
    search = {"method": method, "rounds": 3, **SEARCHES[method]}
    search |= {} if method == "transferred" else {"fraction": 0.3}
    search |= {"score_batches": 2} if method in ("snip", "grasp") else {}
    first = Bench(make_autoencoder, tmp_path)
    whole = first.run(search)
    assert [level.index for level in whole] == [0, 1, 2, 3]
    start = search.get("rewind_step", 0)
    assert first.calls == ([(0, start)] if start else []) + [(start, 9)] * 4
    assert [level.span for level in whole] == [(0, 9)] + [(start, 9)] * 3
    if method != "transferred":
        assert [level.masks.sparsity for level in whole] == pytest.approx([0.0, 0.3, 0.51, 0.657], abs=0.01)
    for last in (0, 1, 2):
        again = Bench(make_autoencoder, tmp_path)
        rest = again.run(search, last, whole)
        assert again.loaded == [last if method == "imp" else 0]
        assert [level.index for level in rest] == list(range(last + 1, 4))
        for one, other in zip(rest, whole[last + 1 :], strict=True):
            assert one.ticket.to_bytes() == other.ticket.to_bytes()
        # The deepest is asked for before anything is trained.
        assert again.sources == ([3, *range(last + 1, 4)] if method == "transferred" else [])


def test_an_early_bird_trains_its_dense_model_first(bench):
    (dense,) = bench.run({"method": "early-bird", "rounds": 0})
    assert (dense.index, dense.masks.sparsity, bench.calls) == (0, 0.0, [(0, 9)])
    assert bench.run({"method": "early-bird", "rounds": 0}, last=0) == []


def test_snip_and_grasp_look_at_the_first_batches_and_no_more(bench):
    bench.run({"method": "snip", "rounds": 1, "score_batches": 3})
    assert bench.batches.steps == [0, 1, 2]


def test_the_price_of_scores_counts_what_cost_counts(bench, tmp_path):
    lines = (
        "import torch",
        "def c(model, masks):",
        " torch.nn.LSTM(4, 4)(torch.ones(6, 1, 4))",
        " return model.scores",
    )
    (tmp_path / "own.py").write_text("\n".join(lines))
    model = bench.make()
    model.scores = gt.magnitude(model)
    bench.work.criterion(f"{tmp_path}/own.py:c")(model, gt.Masks.dense(model))
    assert bench.prices[0][1] == 2 * 6 * (2 * 4 * 16)


@pytest.mark.parametrize("method", AT_INIT)
def test_scores_are_those_of_the_method(method, bench):
    batches = {"score_batches": 3} if method in ("snip", "grasp") else {}
    (_, level) = bench.run({"method": method, "rounds": 1, "fraction": 0.4, **batches})
    model = bench.make()
    seen = [Batches(IMAGES, 4, seed=0).at(step) for step in range(3)]
    expected = {
        "snip": lambda: gt.prune(gt.snip(model, Flat(), seen, seed=7), to_sparsity=0.4),
        "grasp": lambda: gt.prune(gt.grasp(model, Flat(), seen, seed=7), to_sparsity=0.4),
        "synflow": lambda: gt.synflow_masks(model, INPUTS, 0.4, iterations=100),
        "magnitude-at-init": lambda: gt.prune(gt.magnitude(model), to_sparsity=0.4),
        "random-at-init": lambda: gt.prune(gt.random_scores(model, 7), to_sparsity=0.4),
    }[method]()
    assert level.masks == expected


@pytest.mark.parametrize(("method", "asked"), [("snip", 2), ("grasp", 2), ("synflow", 10), ("random-at-init", 2)])
def test_every_scoring_is_told_with_what_it_took(method, asked, bench):
    iterations = {"iterations": 5} if method == "synflow" else {}
    bench.run({"method": method, "rounds": 2, "fraction": 0.3, **iterations})
    assert len(bench.prices) == asked
    assert all(seconds > 0 for seconds, _ in bench.prices)
    flops = {flops for _, flops in bench.prices}
    assert len(flops) == 1
    assert (flops.pop() > 0) is (method != "random-at-init")


def test_synflow_is_asked_a_hundred_times_where_nothing_is_said(bench):
    bench.run({"method": "synflow", "rounds": 1})
    assert len(bench.prices) == 100


@pytest.mark.parametrize("method", ["imp", "one-shot", "at-init"])
def test_any_criterion_goes_with_any_schedule(method, bench):
    model = bench.make()
    (_, level) = bench.run({"method": method, "rounds": 1, "fraction": 0.4, "criterion": "lamp"})
    expected = gt.prune(lamp(model, gt.Masks.dense(model)), to_sparsity=0.4)
    assert level.masks == expected
    assert level.masks != gt.prune(gt.magnitude(model), to_sparsity=0.4)


def test_what_is_chosen_in_the_recipe_is_chosen(bench):
    (_, level) = bench.run({"method": "imp", "rounds": 1, "components": ["decoder"], "scope": "layer"})
    assert level.masks.components == ("decoder",)
    assert {round(1 - n / level.masks[name].numel(), 1) for name, n in level.masks.counts().items()} == {0.2}
    assert level.ticket.origin["recipe"] == "r"
    (_, level) = bench.run({"method": "one-shot", "rounds": 1, "include": ["encoder.*weight"], "exclude": ["*.0.*"]})
    assert list(level.masks) == ["encoder.2.weight"]


def test_weights_travel_where_that_is_asked(bench):
    search = {"method": "transferred", "rounds": 1, "source": "there", "carry": {"encoder": "encoder"}}
    for wanted in (False, True):
        (_, level) = bench.run({**search, "with_weights": wanted})
        assert level.ticket.origin["transfer"]["with_weights"] is wanted
    assert named_state(level.model).keys() == named_state(bench.make()).keys()
