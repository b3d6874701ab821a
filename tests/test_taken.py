"""Masks that others made: read off zeros, and off what torch's own pruning keeps beside its weights."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.ao.pruning import FakeSparsity, WeightNormSparsifier
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import spectral_norm

import gentickets as gt
from gentickets.masks.names import named_state


def net():
    torch.manual_seed(0)
    first, norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
    return nn.ModuleDict(
        {"encoder": nn.Sequential(first, norm, nn.ReLU()), "decoder": nn.Sequential(nn.ConvTranspose2d(6, 3, 3))}
    )


def pruned(fraction=0.4):
    model = net()
    masks = gt.prune(gt.magnitude(model), fraction=fraction)
    return masks.apply_(model), masks


# -- zeros ----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    share=st.floats(0.05, 0.9),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_zeros_give_back_the_mask_that_made_them(seed, share, dtype):
    rng = torch.Generator().manual_seed(seed)
    model = nn.ModuleDict({"g": nn.Sequential(nn.Linear(7, 9), nn.Linear(9, 5))}).to(dtype)
    masks = gt.Masks({name: torch.rand(w.shape, generator=rng) >= share for name, w in weights_of(model)})
    with torch.no_grad():
        for name, weight in weights_of(model):
            weight.copy_(torch.rand(weight.shape, generator=rng, dtype=torch.float64) + 0.5)
            weight.mul_(torch.where(masks[name], 1, -0.0).to(dtype))  # half of the tools leave -0.0
    assert gt.Masks.of_zeros(model) == masks
    state = model.state_dict()
    assert gt.Masks.of_zeros(state, include="*.weight") == masks
    masks.apply_(model)
    masks.audit(model)


def weights_of(model):
    return [(name, weight) for name, weight in model.named_parameters() if weight.dim() > 1]


def test_what_is_tiny_is_alive_and_so_is_what_is_no_number():
    model = {"g": nn.Linear(4, 2)}
    with torch.no_grad():
        model["g"].weight.copy_(torch.tensor([[0.0, -0.0, 1e-45, -1e-45], [torch.nan, torch.inf, 0.0, 1.0]]))
    found = gt.Masks.of_zeros(model)["g.weight"]
    assert found.tolist() == [[False, False, True, True], [True, True, False, True]]


def test_of_the_weights_that_pruning_may_touch_and_those_that_are_named():
    model, masks = pruned()
    with torch.no_grad():
        model["encoder"][0].bias[0] = 0.0
        model["encoder"][1].weight[:2] = 0.0
    before = {name: tensor.clone() for name, tensor in named_state(model).items()}
    assert gt.Masks.of_zeros(model) == masks
    assert gt.Masks.of_zeros(model, components="decoder") == masks.select("decoder")
    assert gt.Masks.of_zeros(model, exclude="encoder.*") == masks.select("decoder")
    named = gt.Masks.of_zeros(model, include=["encoder.1.weight", "decoder.*.weight"])
    assert named.counts() == {"encoder.1.weight": 4, "decoder.0.weight": masks.counts()["decoder.0.weight"]}
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_state(model).items())


def test_a_layer_that_starts_from_zero_is_a_question_and_both_answers_are_one_word():
    model, masks = pruned()
    model["zero"] = nn.Conv2d(3, 3, 1)
    nn.init.zeros_(model["zero"].weight)
    with pytest.raises(gt.MaskError, match=r"'zero.weight' is 0.0 everywhere.*exclude=\('zero.weight',\)"):
        gt.Masks.of_zeros(model)
    assert gt.Masks.of_zeros(model, exclude="zero.weight") == masks
    named = gt.Masks.of_zeros(model, include="zero.weight")
    assert named.alive == 0
    assert masks.merge(named).total == masks.total + 9
    with pytest.raises(gt.MaskError, match=r"0\.0 everywhere"):  # a pattern is not its name
        gt.Masks.of_zeros(model, include="zero.*ght")
    with pytest.raises(gt.MaskError, match=r"'encoder.1.bias', 'zero.weight' are 0.0 everywhere"):
        gt.Masks.of_zeros(model, include=("*.weight", "encoder.1.bias*"))


def test_so_few_zeros_that_they_may_be_chance_are_told():
    model = {"g": nn.Linear(64, 64), "h": nn.Linear(64, 8)}
    with torch.no_grad():
        model["g"].weight[3, 5] = 0.0
        model["h"].weight[:, :8] = 0.0
    with pytest.warns(UserWarning, match=r"chance.*'g.weight' \(1 of 4,096\); exclude=\('g.weight',\)") as told:
        masks = gt.Masks.of_zeros(model)
    assert told[0].filename == __file__
    assert masks.counts() == {"g.weight": 4095, "h.weight": 448}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gt.Masks.of_zeros(model, exclude="g.weight")


def test_zeros_that_no_mask_holds_are_told():
    model = {"g": nn.Linear(8, 8), "words": nn.Embedding(20, 8)}
    with torch.no_grad():
        model["g"].weight[:4] = 0.0
        model["words"].weight[:, :4] = 0.0
    with pytest.warns(UserWarning, match=r"zeros that no mask holds: 'words.weight' \(80 of 160\)") as told:
        gt.Masks.of_zeros(model)
    assert told[0].filename == __file__
    assert gt.Masks.of_zeros(model, include="*.weight").sparsity == 0.5


@pytest.mark.parametrize(
    ("source", "arguments", "said"),
    [
        (net(), {}, "none of these 2 tensors has a weight that is 0.0"),
        (nn.ModuleDict({"g": nn.Linear(3, 3, device="meta")}), {}, "meta device"),
        ({"g.weight": torch.zeros(3, 3)}, {}, "a state dict does not say.*include="),
        ({"g.weight": torch.zeros(3, 3).to_sparse()}, {"include": "g.weight"}, "without its zeros"),
        ({"g.weight": torch.zeros(3, 3, dtype=torch.int8)}, {"include": "g.weight"}, "quantised .torch.int8"),
        ({"g.weight": torch.rand(3, 3)}, {"include": "h.*"}, "include='h.*' fits no weight"),
        ({"g.weight_orig": torch.rand(3, 3), "g.weight_mask": torch.ones(3, 3)}, {"include": "*"}, "taken_from"),
        ({"g.weight": torch.rand(3, 3)}, {"include": "*", "exclude": "*"}, "nothing is left"),
    ],
)
def test_what_has_no_zeros_of_its_own_is_refused(source, arguments, said):
    with pytest.raises(gt.MaskError, match=said):
        gt.Masks.of_zeros(source, **arguments)


# -- torch.nn.utils.prune --------------------------------------------------------------------------------------


def by_torch(model):
    prune.l1_unstructured(model["encoder"][0], "weight", amount=0.3)
    prune.random_unstructured(model["encoder"][0], "weight", amount=0.2)  # a container of two
    prune.ln_structured(model["decoder"][0], "weight", amount=2, n=2, dim=0)
    prune.random_unstructured(model["decoder"][0], "bias", amount=1)
    return model, model.state_dict


def by_sparsifier(model):
    sparsifier = WeightNormSparsifier(sparsity_level=0.5, sparse_block_shape=(1, 1), zeros_per_block=1)
    linear = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    model["linear"] = linear
    sparsifier.prepare(model, [{"tensor_fqn": "linear.0.weight"}, {"tensor_fqn": "linear.1.weight"}])
    sparsifier.step()
    return model, sparsifier.state_dict


@pytest.mark.parametrize("tool", [by_torch, by_sparsifier])
def test_the_masks_of_torchs_own_tools_are_taken_over_to_the_bit(tool):
    model, state = tool(net())
    expected = {}
    for layer_name, layer in model.named_modules():
        for key, mask in list(layer.named_buffers(recurse=False)):
            if key.endswith("_mask"):
                expected[f"{layer_name}.{key.removesuffix('_mask')}"] = mask.bool()
            if isinstance(layer, FakeSparsity):
                owner, _, chain = layer_name.partition(".parametrizations.")
                expected[f"{owner}.{chain.partition('.')[0]}"] = mask.bool()
    masks = gt.Masks.taken_from(model)
    assert masks == gt.Masks(expected)
    assert masks.sparsity > 0.2
    assert gt.Masks.taken_from(state()) == masks
    # What was read is as it was, and taking over changes nothing that it computes.
    steps = torch.optim.Adam(model.parameters())
    effective = {name: copy.deepcopy(tensor_at(model, name).detach()) for name in masks}
    assert gt.Masks.taken_from(model) == gt.Masks.take_over_(model) == masks
    assert all(torch.equal(tensor_at(model, name), tensor) for name, tensor in effective.items())
    assert all(isinstance(tensor_at(model, name), nn.Parameter) for name in masks)
    assert not [name for name in model.state_dict() if "orig" in name or "mask" in name]
    masks.audit(model)
    own = {id(p) for p in model.parameters()}
    assert all(id(p) in own for group in steps.param_groups for p in group["params"])
    with masks.hold(model, steps):
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        steps.step()
    plain = net()
    plain["linear"] = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    masks.apply_(plain)


def tensor_at(model, name):
    layer, _, key = name.rpartition(".")
    return getattr(model.get_submodule(layer), key)


def test_a_state_of_torchs_pruning_goes_into_a_plain_model_in_three_lines():
    model, _ = by_torch(net())
    state = model.state_dict()
    masks = gt.Masks.taken_from(state)
    plain = net()
    plain.load_state_dict({n.removesuffix("_orig"): t for n, t in state.items() if not n.endswith("_mask")})
    masks.apply_(plain)
    gt.Masks.take_over_(model)
    assert all(torch.equal(t, plain.state_dict()[n]) for n, t in model.state_dict().items())


def test_mixtures_are_refused_by_name_and_nothing_is_changed():
    def two_masks():
        layer = nn.Linear(4, 4)
        for _ in range(2):
            parametrize.register_parametrization(layer, "weight", FakeSparsity(torch.ones(4, 4)))
        return layer

    def norm_above():
        layer = spectral_norm(nn.Linear(4, 4))
        parametrize.register_parametrization(layer, "weight", FakeSparsity(torch.ones(4, 4)))
        return layer

    def norm_below():
        layer = nn.Linear(4, 4)
        parametrize.register_parametrization(layer, "weight", FakeSparsity(torch.ones(4, 4)))
        return spectral_norm(layer)

    def old_norm():
        layer = torch.nn.utils.spectral_norm(nn.Linear(4, 4))
        prune.l1_unstructured(layer, "weight_orig", amount=0.5)
        return layer

    def no_mask():
        layer = nn.Linear(4, 4)
        prune.identity(layer, "weight").weight_mask[0, 0] = 0.5
        return layer

    def tied():
        layer = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        layer[1].weight = layer[0].weight
        prune.l1_unstructured(layer[0], "weight", amount=0.5)
        return layer

    for make, said in (
        (two_masks, r"'g.weight' is made by torch.ao.pruning and by a second mask"),
        (norm_above, r"'g.weight' is made by torch.ao.pruning and by _SpectralNorm"),
        (norm_below, r"'g.weight' is made by torch.ao.pruning and by _SpectralNorm"),
        (old_norm, r"'g.weight_orig' is made by torch.nn.utils.prune and by"),
        (no_mask, r"the mask of 'g.weight'.*zeros and ones"),
        (tied, r"'g.0.weight' is pruned by .*one parameter with"),
    ):
        model = nn.ModuleDict({"g": make()})
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for read in (gt.Masks.taken_from, gt.Masks.take_over_):
            with pytest.raises(gt.MaskError, match=said):
                read(model)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for make in (old_norm, no_mask):
        with pytest.raises(gt.MaskError, match="'weight"):
            gt.Masks.taken_from(make().state_dict())


def test_where_there_is_no_mask_that_is_said():
    model, _ = pruned()
    for source in (model, model.state_dict()):
        with pytest.raises(gt.MaskError, match=r"no mask of torch.nn.utils.prune or torch.ao.pruning.*of_zeros"):
            gt.Masks.taken_from(source)
    with pytest.raises(gt.MaskError, match=r"take_over_"):
        gt.Masks.dense(by_torch(net())[0])
    wrong = {"g.weight_orig": torch.rand(3, 3), "g.weight_mask": torch.ones(2, 3)}
    with pytest.raises(gt.MaskError, match=r"'g.weight' is \(3, 3\) and its mask is \(2, 3\)"):
        gt.Masks.taken_from(wrong)
