"""Objectives: the values against naive formulas, laziness, and what each loss trains."""

import math

import pytest
import torch
from torch import nn

from gentickets import models
from gentickets.objectives import ELBO, Adversarial, Autoencoding, GainPenalty

IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def vae():
    return models.conv_vae(8, 1, width=4, latent=3)


@pytest.fixture
def gan():
    return models.dcgan(8, 1, width=4, latent=3, critic_norm=False)


@pytest.mark.parametrize(
    ("loss", "naive"),
    [
        ("mse", lambda x, y: ((x - y) ** 2).mean()),
        ("l1", lambda x, y: (x - y).abs().mean()),
        ("bce", lambda x, y: nn.functional.binary_cross_entropy((y + 1) / 2, (x + 1) / 2)),
    ],
)
def test_autoencoding_is_the_mean_over_pixels(loss, naive):
    model = models.linear_autoencoder(8, 1, width=8, latent=2)
    [(components, value)] = Autoencoding(loss).losses(model, IMAGES, rng())
    assert components == ("encoder", "decoder")
    torch.testing.assert_close(value, naive(IMAGES, model(IMAGES)))


def test_elbo_against_torch_distributions(vae):
    vae.eval()
    [(_, value)] = ELBO(3, beta=2.0, scale=0.3).losses(vae, IMAGES, rng())
    mean, log_variance = vae.encoder(IMAGES)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    z = mean + q.scale * torch.randn(mean.shape, generator=rng())
    log_p = torch.distributions.Normal(vae.decoder(z), 0.3).log_prob(IMAGES)
    constant = 64 * (math.log(0.3) + 0.5 * math.log(2 * math.pi))
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(value, (-log_p.flatten(1).sum(1) - constant + 2 * kl).mean(), rtol=1e-4, atol=1e-3)


def test_the_default_scale_is_the_sum_of_squared_errors(vae):
    vae.eval()
    [(_, value)] = ELBO(3, beta=0.0).losses(vae, IMAGES, rng())
    mean, log_variance = vae.encoder(IMAGES)
    z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=rng())
    torch.testing.assert_close(value, ((vae.decoder(z) - IMAGES) ** 2).flatten(1).sum(1).mean())


def test_beta_warms_up_linearly():
    objective = ELBO(3, beta=4.0, warmup_steps=4)
    assert [objective.at(step).beta for step in (0, 1, 3, 4, 100)] == [1.0, 2.0, 4.0, 4.0, 4.0]


@pytest.mark.parametrize("scale", [0.05, 0.2, 0.7071])
def test_bits_per_dimension_is_a_code_over_256_levels(vae, scale):
    """For one pixel, the probabilities of all 256 values sum to 1, far tails and both edges included."""

    class OnePixel(nn.Module):
        encoder = staticmethod(lambda x: (torch.zeros(len(x), 1), torch.zeros(len(x), 1)))

        def __init__(self, mean):
            super().__init__()
            self.decoder = lambda z: torch.full((len(z), 1, 1, 1), mean)

    levels = (torch.arange(256) / 127.5 - 1).reshape(256, 1, 1, 1)
    for mean in (-1.0, -0.3, 0.0, 0.9):
        bits = ELBO(1, scale=scale).bits_per_dimension(OnePixel(mean), levels, rng())
        assert float((2.0**-bits).sum()) == pytest.approx(1.0, abs=1e-6)


def test_bits_per_dimension_falls_when_training_would_lower_the_loss(vae):
    vae.eval()
    objective = ELBO(3, scale=0.2)
    good, bad = IMAGES * 0.0, IMAGES.sign()
    bits = [float(objective.bits_per_dimension(vae, x, rng()).detach().mean()) for x in (good, bad)]
    assert bits[0] < bits[1]


def test_adversarial_losses_are_lazy_and_sees_the_stepped_discriminator(gan):
    """G's loss is computed after D's step: zeroing D in between must show in it."""
    losses = Adversarial(3).losses(gan, IMAGES, rng())
    assert next(losses)[0] == "discriminator"
    with torch.no_grad():
        for parameter in gan.discriminator.parameters():
            parameter.zero_()
    component, loss = next(losses)
    assert component == "generator"
    assert float(loss.detach()) == pytest.approx(math.log(2))  # softplus(-0)
    assert next(losses, None) is None


