"""Adapters under a mask: what is trained is what is merged, and what is pruned stays 0.0."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import gentickets as gt


class LowRank(nn.Module):
    """LoRA as a parametrisation of one's own: W + B A."""

    def __init__(self, weight, rank):
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, weight[0].numel()) / weight[0].numel() ** 0.5)
        self.up = nn.Parameter(torch.zeros(len(weight), rank))

    def forward(self, weight):
        return weight + (self.up @ self.down).reshape(weight.shape)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(6, 32)
        self.conv = nn.Conv2d(2, 8, 3, padding=1, padding_mode="circular")
        self.strip = nn.Conv1d(8, 4, 3, padding=1, bias=False)
        self.out = nn.Linear(64, 5)

    def forward(self, x):
        x = F.silu(self.conv(F.silu(self.wide(x)).reshape(-1, 2, 4, 4)))
        return self.out(F.silu(self.strip(x.flatten(2))).flatten(1))


def pruned(dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.ModuleDict({"decoder": Decoder()}).to(dtype)
    masks = gt.prune(gt.magnitude(model), fraction=0.8, scope="layer")
    return masks.apply_(model), masks


def trained(model, call, steps=30):
    """Fits what requires a gradient to a target far away; gives an input, and what it computes in evaluation mode."""
    rng = torch.Generator().manual_seed(1)
    weight = next(model.parameters())
    x, y = (torch.randn(16, n, generator=rng, dtype=torch.float64).to(weight.dtype) for n in (6, 5))
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    for _ in range(steps):
        adam.zero_grad()
        (call(x) - y).square().mean().backward()
        adam.step()
    model.eval()
    with torch.no_grad():
        return x, call(x).clone()


# -- a parametrisation of one's own ----------------------------------------------------------------------------


def with_own(model, masks):
    model.requires_grad_(False)
    for name in masks:
        layer = model.get_submodule(name.removesuffix(".weight"))
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, 2).to(layer.weight.dtype))
    return model


def without_own(model, masks):
    for name in masks:
        parametrize.remove_parametrizations(model.get_submodule(name.removesuffix(".weight")), "weight")
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_parametrised_adapter_is_merged_to_the_bit_as_it_was_trained(dtype):
    model, masks = pruned(dtype)
    before = copy.deepcopy(model)
    assert masks.mask_adapters_(with_own(model, masks)) is model
    x, ours = trained(model, lambda x: model["decoder"](x))
    assert sorted(n for n, p in model.named_parameters() if p.requires_grad)[0].endswith(".down")
    without_own(model, masks)
    with torch.no_grad():
        assert torch.equal(model["decoder"](x), ours)
        assert (before["decoder"](x) - ours).abs().max() > 0.1
    masks.audit(model)
    assert gt.Masks.of_zeros(model) <= masks
    again, _ = pruned(dtype)
    again.load_state_dict(model.state_dict())


def test_masked_only_after_the_merge_it_would_be_another_network():
    def loss_after(under_mask):
        model, masks = pruned()
        with_own(model, masks)
        if under_mask:
            masks.mask_adapters_(model)
        x, ours = trained(model, lambda x: model["decoder"](x))
        masks.apply_(without_own(model, masks))
        with torch.no_grad():
            return ((model["decoder"](x) - ours).square().mean() / ours.var()).item()

    assert loss_after(under_mask=True) == 0.0
    assert loss_after(under_mask=False) > 0.1


def test_a_second_call_takes_the_place_of_the_first():
    model, masks = pruned()
    with_own(model, masks)
    fewer = masks & gt.random_like(masks, 1)
    fewer.mask_adapters_(masks.mask_adapters_(model))
    trained(model, lambda x: model["decoder"](x), steps=2)
    fewer.audit(without_own(model, masks))


def test_what_has_no_adapter_is_masked_and_left_to_train():
    model, masks = pruned()
    layer = model["decoder"].out
    parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, 2).double())
    with torch.no_grad():
        model["decoder"].wide.weight.fill_(1.0)
    masks.mask_adapters_(model)
    masks.select("decoder").audit(without_own(model, ["decoder.out.weight"]))


