"""Names are names, patterns are patterns, and what a model is is said where it is none."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import gentickets as gt

ODD = ("[a]", "b", "c*", "d?", "[!e]")


def bracketed() -> nn.ModuleDict:
    """Layers whose names mean something else as patterns."""
    return nn.ModuleDict({"u": nn.ModuleDict({key: nn.Linear(4, 4) for key in ODD})})


def test_a_list_of_names_means_just_those():
    model = bracketed()
    dense = gt.Masks.dense(model)
    assert len(dense) == len(ODD)
    for name in dense:
        assert list(gt.Masks.dense(model, include=(name,))) == [name]
        assert list(gt.Masks.dense(model, exclude=name)) == [other for other in dense if other != name]
    assert gt.Masks.dense(model, include=tuple(dense)) == dense
    assert list(gt.magnitude(model, include=tuple(dense))) == list(dense)


def test_a_search_prunes_layers_of_any_name():
    model = bracketed()
    [_, level] = gt.imp(lambda: copy.deepcopy(model), lambda *_: None, steps=2, rounds=1, fraction=0.5)
    assert level.masks.sparsity == 0.5
    assert all(0 < kept < 16 for kept in level.masks.counts().values())


@pytest.mark.parametrize("what", ["include", "exclude"])
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nonsense", r"='nonsense' fits no weight of the model: it has encoder\.0\.weight, .* …"),
        ("encoder.7.weight", r"='encoder\.7\.weight' fits .*did you mean encoder\.\d\.weight"),
        ("encoder", r"='encoder' fits .*did you mean encoder\.0\.weight.*or a pattern such as 'encoder\.\*'\?"),
        ("head.*", "='head.*' fits no weight"),
        (6, "=6 fits no weight"),
    ],
)
def test_what_fits_nothing_is_an_error(autoencoder, what, entry, message):
    choice = {"include": ("encoder.*", "*.weight"), what: ("decoder.*.weight", entry)}
    with pytest.raises(gt.MaskError, match=what + message):
        gt.Masks.dense(autoencoder, **choice)
    with pytest.raises(gt.MaskError, match=what + message):
        gt.imp(lambda: autoencoder, lambda *_: None, steps=1, rounds=1, **choice)


class Tied(nn.Module):
    """An embedding that is the head too."""

    def __init__(self, head_first: bool):
        super().__init__()
        embedding, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        head.weight = embedding.weight
        self.add_module("first", head if head_first else embedding)
        self.middle = nn.Linear(4, 4)
        self.add_module("last", embedding if head_first else head)


@pytest.mark.parametrize("head_first", [True, False])
def test_a_head_tied_to_an_embedding_is_left_alone_in_either_order(head_first):
    model = nn.ModuleDict({"u": Tied(head_first)})
    assert list(gt.Masks.dense(model)) == ["u.middle.weight"]
    assert list(gt.Masks.dense(model, include="u.first.weight")) == ["u.first.weight"]


def test_two_linear_layers_of_one_weight_are_prunable_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert list(gt.Masks.dense(model)) == ["0.weight"]
    normed = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)))
    assert list(gt.Masks.dense(normed)) == ["0.parametrizations.weight.original"]


class TiedByMemory(nn.Module):
    """The tied autoencoder of many answers: its decoder's weight is the encoder's, transposed."""

    def __init__(self):
        super().__init__()
        self.e, self.d = nn.Linear(8, 4), nn.Linear(4, 8)
        self.d.weight.data = self.e.weight.data.t()


def test_two_parameters_over_one_memory_are_refused():
    said = r"'[ed]\.weight' and '[ed]\.weight' are two parameters over one memory.*one Parameter"
    apart = nn.ModuleDict({"e": nn.Linear(8, 4), "d": nn.Linear(4, 8)})
    masks = gt.prune(gt.magnitude(apart), fraction=0.5)
    for refused in (gt.Masks.dense, masks.apply_, gt.magnitude, gt.Ticket(masks, apart).install):
        with pytest.raises(gt.GenticketsError, match=said):
            refused(TiedByMemory())
    with pytest.raises(gt.MaskError, match=said):
        gt.imp(TiedByMemory, lambda *_: None, steps=2, rounds=1)
    with pytest.raises(gt.MaskError, match="over one memory"):
        gt.Masks.dense(TiedByMemory(), include="e.weight")  # in a ticket they come apart, whoever is pruned


@given(st.integers(0, 2**32))
def test_parameters_overlap_exactly_where_they_have_an_entry_in_common(seed):
    """Two views of one matrix, of any rows and columns with any steps, transposed or not, beside marks on it."""
    rng = np.random.default_rng(seed)
    flat, marks, views = torch.zeros(7, 9), [], []
    for _ in range(2):
        starts, steps = rng.integers(0, 5, 2), rng.integers(1, 4, 2)
        cut = tuple(slice(int(start), None, int(step)) for start, step in zip(starts, steps, strict=True))
        marks.append(torch.zeros(7, 9, dtype=torch.bool))
        marks[-1][cut] = True
        view = flat[cut]
        views.append(view.t() if rng.random() < 0.5 else view)
    model = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in "ab"})
    for layer, view in zip(model.values(), views, strict=True):
        layer.weight = nn.Parameter(view)
        assert layer.weight.data_ptr() == view.data_ptr()
    if bool((marks[0] & marks[1]).any()):
        with pytest.raises(gt.MaskError, match="over one memory"):
            gt.Masks.dense(model)
    else:
        assert len(gt.Masks.dense(model)) == 2


# -- what a model is ---------------------------------------------------------------------------------------


def networks() -> dict[str, nn.Module]:
    return {"generator": nn.Linear(5, 8), "discriminator": nn.Linear(8, 1)}


def train(gan, masks, start_step, end_step):
    optimizer = torch.optim.SGD(gan.parameters(), 0.1)
    with masks.hold(gan, optimizer):
        for _ in range(start_step, end_step):
            gan["discriminator"](gan["generator"](torch.ones(2, 5))).sum().backward()
            optimizer.step()


def test_a_dict_of_networks_is_a_model_everywhere():
    gan = networks()
    masks = gt.prune(gt.magnitude(gan), fraction=0.5, within=gt.Masks.dense(gan))
    assert masks.components == ("generator", "discriminator")
    ticket = gt.Ticket(masks, gan)
    assert set(ticket.weights) == {f"{part}.{key}" for part in gan for key in ("weight", "bias")}
    assert masks.apply_(gan) is gan
    assert ticket.install(gan) is gan
    masks.audit(gan)
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in gan.values()]
    with masks.hold(gan, *optimizers, copies=[copy.deepcopy(gan)]) as hold:
        gan["discriminator"](gan["generator"](torch.ones(2, 5))).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        hold.audit()
    moved = ticket.transfer(gan, {"generator": "generator"})
    assert moved.masks == masks.select("generator")
    [dense, level] = gt.imp(networks, train, steps=4, rounds=1, rewind_step=1, fraction=0.5)
    assert level.masks <= dense.masks
    assert gt.redrawn_weights_control(level, networks).masks == level.masks
    assert gt.random_mask_control(level, 0).masks.counts() == level.masks.counts()


def test_one_network_is_a_model_too():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    masks = gt.prune(gt.magnitude(net), fraction=0.5)
    assert list(masks) == ["0.weight", "2.weight"]
    gt.Ticket(masks, net).install(net)
    with masks.hold(net, torch.optim.SGD(net.parameters(), 0.1)):
        net(torch.ones(1, 3))


@pytest.mark.parametrize(
    "wrong", [lambda: (nn.Linear(3, 4), nn.Linear(4, 1)), lambda: [nn.Linear(3, 4)], dict, lambda: None]
)
def test_what_is_no_model_is_told_what_one_is(wrong):
    masks, says = (
        gt.Masks.dense(nn.ModuleDict(networks())),
        r"a model is one nn\.Module whose children .*\{'generator': G",
    )
    for use in (
        gt.Masks.dense,
        gt.magnitude,
        masks.apply_,
        masks.audit,
        masks.hold,
        lambda model: masks.hold(networks(), copies=[model]),
        gt.Ticket(masks).install,
        lambda model: gt.imp(lambda: model, train, steps=1, rounds=1),
    ):
        with pytest.raises(gt.MaskError, match=says):
            use(wrong())


def test_two_networks_are_not_one():
    generator, discriminator = networks().values()
    with pytest.raises(gt.MaskError, match=r"a model is one nn\.Module"):
        gt.Masks.dense(generator, discriminator)
    with pytest.raises(gt.TicketError, match=r"a model is one nn\.Module"):
        gt.Ticket(gt.Masks.dense(generator), (generator, discriminator))
    masks = gt.Masks.dense(generator)
    with pytest.raises(gt.MaskError, match="both sets have a mask 'weight'"):
        masks.merge(gt.Masks.dense(discriminator))


@pytest.mark.parametrize("name", [6, "", None, ("a", "b")])
def test_a_mask_is_named_after_a_weight(name):
    mask: Tensor = torch.ones(8, dtype=torch.bool)
    with pytest.raises(gt.MaskError, match="a mask is named after its weight"):
        gt.Masks({name: mask})
    with pytest.raises(gt.MaskError, match="a mask is named after its weight"):
        gt.Masks.full({name: (8,)})
    with pytest.raises(gt.MaskError, match=r"not a Linear; of a model: Masks\.dense"):
        gt.Masks(nn.Linear(2, 2))


@pytest.mark.parametrize("option", ["components", "include", "exclude"])
def test_names_are_a_string_or_several(option):
    with pytest.raises(gt.MaskError, match="names are a string or several of them, and not 5"):
        gt.Masks.dense(networks(), **{option: 5})


@pytest.mark.parametrize("seed", [-1, 1.5, None, "0"])
def test_a_random_mask_has_a_seed(seed):
    with pytest.raises(gt.PruneError, match="seed="):
        gt.random_like(gt.Masks.dense(networks()), seed)


def test_what_things_say_of_themselves():
    gan = networks()
    masks = gt.Masks.dense(gan)
    hold = masks.hold(gan, torch.optim.SGD(gan["generator"].parameters(), 0.1))
    assert repr(hold).endswith("ModuleDict, SGD, not entered)")
    with hold:
        assert repr(hold).endswith("ModuleDict, SGD, entered)")
    assert repr(gt.magnitude(gan)) == "Scores(2 tensors, 48 weights)"
    [level] = gt.imp(networks, train, steps=1, rounds=0)
    assert repr(level) == "Level(0, Masks(2 tensors, 48 of 48 alive, sparsity 0.00%), ModuleDict)"
