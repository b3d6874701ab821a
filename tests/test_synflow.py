"""SynFlow on networks of every make: each against the polynomial of its weights, written out by hand."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import gentickets as gt
from gentickets.masks.names import named_weights


def by_hand(net: nn.Module, flow: Callable[..., Tensor], batch: tuple[int, ...] = (1, 4)) -> dict[str, Tensor]:
    """|w · dR/dw| of R = `flow(x, **weights)`, which is given |w| and ones, and where nothing cancels."""
    weights = {
        name: weight.detach().double().abs().requires_grad_()
        for name, weight in named_weights(net).items()
        if not name.endswith("bias")
    }
    total = flow(torch.ones(batch, dtype=torch.float64), **{n.replace(".", "_"): w for n, w in weights.items()}).sum()
    slopes = torch.autograd.grad(total, list(weights.values()), materialize_grads=True)
    return {name: (w * slope).detach() for (name, w), slope in zip(weights.items(), slopes, strict=True)}


def assert_same(net: nn.Module, flow: Callable[..., Tensor], *example: Tensor) -> None:
    expected = by_hand(net, flow, (1, *example[0].shape[1:]))
    scores = gt.synflow(net, example if len(example) > 1 else example[0])
    assert scores
    for name, score in scores.items():
        assert bool((score >= 0).all())
        assert torch.allclose(score, expected[name], rtol=1e-9), name
        assert score.any()


class Two(nn.Module):
    """Two linear layers and a way to put them together."""

    def __init__(self, forward: Callable[[nn.Module, nn.Module, Tensor], Tensor], width: int = 4) -> None:
        super().__init__()
        self.a, self.b, self.way = nn.Linear(4, width), nn.Linear(4, width), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.a, self.b, x)


SUBTRACTING = {
    "a - b": lambda a, b, x: a(x) - b(x),
    "torch.sub": lambda a, b, x: torch.sub(a(x), b(x)),
    "in place": lambda a, b, x: a(x).sub_(b(x)),
    "-=": lambda a, b, x: _in_place(a(x), b(x)),
    "a + (-b)": lambda a, b, x: a(x) + (-b(x)),
    "a + -1 * b": lambda a, b, x: a(x) + -1 * b(x),
    "a + b * constant": lambda a, b, x: a(x) + b(x) * torch.tensor([-1.0, 1.0, -1.0, 1.0]),
    "alpha": lambda a, b, x: torch.add(a(x), b(x), alpha=-1),
    "rsub": lambda a, b, x: torch.rsub(a(x), b(x)),
    "neg": lambda a, b, x: a(x).add(b(x).neg()),
    "1 - ": lambda a, b, x: 1 - (a(x) - b(x)),
    "relu of both": lambda a, b, x: F.relu(a(x)) - torch.relu(b(x)).relu(),
    "a constant matrix": lambda a, b, x: a(x) + b(x) @ -torch.eye(4),
    "a reduced float": lambda a, b, x: a(x).float() - b(x.half().to(torch.float32)),
}


def _in_place(one: Tensor, other: Tensor) -> Tensor:
    one -= other
    return one


@pytest.mark.parametrize("way", SUBTRACTING)
def test_what_is_subtracted_counts_as_much(way: str) -> None:
    net = Two(SUBTRACTING[way])
    assert_same(net, lambda x, a_weight, b_weight: x @ a_weight.T + x @ b_weight.T, torch.randn(3, 4))


def test_a_weight_on_a_path_of_either_sign_does_not_cancel() -> None:
    net = Two(lambda a, b, x: a(x) - 0.5 * a(x) + b(a(x)))
    assert_same(
        net, lambda x, a_weight, b_weight: 1.5 * (x @ a_weight.T) + x @ a_weight.T @ b_weight.T, torch.randn(2, 4)
    )


def test_x_minus_its_noise() -> None:
    """A denoiser: ranks as in the net that adds. Without the absolute value the best went first."""
    inner = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = inner

        def forward(self, x: Tensor) -> Tensor:
            return x - self.net(x)

    alone, inside = gt.synflow(inner, torch.randn(1, 4)), gt.synflow(Denoiser(), torch.randn(1, 4))
    for name, score in alone.items():
        assert torch.allclose(inside[f"net.{name}"], score)
    masks = gt.synflow_masks(Denoiser(), torch.randn(1, 4), 0.5, iterations=3)
    assert {f"net.{name}": mask for name, mask in gt.synflow_masks(inner, torch.randn(1, 4), 0.5, iterations=3).items()}
    assert masks.alive == 24


FUNCTIONAL = {
    "relu": F.relu, "sigmoid": torch.sigmoid, "method": lambda x: x.tanh(), "gelu": F.gelu, "silu": F.silu,
    "softplus": F.softplus, "clamp": lambda x: x.clamp(-1, 1), "swish by hand": lambda x: x * torch.sigmoid(x),
    "gelu by hand": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * torch.pow(x, 3)))),
    "sign": lambda x: x.sign(), "log": lambda x: x.log1p(), "floor": torch.floor,
    "dropout": lambda x: F.dropout(x, 0.5),
    "maximum": lambda x: torch.maximum(x, torch.zeros(4)), "in place": lambda x: x.relu_(),
    "layer norm": lambda x: F.layer_norm(x, (4,)), "normalize": lambda x: F.normalize(x, dim=-1),
    "layer norm by hand": lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt(),
    "rms norm by hand": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "instance norm": lambda x: F.instance_norm(x[None])[0],
    "module": nn.Hardswish(), "module norm": nn.BatchNorm1d(4), "prelu": nn.PReLU(), "group norm": nn.GroupNorm(2, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functions_pass_on_what_they_get_as_modules_do(name: str) -> None:
    function = FUNCTIONAL[name]
    with torch.no_grad():
        net = Two(lambda a, b, x: b(function(a(x))))
        net.a.weight.mul_(1000)  # as it is, sigmoid would be flat
    assert_same(net, lambda x, a_weight, b_weight: x @ a_weight.T @ b_weight.T, torch.randn(3, 4))


def test_the_gains_of_functional_norms_count() -> None:
    gain = torch.tensor([1.0, -2.0, 0.5, 3.0])
    net = Two(lambda a, b, x: b(F.layer_norm(a(x), (4,), gain, torch.ones(4))))
    assert_same(net, lambda x, a_weight, b_weight: x @ a_weight.T * gain.double().abs() @ b_weight.T, torch.randn(3, 4))


def test_gates_are_products() -> None:
    for gate in (torch.sigmoid, lambda x: x, F.hardsigmoid):
        net = Two(lambda a, b, x, gate=gate: a(x) * gate(b(x)))
        assert_same(net, lambda x, a_weight, b_weight: (x @ a_weight.T) * (x @ b_weight.T), torch.randn(3, 4))
    for gated in (nn.GLU(), F.glu):
        net = Two(lambda a, b, x, gated=gated: gated(torch.cat([a(x), b(x)], -1)))
        assert_same(net, lambda x, a_weight, b_weight: (x @ a_weight.T) * (x @ b_weight.T), torch.randn(3, 4))


class Attention(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.q, self.k, self.v, self.way = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), way

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.way == "fused":
            return F.scaled_dot_product_attention(q, k, v)
        scores = q @ k.mT / 2
        if self.way == "softmax":
            return F.softmax(scores, dim=-1) @ v
        if self.way == "method":
            return scores.softmax(-1) @ v
        if self.way == "module":
            return nn.Softmax(-1)(scores) @ v
        return torch.einsum("bij,bjk->bik", torch.softmax(scores.float(), dim=-1, dtype=torch.float32), v)


@pytest.mark.parametrize("way", ["fused", "softmax", "method", "module", "einsum"])
def test_attention_is_linear_with_rows_of_sum_one(way: str) -> None:
    def flow(x: Tensor, q_weight: Tensor, k_weight: Tensor, v_weight: Tensor) -> Tensor:
        scores = (x @ q_weight.T) @ (x @ k_weight.T).mT
        return scores / scores.detach().sum(-1, keepdim=True) @ (x @ v_weight.T)

    assert_same(Attention(way), flow, torch.randn(2, 3, 4))
    scores = gt.synflow(Attention(way), torch.randn(2, 3, 4))
    sums = [float(score.sum()) for score in scores.values()]
    assert sums == pytest.approx([sums[0]] * 3)


def test_masked_places_are_not_attended_to() -> None:
    """A causal mask in its three forms: one that adds, one that fills, one that is said."""
    causal = torch.full((3, 3), -torch.inf).triu(1)

    class Masked(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.q(x), self.k(x), self.v(x)
            if self.way == "said":
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)
            if self.way == "given":
                return F.scaled_dot_product_attention(q, k, v, attn_mask=causal)
            scores = q @ k.mT / 2
            scores = scores + causal if self.way == "adds" else scores.masked_fill(causal < 0, float("-inf"))
            return scores.softmax(-1) @ v

    nets = [Masked(way) for way in ("said", "given", "adds", "fills")]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    first, *others = [gt.synflow(net, torch.randn(1, 3, 4)) for net in nets]
    assert all(bool(score.any()) for score in first.values())
    for scores in others:
        assert all(torch.allclose(scores[name], first[name]) for name in first)


@pytest.mark.parametrize("net", [
    nn.TransformerEncoderLayer(8, 2, 12, batch_first=True),
    nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 3),
    nn.TransformerDecoderLayer(8, 2, 12, batch_first=True),
])  # fmt: skip
def test_transformers(net: nn.Module) -> None:
    x = torch.randn(2, 5, 8)
    example = (x, x) if isinstance(net, nn.TransformerDecoderLayer) else x
    scores = gt.synflow(net, example, include="*weight")
    for name, score in scores.items():
        assert bool(((score >= 0) & score.isfinite()).all())
        assert name.endswith(("in_proj_weight", "out_proj.weight", "linear1.weight", "linear2.weight")) == (
            score.dim() > 1
        )
        if score.dim() > 1:
            assert bool(score.any()), name
    masks = gt.synflow_masks(net, example, 0.7, iterations=5)
    gt.check_connected(net, masks, example)
    counts = list(masks.counts().values())  # of three layers on end the last may go: the others pass it by
    assert all(counts[: 3 if len(counts) > 5 else None])


def test_a_dead_query_leaves_even_attention() -> None:
    net = Attention("softmax")
    masks = gt.Masks.dense(net).replace({"q.weight": torch.zeros(4, 4, dtype=torch.bool)})
    scores = gt.synflow(masks.apply_(net), torch.randn(1, 3, 4))
    assert not torch.cat([scores["q.weight"], scores["k.weight"]]).any()
    assert scores["v.weight"].all()


# -- what goes in and comes out -------------------------------------------------------------------------------


@dataclasses.dataclass
class Output:
    sample: Tensor
    other: object = None


def test_results_of_any_nesting_are_followed() -> None:
    ways = {
        "dataclass": lambda a, b, x: Output(a(x), {"deep": [b(x)]}),
        "tuple": lambda a, b, x: (a(x), None, (b(x), "text")),
    }
    for way in ways.values():
        net = nn.ModuleDict({"u": Two(way)})  # type: ignore[arg-type]
        scores = gt.synflow(net, {"u": torch.randn(2, 4)})
        for name in ("a", "b"):
            assert torch.allclose(scores[f"u.{name}.weight"], getattr(net.u, name).weight.detach().double().abs())
    with pytest.raises(gt.PruneError, match="gives no tensor of real numbers"):
        gt.synflow(Two(lambda a, b, x: {"index": a(x).argmax(-1)}), torch.randn(2, 4))  # type: ignore[arg-type,return-value]


class Tokens(nn.Module):
    """Takes whole numbers, makes float32 on its way, and is told of the time."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.time, self.head = nn.Embedding(11, 4), nn.Linear(4, 4), nn.Linear(4, 11)

    def forward(self, ids: Tensor, time: Tensor, scale: float = 1.0) -> Tensor:
        frequencies = torch.exp(-torch.arange(2, dtype=torch.float32))
        angles = time.float()[:, None] * frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        return self.head(torch.tanh(self.table(ids.long()) + time[:, None]) * scale)


