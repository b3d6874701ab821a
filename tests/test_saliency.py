"""SNIP, GraSP and SynFlow, each against a second, naive implementation; and what they must not touch."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import gentickets as gt
from gentickets.masks.names import clone, named_state, named_weights
from gentickets.pruning import saliency
from gentickets.pruning.gradual import prune_gradually

TINY = 1e-4  # relative, everywhere


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class TinyAutoencoder(nn.Module):
    """Smooth, so that derivatives can be taken by differences; batch norm in the middle."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
        self.decoder = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 5))


class TinyVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4))
        self.encoder = Halves(self.trunk)
        self.decoder = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.3), nn.Tanh(), nn.Linear(4, 5))
        del self.trunk


class Halves(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).chunk(2, dim=1)


def steady(norm):
    """Spectral norm whose vectors stand still: the gradient takes them as constants, differences would not."""

    def apply(layer):
        layer = norm(layer)
        inner = [*layer._forward_pre_hooks.values(), *layer.modules()]
        for part in inner:
            if hasattr(part, "n_power_iterations"):
                part.n_power_iterations = 0
        return layer

    return apply


class TinyGan(nn.Module):
    def __init__(self, norm=lambda layer: layer):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 5))
        self.discriminator = nn.Sequential(norm(nn.Linear(5, 4)), nn.Softplus(), norm(nn.Linear(4, 1)))


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it; people's models still have it
        return nn.utils.weight_norm(layer)


CASES = {
    "autoencoder": (TinyAutoencoder, gt.Autoencoding()),
    "vae": (TinyVAE, gt.ELBO(latent_size=2)),
    "gan": (TinyGan, gt.Adversarial(latent_size=3)),
    "gan, three critic losses": (TinyGan, gt.Adversarial(latent_size=3, n_critic=3)),
    "spectral norm": (lambda: TinyGan(steady(spectral_norm)), gt.Adversarial(latent_size=3)),
    "old spectral norm": (lambda: TinyGan(steady(nn.utils.spectral_norm)), gt.Adversarial(latent_size=3)),
    "weight norm": (lambda: TinyGan(weight_norm), gt.Adversarial(latent_size=3)),
    "old weight norm": (lambda: TinyGan(old_weight_norm), gt.Adversarial(latent_size=3)),
}


def some_batches(count: int = 2, size: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(size, 5, generator=generator) for _ in range(count)]


def losses_of(model, objective, batches, seed=0):
    """All losses with their components, as `snip` must see them: one model per batch, one stream of noise."""
    rng = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    for batch in batches:
        for trained, loss in objective.losses(clone(model).train(), batch, rng):
            yield (trained,) if isinstance(trained, str) else trained, loss


def total_loss(model, objective, batches, component) -> Tensor:
    """The sum of the losses that train a component."""
    return sum(loss for trained, loss in losses_of(model, objective, batches) if component in trained)


def by_differences(function, model, name, index, step=1e-4):
    """The derivative of `function(model)` by one weight's *factor*, by a five-point rule."""
    values = []
    for factor in (-2, -1, 1, 2):
        moved = clone(model)
        with torch.no_grad():
            named_weights(moved)[name].view(-1)[index] *= 1 + factor * step
        values.append(function(moved))
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)


def close(scores, expected, name):
    scale = expected.abs().max()
    assert torch.allclose(scores, expected, rtol=TINY, atol=TINY * float(scale) * 1e-2), name


# -- SNIP ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", CASES)
def test_snip_is_the_derivative_by_a_factor_on_each_weight(case):
    make, objective = CASES[case]
    model, batches = make(), some_batches()
    scores = gt.snip(model, objective, batches)
    assert set(scores) == set(gt.Masks.dense(model))
    for name, score in scores.items():
        component = name.split(".")[0]

        def loss(moved, component=component):
            return float(total_loss(moved, objective, batches, component).detach())

        naive = [by_differences(loss, model, name, at) for at in range(score.numel())]
        close(score, torch.tensor(naive).abs().reshape(score.shape), name)
        assert score.any(), name


# -- GraSP --------------------------------------------------------------------------------------------------