@pytest.mark.parametrize("kind", ["nonsaturating", "hinge", "wasserstein"])
def test_adversarial_values_against_naive_formulas(gan, kind):
    gan.eval()
    objective = Adversarial(3, loss=kind, clip=1e9)
    (_, d), (_, g) = list(objective.losses(gan, IMAGES, rng()))
    fake = gan.generator(torch.randn(6, 3, generator=rng()))
    real_logit, fake_logit = gan.discriminator(IMAGES), gan.discriminator(fake)
    if kind == "nonsaturating":
        p, q = torch.sigmoid(real_logit), torch.sigmoid(fake_logit)
        expected = (-p.log().mean() - (1 - q).log().mean(), -q.log().mean())
    elif kind == "hinge":
        expected = ((1 - real_logit).clamp(0).mean() + (1 + fake_logit).clamp(0).mean(), -fake_logit.mean())
    else:
        expected = (fake_logit.mean() - real_logit.mean(), -fake_logit.mean())
    torch.testing.assert_close(d, expected[0])
    torch.testing.assert_close(g, expected[1])


def test_the_critic_is_trained_n_times_on_disjoint_images(gan):
    objective = Adversarial(3, n_critic=3)
    assert objective.batches_per_step == 3
    seen = []
    gan.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    names = [name for name, _ in objective.losses(gan, IMAGES, rng())]
    assert names == ["discriminator"] * 3 + ["generator"]
    reals = [batch for batch in seen if any(torch.equal(batch, part) for part in IMAGES.chunk(3))]
    assert torch.equal(torch.cat(reals), IMAGES)


def test_clipping_follows_the_step(gan):
    losses = Adversarial(3, loss="wasserstein", clip=0.01).losses(gan, IMAGES, rng())
    next(losses)
    with torch.no_grad():
        for parameter in gan.discriminator.parameters():
            parameter.fill_(5.0)  # what a step might do
    next(losses)
    assert max(float(p.detach().abs().max()) for p in gan.discriminator.parameters()) == pytest.approx(0.01)


def test_gradient_penalty_of_a_linear_critic_is_known():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = models.dcgan(8, 1, 4, 3).generator
            self.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))

    net = Net()
    plain, punished = (
        float(next(Adversarial(3, loss="wasserstein", clip=1e9, gradient_penalty=p).losses(net, IMAGES, rng()))[1])
        for p in (None, 10.0)
    )
    slope = float(net.discriminator[1].weight.detach().norm())
    assert punished - plain == pytest.approx(10 * (slope - 1) ** 2, rel=1e-3)


def test_wasserstein_needs_a_bound():
    with pytest.raises(ValueError, match="clip="):
        Adversarial(3, loss="wasserstein")


def test_a_generator_that_gives_one_image_has_collapsed(gan):
    objective = Adversarial(3)
    gan.generator = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
    assert objective.collapsed(gan, IMAGES, rng()) is None
    with torch.no_grad():
        gan.generator[0].weight.zero_()
    assert "collapsed" in objective.collapsed(gan, IMAGES, rng())


@pytest.mark.parametrize("objective", [Autoencoding(), ELBO(3), Adversarial(3)])
def test_example_inputs_fit_the_components(objective, vae, gan):
    model = {"Autoencoding": models.conv_autoencoder(8, 1, 4, 3), "ELBO": vae, "Adversarial": gan}[
        type(objective).__name__
    ]
    inputs = objective.example_inputs(model, IMAGES)
    assert set(inputs) == set(objective.components)
    for component, example in inputs.items():
        getattr(model, component)(example)


@pytest.mark.parametrize(
    "objective",
    [
        Autoencoding("bce"),
        ELBO(3, likelihood="bernoulli"),
        Adversarial(3),
        Adversarial(3, loss="wasserstein", gradient_penalty=10.0),
    ],
)
def test_half_precision_gives_the_losses_of_full_precision(objective, vae, gan):
    model = gan if isinstance(objective, Adversarial) else vae
    if isinstance(objective, Autoencoding):
        model = models.conv_autoencoder(8, 1, width=4, latent=3)
    found = []
    for half in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            losses = [loss for _, loss in objective.losses(model, IMAGES, rng())]
        assert all(loss.dtype == torch.float32 for loss in losses)
        sum(losses).backward()
        found.append(torch.stack([loss.detach() for loss in losses]))
    torch.testing.assert_close(found[1], found[0], rtol=0.1, atol=0.1)