def test_whole_numbers_keywords_and_several_inputs() -> None:
    model = {"u": Tokens()}
    ids, time = torch.randint(0, 11, (3, 5)), torch.tensor([5.0, 100.0, 700.0])
    examples = [
        {"u": (ids, time)}, {"u": {"ids": ids, "time": time, "scale": 1.0}}, {"u": [ids, time, 1.0]},
    ]  # fmt: skip
    first, *others = [gt.synflow(model, example) for example in examples]
    assert list(first) == ["u.time.weight", "u.head.weight"]
    assert all(bool((score > 0).any()) and bool((score >= 0).all()) for score in first.values())
    for scores in others:
        assert all(torch.equal(scores[name], first[name]) for name in first)
    bare = gt.synflow(model["u"], (ids, time))
    assert all(torch.equal(bare[name.removeprefix("u.")], first[name]) for name in first)
    assert gt.synflow_masks(model, examples[0], 0.5, iterations=2).alive == 30
    score = gt.synflow_score((ids, time))
    assert set(score(model["u"], gt.Masks.dense(model["u"]))) == set(bare)


def test_names_are_names_not_patterns() -> None:
    net = nn.Sequential()
    net.add_module("[a]", nn.Linear(4, 4))
    net.add_module("b", nn.Linear(4, 4))
    masks = gt.synflow_masks(nn.ModuleDict({"u": net}), {"u": torch.randn(1, 4)}, 0.5, iterations=3)
    assert set(masks) == {"u.[a].weight", "u.b.weight"}
    assert masks.alive == 16


