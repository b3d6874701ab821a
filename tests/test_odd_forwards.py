"""Networks that switch derivatives off, compute parts again, write into what they get, or are called by keywords."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gentickets as gt
from gentickets.masks.examples import WHOLE, Example, examples_of


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


class Inference(Two):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return super().forward(x)


class RoundedInPlace(Two):
    """A latent that is stored as bytes on its way (as in diffusers' AutoencoderTiny)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).mul_(255).round_().byte() / 255)


class DetachedInPlace(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.a(x) + 1).detach_())


class Functional(Two):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.a.weight), self.b.weight)


class Checkpointed(Two):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)


def built(kind: str) -> Two:
    torch.manual_seed(0)
    return {
        "inference mode": Inference,
        "rounded in place": RoundedInPlace,
        "detached in place": DetachedInPlace,
        "functional": Functional,
        "checkpoint": lambda: Checkpointed(False),
        "reentrant checkpoint": lambda: Checkpointed(True),
    }[kind]()


KINDS = (
    "inference mode",
    "rounded in place",
    "detached in place",
    "functional",
    "checkpoint",
    "reentrant checkpoint",
)


@pytest.mark.filterwarnings("error:.*not checked for live paths")
@pytest.mark.parametrize("kind", KINDS)
def test_a_path_is_seen_and_its_cut_too_whatever_the_code_switches_off(kind):
    net, x = built(kind), torch.randn(2, 6)
    dense = gt.Masks.dense(net)
    gt.check_connected(net, dense, x)
    for layer in ("a", "b"):
        name = f"{layer}.weight"
        with pytest.raises(gt.Disconnected, match=f"'{layer}(.weight)?', which keeps"):
            gt.check_connected(net, dense.replace({name: torch.zeros_like(dense[name])}), x)


@pytest.mark.parametrize("kind", ["checkpoint", "reentrant checkpoint"])
def test_a_checkpoint_changes_no_synaptic_flow(kind):
    net, plain, x = built(kind), Two(), torch.randn(2, 6)
    plain.load_state_dict(net.state_dict())
    expected = gt.synflow(plain, x)
    for name, score in gt.synflow(net, x).items():
        torch.testing.assert_close(score, expected[name])
    assert net.train()(x.requires_grad_()).grad_fn is not None  # checkpoints are as they were
    net(x).sum().backward()
    assert net.a.weight.grad is not None


def test_an_example_without_a_batch_is_scored_whole():
    net = Two()
    for name, score in gt.synflow(net, torch.randn(6)).items():
        torch.testing.assert_close(score, gt.synflow(net, torch.randn(1, 6))[name])


class WritesIntoItsInput(Two):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


def test_an_example_is_not_written_into_by_the_network_that_it_is_given_to():
    net, x = WritesIntoItsInput(), torch.randn(4, 6)
    before = x.clone()
    masks = gt.prune(gt.magnitude(net), fraction=0.5)
    gt.cost(net, x, masks)
    gt.check_connected(net, masks, x)
    gt.synflow(net, x)
    groups = gt.channel_groups(net, x)
    assert len(groups) == 6
    gt.shrink(net, gt.prune(gt.magnitude(net), fraction=0.5, granularity="channel", groups=groups), x)
    with gt.accelerate(masks.apply_(net), masks, x):
        pass
    assert torch.equal(x, before)


class ByAttribute(Two):
    def forward(self, batch: Attributes) -> Tensor:
        return super().forward(batch.x)


class Attributes(UserDict):
    """As a tokenizer's batch: a mapping whose parts are read by attribute."""

    @property
    def x(self) -> Tensor:
        return self["x"]


def test_a_mapping_of_a_class_of_its_own_stays_of_that_class():
    net, given = ByAttribute(), Attributes(x=torch.randn(2, 6))
    assert gt.cost(net, (given,)).flops_dense == 2 * 2 * 36
    assert Example.of((given,), "net").map(torch.zeros_like).args[0].x.eq(0).all()
    assert given.x.ne(0).all()


# -- keywords of a single network -------------------------------------------------------------------------------


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.t, self.net = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, *, cond: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        h = x if cond is None else x + self.t(cond)
        return self.net(h if t is None else h * t)


def test_keywords_of_a_single_network_are_a_call_of_it():
    net, x = Conditional(), torch.randn(2, 6)
    assert gt.cost(net, {"x": x}).flops_dense == 2 * 36
    assert gt.cost(net, {"x": x, "cond": x}).flops_dense == 2 * 2 * 36
    assert list(examples_of(net, {"cond": x, "x": x})) == [WHOLE]
    assert list(examples_of({"one": net}, {"one": {"x": x, "t": x}})) == ["one"]


def test_a_name_that_is_a_component_is_one():
    net, x = Conditional(), torch.randn(2, 6)
    assert list(examples_of(net, {"t": x})) == ["t"]
    with pytest.raises(gt.MaskError, match=r"no component 'x'.* all must be of x, cond$"):
        gt.cost(net, {"x": x, "t": x})


