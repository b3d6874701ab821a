"""The lean Adam against torch's own, to the bit."""

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gentickets.adam import FusedAdamW

OPTIONS = {"lr": 0.05, "betas": (0.5, 0.99), "weight_decay": 0.1, "fused": True}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from(["", "load", "copy"])), max_size=8))
def test_every_step_is_that_of_torchs_fused_adamw(plan):
    """Steps in which some parameters have no gradient; states saved and loaded, and optimisers copied, in between."""
    torch.manual_seed(0)
    start = [torch.randn(4, 2, 3, 3).contiguous(memory_format=torch.channels_last), torch.randn(7), torch.randn(())]
    nets = [[torch.nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2)]
    optimizers = [
        kind([{"params": net[:2]}, {"params": net[2:], "lr": 0.01}], **OPTIONS)
        for kind, net in zip((FusedAdamW, torch.optim.AdamW), nets, strict=True)
    ]
    for number, (first, last, between) in enumerate(plan):
        for net, optimizer in zip(nets, optimizers, strict=True):
            rng = torch.Generator().manual_seed(number)
            for parameter, steps in zip(net, (first, True, last), strict=True):
                gradient = torch.randn(parameter.shape, generator=rng)
                parameter.grad = gradient if steps else None
            optimizer.step()
        for one, other in zip(*nets, strict=True):
            assert torch.equal(one, other)
        lean, plain = (optimizer.state_dict()["state"] for optimizer in optimizers)
        assert lean.keys() == plain.keys()
        for key, state in plain.items():
            assert all(torch.equal(lean[key][name], value) for name, value in state.items())
        if between == "load":
            for optimizer in optimizers:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        elif between == "copy":
            (nets, optimizers) = copy.deepcopy((nets, optimizers))
