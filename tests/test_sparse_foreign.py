"""Other people's networks on their live weights alone: all that they give and all gradients are the masked ones'."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gentickets as gt
from gentickets.compiled import missing
from gentickets.masks.examples import Example, examples_of, named_tensors
from gentickets.masks.names import clone, component_at, named_weights

sys.path.insert(0, str(Path(__file__).parent.parent))  # `benchmarks` is no part of what is installed

from benchmarks import census, foreign

pytestmark = [pytest.mark.models, pytest.mark.skipif(missing() is not None, reason="no kernels were compiled")]

WHOLE = (
    "diffusers UNet2DModel", "diffusers UNet2DConditionModel", "diffusers AutoencoderKL, decoder",
    "diffusers AutoencoderDC", "diffusers AutoencoderOobleck", "diffusers DiTTransformer2DModel",
    "diffusers UNet1DModel", "transformers GPT2", "transformers Llama", "transformers Encodec", "transformers DAC",
    "transformers SpeechT5HifiGan", "encodec SEANet", "x-transformers decoder",
)  # fmt: skip


def gives(net, examples: dict[str, Example]) -> dict[str, Tensor]:
    """Every tensor that the components give, with chance as it falls once."""
    found = {}
    for name, example in examples.items():
        torch.manual_seed(1)
        found |= dict(named_tensors(example(component_at(net, name)), f"{name}:"))
    return found


def every_layer(model, work, costs):
    return {layer: cost.ways[-1] for layer, cost in costs.items()}


@pytest.mark.parametrize("name", WHOLE)
def test_all_layers_that_are_called_run_on_their_live_weights_and_nothing_changes(name):
    torch.manual_seed(0)
    try:
        net, given = census.MODELS[name]()
    except ModuleNotFoundError as absent:
        pytest.skip(f"{absent.name} is not installed")
    net.eval()
    include = ["*c_attn.weight", "*c_proj.weight", "*c_fc.weight"] if "GPT2" in name else None
    masks = gt.prune(gt.magnitude(net, include=include), to_sparsity=0.8, scope="layer")
    masks.apply_(net)
    fast, examples = clone(net), examples_of(net, given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        on_live = gt.accelerate(fast, masks, given, choose=every_layer)
        assert {choice.why for choice in on_live.choices if not choice.sparse} <= {
            "not called as a layer on the example inputs"
        }
        assert sum(choice.sparse for choice in on_live.choices) >= 7
        expected, found = gives(net, examples), gives(fast, examples)
    assert expected.keys() == found.keys()
    compared = [key for key, tensor in expected.items() if tensor.is_floating_point() and tensor.abs().max() > 0]
    assert compared
    for key in compared:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-4 * float(expected[key].abs().max()))
    for outputs in (expected, found):
        sum(tensor.square().mean() for tensor in outputs.values() if tensor.requires_grad).backward()
    dense, layers = named_weights(net), dict(fast.named_modules())
    for choice in on_live.choices:
        gradient, mask = dense[choice.weight].grad, masks[choice.weight]
        if choice.sparse and gradient is not None:
            wanted = gradient.t()[mask.t()] if "GPT2" in name else gradient[mask]  # rows are outputs
            live = layers[choice.layer].values.grad
            assert (wanted - live).norm() <= 1e-3 * wanted.norm() + 1e-9, choice.layer
    gt.restore(fast)
    for key in masks:
        assert torch.equal(named_weights(fast)[key], dense[key]), key


@pytest.mark.parametrize("net", ["unet-tiny", "kl-decoder-tiny"])
@pytest.mark.parametrize("gradients", [True, False])
def test_what_accelerate_chooses_for_a_unet_and_a_decoder_is_the_masked_network(net, gradients):
    torch.manual_seed(0)
    pytest.importorskip("diffusers")
    model, given = foreign.NETS[net](2)
    model.eval()
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.9, scope="layer")
    masks.apply_(model)
    examples = examples_of(model, given)
    with torch.set_grad_enabled(gradients):
        expected = gives(model, examples)
        with gt.accelerate(model, masks, given) as on_live:
            assert on_live
            assert {choice.way for choice in on_live.choices if choice.sparse} <= {"wide", "lanes"}
            for key, tensor in gives(model, examples).items():
                torch.testing.assert_close(tensor, expected[key], rtol=1e-3, atol=1e-4)