@pytest.mark.parametrize("given", [{"x": torch.ones(1, 6), "y": torch.ones(1, 6)}, {"y": torch.ones(1, 6)}])
def test_keywords_that_the_network_does_not_take_are_refused_with_those_that_it_does(given):
    with pytest.raises(gt.MaskError, match=r"no component .*: the model has t, net; .* all must be of x, cond"):
        gt.cost(Conditional(), given)


def test_a_model_of_components_takes_no_keywords():
    with pytest.raises(gt.MaskError, match=r"no component 'x': the model has net$"):
        gt.cost({"net": Conditional()}, {"x": torch.ones(1, 6)})


# -- examples that show nothing ---------------------------------------------------------------------------------


def test_a_batch_of_none_is_refused_by_all_who_would_call_a_network_on_it():
    net, x = Two(), torch.ones(0, 6)
    masks = gt.Masks.dense(net)
    for use in (
        lambda: gt.cost(net, x),
        lambda: gt.synflow(net, x),
        lambda: gt.check_connected(net, masks, x),
        lambda: gt.channel_groups(net, x),
        lambda: gt.accelerate(net, masks, x),
    ):
        with pytest.raises(gt.MaskError, match="is a batch of none"):
            use()


@pytest.mark.parametrize("where", ["both", "network"])
def test_the_channels_of_a_network_without_values_are_refused_in_one_line(where):
    net, x = Two().to("meta"), torch.ones(2, 6, device="meta" if where == "both" else "cpu")
    with pytest.raises(gt.GenticketsError, match="meta device, which has no values"):
        gt.channel_groups(net, x)


# -- gradients that do not come ---------------------------------------------------------------------------------


class Reconstruction:
    components = ("net",)
    batches_per_step = 1

    def losses(self, model, batch, rng):
        yield "net", (model["net"](batch) - batch).square().mean()


def test_snip_tells_of_weights_that_no_gradient_reaches():
    model, x = nn.ModuleDict({"net": RoundedInPlace()}), torch.rand(3, 6)
    with pytest.warns(UserWarning, match="no loss has a gradient by 'net.a.weight': all of it scores 0"):
        scores = gt.snip(model, Reconstruction(), [x])
    assert not scores["net.a.weight"].any()
    assert scores["net.b.weight"].any()


@pytest.mark.filterwarnings("error")
def test_snip_tells_of_nothing_where_gradients_reach_all():
    gt.snip(nn.ModuleDict({"net": Two()}), Reconstruction(), [torch.rand(3, 6)])


# -- masks and arguments that fit nothing -----------------------------------------------------------------------


def test_a_weight_that_another_component_names_is_a_cut_in_this_one_too():
    shared = nn.Linear(6, 6)
    model = nn.ModuleDict({"one": nn.Sequential(shared), "other": nn.Sequential(nn.Linear(6, 6), shared)})
    dense = gt.Masks.dense(model)
    assert "other.1.weight" not in dense
    gt.check_connected(model, dense, {"other": torch.ones(1, 6)})
    closed = dense.replace({"one.0.weight": torch.zeros(6, 6, dtype=torch.bool)})
    with pytest.raises(gt.Disconnected, match=r"nothing passes layer 'other.1', which keeps 0 of 36"):
        gt.check_connected(model, closed, {"other": torch.ones(1, 6)})


def test_masks_of_another_model_are_no_masks_to_check_by():
    net, x = Two(), torch.ones(1, 6)
    with pytest.raises(gt.MaskError, match="no weight 'q', which the masks cover"):
        gt.check_connected(net, gt.Masks({"q": torch.ones(6, 6, dtype=torch.bool)}), x)
    with pytest.raises(gt.MaskError, match=r"'a.weight' is \(6, 6\) in the model and \(2, 2\) in the masks"):
        gt.check_connected(net, gt.Masks({"a.weight": torch.ones(2, 2, dtype=torch.bool)}), x)


@pytest.mark.parametrize("use", [gt.check_connected, gt.shrink, gt.accelerate])
def test_what_is_no_masks_is_refused_and_a_dict_of_bools_is(use):
    net, x = Two(), torch.ones(1, 6)
    with pytest.raises(gt.MaskError, match="masks are a dict from a weight's name to a bool tensor, not a NoneType"):
        use(net, None, x)
    use(net, {"a.weight": torch.ones(6, 6, dtype=torch.bool)}, x)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"iterations": 2.5}, "iterations=2.5"),
        ({"iterations": 0}, "iterations=0"),
        ({"to_sparsity": "half"}, "to_sparsity='half'"),
    ],
)
def test_amounts_and_steps_that_are_no_numbers_are_refused(given, named):
    with pytest.raises(gt.PruneError, match=named):
        gt.synflow_masks(Two(), torch.ones(1, 6), **{"to_sparsity": 0.5, "iterations": 1} | given)


@pytest.mark.parametrize("criterion", [gt.snip, gt.grasp])
def test_what_is_no_objective_and_what_is_no_batch_are_refused(criterion):
    model = nn.ModuleDict({"net": Two()})
    with pytest.raises(gt.PruneError, match="objective= is a function"):
        criterion(model, lambda *_: 0, [torch.ones(1, 6)])
    with pytest.raises(gt.PruneError, match="batches= holds a list"):
        criterion(model, Reconstruction(), [[torch.ones(1, 6)]])
