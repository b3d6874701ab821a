"""Tickets travel between a VAE and a GAN of one architecture, and nowhere else."""

import pytest
import torch

import gentickets as gt
from gentickets import models
from gentickets.masks.names import named_state


def vae(width: int = 8):
    return models.conv_vae(16, 1, width=width, latent=6)


def gan(width: int = 8):
    return models.dcgan(16, 1, width=width, latent=6)


def ticket_of(model):
    return gt.Ticket(gt.prune(gt.magnitude(model), fraction=0.6), model, {"seed": 3, "rewind_step": 50})


@pytest.mark.parametrize("with_weights", [True, False])
def test_a_vaes_decoder_becomes_a_gans_generator(with_weights):
    ticket, target = ticket_of(vae()), gan()
    moved = ticket.transfer(target, {"decoder": "generator"}, with_weights=with_weights)
    assert moved.masks.components == ("generator",)
    for name, mask in moved.masks.items():
        assert torch.equal(mask, ticket.masks[name.replace("generator", "decoder")])
    source = (
        ticket.weights
        if with_weights
        else {n.replace("generator", "decoder"): t for n, t in named_state(target).items()}
    )
    assert torch.equal(moved.weights["generator.layers.0.weight"], source["decoder.layers.0.weight"])
    assert torch.equal(moved.weights["generator.layers.1.running_mean"], source["decoder.layers.1.running_mean"])
    assert torch.equal(moved.weights["discriminator.head.weight"], target.discriminator.head.weight)
    installed = moved.install(gan())
    moved.masks.audit(installed)
    assert moved.origin["rewind_step"] == 0
    assert moved.origin["from"]["seed"] == 3


HEADS = ["*.head.*"]


def test_an_encoders_trunk_becomes_a_discriminators_and_back_where_the_heads_are_left():
    both = {"encoder": "discriminator", "decoder": "generator"}
    with pytest.raises(
        gt.TicketError, match=r"'discriminator\.head\.weight' is .*exclude=\('discriminator\.head\.\*',\)"
    ):
        ticket_of(vae()).transfer(gan(), both)
    there = ticket_of(vae()).transfer(gan(), both, exclude=HEADS)
    assert there.origin["transfer"]["left"] == ["discriminator.head.weight"]
    assert {name.split(".")[1] for name in there.masks if name.startswith("discriminator")} == {"trunk"}
    back = ticket_of(gan()).transfer(vae(), {"discriminator": "encoder"}, exclude=HEADS)
    assert back.masks.components == ("encoder",)
    assert not any("head" in name for name in back.masks)


def test_into_the_same_model_everything_travels_unless_asked_otherwise():
    ticket = ticket_of(gan())
    same = {"generator": "generator", "discriminator": "discriminator"}
    moved = ticket.transfer(gan(), same)
    assert moved.masks == ticket.masks
    assert moved.masks.sparsity == pytest.approx(0.6, abs=1e-3)
    assert moved.origin["transfer"]["left"] == []
    assert all(torch.equal(tensor, moved.weights[name]) for name, tensor in ticket.weights.items())
    part = ticket.transfer(gan(), {"discriminator": "discriminator"}, exclude="discriminator.head.weight")
    assert part.origin["transfer"]["left"] == ["discriminator.head.weight", "generator.*"]
    with pytest.raises(gt.TicketError, match=r"exclude='\*.tail.\*' fits no weight"):
        ticket.transfer(gan(), same, exclude=["*.tail.*"])


def test_between_widths_it_is_refused_with_both_shapes():
    with pytest.raises(gt.TicketError, match=r"'decoder\.layers\.0\.weight' is \(6, 16, 4, 4\) .*\(6, 8, 4, 4\)"):
        ticket_of(vae(8)).transfer(gan(4), {"decoder": "generator"})


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ({"encoder": "critic"}, "the model has no component 'critic': it has generator, discriminator"),
        ({"generator": "generator"}, "the ticket has no component 'generator': it has encoder, decoder"),
    ],
)
def test_components_that_do_not_exist_are_named(components, message):
    with pytest.raises(gt.TicketError, match=message):
        ticket_of(vae()).transfer(gan(), components)


def test_nothing_to_carry_is_said():
    with pytest.raises(gt.TicketError, match="nothing to carry"):
        ticket_of(vae()).transfer(gan(), {"decoder": "generator"}, exclude=["generator.*"])


class Head(torch.nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.emb, self.head = torch.nn.Embedding(10, 6), torch.nn.Linear(6, 10, bias=False)
        self.mid = torch.nn.Linear(6, 6)
        if tied:
            self.head.weight = self.emb.weight


def test_a_tied_head_does_not_stay_random_without_a_word():
    tied, untied = torch.nn.ModuleDict({"a": Head(True)}), torch.nn.ModuleDict({"b": Head(False)})
    masks = gt.prune(gt.magnitude(tied, include="a.mid.weight"), fraction=0.5)
    ticket = gt.Ticket(masks, tied)
    with pytest.raises(gt.TicketError, match=r"no tensor for 'b\.head\.weight'.*exclude=\('b\.head\.\*',\)"):
        ticket.transfer(untied, {"a": "b"})
    left = ticket.transfer(untied, {"a": "b"}, exclude=("b.head.*",)).install(untied)
    assert torch.equal(left["b"].emb.weight, tied["a"].emb.weight)
    assert gt.Ticket(masks).transfer(untied, {"a": "b"}).masks.components == ("b",)
    whole = gt.Ticket(masks, tied.state_dict()).transfer(untied, {"a": "b"})
    assert torch.equal(whole.install(untied)["b"].head.weight, tied["a"].head.weight)
    assert ticket.transfer(torch.nn.ModuleDict({"b": Head(True)}), {"a": "b"}).masks == whole.masks