def explicit_hessian_product(model, objective, batches, component, names):
    """w · (H g) with H written out in full, from the losses of one component as a function of its flat weights."""
    shapes = [named_weights(model)[name].shape for name in names]
    start = torch.cat([named_weights(model)[name].detach().reshape(-1) for name in names])

    def loss(flat: Tensor) -> Tensor:
        parts = dict(zip(names, flat.split([shape.numel() for shape in shapes]), strict=True))
        total = flat.new_zeros(())
        rng = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        for batch in batches:
            copy = clone(model).train()
            for name, shape in zip(names, shapes, strict=True):
                *path, last = name.split(".")
                layer = copy.get_submodule(".".join(path))
                del layer._parameters[last]
                layer.__dict__[last] = parts[name].reshape(shape)  # a tensor of the graph in the parameter's place
            for trained, value in objective.losses(copy, batch, rng):
                total = total + value * (component in trained)
        return total

    hessian = torch.autograd.functional.hessian(loss, start)
    gradient = torch.autograd.functional.jacobian(loss, start)
    product = start * (hessian @ gradient)
    parts = product.split([shape.numel() for shape in shapes])
    return {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", [case for case in CASES if "norm" not in case])
def test_grasp_is_the_explicit_hessian_times_the_gradient(case):
    make, objective = CASES[case]
    model, batches = make(), some_batches()
    scores = gt.grasp(model, objective, batches)
    together = case in ("autoencoder", "vae")  # one loss for both: one Hessian, with the blocks between them
    for component in ["encoder"] if together else objective.components:
        names = [name for name in scores if together or name.startswith(component)]
        expected = explicit_hessian_product(model, objective, batches, component, names)
        for name in names:
            close(scores[name], expected[name], name)
            assert scores[name].any(), name


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", CASES)
def test_grasp_is_half_of_what_the_gradient_norm_changes_by(case):
    # d(g·g)/dw = 2 H g, so w · (H g) is half the derivative of g·g by a factor on w. By differences, norms included.
    make, objective = CASES[case]
    model, batches = make(), some_batches()
    scores = gt.grasp(model, objective, batches)
    for name, score in scores.items():
        component = name.split(".")[0]

        def flow(moved, component=component):
            total = {}
            rng = torch.Generator().manual_seed(0)
            torch.manual_seed(0)
            for batch in batches:
                copy = clone(moved).train()
                for trained, loss in objective.losses(copy, batch, rng):
                    names = (trained,) if isinstance(trained, str) else trained
                    if component in names:
                        mine = {n: named_weights(copy)[n] for n in scores if n.split(".")[0] in names}
                        grads = torch.autograd.grad(loss, list(mine.values()), allow_unused=True)
                        for n, grad in zip(mine, grads, strict=True):
                            total[n] = total.get(n, 0) + grad
            return float(sum(grad.square().sum() for grad in total.values()))

        chosen = range(0, score.numel(), 3)
        naive = torch.tensor([by_differences(flow, model, name, at) / 2 for at in chosen])
        close(score.reshape(-1)[::3], naive, name)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", CASES)
def test_grasp_goes_through_one_batch_once_and_finds_what_two_passes_find(case, monkeypatch):
    make, objective = CASES[case]
    model, (batch,) = make(), some_batches(1)
    passes = []
    over_losses = saliency._over_losses
    monkeypatch.setattr(saliency, "_over_losses", lambda *args: passes.append(1) or over_losses(*args))
    scores = gt.grasp(model, objective, [batch])
    # Three critic losses train the same weights: the attempt is given up at the second, and two passes follow.
    assert len(passes) == (3 if case == "gan, three critic losses" else 1)

    def given_up(*_):
        raise saliency._SharedWeight

    monkeypatch.setattr(saliency._OwnHessianTimesGradient, "__call__", given_up)
    for name, score in gt.grasp(model, objective, [batch]).items():
        close(scores[name], score, name)
        assert score.any(), name


@pytest.mark.usefixtures("double")
def test_grasp_keeps_what_carries_the_gradient():
    # The paper removes the highest -w·Hg: of a loss with one steep and one level weight the steep one is kept.
    model = nn.Module()
    model.encoder, model.decoder = nn.Linear(2, 1, bias=False), nn.Identity()
    with torch.no_grad():
        model.encoder.weight.copy_(torch.tensor([[1.0, 1.0]]))
    batch = torch.tensor([[3.0, 0.0], [0.0, 0.1]])

    @dataclass(frozen=True)
    class Squared(gt.Objective):
        components = ("encoder", "decoder")

        def losses(self, model, batch, rng):
            yield self.components, model.decoder(model.encoder(batch)).square().sum()

    scores = gt.grasp(model, Squared(), [batch], include="*")
    # L = 9 w1² + 0.01 w2²; H g = (18 · 18 w1, 0.02 · 0.02 w2)
    assert torch.allclose(scores["encoder.weight"], torch.tensor([[324.0, 0.0004]]))
    assert gt.prune(scores, fraction=0.5)["encoder.weight"].tolist() == [[True, False]]


# -- one loss per component -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scaled(gt.Adversarial):
    """The loss of one component times a factor."""

    which: str = ""
    factor: float = 1.0

    def losses(self, model, batch, rng):
        for trained, loss in super().losses(model, batch, rng):
            yield trained, loss * (self.factor if trained == self.which else 1.0)


@pytest.mark.parametrize("criterion", [gt.snip, gt.grasp])
@pytest.mark.parametrize("scaled", ["generator", "discriminator"])
def test_no_loss_leaks_into_the_other_component(gan, criterion, scaled):
    images = [torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)]

    gan.generator.insert(0, nn.Unflatten(1, (5, 1, 1)))
    plain = criterion(gan, Scaled(5), images)
    other = criterion(gan, Scaled(5, which=scaled, factor=1024.0), images)
    power = {gt.snip: 1, gt.grasp: 2}[criterion]  # GraSP has the loss in H and in g
    for name in plain:
        if name.startswith(scaled):
            assert torch.equal(other[name], plain[name] * 1024.0**power), name  # a power of 2: exact
        else:
            assert torch.equal(other[name], plain[name]), name
        assert plain[name].any(), name