def test_refusals_change_nothing():
    model, masks = pruned()
    with pytest.raises(gt.MaskError, match="no weight that the masks cover has an adapter"):
        masks.mask_adapters_(model)
    with pytest.raises(gt.MaskError, match=r"no layer 'decoder.wide'"):
        masks.mask_adapters_({"encoder": nn.Linear(3, 3)})
    with_own(model, masks)
    alive = torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(gt.MaskError, match=r"'decoder.out.weight' is \(5, 64\) in the model and \(3, 3\)"):
        masks.replace({"decoder.out.weight": alive}).mask_adapters_(model)
    with pytest.raises(gt.MaskError, match=r"'decoder.out.heft'.*neither a parameter"):
        masks.merge({"decoder.out.heft": alive}).mask_adapters_(model)
    assert all(len(layer) == 1 for layer in model.modules() if isinstance(layer, parametrize.ParametrizationList))


# -- peft ------------------------------------------------------------------------------------------------------

TARGETS = ["wide", "conv", "strip", "out"]


def with_peft(model, targets=TARGETS, wrapped=True, **options):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=targets, **options)
    return peft.get_peft_model(model, config) if wrapped else peft.inject_adapter_in_model(config, model)


@pytest.mark.models
@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.3}, {"use_rslora": True}], ids=str)
@pytest.mark.parametrize("safe", [False, True])
def test_lora_of_peft_is_merged_as_it_was_trained(safe, options):
    model, masks = pruned()
    before = model["decoder"](torch.ones(1, 6, dtype=torch.float64))
    adapted = with_peft(model, **options)
    masks.mask_adapters_(adapted)
    # With B = 0 nothing is changed yet.
    assert torch.equal(model["decoder"](torch.ones(1, 6, dtype=torch.float64)), before)
    x, ours = trained(adapted, lambda x: model["decoder"](x))
    merged = adapted.merge_and_unload(safe_merge=safe)
    masks.audit(merged)
    assert (merged["decoder"](x) - ours).abs().max() < 1e-12 * ours.abs().max()
    # It would have been another network without: measured.
    model, _ = pruned()
    adapted = with_peft(model, **options)
    x, ours = trained(adapted, lambda x: model["decoder"](x))
    merged = adapted.merge_and_unload()
    with pytest.raises(gt.MaskError, match="no longer sparse"):
        masks.audit(merged)
    masks.apply_(merged)
    assert ((merged["decoder"](x) - ours).square().mean() / ours.var()).item() > 0.05


@pytest.mark.models
def test_adapters_that_were_put_into_a_model_are_masked_and_unmerged_again():
    model, masks = pruned()
    model = with_peft(model, wrapped=False)
    masks.mask_adapters_(model)
    x, ours = trained(model, lambda x: model["decoder"](x))
    layers = [layer for layer in model.modules() if hasattr(layer, "lora_variant")]
    for layer in layers:
        layer.merge()
        kept = masks[next(n for n, other in model.named_modules() if other is layer) + ".weight"]
        assert not layer.get_base_layer().weight[~kept].any()
    assert (model["decoder"](x) - ours).abs().max() < 1e-12 * ours.abs().max()
    for layer in layers:
        layer.unmerge()
    assert (model["decoder"](x) - ours).abs().max() < 1e-12 * ours.abs().max()
    twin = copy.deepcopy(model).float()
    assert (twin["decoder"](x.float()) - ours).abs().max() < 1e-4 * ours.abs().max()


@pytest.mark.models
def test_adapters_that_come_later_are_masked_too_and_saved_ones_want_their_mask(tmp_path):
    peft = pytest.importorskip("peft")
    model, masks = pruned()
    adapted = with_peft(model)
    masks.mask_adapters_(adapted)
    adapted.add_adapter("later", peft.LoraConfig(r=3, target_modules=TARGETS))
    adapted.set_adapter("later")
    with pytest.raises(gt.MaskError, match="adapter 'dora' has DoraLinearVariant"):
        adapted.add_adapter("dora", peft.LoraConfig(r=3, target_modules=["wide"], use_dora=True))
    x, ours = trained(adapted, lambda x: model["decoder"](x))
    adapted.save_pretrained(tmp_path)
    fresh, _ = pruned()
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "later").double()
    with torch.no_grad():
        assert (fresh["decoder"](x) - ours).abs().max() > 1e-2
        masks.mask_adapters_(again)
        assert (fresh["decoder"](x) - ours).abs().max() < 1e-6
    merged = adapted.merge_and_unload(adapter_names=["later"])
    masks.audit(merged)
    assert (merged["decoder"](x) - ours).abs().max() < 1e-12 * ours.abs().max()


