"""Weights that are made of others: a zero underneath is a zero in effect, or the model is refused by name."""

import copy
import re
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune

import gentickets as gt
from gentickets.channels.export import folded
from gentickets.errors import Disconnected, GenticketsError, MaskError
from gentickets.masks.layers import prunable_weights
from gentickets.masks.names import clone, named_weights
from gentickets.search.levels import Rounds

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

NORMS = {
    "spectral_old": nn.utils.spectral_norm,
    "spectral_new": parametrizations.spectral_norm,
    "weight_old": nn.utils.weight_norm,
    "weight_new": parametrizations.weight_norm,
}


def one(layer):
    return nn.ModuleDict({"u": nn.Sequential(layer)})


def effective(layer, tensor="weight"):
    """What the layer really multiplies with, after a forward pass in evaluation mode."""
    layer.eval()
    for hook in list(layer._forward_pre_hooks.values()):
        hook(layer, ())
    return getattr(layer, tensor).detach()


def with_parametrisation(layer, *steps, tensor="weight"):
    for step in steps:
        parametrize.register_parametrization(layer, tensor, step)
    return layer


# -- other parametrisations -----------------------------------------------------------------------------------


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


class Centred(nn.Module):
    def forward(self, weight):
        return weight - weight.mean()


class Softplus(nn.Module):
    def forward(self, weight):
        return nn.functional.softplus(weight)


class Fixed(nn.Module):
    """A mask of one's own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.arange(64).reshape(8, 8) % 3 == 0)

    def forward(self, weight):
        return weight * self.mask


class LowRank(nn.Module):
    def forward(self, left, right):
        return left @ right

    def right_inverse(self, weight):
        return weight[:, :2].clone(), weight[:2].clone()


class Scaled(nn.Module):
    """As an equalised learning rate has it, with a gain that begins at 0."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, weight):
        return weight * self.gain


class UnitNorm(nn.Module):
    """As one writes it oneself: of each slice along an axis, or of the whole."""

    def __init__(self, axis):
        super().__init__()
        self.axis = axis

    def forward(self, weight):
        if self.axis is None:
            return weight / weight.norm()
        others = [axis for axis in range(weight.dim()) if axis != self.axis]
        return weight / weight.square().sum(others, keepdim=True).sqrt()


class Squashed(nn.Module):
    def forward(self, weight):
        return weight.tanh()


MIXING = {
    "orthogonal": lambda layer: parametrizations.orthogonal(layer),
    "symmetric": lambda layer: with_parametrisation(layer, Symmetric()),
    "centred": lambda layer: with_parametrisation(layer, Centred()),
    "positive": lambda layer: with_parametrisation(layer, Softplus()),
    "masked": lambda layer: with_parametrisation(layer, Fixed()),
    "low rank": lambda layer: with_parametrisation(layer, LowRank()),
    "norm, then centred": lambda layer: with_parametrisation(parametrizations.spectral_norm(layer), Centred()),
    "centred, then norm": lambda layer: parametrizations.spectral_norm(with_parametrisation(layer, Centred())),
}

KEEPING = {
    "squashed": lambda layer: with_parametrisation(layer, Squashed()),
    "scaled": lambda layer: with_parametrisation(layer, Scaled()),
    "squashed, then norm": lambda layer: parametrizations.spectral_norm(with_parametrisation(layer, Squashed())),
    "norm, then squashed": lambda layer: with_parametrisation(parametrizations.weight_norm(layer), Squashed()),
}


@pytest.mark.parametrize("kind", MIXING)
def test_what_mixes_the_entries_of_a_weight_is_refused_by_name(kind):
    model = one(MIXING[kind](nn.Linear(8, 8, bias=False)))
    model["v"] = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(MaskError, match=r"'u\.0\.param.*' cannot be pruned: parametrisation .*exclude=\('u\.0\.\*',\)"):
        gt.Masks.dense(model)
    for refused in (gt.magnitude, lambda net: gt.magnitude(net, include="u.*"), prunable_weights):
        with pytest.raises(MaskError, match="cannot be pruned"):
            refused(model)
    assert list(gt.Masks.dense(model, exclude=("u.0.*",))) == ["v.0.weight"]
    assert list(gt.Masks.dense(model, components="v")) == ["v.0.weight"]
    name = next(name for name, _ in model.named_parameters() if name.startswith("u.0.param"))
    loaded = gt.Masks.full({name: model.get_parameter(name).shape})
    for use in (loaded.apply_, lambda net: loaded.hold(net), loaded.audit):
        with pytest.raises(MaskError, match="cannot be pruned"):
            use(model)