# -- refusals -------------------------------------------------------------------------------------------------


def test_a_layer_that_nothing_flows_through_is_named() -> None:
    net = Two(lambda a, b, x: b(torch.eye(4)[a(x).argmax(-1)]))
    with pytest.raises(gt.PruneError, match=r"synflow cannot score 'a\.weight': its layer runs"):
        gt.synflow(net, torch.randn(2, 4))
    assert gt.synflow(net, torch.randn(2, 4), exclude="a.*")["b.weight"].any()

    class Flat(torch.autograd.Function):
        @staticmethod
        def forward(_: object, x: Tensor) -> Tensor:
            return torch.ones_like(x)

        @staticmethod
        def backward(_: object, grad: Tensor) -> Tensor:
            return torch.zeros_like(grad)

    with pytest.raises(gt.PruneError, match=r"'a\.weight'"):  # of four, one of which saturates
        gt.synflow(Two(lambda a, b, x: Flat.apply(a(x)) * b(x)), torch.randn(2, 4))


def test_a_layer_that_a_mask_cut_off_scores_zero() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    for dead in ("0.weight", "2.weight", "4.weight"):
        masks = gt.Masks.dense(net).replace({dead: torch.zeros(4, 4, dtype=torch.bool)})
        assert not any(
            score.any() for score in gt.synflow(masks.apply_(nn.Sequential(*net)), torch.randn(1, 4)).values()
        )
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()


