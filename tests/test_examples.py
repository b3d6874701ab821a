"""What a component takes and gives, whatever its nesting; and comparing what two of them give."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import gentickets as gt
from gentickets.masks.examples import (
    WHOLE,
    Comparison,
    Example,
    compare,
    examples_of,
    named_tensors,
    outputs,
    tolerance,
)
from gentickets.masks.names import as_model, components_of, named_weights


@dataclass
class Moments:
    mean: Tensor
    extra: Any = None


Pair = namedtuple("Pair", "one other")


def nested(depth=3):
    """(a value, how many tensors are in it)."""
    leaf = st.one_of(
        st.just((torch.ones(2), 1)), st.sampled_from([(None, 0), (3, 0), ("text", 0), (nn.Linear(1, 1), 0), (len, 0)])
    )

    def grown(children):
        several = st.lists(children, min_size=1, max_size=3)

        def made(build):
            return several.map(lambda parts: (build([value for value, _ in parts]), sum(count for _, count in parts)))

        return st.one_of(
            made(list),
            made(tuple),
            made(lambda values: {f"key{i}": value for i, value in enumerate(values)}),
            made(lambda values: OrderedDict(enumerate(values))),
            made(lambda values: SimpleNamespace(**{f"a{i}": value for i, value in enumerate(values)})),
            children.map(lambda part: (Moments(torch.zeros(3), part[0]), 1 + part[1])),
            children.map(lambda part: (Pair(part[0], None), part[1])),
        )

    return st.recursive(leaf, grown, max_leaves=8)


@given(nested())
def test_every_tensor_is_found_by_a_name_of_its_own(drawn):
    value, count = drawn
    found = list(named_tensors(value))
    assert len(found) == count
    assert len({path for path, _ in found}) == count


def test_what_holds_itself_is_walked_once():
    loop = SimpleNamespace(x=torch.ones(1))
    loop.me = loop
    assert [path for path, _ in named_tensors(loop)] == ["x"]


def test_a_distribution_gives_its_parameters():
    assert dict(named_tensors(torch.distributions.Normal(torch.zeros(3), torch.ones(3)))).keys() >= {"loc", "scale"}


class Conditioned(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.time = nn.Linear(4, 3), nn.Embedding(10, 3)

    def forward(self, x, t=None, *, scale=1.0):
        return Moments(self.image(x) * scale, {"time": None if t is None else self.time(t)})


@pytest.mark.parametrize("given", [
    (torch.ones(5, 4), torch.arange(5)),
    [torch.ones(5, 4), torch.arange(5)],
    {"x": torch.ones(5, 4), "t": torch.arange(5), "scale": 2.0},
])  # fmt: skip
def test_an_example_is_a_tensor_arguments_or_keywords(given):
    example = Example.of(given, "u")
    assert set(outputs(Conditioned(), example)) == {"mean", "extra['time']"}
    assert example.batch == 5
    assert [len(tensor) for tensor in example.first(2).tensors] == [2, 2]
    moved = example.to("cpu", torch.float64)
    assert [tensor.dtype for tensor in moved.tensors] == [torch.float64, torch.int64]


@pytest.mark.parametrize("given", ["x", 3, None, (), {"x": 1}])
def test_an_example_without_a_tensor_is_refused_by_name(given):
    with pytest.raises(gt.MaskError, match="component 'u' holds no tensor"):
        Example.of(given, "u")


def test_a_single_network_takes_its_bare_example():
    net = nn.Sequential(nn.Linear(4, 3))
    assert list(examples_of(net, torch.ones(2, 4))) == [WHOLE]
    with pytest.raises(gt.MaskError, match="no component 'z': the model has 0"):
        examples_of(net, {"z": torch.ones(2, 4)})


def test_a_model_is_a_module_or_a_dict_of_them():
    generator, discriminator = nn.Linear(2, 3), nn.Linear(3, 1)
    gan = {"generator": generator, "discriminator": discriminator}
    assert components_of(gan) == ("generator", "discriminator")
    assert named_weights(gan)["generator.weight"] is generator.weight
    assert as_model(generator) is generator


@pytest.mark.parametrize("model", [(nn.Linear(1, 1), nn.Linear(1, 1)), [nn.Linear(1, 1)], {"g": 3}, {}, None, "gan"])
def test_anything_else_is_refused_in_one_sentence(model):
    with pytest.raises(gt.MaskError, match=r"a model is one nn.Module whose children .* not a"):
        as_model(model)


def test_a_dict_with_an_impossible_name_is_refused():
    with pytest.raises(gt.MaskError, match="no name of a component"):
        as_model({"a.b": nn.Linear(1, 1)})


# -- comparing ---------------------------------------------------------------------------------------------------


def test_chance_falls_the_same_for_both():
    class Samples(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    one, other = (outputs(Samples(), Example.of(torch.zeros(3, 2), "u")) for _ in range(2))
    assert compare(one, other) == Comparison(6, 0.0, "", 0.0)


@given(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]))
def test_rounding_is_forgiven_and_more_is_not(dtype):
    numbers = torch.linspace(-2, 2, 9).to(dtype)
    allowed = tolerance(dtype)
    assert compare({"o": numbers}, {"o": numbers * (1 + torch.finfo(dtype).eps)}).equal
    off = numbers.clone()
    off[0] += 2 * 3 * allowed
    assert not compare({"o": numbers}, {"o": off}).equal


def test_a_comparison_of_nothing_is_not_equal():
    assert not compare({}, {}).equal
    assert not compare({"o": torch.ones(3, dtype=torch.int64)}, {"o": torch.ones(3, dtype=torch.int64)}).equal


@pytest.mark.parametrize("other", [
    {}, {"o": torch.ones(4)}, {"o": torch.ones(3).double()}, {"o": torch.tensor([1.0, 1.0, float("nan")])},
    {"o": torch.tensor([1.0, 1.0, float("inf")])}, {"o": torch.ones(3), "p": torch.ones(1)},
])  # fmt: skip
def test_what_is_missing_or_of_another_kind_is_infinitely_far(other):
    assert compare({"o": torch.ones(3)}, other).worst == float("inf")


def test_nan_is_nan_in_both():
    numbers = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
    assert compare({"o": numbers}, {"o": numbers.clone()}).equal
    assert not compare({"o": numbers}, {"o": numbers.flip(0)}).equal