def test_a_weight_that_no_loss_reaches_scores_zero(autoencoder):
    autoencoder.spare = nn.Linear(3, 3)
    autoencoder.encoder.add_module("unused", nn.Identity())
    for criterion in (gt.snip, gt.grasp):
        scores = criterion(autoencoder, gt.Autoencoding(), [torch.randn(4, 10)])
        assert not scores["spare.weight"].any()
        assert scores["encoder.0.weight"].any()


# -- batches and seeds ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
def test_the_gradients_of_several_batches_add_up():
    model, batches = TinyAutoencoder(), some_batches(3)
    signed = []
    for batch in batches:
        copy = clone(model).train()
        loss = (copy.decoder(copy.encoder(batch)) - batch).square().mean()
        names = list(gt.Masks.dense(model))
        signed.append(torch.autograd.grad(loss, [named_weights(copy)[name] for name in names]))
    scores = gt.snip(model, gt.Autoencoding(), iter(batches))
    for name, *parts in zip(names, *signed, strict=True):
        assert torch.allclose(scores[name], (named_weights(model)[name] * sum(parts)).abs())
    for criterion, power in ((gt.snip, 1), (gt.grasp, 2)):
        one = criterion(model, gt.Autoencoding(), batches[:1])
        twice = criterion(model, gt.Autoencoding(), batches[:1] * 2)
        assert all(torch.allclose(twice[name], one[name] * 2**power) for name in one)


@pytest.mark.parametrize("criterion", [gt.snip, gt.grasp])
def test_equal_seeds_give_equal_scores(criterion):
    model, objective = TinyVAE(), gt.ELBO(latent_size=2)
    one = criterion(model, objective, some_batches(), seed=3)
    torch.manual_seed(99)
    again = criterion(model, objective, iter(some_batches()), seed=3)
    other = criterion(model, objective, some_batches(), seed=4)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_scores_are_chosen_as_by_any_criterion_and_go_to_prune_as_they_are(autoencoder):
    images = [torch.randn(4, 10)]
    inputs = {"encoder": images[0], "decoder": torch.zeros(1, 3)}
    for scores in (
        gt.snip(autoencoder, gt.Autoencoding(), images, components="decoder", exclude="*.2.weight"),
        gt.grasp(autoencoder, gt.Autoencoding(), images, components="decoder", exclude="*.2.weight"),
        gt.synflow(autoencoder, inputs, components="decoder", exclude="*.2.weight"),
    ):
        assert list(scores) == ["decoder.0.weight"]
        assert gt.prune(scores, to_sparsity=0.5).alive == 18