def test_a_layer_that_does_not_run_scores_zero() -> None:
    scores = gt.synflow(Two(lambda a, b, x: a(x)), torch.randn(1, 4))
    assert scores["a.weight"].any()
    assert not scores["b.weight"].any()


RECURRENT = nn.LSTM(4, 4).double()


@pytest.mark.parametrize(
    "way",
    [
        lambda a, b, x: F.cosine_similarity(a(x), b(x)),
        lambda a, b, x: torch.diff(a(x)) + b(x)[:, 1:],
        lambda a, b, x: torch.fft.fft(a(x) + b(x)).abs(),
        lambda a, b, x: RECURRENT(a(x) + b(x))[0],
    ],
)
def test_what_subtracts_in_a_way_that_is_not_known_is_refused(way: Callable[..., Tensor]) -> None:
    with pytest.raises(gt.PruneError, match=r"no form without a sign|is negative"):
        gt.synflow(Two(way), torch.randn(2, 4))


def test_a_flow_that_is_not_finite_is_refused() -> None:
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x) * 1e3 * (layer(x) + x)
            return x

    with pytest.raises(gt.PruneError, match="is not finite"):
        gt.synflow(Squared(), torch.randn(1, 4))


def test_a_network_that_will_not_run_so_is_refused_in_a_line() -> None:
    def single(a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return a(x)

    with pytest.raises(gt.PruneError, match=r"'u' cannot be scored by synflow.* TypeError: float32 only") as caught:
        gt.synflow({"u": Two(single)}, {"u": torch.randn(2, 4)})
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):  # that of the network itself
        gt.synflow(nn.Linear(4, 4), torch.randn(2, 3))