@pytest.mark.models
def test_diffusers_fuses_scales_and_unloads_a_masked_adapter():
    diffusers, peft = pytest.importorskip("diffusers"), pytest.importorskip("peft")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
    ).double()  # fmt: skip
    masks = gt.prune(gt.magnitude(unet), fraction=0.7, scope="layer")
    masks.apply_(unet)
    before = gt.Masks.of_zeros(unet)
    unet.requires_grad_(False)
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1", "ff.net.2"]))
    masks.mask_adapters_(unet)
    given = (torch.randn(2, 4, 8, 8).double(), torch.tensor([3, 7]), torch.randn(2, 5, 8).double())
    adam = torch.optim.Adam([p for p in unet.parameters() if p.requires_grad], 0.03)
    for _ in range(4):
        adam.zero_grad()
        unet(*given).sample.sub(1).square().mean().backward()
        adam.step()

    def out():
        with torch.no_grad():
            return unet(*given).sample

    ours = out()
    unet.disable_adapters()
    assert (out() - ours).abs().max() > 1e-3
    unet.enable_adapters()
    unet.fuse_lora()
    assert (out() - ours).abs().max() < 1e-10
    unet.unfuse_lora()
    assert (out() - ours).abs().max() < 1e-10
    unet.set_adapters(["default"], [0.5])  # half of it
    half = out()
    assert (half - ours).abs().max() > 1e-3
    unet.fuse_lora()
    unet.unload_lora()
    assert (out() - half).abs().max() < 1e-10
    masks.audit(unet)
    assert gt.Masks.of_zeros(unet) == before == masks


@pytest.mark.models
def test_conv1d_of_transformers_and_a_bias_of_the_adapter():
    layers = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    model = nn.ModuleDict({"g": nn.ModuleDict({"out": layers.Conv1D(5, 6), "low": nn.Linear(5, 5)})}).double()
    masks = gt.prune(gt.magnitude(model, include="*.weight"), fraction=0.6, scope="layer")
    masks.apply_(model)
    with pytest.raises(gt.MaskError, match=r"'g.out.weight' is"):
        gt.Masks({"g.out.weight": torch.ones(5, 6, dtype=torch.bool)}).mask_adapters_(
            with_peft(copy.deepcopy(model), ["out"], fan_in_fan_out=True)
        )
    adapted = with_peft(model, ["out", "low"], fan_in_fan_out=True, lora_bias=True)
    masks.mask_adapters_(adapted)
    x, ours = trained(adapted, lambda x: model["g"]["low"](model["g"]["out"](x)))
    merged = adapted.merge_and_unload()
    masks.audit(merged)
    assert (merged["g"]["low"](merged["g"]["out"](x)) - ours).abs().max() < 1e-12 * ours.abs().max()


@pytest.mark.models
def test_adapters_that_cannot_be_masked_are_refused_by_name():
    def dora():
        return with_peft(pruned()[0], use_dora=True)

    def merged():
        model = with_peft(pruned()[0])
        model.merge_adapter()
        return model

    def another():
        peft = pytest.importorskip("peft")
        return peft.get_peft_model(pruned()[0], peft.LoHaConfig(target_modules=["out"], r=2))

    _, masks = pruned()
    for make, said in (
        (dora, "has DoraLinearVariant"),
        (merged, "merged in already"),
        (another, r"adapter of kind peft.tuners.loha"),
    ):
        with pytest.raises(gt.MaskError, match=said):
            masks.mask_adapters_(make())
    adapted = with_peft(pruned()[0])
    with pytest.raises(gt.MaskError, match=r"no weight 'decoder.wide.weight'.*mask_adapters_"):
        masks.audit(adapted)
    with pytest.raises(gt.MaskError, match="only the weight can be masked"):
        masks.merge({"decoder.out.bias": torch.ones(5, dtype=torch.bool)}).mask_adapters_(adapted)
    grouped = nn.ModuleDict({"g": nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))})
    with pytest.raises(gt.MaskError, match="grouped convolutions"):
        gt.Masks.dense(grouped).mask_adapters_(with_peft(grouped, ["0"]))