def test_cross_entropy_of_a_saturated_output_in_half_precision_is_finite():
    class White(nn.Module):
        encoder = staticmethod(lambda images: images)
        decoder = staticmethod(lambda codes: torch.ones_like(codes, dtype=torch.bfloat16))

    [(_, value)] = Autoencoding("bce").losses(White(), IMAGES.sign(), rng())
    assert bool(value.isfinite())


def test_bernoulli_bits_are_the_cross_entropy_of_the_intensities(vae):
    vae.eval()
    bits = ELBO(3, likelihood="bernoulli").bits_per_dimension(vae, IMAGES, rng())
    mean, log_variance = vae.encoder(IMAGES)
    spread = (0.5 * log_variance).exp()
    output = vae.decoder(mean + spread * torch.randn(mean.shape, generator=rng()))
    entropy = nn.functional.binary_cross_entropy((output + 1) / 2, (IMAGES + 1) / 2, reduction="none").flatten(1).sum(1)
    prior = torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mean, spread), prior).sum(1)
    torch.testing.assert_close(bits, (entropy + kl) / (64 * math.log(2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("spread", "dead"), [(0.02, False), (0.005, True)])
def test_a_collapse_is_a_hundredth_of_the_spread_of_real_images(gan, spread, dead):
    class Nearly(Adversarial):
        def sample(self, model, count, rng):
            return IMAGES.mean(0) + spread * (IMAGES - IMAGES.mean(0))

    reason = Nearly(3).collapsed(gan, IMAGES, rng())
    assert (reason is not None) is dead


def test_a_critic_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="n_critic=0: 1 or more"):
        Adversarial(3, n_critic=0)


def test_clipping_bounds_both_ways(gan):
    losses = Adversarial(3, loss="wasserstein", clip=0.01).losses(gan, IMAGES, rng())
    next(losses)
    with torch.no_grad():
        for sign, parameter in zip((-1, 1) * 50, gan.discriminator.parameters(), strict=False):
            parameter.fill_(5.0 * sign)
    next(losses)
    weights = torch.cat([p.detach().flatten() for p in gan.discriminator.parameters()])
    assert (float(weights.min()), float(weights.max())) == (pytest.approx(-0.01), pytest.approx(0.01))


def test_a_penalty_on_gains_keeps_what_the_objective_within_it_is():
    """Components, averages, batches, warm-up, examples and collapse are its own; each loss has its own gains added."""
    gan = models.dcgan(8, 1, width=4, latent=3)
    inner = Adversarial(3, n_critic=2)
    outer = GainPenalty(inner, strength=0.5)
    assert (outer.components, outer.averaged, outer.batches_per_step) == (inner.components, inner.averaged, 2)
    assert GainPenalty(ELBO(3, beta=4.0, warmup_steps=4), 0.5).at(0) == GainPenalty(ELBO(3, beta=1.0), 0.5)
    assert set(outer.example_inputs(gan, IMAGES)) == {"generator", "discriminator"}
    gan.generator.eval()
    expected = [(name, loss.detach()) for name, loss in inner.losses(gan, IMAGES, rng())]
    found = [(name, loss.detach()) for name, loss in outer.losses(gan, IMAGES, rng())]
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (name, loss), (_, plain) in zip(found, expected, strict=True):
        norms = [layer for layer in getattr(gan, name).modules() if isinstance(layer, nn.BatchNorm2d)]
        gains = sum(float(layer.weight.detach().abs().sum()) for layer in norms)
        assert float(loss - plain) == pytest.approx(0.5 * gains, rel=1e-4, abs=1e-4), name
    with torch.no_grad():
        for parameter in gan.generator.parameters():
            parameter.zero_()
    assert "collapsed" in outer.collapsed(gan, IMAGES, rng())