def test_compiled_and_scripted_parts_are_followed() -> None:
    squash = torch.compile(torch.sigmoid)
    script = torch.jit.script(nn.ReLU())
    net = Two(lambda a, b, x: b(x - squash(script(a(x)))))
    net.compile()
    assert_same(net, lambda x, a_weight, b_weight: (x + x @ a_weight.T) @ b_weight.T, torch.randn(2, 4))


# -- what modes see --------------------------------------------------------------------------------------------


def gate(a: Tensor, b: Tensor) -> Tensor:
    """As WaveNet and WaveGlow have it, scripted."""
    return torch.tanh(a) * torch.sigmoid(b)


@torch.library.custom_op("gentickets_tests::gate", mutates_args=())
def own_gate(a: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(a) * torch.sigmoid(b)


@torch.library.custom_op("gentickets_tests::tanh", mutates_args=())
def own_product(a: Tensor, b: Tensor) -> Tensor:
    return a * b


def keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def slopes_of(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Tensor], Any]:
    def backward(ctx: Any, slope: Tensor) -> Any:
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            return torch.autograd.grad(function(*inputs), inputs, slope)

    return backward


own_gate.register_autograd(slopes_of(gate), setup_context=keep)
own_product.register_autograd(slopes_of(torch.mul), setup_context=keep)


class Swish(torch.autograd.Function):
    """That which keeps its input alone, as EfficientNets have it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        share = torch.sigmoid(x)
        return slope * share * (1 + x * (1 - share))


class Kernel(torch.autograd.Function):
    """One of which no operation is seen: twice its input, or a step that passes its slope on, or tanh."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, what: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.what = what
        with torch.no_grad():
            return {"twice": 2 * x, "step": (x > 0).double(), "tanh": torch.tanh(x)}[what]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return slope * {"twice": 2.0, "step": 1.0, "tanh": 1 - torch.tanh(x) ** 2}[ctx.what], None


inner = torch.jit.script(gate)


def within(a: Tensor, b: Tensor) -> Tensor:
    return inner(a, b)


EXAMPLE = (torch.randn(2, 3), torch.randn(2, 3))
GATES = {
    "scripted": torch.jit.script(gate),
    "a script within a script": torch.jit.script(within),
    "traced": torch.jit.trace(gate, EXAMPLE),
    "overloads": lambda a, b: torch.ops.aten.tanh.default(a) * torch.ops.aten.sigmoid_.default(b),
    "special": lambda a, b: torch.tanh(a) * torch.special.expit(b),
    "an operation of its own": own_product,  # by the name of another
}


@pytest.mark.parametrize("name", GATES)
def test_gates_however_they_are_called_are_products(name: str) -> None:
    net = Two(lambda a, b, x: GATES[name](a(x), b(x)))
    with torch.no_grad():
        net.a.weight.mul_(100)  # as it is, tanh would be flat
    assert_same(net, lambda x, a_weight, b_weight: (x @ a_weight.T) * (x @ b_weight.T), torch.randn(2, 4))