# -- SynFlow --------------------------------------------------------------------------------------------------


def path_products(weights: list[list[list[float]]]) -> tuple[float, list[list[list[float]]]]:
    """R and the scores of an MLP: each path's product goes to every weight on it. `weights[l][out][in]`."""
    sides = [len(weights[0][0]), *(len(layer) for layer in weights)]
    scores = [[[0.0] * len(row) for row in layer] for layer in weights]
    total = 0.0
    for path in itertools.product(*(range(side) for side in sides)):
        product = 1.0
        for layer, (into, out) in zip(weights, itertools.pairwise(path), strict=True):
            product *= abs(layer[out][into])
        total += product
        for layer, (into, out) in zip(scores, itertools.pairwise(path), strict=True):
            layer[out][into] += product
    return total, scores


@pytest.mark.parametrize(
    "norm", [lambda layer: layer, spectral_norm, nn.utils.spectral_norm, weight_norm, old_weight_norm]
)
@pytest.mark.parametrize("relative", [False, True])
def test_synflow_is_the_sum_over_paths(norm, relative):
    model = nn.Module()
    model.decoder = nn.Sequential(
        norm(nn.Linear(3, 4)),
        nn.LayerNorm(4),
        nn.Tanh(),
        norm(nn.Linear(4, 5)),
        nn.BatchNorm1d(5),
        nn.Sigmoid(),
        norm(nn.Linear(5, 2)),
        nn.Tanh(),
    )
    scores = gt.synflow(model, {"decoder": torch.randn(7, 3)}, relative=relative)
    under = [named_weights(model)[name].tolist() for name in scores]
    total, expected = path_products(under)
    for name, naive in zip(scores, expected, strict=True):
        naive = torch.tensor(naive, dtype=torch.float64) / (total if relative else 1.0)
        assert torch.allclose(scores[name], naive, rtol=1e-6), name


def test_synflow_counts_the_gains_of_norms():
    model = nn.Module()
    model.encoder = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, 1)
    )
    with torch.no_grad():
        model.encoder[1].weight.copy_(torch.tensor([-3.0, 0.0]))
        model.encoder[1].running_mean.fill_(5.0)
        model.encoder[1].running_var.fill_(9.0)
    scores = gt.synflow(model, {"encoder": torch.zeros(1, 1, 2, 2)})
    w, head = model.encoder[0].weight.detach().double().abs(), model.encoder[4].weight.detach().double().abs()
    assert scores["encoder.0.weight"].flatten().tolist() == pytest.approx([float(3 * w[0] * head[0, :4].sum()), 0.0])
    assert torch.allclose(scores["encoder.4.weight"][0], torch.cat([3 * w[0].item() * head[0, :4], head[0, 4:] * 0]))


def test_flow_is_conserved_from_layer_to_layer(gan):
    inputs = {"generator": torch.zeros(2, 5, 1, 1), "discriminator": torch.zeros(2, 1, 8, 8)}
    sums = {name: float(score.sum()) for name, score in gt.synflow(gan, inputs, relative=True).items()}
    assert all(total == pytest.approx(1.0) for total in sums.values()), sums


class Deep(nn.Module):
    """Twelve layers of uneven width in one component."""

    def __init__(self):
        super().__init__()
        sides = [20, 100, 100, 20, 200, 20, 100, 100, 20, 200, 100, 20, 10]
        layers = [part for i, o in itertools.pairwise(sides) for part in (nn.Linear(i, o), nn.ReLU())]
        self.encoder, self.decoder = nn.Sequential(*layers[:-1]), nn.Linear(10, 20)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_synflow_keeps_every_layer_where_others_empty_one(seed):
    torch.manual_seed(seed)
    model = Deep()
    everything = gt.Masks.dense(model, "encoder")
    images = [torch.randn(32, 20)]
    inputs = {"encoder": images[0]}

    def emptied(masks):
        return [name for name, alive in masks.counts().items() if alive == 0]

    sparsity = 0.98
    flow = gt.synflow_masks(model, inputs, sparsity)
    assert not emptied(flow)
    gt.check_connected(model, flow, inputs)
    assert flow.alive == gt.prune(gt.magnitude(model), to_sparsity=sparsity, within=everything).alive
    assert emptied(gt.prune(gt.magnitude(model), to_sparsity=sparsity, within=everything))
    snip = gt.prune(gt.snip(model, gt.Autoencoding(), images), to_sparsity=sparsity, within=everything)
    with pytest.raises(gt.Disconnected):
        gt.check_connected(model, snip, inputs)