@pytest.mark.parametrize("kind", KEEPING)
def test_what_keeps_zeros_is_pruned_and_zeros_are_in_effect(kind):
    torch.manual_seed(0)
    model = one(KEEPING[kind](nn.Linear(8, 8, bias=False)))
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.75)
    masks.apply_(model)
    (mask,) = masks.values()
    weight = effective(model.u[0])
    assert not weight[~mask].any()
    if kind != "scaled":  # whose gain is 0, now
        assert weight[mask].all()
    assert masks.alive == 16


def test_the_mend_is_one_for_names_that_look_like_patterns():
    model = nn.ModuleDict(
        {"u": nn.ModuleDict({"[a]": parametrizations.orthogonal(nn.Linear(4, 4))}), "v": nn.Linear(4, 4)}
    )
    with pytest.raises(MaskError, match="exclude=") as found:
        gt.Masks.dense(model)
    (name,) = re.findall(r"exclude=\('(.*)',\)", str(found.value))
    assert list(gt.Masks.dense(model, exclude=(name,))) == ["v.weight"]


def test_trying_out_leaves_model_and_chance_alone():
    model = one(with_parametrisation(nn.Linear(8, 8), Squashed()))
    before = clone(model).state_dict()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    gt.Masks.dense(model)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_parametrisation_on_top_is_tried_anew():
    model = one(with_parametrisation(nn.Linear(8, 8), Squashed()))
    assert gt.Masks.dense(model).total == 64
    with_parametrisation(model.u[0], Centred())
    with pytest.raises(MaskError, match="Squashed and parametrisation Centred"):
        gt.Masks.dense(model)


class Equalised:
    """StyleGAN's hook, old style."""

    def __init__(self, centred=False):
        self.centred = centred

    def __call__(self, layer, _inputs):
        weight = layer.weight_orig * (2 / layer.in_features) ** 0.5
        layer.weight = weight - weight.mean() if self.centred else weight


@pytest.mark.parametrize("centred", [False, True])
def test_hooks_of_ones_own_are_tried_out_too(centred):
    layer = nn.Linear(8, 8)
    layer.weight_orig = nn.Parameter(layer.weight.detach().clone())
    del layer._parameters["weight"]
    layer.weight = layer.weight_orig.detach()
    layer.register_forward_pre_hook(Equalised(centred))
    model = one(layer)
    model.u(torch.ones(1, 8))
    if centred:
        with pytest.raises(MaskError, match=r"'u\.0\.weight_orig' cannot be pruned: a hook"):
            gt.Masks.dense(model)
    else:
        masks = gt.prune(gt.magnitude(model), to_sparsity=0.5)
        masks.apply_(model)
        assert torch.equal(effective(layer) != 0, masks["u.0.weight_orig"])


def test_singular_vectors_of_a_stranger_are_no_weights():
    """A common spectral norm of before torch had one: `weight_bar`, and vectors that are parameters."""
    layer = nn.Linear(4, 6, bias=False)
    layer.weight_bar = nn.Parameter(layer.weight.detach().clone())
    layer.weight_u, layer.weight_v = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(4))
    del layer._parameters["weight"]
    model = one(layer)
    model["v"] = nn.Linear(2, 2)
    assert list(prunable_weights(model)) == ["v.weight"]


# -- pruned by torch already ----------------------------------------------------------------------------------


def torch_pruned():
    model = nn.ModuleDict({"u": nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))})
    torch_prune.random_unstructured(model.u[0], "weight", 0.5)
    return model