def test_functions_with_a_derivative_of_their_own() -> None:
    for function, factor in (
        (Swish.apply, 1),
        (lambda x: Kernel.apply(x, "twice"), 2),
        (lambda x: Kernel.apply(x, "step"), None),
    ):
        net = Two(lambda a, b, x, function=function: b(function(a(x))))
        if factor is not None:
            assert_same(net, lambda x, a_weight, b_weight, f=factor: f * x @ a_weight.T @ b_weight.T, torch.randn(2, 4))
        assert all(score.any() for score in gt.synflow(net, torch.randn(2, 4)).values())
    with pytest.raises(gt.PruneError, match=r"Kernel', of which synflow knows no form"):
        gt.synflow(Two(lambda a, b, x: b(Kernel.apply(a(x), "tanh"))), torch.randn(2, 4))


SCRIPTED = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double())
BENDING = {
    "gentickets_tests::gate": lambda a, b, x: own_gate(a(x), b(x)),
    "ndtr": lambda a, b, x: b(torch.special.ndtr(a(x))),
    "tanh in torch.vmap": lambda a, b, x: torch.vmap(gate)(a(x), b(x)),
    "forward (scripted)": lambda a, b, x: b(SCRIPTED(a(x))),
    "native_layer_norm": lambda a, b, x: b(torch.native_layer_norm(a(x), (4,), None, None, 1e-5)[0]),
}


@pytest.mark.parametrize("name", BENDING)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_what_bends_and_is_not_known_is_refused_by_its_name(name: str, scale: float) -> None:
    net = Two(BENDING[name])
    with torch.no_grad():
        net.a.weight.mul_(scale)
    with pytest.raises(gt.PruneError, match=re.escape(f"uses '{name}")):
        gt.synflow(net, torch.randn(2, 4))


UNBENT = {
    "pooling": lambda h, b: F.lp_pool1d(h[:, None], 2.0, 2), "sorting": lambda h, b: h.sort(-1)[0],
    "hypot": torch.hypot, "scatter": lambda h, b: h.scatter_reduce(1, torch.zeros(1, 4, dtype=torch.long), b, "amax"),
    "in place": lambda h, b: h.index_add_(1, torch.tensor([1, 0]), b[:, :2]),
    "einsum of itself": lambda h, b: torch.einsum("bi,bj->bij", h, b * h),
    "norm": lambda h, b: b * h.norm(dim=-1)[:, None],
    "vmap of constants": lambda h, b: h + b * torch.vmap(torch.tanh)(torch.ones(4)),
    "affine": lambda h, b: torch.addcdiv(h, b, torch.full((4,), 2.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", UNBENT)
def test_what_does_not_bend_is_left_as_it_is(name: str) -> None:
    scores = gt.synflow(Two(lambda a, b, x: UNBENT[name](a(x), b(x))), torch.randn(2, 4), exclude=["b.*"])
    assert bool(scores["a.weight"].any())


def test_calls_are_what_they_were_once_it_is_done() -> None:
    owners = [
        (torch._C.ScriptFunction, "__call__"),
        (torch._C.ScriptMethod, "__call__"),
        (torch.autograd.Function, "apply"),
    ]
    before = [vars(owner)[name] for owner, name in owners]
    test_gates_however_they_are_called_are_products("scripted")
    assert all(vars(owner)[name] is own for (owner, name), own in zip(owners, before, strict=True))


# -- random networks ------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_any_sum_of_signed_paths(seed: int, depth: int) -> None:
    """Random graphs of layers joined by sums and differences, against the same graph of sums alone."""
    generator = torch.Generator().manual_seed(seed)

    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(depth))
    plan = [(draw(i + 1), draw(i + 1), draw(3)) for i in range(depth)]  # from where, joined with what, and how

    def run(x: Tensor, apply: Callable[[int, Tensor], Tensor], signed: bool) -> Tensor:
        values = [x]
        for i, (source, other, how) in enumerate(plan):
            one, two = apply(i, values[source]), values[other]
            values.append(one + two if how == 0 or not signed else one - two if how == 1 else two - F.relu(one))
        return values[-1] - sum(values[:-1]) if signed else sum(values)  # type: ignore[return-value]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> Tensor:
            return run(x, lambda i, value: self.layers[i](value), signed=True)

    assert_same(
        Net(),
        lambda x, **w: run(x, lambda i, value: value @ w[f"layers_{i}_weight"].T, signed=False),
        torch.randn(2, 3),
    )
