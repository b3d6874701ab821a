"""A ticket goes where it can be what it was, and nowhere else."""

import pytest
import torch
from torch import nn

from gentickets import Masks, Ticket, TicketError


def net(**dtype: torch.dtype) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6, **dtype), nn.ReLU(), nn.Linear(6, 4, **dtype))


def model(*names: str, **dtype: torch.dtype) -> nn.ModuleDict:
    return nn.ModuleDict({name: net(**dtype) for name in names})


def integers() -> nn.ModuleDict:
    found = model("u")
    found.u[0].weight = nn.Parameter(torch.zeros(6, 4, dtype=torch.int8), requires_grad=False)
    return found


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (lambda: model("u"), integers, "'u.0.weight' is torch.float32 in the ticket and torch.int8 in the model"),
        (lambda: model("u", dtype=torch.complex64), lambda: model("u"), "torch.complex64 in the ticket"),
        (lambda: model("u"), lambda: model("u", dtype=torch.float16), "beyond the range of torch.float16"),
    ],
)
def test_a_dtype_that_cannot_hold_the_weights_is_refused_and_nothing_changed(source, target, message, half) -> None:
    start, goal = source(), target()
    start.u[0].weight.data[0, 0] = 1e6
    before = {name: tensor.clone() for name, tensor in goal.state_dict().items()}
    with pytest.raises(TicketError, match=message):
        Ticket(half(start), start).install(goal)
    assert all(torch.equal(tensor, before[name]) for name, tensor in goal.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_dtypes_are_fine(dtype, half) -> None:
    start = model("u")
    ticket = Ticket(half(start), start)
    found = ticket.install(model("u", dtype=dtype))
    expected = (start.u[0].weight.detach() * ticket.masks["u.0.weight"]).to(dtype)
    assert torch.equal(found.u[0].weight, expected)


@pytest.mark.parametrize("wrong", [None, 5, {"u.0.weight": torch.ones(6, 4, dtype=torch.bool)}])
def test_a_ticket_is_made_of_masks_and_its_origin_is_a_dict(wrong, half) -> None:
    with pytest.raises(TicketError, match="a ticket is made of Masks, and not of a"):
        Ticket(wrong, model("u"))
    with pytest.raises(TicketError, match="origin="):
        Ticket(half(model("u")), origin=5)


@pytest.mark.parametrize("components", ["u", ["u"], ("u", "v")])
def test_components_say_what_goes_where(components, half) -> None:
    start = model("u", "v")
    with pytest.raises(TicketError, match="say which component goes where"):
        Ticket(half(start), start).transfer(start, components)


def test_two_components_cannot_go_to_one(half) -> None:
    start = model("u", "v")
    with pytest.raises(TicketError, match="two components of the ticket would go to 'w'"):
        Ticket(half(start), start).transfer(model("w"), {"u": "w", "v": "w"})


def test_one_network_goes_to_a_component_and_back(half) -> None:
    start, gan = net(), model("g", "d")
    ticket = Ticket(half(start), start)
    there = ticket.transfer(gan, {"": "g"})
    assert list(there.masks) == ["g.0.weight", "g.2.weight"]
    assert torch.equal(there.weights["g.2.weight"], start[2].weight)
    assert torch.equal(there.weights["d.2.weight"], gan.d[2].weight)
    back = there.transfer(net(), {"g": ""})
    assert back.masks == ticket.masks
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in ticket.weights.items())
    assert back.origin["transfer"]["left"] == there.origin["transfer"]["left"] == []
    with pytest.raises(TicketError, match="goes alone"):
        ticket.transfer(gan, {"": "g", "0": "d"})


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda start: torch.compile(start, backend="eager")])
def test_the_state_of_a_wrapper_is_told_by_its_names(wrap, half) -> None:
    start = model("u")
    with pytest.raises(TicketError, match=r"lack 'u.0.weight'.*; a wrapper calls it '.*u.0.weight': give the model"):
        Ticket(half(start), wrap(start).state_dict())
    ticket = Ticket(half(start), wrap(start))
    assert set(ticket.weights) == set(start.state_dict())
    assert isinstance(ticket.masks, Masks)