def ao_pruned():
    from torch.ao.pruning import WeightNormSparsifier

    model = nn.ModuleDict({"u": nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))})
    sparsifier = WeightNormSparsifier(sparsity_level=0.5)
    sparsifier.prepare(model, [{"tensor_fqn": "u.0.weight"}])
    sparsifier.step()
    return model


@pytest.mark.parametrize(
    ("pruned", "mend"),
    [
        (torch_pruned, r"torch\.nn\.utils\.prune\.remove\(layer, 'weight'\)"),
        (ao_pruned, r"sparsifier\.squash_mask\(\)"),
    ],
)
def test_a_model_that_torch_prunes_is_refused_with_the_mend(pruned, mend):
    model, inputs = pruned(), {"u": torch.randn(2, 8)}
    name = "u.0.weight_orig" if "remove" in mend else "u.0.parametrizations.weight.original"
    loaded = gt.Masks.full({name: (8, 8)})
    for use in (
        gt.Masks.dense,
        gt.magnitude,
        lambda net: gt.random_scores(net, 0),
        lambda net: gt.synflow(net, inputs),
        lambda net: gt.cost(net, inputs),
        lambda net: folded(net.u),
        lambda net: loaded.apply_(net),
        lambda net: loaded.hold(net),
    ):
        with pytest.raises(GenticketsError, match=rf"'(u\.)?0\.weight' is pruned already, by torch\.\S+, .*{mend}"):
            use(model)


def test_a_torch_pruned_model_that_was_made_final_is_taken():
    model = torch_pruned()
    torch_prune.remove(model.u[0], "weight")
    assert gt.Masks.dense(model).total == 128


# -- nothing is divided by zero -------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.a, self.b = norm(nn.Conv2d(3, 8, 3, padding=1)), norm(nn.Conv2d(8, 8, 3, padding=1))
        self.short = norm(nn.Conv2d(3, 8, 1))

    def forward(self, images):
        return self.b(torch.relu(self.a(images))) + self.short(images)


def block(norm):
    torch.manual_seed(0)
    model = nn.ModuleDict({"d": Block(norm)})
    (name,) = (name for name in gt.Masks.dense(model) if "short" in name)
    model.get_parameter(name).data.mul_(0.01)
    return model


@pytest.mark.parametrize("kind", NORMS)
def test_a_layer_that_would_be_emptied_keeps_a_weight(kind):
    model, images = block(NORMS[kind]), torch.randn(2, 3, 8, 8)
    (name,) = (name for name in gt.magnitude(model) if "short" in name)
    scores = gt.magnitude(model)
    with pytest.warns(UserWarning, match=rf"of '{name}' would be 0, which (spectral|weight) norm divides by"):
        masks = gt.prune(scores, to_sparsity=0.5)
    kept = masks[name]
    assert int(kept.sum()) == (1 if "spectral" in kind else 8)
    assert scores[name][kept].max() == scores[name].max()
    gt.check_connected(model, masks, {"d": images})
    masks.apply_(model)
    assert model.d(images).isfinite().all()
    assert model.eval().d(images).isfinite().all()


@pytest.mark.parametrize("kind", NORMS)
def test_masks_that_empty_a_normed_layer_are_refused(kind):
    model, images = block(NORMS[kind]), torch.randn(2, 3, 8, 8)
    masks = gt.Masks.dense(model)
    (name,) = (name for name in masks if "short" in name)
    masks = masks.replace({name: torch.zeros(masks.shapes[name], dtype=torch.bool)})
    with pytest.raises(Disconnected, match=r"'d\.short' keeps no weight.* 0/0"):
        gt.check_connected(model, masks, {"d": images})
    with pytest.raises(MaskError, match=r"'d\.short' keeps no weight.* 0/0"):
        masks.apply_(model)
    with pytest.raises(MaskError, match="0/0"), masks.hold(model):
        pass
    with pytest.raises(MaskError, match="0/0"):
        gt.accelerate(model, masks, {"d": images})
    assert model.d(images).isfinite().all()


