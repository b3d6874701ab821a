"""Early-bird tickets and channel granularity."""

import pytest
import torch
from torch import nn

import gentickets as gt
from gentickets import models
from gentickets.channels.shrinking import shrink
from gentickets.masks.names import clone, named_state
from gentickets.pruning.scores import batchnorm_scale
from gentickets.search.early_bird import EarlyBird, channel_scores


def dcgan(norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return models.dcgan(16, 1, width=8, latent=6, critic_norm=norm)


def shake(model: nn.Module, amount: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)


def test_channel_masks_against_a_naive_sort():
    model = dcgan()
    scores = batchnorm_scale(model)
    masks = gt.prune(scores, fraction=0.3, granularity="channel")
    ranked = sorted((float(v), name, i) for name, score in scores.items() for i, v in enumerate(score))
    dead = {(name, i) for _, name, i in ranked[: int(0.3 * len(ranked))]}
    for name, score in scores.items():
        expected = [(name, i) not in dead for i in range(len(score))]
        assert masks[name].tolist() == expected
        assert masks[name.replace("weight", "bias")].tolist() == expected


def test_filters_of_transposed_convolutions_lie_on_axis_1():
    model = dcgan()
    masks = gt.prune(gt.magnitude(model, ["generator"]), fraction=0.5, scope="layer", granularity="channel")
    mask = masks["generator.layers.3.weight"]
    per_output = mask.transpose(0, 1).flatten(1)
    assert all(row.all() or not row.any() for row in per_output)
    assert int(per_output.any(1).sum()) == len(per_output) - len(per_output) // 2
    linear = nn.ModuleDict({"net": nn.Linear(4, 6)})
    masks = gt.prune(gt.magnitude(linear), fraction=0.5, granularity="channel")
    assert masks["net.bias"].sum() == 3
    assert torch.equal(masks["net.weight"].all(1), masks["net.bias"])


def test_channels_are_never_revived_and_none_is_emptied():
    model = dcgan()
    masks = gt.prune(batchnorm_scale(model), fraction=0.5, granularity="channel")
    shake(model, 0.5, 1)
    deeper = gt.prune(batchnorm_scale(model), fraction=0.5, granularity="channel", within=masks)
    assert deeper <= masks
    with pytest.warns(UserWarning, match="its best one is kept"):
        last = gt.prune(batchnorm_scale(model), to_sparsity=0.99, granularity="channel")
    assert all(last[name].any() for name in last)


def test_the_window_the_tolerance_and_all_components_count():
    model = dcgan()
    bird = EarlyBird(fraction=0.5, granularity="channel", window=3, tolerance=0.2)
    shake(model, 0.5, 0)
    assert [bird.observe(model) for _ in range(3)] == [False, False, True]
    assert bird.settled

    bird = EarlyBird(fraction=0.5, granularity="channel", window=3, tolerance=0.2)
    for seed in range(4):  # the generator stands still, the discriminator does not
        shake(model.discriminator, 2.0, seed)
        assert not bird.observe(model)
    assert [len(entry["generator"]) for entry in bird.distances] == [0, 1, 2, 2]
    assert bird.distances[-1]["generator"] == [0.0, 0.0]
    assert max(bird.distances[-1]["discriminator"]) >= 0.2


def test_distances_are_the_masks_own():
    model = dcgan()
    bird = EarlyBird(fraction=0.4, window=4, tolerance=0.01, scope="global")
    for seed in range(5):
        shake(model, 0.01, seed)
        bird.observe(model)
    matrix = bird.distance_matrix()
    assert matrix.shape == (5, 5)
    assert (matrix == matrix.T).all()
    for name in ("generator", "discriminator"):
        expected = bird.history[4].select(name).distance(bird.history[3].select(name))
        assert bird.distances[4][name][-1] == expected
    assert matrix[4, 3] == bird.history[4].distance(bird.history[3])
    assert not bird.settled
    assert bird.ticket.origin["early_bird"]["settled"] is False


def test_untrained_gains_are_not_counted():
    model = dcgan()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
    bird = EarlyBird(fraction=0.5, granularity="channel", window=2)
    assert [bird.observe(model) for _ in range(3)] == [False] * 3
    assert bird.distances == []
    with pytest.raises(gt.PruneError, match="no ticket yet"):
        _ = bird.ticket


def test_components_without_norms_go_by_their_filters():
    model = dcgan(norm=False)
    scores = channel_scores(model)
    assert all("layers" in name for name in scores)
    of_d = [name for name in scores if name.startswith("discriminator")]
    assert of_d == ["discriminator.trunk.layers.0.weight", "discriminator.trunk.layers.2.weight"]
    with pytest.raises(gt.MaskError, match="no batch norm"):
        batchnorm_scale(model, ["discriminator"])


def test_a_settled_ticket_shrinks_exactly_and_starts_from_the_weights_of_that_moment():
    model = dcgan()
    bird = EarlyBird(fraction=0.5, granularity="channel", window=2)
    shake(model, 0.2, 3)
    while not bird.observe(model):
        pass
    ticket = bird.ticket
    assert all(torch.equal(t, ticket.weights[n]) for n, t in named_state(model).items())
    inputs = {"generator": torch.randn(3, 6), "discriminator": torch.rand(3, 1, 16, 16) * 2 - 1}
    small = shrink(model, ticket.masks, inputs)
    masked = ticket.masks.apply_(clone(model)).eval()
    small.eval()
    for component, example in inputs.items():
        torch.testing.assert_close(getattr(small, component)(example), getattr(masked, component)(example))
    count = [sum(p.numel() for p in net.parameters()) for net in (small, model)]
    assert count[0] < 0.5 * count[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"fraction": 0.0}, "fraction=0.0"), ({"window": 1}, "window=1"), ({"tolerance": 0.0}, "tolerance=0.0")],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(gt.PruneError, match=message):
        EarlyBird(**{"fraction": 0.5, **wrong})
