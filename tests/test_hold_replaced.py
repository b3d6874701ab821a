"""A hold on a model whose layers change under it, and a hold that is not used as one."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from gentickets import Masks, overlap
from gentickets.errors import MaskError


def _alive(model: nn.Module, masks: Masks) -> int:
    weights = dict(model.named_parameters())
    return sum(int((weights[name].detach()[~mask] != 0).sum()) for name, mask in masks.items())


def test_a_layer_that_is_put_in_anothers_place_is_held_from_its_first_pass(autoencoder: nn.Module, half) -> None:
    masks, fresh, seen = half(autoencoder), nn.Linear(10, 12), []

    def replace() -> None:
        fresh.register_forward_pre_hook(lambda *_: seen.append(_alive(autoencoder, masks)))
        with masks.hold(autoencoder):
            autoencoder.encoder[0] = fresh
            autoencoder.encoder(torch.randn(2, 10))
            fresh.load_state_dict({key: torch.ones_like(value) for key, value in fresh.state_dict().items()})
            assert _alive(autoencoder, masks) == 0
            autoencoder.encoder(torch.randn(2, 10))

    with pytest.warns(UserWarning, match="'encoder.0.weight' had .* pruned weights that were not 0.0"):
        replace()
    assert seen == [0, 0]
    assert len(fresh._forward_pre_hooks) == 1


@pytest.mark.filterwarnings("ignore:'generator")
def test_a_component_that_is_replaced_is_held_from_its_first_step_and_its_optimiser_named(gan, half) -> None:
    masks, fresh = half(gan), copy.deepcopy(gan.generator)
    optimizer = torch.optim.SGD(fresh.parameters(), 0.1)

    def replace() -> None:
        with masks.hold(gan):
            gan.generator = fresh
            for parameter in fresh.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()

    with pytest.raises(MaskError, match="SGD is about to step 'generator"):
        replace()


def test_a_component_of_a_dict_that_is_replaced_is_held_from_its_first_step_and_its_optimiser_named(gan, half) -> None:
    parts = {"generator": gan.generator, "discriminator": gan.discriminator}
    masks, optimizer = half(parts), torch.optim.SGD(gan.generator.parameters(), 0.1)

    def replace() -> None:
        with masks.hold(parts, optimizer):
            parts["discriminator"] = copy.deepcopy(gan.discriminator)
            late = torch.optim.SGD(parts["discriminator"].parameters(), 0.1)
            parts["discriminator"](parts["generator"](torch.randn(2, 5, 1, 1))).mean().backward()
            optimizer.step()
            late.step()

    with pytest.raises(MaskError, match="SGD is about to step 'discriminator"):
        replace()
    masks.audit(parts)


def test_a_component_of_a_dict_that_is_replaced_at_the_end_is_audited(gan, half) -> None:
    parts = {"generator": gan.generator, "discriminator": gan.discriminator}
    masks = half(parts)
    dense = copy.deepcopy(gan.discriminator)

    def replace() -> None:
        with masks.hold(parts):
            parts["discriminator"](torch.randn(2, 1, 8, 8))
            parts["discriminator"] = dense
            with torch.no_grad():
                for weight in dense.parameters():
                    weight.fill_(1.0)

    with pytest.raises(MaskError, match="no longer sparse: 'discriminator"):
        replace()


def _passed_after(change, model: nn.Module, masks: Masks) -> None:
    with masks.hold(model):
        change(model.net)
        model.net(torch.randn(2, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: spectral_norm(net[0]), "'net.0.weight' is no longer a parameter of its layer"),
        (lambda net: nn.utils.spectral_norm(net[0]), "'net.0.weight' is no longer a parameter of its layer"),
        (lambda net: delattr(net[0], "weight"), "'net.0.weight' is no longer a parameter of its layer"),
        (lambda net: setattr(net, "0", nn.Linear(8, 3)), r"\(3, 8\) in the model and \(8, 8\) in the masks"),
        (lambda net: setattr(net, "0", nn.Identity()), "the model has no weight 'net.0.weight'"),
    ],
)
def test_a_weight_that_is_gone_is_refused_at_the_next_pass(change, message, half) -> None:
    model = nn.ModuleDict({"net": nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))})
    with pytest.raises(MaskError, match=message):
        _passed_after(change, model, half(model))


def test_a_hold_that_is_not_entered_says_so(autoencoder: nn.Module, half) -> None:
    hold = half(autoencoder).hold(autoencoder)
    for use in ("mask", "mask_gradients", "drop_momentum"):
        with pytest.raises(MaskError, match="not entered"):
            getattr(hold, use)()
    with pytest.warns(UserWarning, match="never entered"):
        del hold
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with half(autoencoder).hold(autoencoder) as hold:
            hold.mask()


def test_one_copy_may_be_given_by_itself(autoencoder: nn.Module, half) -> None:
    masks, average = half(autoencoder), copy.deepcopy(autoencoder)
    with masks.hold(autoencoder, copies=average):
        assert _alive(average, masks) == 0


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.randn(1, 4).expand(4, 4), "'net.weight' is expanded"),
        (torch.randn(4, 4).to_sparse(), "'net.weight' is stored as torch.sparse_coo"),
        (torch.randn(4, 4).to_sparse_csr(), "'net.weight' is stored as torch.sparse_csr"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_weights_that_share_memory_or_have_no_zeros_are_refused(weight, message) -> None:
    model = nn.ModuleDict({"net": nn.Linear(4, 4)})
    masks = Masks.dense(model)
    model.net.weight = nn.Parameter(weight)
    for use in (Masks.dense, masks.apply_, masks.audit, masks.hold):
        with pytest.raises(MaskError, match=message):
            use(model)


def test_masks_are_compared_with_masks() -> None:
    masks = Masks({"net.weight": torch.ones(2, 2, dtype=torch.bool)})
    for compare in (masks.distance, masks.check_same, lambda other: overlap(masks, other)):
        with pytest.raises(MaskError, match="not with a dict"):
            compare(dict(masks))