def test_a_weight_that_is_dead_stays_so():
    model = one(parametrizations.spectral_norm(nn.Linear(4, 4, bias=False)))
    (name,) = scores = gt.magnitude(model)
    within = gt.Masks({name: torch.arange(16).reshape(4, 4) == 6})
    scores[name][1, 2] = 0.0  # the worst, and the only one there is
    with pytest.warns(UserWarning, match="its best weight is kept"):
        assert gt.prune(scores, fraction=1.0, within=within) == within


@pytest.mark.parametrize("kind", ["weight_old", "weight_new"])
@pytest.mark.parametrize("fraction", [0.8, 0.95, 1.0])
def test_one_output_channel_under_weight_norm(kind, fraction):
    """An audio decoder's last layer: NaN before."""
    norm = NORMS[kind]
    torch.manual_seed(0)
    model = nn.ModuleDict({"net": nn.Sequential(norm(nn.Conv1d(1, 8, 3)), nn.ReLU(), norm(nn.Conv1d(8, 1, 3)))})
    last = [name for name in gt.magnitude(model) if name.startswith("net.2.")]
    model.get_parameter(last[0]).data.mul_(0.01)
    with pytest.warns(UserWarning, match="each keeps its best weight"):
        masks = gt.prune(gt.magnitude(model), fraction=fraction)
    assert int(masks[last[0]].sum()) == 1
    masks.apply_(model)
    assert model.net(torch.randn(2, 1, 16)).isfinite().all()


LAYERS = {
    "linear": lambda i, o: nn.Linear(i, o),
    "conv1d": lambda i, o: nn.Conv1d(i, o, 3),
    "conv2d": lambda i, o: nn.Conv2d(i, o, 2),
    "transposed": lambda i, o: nn.ConvTranspose2d(i, o, 2),
    "embedding": lambda i, o: nn.Embedding(i, o),
}