def test_relative_flow_shares_a_sparsity_out_among_components(gan):
    inputs = {"generator": torch.zeros(2, 5, 1, 1), "discriminator": torch.zeros(2, 1, 8, 8)}
    with torch.no_grad():
        for weight in gan.discriminator.parameters():
            weight.mul_(1e-3)
    masks = gt.synflow_masks(gan, inputs, 0.9)
    gt.check_connected(gan, masks, inputs)
    assert all(masks.counts().values())


def test_the_schedule_is_exponential_never_revives_and_ends_exactly(gan):
    inputs = {"generator": torch.zeros(2, 5, 1, 1), "discriminator": torch.zeros(2, 1, 8, 8)}
    dense, seen = gt.Masks.dense(gan), []

    def score(model, masks):
        masks.audit(model)
        assert all(torch.equal(named_weights(model)[n], named_weights(gan)[n] * mask) for n, mask in masks.items())
        seen.append(masks)
        return gt.synflow(model, inputs)

    last = prune_gradually(gan, score, 0.93, iterations=7)
    for k, masks in enumerate([*seen, last]):
        assert masks.density == pytest.approx(0.07 ** (k / 7), abs=1 / dense.total)
    assert all(below <= above for above, below in itertools.pairwise([*seen, last]))
    assert last.alive == gt.prune(gt.magnitude(gan), to_sparsity=0.93).alive
    assert prune_gradually(gan, score, 0.93, iterations=1) == gt.prune(gt.synflow(gan, inputs), to_sparsity=0.93)


@pytest.mark.parametrize("scope", ["global", "component", "layer", "erk"])
@pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.59, 0.7, 0.97, 1.0])
def test_any_scope_and_start_ends_where_prune_does(gan, half, scope, sparsity):
    inputs = {"generator": torch.zeros(2, 5, 1, 1), "discriminator": torch.zeros(2, 1, 8, 8)}
    uneven = gt.Masks.dense(gan).replace(half(gan, components="generator"))
    for within in (None, uneven):
        try:
            once = gt.prune(gt.magnitude(gan), to_sparsity=sparsity, within=within, scope=scope)
        except gt.PruneError:
            with pytest.raises(gt.PruneError):
                gt.synflow_masks(gan, inputs, sparsity, iterations=20, within=within, scope=scope)
            continue
        masks = gt.synflow_masks(gan, inputs, sparsity, iterations=20, within=within, scope=scope)
        assert masks.alive == once.alive
        assert within is None or masks <= within


def test_a_schedule_of_hardly_any_step_does_not_revive_by_rounding(autoencoder):
    total = gt.Masks.dense(autoencoder, "decoder").total
    scores = gt.random_scores(autoencoder, 0, "decoder")
    for dead in range(0, total, 5):
        within = gt.prune(scores, to_sparsity=dead / total)
        for more in (0, 1):
            masks = prune_gradually(autoencoder, lambda *_: scores, (dead + more) / total, iterations=20, within=within)
            assert masks.alive == total - dead - more


# -- purity ---------------------------------------------------------------------------------------------------


def bits(model):
    """All that a model holds, to compare bit for bit."""
    return {
        "state": {name: tensor.detach().clone() for name, tensor in named_state(model).items()},
        "grad": {name: None if w.grad is None else w.grad.clone() for name, w in named_weights(model).items()},
        "requires_grad": {name: w.requires_grad for name, w in named_weights(model).items()},
        "identity": {name: id(w) for name, w in named_weights(model).items()},
        "training": {name: layer.training for name, layer in model.named_modules()},
        "hooks": {name: len(layer._forward_pre_hooks) for name, layer in model.named_modules()},
    }