@given(
    st.sampled_from(list(NORMS)),
    st.sampled_from(list(LAYERS)),
    st.integers(1, 4),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(-4, 3)),
    st.sampled_from(["global", "layer"]),
    st.sampled_from(["weight", "channel"]),
    st.floats(0, 1),
    st.integers(0, 2**31),
)
def test_pruned_norms_are_finite_and_zero_where_pruned(kind, shape, inputs, outputs, dim, scope, grain, amount, seed):
    """Norm x dim x shape: whatever is pruned, what the layer multiplies with is finite, and zero where it is pruned."""
    torch.manual_seed(seed)
    layer = LAYERS[shape](inputs, outputs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            NORMS[kind](layer, dim=dim)
            effective(copy.deepcopy(layer) if "new" in kind else layer)
    except (IndexError, RuntimeError):
        return  # a dim that the weight does not have
    model = nn.ModuleDict({"u": layer, "v": nn.Linear(2, 2)})
    ends = ("original", "original1", "weight_orig", "weight_v", "v.weight")
    scores = gt.magnitude(model, include=[name for name in named_weights(model) if name.endswith(ends)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masks = gt.prune(scores, fraction=amount, scope=scope, granularity=grain)
        masks = gt.prune(scores, fraction=amount, scope=scope, granularity=grain, within=masks)
    masks.apply_(model)
    masks.audit(model)
    weight = effective(layer)
    assert weight.isfinite().all()
    dead = next(~mask for name, mask in masks.items() if name.startswith("u.") and mask.shape == weight.shape)
    assert not weight[dead].any()


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("amount", [0.5, 0.99])
def test_random_masks_leave_what_norms_divide_by(kind, amount):
    model = block(NORMS[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masks = gt.prune(gt.magnitude(model), to_sparsity=amount, scope="layer")
    for seed in range(5):
        drawn = gt.random_like(masks, seed, model)
        assert drawn.counts() == masks.counts()
        assert drawn != masks
        assert drawn == gt.random_like(masks, seed, model)
        again = clone(model)
        drawn.apply_(again)
        assert again.d(torch.randn(2, 3, 8, 8)).isfinite().all()


def test_a_level_whose_masks_divide_by_zero_is_disconnected():
    """A search finds it before it trains, and gives the ticket."""
    model = block(parametrizations.spectral_norm)
    dense = gt.Masks.dense(model)
    masks = dense.replace({name: ~dense[name] for name in dense if "short" in name})

    def held(model, masks, start_step, end_step):
        masks.apply_(model)

    rounds = Rounds(lambda: clone(model), held, 2, 0, example_inputs={"d": torch.randn(2, 3, 8, 8)})
    level = rounds.dense(dense)
    with pytest.raises(Disconnected, match="0/0") as found:
        rounds.retrain(1, masks, level)
    assert found.value.ticket.masks == masks


@pytest.mark.parametrize(("axis", "left"), [(None, 1), (0, 6), (1, 4)])
@pytest.mark.parametrize("squashed", [False, True])
def test_norms_of_ones_own_are_found_out(axis, left, squashed):
    steps = [Squashed(), UnitNorm(axis)] if squashed else [UnitNorm(axis)]
    model = one(with_parametrisation(nn.Conv2d(4, 6, 3), *steps))
    with pytest.warns(UserWarning, match="would be 0, which parametrisation .*UnitNorm divides by"):
        masks = gt.prune(gt.magnitude(model), fraction=1.0)
    assert masks.alive == left
    masks.apply_(model)
    assert model.u(torch.randn(1, 4, 5, 5)).isfinite().all()
    with pytest.raises(MaskError, match="UnitNorm would be 0/0"):
        (~gt.Masks.dense(model)).apply_(model)


def test_a_weight_that_is_shared_with_a_parametrised_layer():
    """It has the name of the layer that has it plainly, and a zero of it is none in the other."""
    model = nn.ModuleDict({"u": nn.Linear(8, 8), "v": with_parametrisation(nn.Linear(8, 8), Centred())})
    model.v.parametrizations.weight.original = model.u.weight
    with pytest.raises(
        MaskError, match=r"'u\.weight' cannot be pruned: .*Centred makes 'v\.weight' .*\('u\.weight',\)"
    ):
        gt.Masks.dense(model)


# -- where else norms lie ---------------------------------------------------------------------------------------


def test_several_parametrised_tensors_of_a_layer():
    torch.manual_seed(0)
    layer = nn.Bilinear(3, 3, 2)
    parametrizations.spectral_norm(layer, "weight")
    parametrizations.weight_norm(layer, "bias", dim=None)
    model = one(layer)
    names = ["u.0.parametrizations.weight.original", "u.0.parametrizations.bias.original1"]
    scores = gt.magnitude(model, include=names)
    assert sorted(scores) == sorted(names)
    with pytest.warns(UserWarning, match="its best weight is kept"):
        masks = gt.prune(scores, fraction=1.0, scope="layer")
    assert masks.counts() == dict.fromkeys(names, 1)
    masks.apply_(model)
    for tensor in ("weight", "bias"):
        value = effective(layer, tensor)
        assert value.isfinite().all()
        assert int((value != 0).sum()) == 1


def test_a_norm_in_a_recurrent_layer_is_known_by_its_name():
    layer = parametrizations.weight_norm(nn.LSTM(3, 2), "weight_ih_l0")
    model = one(layer)
    (name,) = scores = gt.magnitude(model, include="*weight_ih*original1")
    with pytest.warns(UserWarning, match="8 filters"):
        masks = gt.prune(scores, fraction=1.0)
    assert masks.counts() == {name: 8}
    masks.apply_(model)
    assert layer.weight_ih_l0.isfinite().all()


def test_masks_are_applied_through_cached_weights():
    model = one(parametrizations.spectral_norm(nn.Linear(4, 4)))
    masks = gt.prune(gt.magnitude(model), fraction=0.5)
    with parametrize.cached():
        assert model.u[0].weight.detach().count_nonzero() == 16
        masks.apply_(model)
        assert model.u[0].weight.detach().count_nonzero() == 8


def test_ordinary_models_are_not_tried_out(monkeypatch):
    def never(*_args):
        raise AssertionError("nothing is derived here")

    monkeypatch.setattr(copy, "deepcopy", never)
    model = nn.ModuleDict({"u": nn.Sequential(*(norm(nn.Linear(4, 4)) for norm in NORMS.values()), nn.Linear(4, 4))})
    assert gt.Masks.dense(model).total == 5 * 16