def same(one, other):
    if isinstance(one, dict):
        return set(one) == set(other) and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("norm", [lambda layer: layer, spectral_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("training", [True, False])
def test_everything_is_bit_for_bit_as_before(make_gan, norm, training):
    gan = make_gan(norm)
    gan.generator.insert(0, nn.Unflatten(1, (5, 1, 1)))
    gan.generator.append(nn.Dropout(0.2))
    objective = gt.Adversarial(5, loss="wasserstein", clip=0.01, n_critic=2)
    images = [torch.randn(4, 1, 8, 8)]
    inputs = {"generator": torch.zeros(2, 5), "discriminator": images[0]}
    gan.train(training)
    gan.generator[1].weight.grad = torch.ones_like(gan.generator[1].weight)
    next(gan.discriminator.parameters()).requires_grad_(False)
    for criterion in (
        lambda: gt.snip(gan, objective, images),
        lambda: gt.grasp(gan, objective, images),
        lambda: gt.synflow(gan, inputs),
        lambda: gt.synflow_masks(gan, inputs, 0.9, iterations=3),
    ):
        before, rng, image = bits(gan), torch.get_rng_state(), images[0].clone()
        with torch.set_grad_enabled(training):  # and whatever the caller's grad mode is
            first = criterion()
            assert torch.is_grad_enabled() == training
        assert same(before, bits(gan))
        assert torch.equal(rng, torch.get_rng_state())
        assert torch.equal(image, images[0])
        second = criterion()
        assert first == second if isinstance(first, gt.Masks) else same(dict(first), dict(second))
        if not isinstance(first, gt.Masks):
            assert not any(score.requires_grad for score in first.values())


def test_a_clipped_critic_does_not_change_what_the_next_batch_sees(gan):
    gan.generator.insert(0, nn.Unflatten(1, (5, 1, 1)))
    images = torch.randn(4, 1, 8, 8)
    free = gt.snip(gan, gt.Adversarial(5), [images, images], components="discriminator")
    clipped = gt.snip(gan, gt.Adversarial(5, clip=1e-3), [images, images], components="discriminator")
    assert all(torch.equal(free[name], clipped[name]) for name in free)


def test_a_gradient_penalty_has_derivatives_too(gan):
    gan.generator.insert(0, nn.Unflatten(1, (5, 1, 1)))
    objective = gt.Adversarial(5, loss="wasserstein", gradient_penalty=10.0)
    for criterion in (gt.snip, gt.grasp):
        scores = criterion(gan, objective, [torch.randn(4, 1, 8, 8)])
        assert all(bool(torch.isfinite(score).all()) and bool(score.any()) for score in scores.values())


# -- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", [gt.snip, gt.grasp])
def test_wrong_arguments_are_refused(autoencoder, gan, criterion):
    images = torch.randn(4, 10)
    with pytest.raises(gt.PruneError, match="no batch"):
        criterion(autoencoder, gt.Autoencoding(), [])
    with pytest.raises(gt.PruneError, match="no batch"):
        criterion(autoencoder, gt.Autoencoding(), iter(()))
    with pytest.raises(gt.PruneError, match=r"list of batches, such as \[images\]"):
        criterion(autoencoder, gt.Autoencoding(), images)
    with pytest.raises(gt.MaskError, match="no component 'head': the model has encoder, decoder"):
        criterion(autoencoder, gt.Autoencoding(), [images], components="head")
    with pytest.raises(gt.MaskError, match="no component 'encoder': the model has generator, discriminator"):
        criterion(gan, gt.Autoencoding(), [images])


def test_wrong_inputs_of_synflow_are_refused(autoencoder):
    with pytest.raises(gt.MaskError, match="no component 'head'"):
        gt.synflow(autoencoder, {"head": torch.zeros(1, 3)})
    with pytest.raises(gt.PruneError, match="no input for component 'encoder'"):
        gt.synflow(autoencoder, {"decoder": torch.zeros(1, 3)}, components=["encoder", "decoder"])
    with pytest.raises(gt.PruneError, match="iterations=0"):
        gt.synflow_masks(autoencoder, {"decoder": torch.zeros(1, 3)}, 0.5, iterations=0)
    with pytest.raises(gt.PruneError, match=r"to_sparsity=1\.5"):
        gt.synflow_masks(autoencoder, {"decoder": torch.zeros(1, 3)}, 1.5)
    with torch.no_grad():
        autoencoder.decoder[0].weight.fill_(torch.inf)
    with pytest.raises(gt.PruneError, match="its weights are too large"):
        gt.synflow(autoencoder, {"decoder": torch.zeros(1, 3)})
