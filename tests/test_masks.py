"""Masks as values: algebra, packing, names under every wrapper."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

from gentickets import MaskError, Masks, magnitude, random_scores
from gentickets.masks.layers import prunable_weights
from gentickets.masks.names import clone, named_state, named_weights, unwrap

SHAPES = st.lists(
    st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=0, max_size=3
)  # scalars, empties, sizes that no byte divides


def draw(shapes: list[tuple[int, ...]], seed: int, names: str = "abc") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"{n}.weight": torch.rand(s, generator=generator) < 0.5 for n, s in zip(names, shapes, strict=False)}


def plain(masks: Masks) -> dict[str, list[bool]]:
    """Masks as Python lists, to compute with by hand."""
    return {name: mask.reshape(-1).tolist() for name, mask in masks.items()}


SEEDS = st.integers(0, 2**32)


@given(SHAPES, SEEDS, SEEDS, SEEDS)
def test_algebra(shapes: list[tuple[int, ...]], s1: int, s2: int, s3: int) -> None:
    a, b, c = (Masks(draw(shapes, seed)) for seed in (s1, s2, s3))
    assert ~(a & b) == ~a | ~b
    assert ~(a | b) == ~a & ~b
    assert ~~a == a
    assert a ^ b == (a | b) & ~(a & b)
    assert a & (b | c) == (a & b) | (a & c)
    assert (a & b) <= a <= (a | b)
    # a metric
    assert a.distance(a) == 0.0
    assert (a.distance(b) == 0.0) == (a == b)
    assert a.distance(b) == b.distance(a)
    assert a.distance(c) <= a.distance(b) + b.distance(c) + 1e-12
    assert a.distance(~a) == (1.0 if a.total else 0.0)


@given(SHAPES, SEEDS, SEEDS)
def test_against_python_lists(shapes: list[tuple[int, ...]], s1: int, s2: int) -> None:
    a, b = Masks(draw(shapes, s1)), Masks(draw(shapes, s2))
    x, y = plain(a), plain(b)
    assert plain(a & b) == {n: [p and q for p, q in zip(x[n], y[n], strict=True)] for n in x}
    assert plain(a | b) == {n: [p or q for p, q in zip(x[n], y[n], strict=True)] for n in x}
    assert plain(~a) == {n: [not p for p in x[n]] for n in x}
    assert a.alive == sum(sum(v) for v in x.values())
    assert a.total == sum(len(v) for v in x.values())
    assert a.counts() == {n: sum(v) for n, v in x.items()}
    differ = sum(p != q for n in x for p, q in zip(x[n], y[n], strict=True))
    assert a.distance(b) == (differ / a.total if a.total else 0.0)


@given(SHAPES, SEEDS)
def test_packing_round_trip(shapes: list[tuple[int, ...]], seed: int) -> None:
    tensors = draw(shapes, seed)
    masks = Masks(tensors)
    assert list(masks) == list(tensors)
    for name, tensor in tensors.items():
        assert masks[name].dtype == torch.bool
        assert masks[name].shape == tensor.shape
        assert torch.equal(masks[name], tensor)
        assert masks.packed[name].nbytes == math.ceil(tensor.numel() / 8)
    again = Masks.from_packed(masks.packed, masks.shapes)
    for other in (
        again,
        pickle.loads(pickle.dumps(masks)),
        copy.deepcopy(masks),
        copy.copy(masks),
        Masks(masks),
    ):
        assert other == masks
        assert hash(other) == hash(masks)
        assert other.fingerprint == masks.fingerprint
        assert list(other) == list(masks)


def test_order_of_bits_is_c_order_for_any_layout() -> None:
    mask = torch.rand(3, 4, 5, 5) < 0.5
    masks = Masks({"w": mask.to(memory_format=torch.channels_last)})
    assert torch.equal(masks["w"], mask)
    assert masks == Masks({"w": mask})
    assert masks.packed["w"].tobytes() == np.packbits(mask.numpy().reshape(-1)).tobytes()


def test_nothing_that_is_returned_changes_the_set() -> None:
    tensor = torch.tensor([True, False, True])
    masks = Masks({"a.weight": tensor})
    before = masks.fingerprint
    tensor.fill_(False)
    masks["a.weight"].fill_(False)
    next(iter(masks.values())).fill_(True)
    masks.counts()["a.weight"] = 7
    with pytest.raises(TypeError):
        masks.packed["b"] = np.zeros(1, np.uint8)  # type: ignore[index]
    with pytest.raises(TypeError):
        masks.shapes["b"] = (8,)  # type: ignore[index]
    with pytest.raises(ValueError):
        masks.packed["a.weight"][0] = 0
    with pytest.raises(AttributeError):
        masks._bits = {}  # type: ignore[misc]
    with pytest.raises(TypeError):
        masks["a.weight"] = tensor  # type: ignore[index]
    assert masks.fingerprint == before
    assert masks["a.weight"].tolist() == [True, False, True]


def test_from_packed_does_not_hold_on_to_the_callers_array() -> None:
    bits = np.array([0b10100000], dtype=np.uint8)
    masks = Masks.from_packed({"w": bits}, {"w": [3]})
    bits[:] = 0
    assert masks.alive == 2
    with pytest.raises(ValueError):
        pickle.loads(pickle.dumps(masks)).packed["w"][0] = 1


def test_equality_ignores_order_and_heeds_shape() -> None:
    one, two = torch.tensor([True, False]), torch.tensor([False, False, True])
    assert Masks({"a": one, "b": two}) == Masks({"b": two, "a": one})
    assert hash(Masks({"a": one, "b": two})) == hash(Masks({"b": two, "a": one}))
    assert Masks({"a": one}) != Masks({"a": one[None]})
    assert Masks({"a": one}) != Masks({"b": one})
    assert Masks({"a": one}) != Masks({"a": ~one})
    assert Masks({"a": one}) != {"a": one}
    assert len({Masks({"a": one}), Masks({"a": one.clone()})}) == 1


def test_select_merge_components() -> None:
    masks = Masks(draw([(3,), (4, 2), ()], 0))
    assert masks.components == ("a", "b", "c")
    assert list(masks.select("b")) == ["b.weight"]
    assert list(masks.select(["c", "a"])) == ["a.weight", "c.weight"]
    assert masks.select("a").merge(masks.select(["b", "c"])) == masks
    other = ~masks.select("b")
    with pytest.raises(MaskError, match=r"both sets have a mask 'b.weight' .*replace"):
        masks.merge(other)
    merged = masks.replace(other)
    assert list(merged) == list(masks)
    assert merged.select("b") == other
    assert merged.select(["a", "c"]) == masks.select(["a", "c"])
    with pytest.raises(MaskError, match="no component 'z': the model has a, b, c"):
        masks.select("z")
    assert "a.weight" in masks
    assert "z" not in masks
    assert masks.get("z") is None


def test_sparsity_and_density() -> None:
    empty = Masks({})
    assert (empty.sparsity, empty.density, empty.total, len(empty)) == (0.0, 1.0, 0, 0)
    masks = Masks({"a": torch.arange(100) >= 20})
    assert masks.sparsity == 0.2
    assert masks.density == 0.8
    assert "80 of 100 alive" in repr(masks)


def test_refusals() -> None:
    a = Masks({"w": torch.ones(3, dtype=torch.bool)})
    for bad in (torch.ones(3), torch.ones(3, dtype=torch.uint8), [True], np.ones(3, bool)):
        with pytest.raises(MaskError, match=r"'w' is .*not bool"):
            Masks({"w": bad})  # type: ignore[dict-item]
    kept = torch.eye(3, dtype=torch.bool)
    for bad, words in (
        (kept.to("meta"), "meta device and has no values"),
        (kept.to_sparse(), r"stored as torch\.sparse_coo"),
        (torch.nested.nested_tensor([kept]), "nested"),
    ):
        with pytest.raises(MaskError, match=f"^mask 'w' is .*{words}"):
            Masks({"w": bad})
    for other in (Masks({}), Masks({"v": a["w"]}), Masks({"w": a["w"], "v": a["w"]})):
        with pytest.raises(MaskError, match="in one set and not in the other"):
            a & other
    with pytest.raises(MaskError, match=r"\(3,\) in one set and \(1, 3\)"):
        a.distance(Masks({"w": a["w"][None]}))
    for operation in ("__and__", "__or__", "__xor__", "__le__"):
        assert getattr(a, operation)({"w": a["w"]}) is NotImplemented


@pytest.mark.parametrize(
    ("bits", "shape"),
    [
        ([0, 0], [8]),
        ([], [1]),
        ([1], [7]),  # a bit beyond the end
        ([0], [-1]),
        ([0], [-1, -8]),
        ([], [-1]),
        ([], [2**32, 2**32]),  # wraps to nothing in 64 bits
    ],
)
def test_packed_bits_that_do_not_fit(bits: list[int], shape: list[int]) -> None:
    with pytest.raises(MaskError, match="'w'"):
        Masks.from_packed({"w": np.array(bits, np.uint8)}, {"w": shape})


def test_packed_bits_of_another_kind() -> None:
    with pytest.raises(MaskError, match="float64"):
        Masks.from_packed({"w": np.array([255.7])}, {"w": [8]})
    with pytest.raises(MaskError, match="different weights"):
        Masks.from_packed({"w": np.zeros(1, np.uint8)}, {"v": [8]})


# -- names -------------------------------------------------------------------------------------------------


class Zoo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(2, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv3d(2, 2, 3))
        self.up = nn.Sequential(nn.ConvTranspose1d(2, 2, 3), nn.ConvTranspose2d(2, 2, 3), nn.ConvTranspose3d(2, 2, 3))
        self.head = nn.Linear(3, 2)
        self.norms = nn.Sequential(nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.LayerNorm(2), nn.InstanceNorm2d(2))
        self.embedding = nn.Embedding(4, 2)
        self.scale = nn.Parameter(torch.ones(2))


def test_default_prunable_weights() -> None:
    assert list(prunable_weights(Zoo())) == [
        *(f"conv.{i}.weight" for i in range(3)),
        *(f"up.{i}.weight" for i in range(3)),
        "head.weight",
    ]


def test_choosing_weights() -> None:
    zoo = Zoo()
    assert list(prunable_weights(zoo, components=["head"])) == ["head.weight"]
    assert list(prunable_weights(zoo, "up", exclude="*.0.*")) == ["up.1.weight", "up.2.weight"]
    assert list(prunable_weights(zoo, include=["embedding.*", "scale"])) == ["scale", "embedding.weight"]
    assert list(prunable_weights(zoo, include="*.bias", components="head")) == ["head.bias"]
    with pytest.raises(MaskError, match="no component 'tail': the model has conv, up"):
        prunable_weights(zoo, components="tail")
    with pytest.raises(MaskError, match="no prunable weight in Zoo"):
        prunable_weights(zoo, components="norms")
    with pytest.raises(MaskError, match="include="):
        Masks.dense(nn.BatchNorm1d(3))
    assert Masks.dense(zoo).sparsity == 0.0


NORMS = {
    "spectral_old": (nn.utils.spectral_norm, "weight_orig"),
    "spectral_new": (parametrizations.spectral_norm, "parametrizations.weight.original"),
    "weight_old": (nn.utils.weight_norm, "weight_v"),
    "weight_new": (parametrizations.weight_norm, "parametrizations.weight.original1"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", NORMS)
def test_normed_layers_are_masked_underneath(kind: str) -> None:
    norm, place = NORMS[kind]
    model = nn.Sequential(norm(nn.Linear(4, 3)), norm(nn.Conv2d(1, 2, 3)), norm(nn.ConvTranspose2d(2, 1, 3)))
    dense = Masks.dense(model)
    assert list(dense) == [f"{i}.{place}" for i in range(3)]
    assert set(dense) <= set(dict(model.named_parameters()))
    mask = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 0]], dtype=torch.bool)
    masks = dense.replace(Masks({f"0.{place}": mask}))
    masks.apply_(model)
    model[0](torch.ones(1, 4))
    effective = model[0].weight.detach()
    assert torch.equal(effective != 0, mask)
    masks.audit(model)


def test_shared_tensors_are_named_once() -> None:
    layer = nn.Linear(3, 3)
    tied = nn.Linear(3, 3)
    tied.weight = layer.weight
    model = nn.Sequential(layer, layer, tied)
    assert list(named_weights(model)) == [name for name, _ in model.named_parameters()]
    assert list(Masks.dense(model)) == ["0.weight"]


def wrapped_models(make: type[nn.Module]) -> dict[str, nn.Module]:
    fabric = Fabric(accelerator="cpu", devices=1)
    inside = make()
    inside.generator = torch.compile(inside.generator)  # type: ignore[assignment]
    both = make()
    both.discriminator = torch.compile(both.discriminator)  # type: ignore[assignment]
    return {
        "fabric": fabric.setup_module(make()),
        "compiled": torch.compile(make()),  # type: ignore[dict-item]
        "compiled component": inside,
        "averaged": AveragedModel(make()),
        "averaged, compiled": AveragedModel(torch.compile(make())),  # type: ignore[arg-type]
        "fabric, compiled component": fabric.setup_module(both),
    }


def test_names_survive_wrappers(make_gan: type[nn.Module], half) -> None:
    bare = make_gan()
    masks = half(bare)
    for kind, model in wrapped_models(make_gan).items():
        assert list(named_weights(model)) == [n for n, _ in bare.named_parameters()], kind
        assert set(named_state(model)) == set(bare.state_dict()), kind
        assert Masks.dense(model) == Masks.dense(bare), kind
        assert Masks.dense(model, components="generator") == Masks.dense(bare, components="generator"), kind
        assert list(magnitude(model)) == list(masks), kind
        masks.apply_(model)
        masks.audit(model)
        assert type(unwrap(model)) is make_gan
        weights = named_weights(model)
        assert all(not weights[n][~masks[n]].any() for n in masks), kind


def test_names_survive_ddp(make_gan: type[nn.Module], half, tmp_path) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        bare = make_gan()
        names = list(named_weights(bare))
        model = nn.parallel.DistributedDataParallel(bare)
        assert list(named_weights(model)) == names
        fabric = Fabric(accelerator="cpu", devices=1)
        assert list(named_weights(fabric.setup_module(model, move_to_device=False))) == names
        masks = half(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        with masks.hold(model, optimizer):
            for _ in range(2):
                bare.discriminator(torch.randn(2, 1, 8, 8)).sum().backward()
                optimizer.step()
                masks.audit(model)
    finally:
        dist.destroy_process_group()


def test_state_has_buffers_that_persist_only() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    model.register_buffer("kept", torch.ones(1))
    model.register_buffer("passing", torch.ones(1), persistent=False)
    assert set(named_state(model)) == set(model.state_dict())
    assert named_state(model)["kept"] is model.kept


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", NORMS)
def test_clone_leaves_the_original_alone(kind: str) -> None:
    norm, _ = NORMS[kind]
    model = nn.Sequential(norm(nn.Linear(4, 3)))
    loss = model(torch.ones(1, 4)).sum()
    before = model[0].weight
    twin = clone(model)
    if kind.endswith("old"):
        assert model[0].weight is before
        assert model[0].weight.requires_grad
    loss.backward()
    x = torch.randn(2, 4)
    assert torch.equal(twin.eval()(x), model.eval()(x))
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}


# -- on a model --------------------------------------------------------------------------------------------


def test_apply_and_audit(autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    before = {name: w.detach().clone() for name, w in named_weights(autoencoder).items()}
    with pytest.raises(MaskError, match=r"encoder\.0\.weight.*pruned weights that are not 0\.0"):
        masks.audit(autoencoder)
    with torch.no_grad():
        first = named_weights(autoencoder)["encoder.0.weight"]
        first[~masks["encoder.0.weight"]] = torch.tensor([float("nan"), float("inf"), -1.0]).repeat(1000)[
            : int((~masks["encoder.0.weight"]).sum())
        ]
    assert masks.apply_(autoencoder) is autoencoder
    masks.audit(autoencoder)
    for name, weight in named_weights(autoencoder).items():
        mask = masks[name] if name in masks else torch.ones_like(weight, dtype=torch.bool)
        assert torch.equal(weight, torch.where(mask, before[name], 0.0))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_apply_and_audit_are_exact_in_any_dtype_and_layout(dtype: torch.dtype, layout: torch.memory_format) -> None:
    values = torch.tensor([1.5, -2.0, 0.0, -0.0, float("nan"), float("inf"), -float("inf")]).repeat(20)[:135]
    model = nn.Module()
    model.weight = nn.Parameter(values.reshape(3, 5, 3, 3).to(dtype).to(memory_format=layout), requires_grad=True)
    mask = torch.rand(3, 5, 3, 3) < 0.5
    masks = Masks({"weight": mask})
    before = model.weight.detach().clone()
    pairs = zip(mask.flatten().tolist(), before.flatten().tolist(), strict=True)
    stray = sum(not alive and value != 0 for alive, value in pairs)
    with pytest.raises(MaskError, match=f"'weight' has {stray} pruned weights"):
        masks.audit(model)
    masks.apply_(model)
    masks.audit(model)
    assert model.weight.stride() == before.stride()

    def raw(weight: torch.Tensor) -> list[list[int]]:
        return weight.detach().reshape(135, 1).contiguous().view(torch.uint8).tolist()

    size = before.element_size()
    for now, was, alive in zip(raw(model.weight), raw(before), mask.flatten().tolist(), strict=True):
        assert now == (was if alive else [0] * size)  # every bit, so that -0.0 does not pass


@given(SHAPES)
def test_full(shapes: list[tuple[int, ...]]) -> None:
    named = dict(zip("abc", shapes, strict=False))
    masks = Masks.full(named)
    assert masks == Masks({name: torch.ones(shape, dtype=torch.bool) for name, shape in named.items()})
    assert masks == Masks.from_packed(masks.packed, masks.shapes)  # no bit beyond the end
    assert (~masks).alive == 0


def test_masks_for_another_model(autoencoder: nn.Module, gan: nn.Module, make_autoencoder) -> None:
    with pytest.raises(MaskError, match=r"no weight 'generator\.0\.weight'"):
        Masks.dense(gan).apply_(autoencoder)
    with pytest.raises(MaskError, match=r"'encoder\.0\.weight' is \(12, 10\) in the model and \(7, 10\) in the masks"):
        Masks.dense(make_autoencoder(7)).apply_(autoencoder)


def test_scores(autoencoder: nn.Module) -> None:
    before = copy.deepcopy(autoencoder.state_dict())
    scores = magnitude(autoencoder, components="encoder")
    weights = dict(autoencoder.named_parameters())
    assert list(scores) == ["encoder.0.weight", "encoder.2.weight"]
    for name, score in scores.items():
        assert torch.equal(score, weights[name].abs())
        assert not score.requires_grad
        score.zero_()
    rng = torch.get_rng_state()
    one, same, other = (random_scores(autoencoder, seed) for seed in (1, 1, 2))
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(one[n], same[n]) and not torch.equal(one[n], other[n]) for n in one)
    assert all(((s >= 0) & (s < 1)).all() and s.dtype == torch.float64 for s in one.values())
    flat = torch.cat([s.reshape(-1) for s in one.values()])
    assert len(flat.unique()) == len(flat)
    assert all(torch.equal(before[n], t) for n, t in autoencoder.state_dict().items())
    for left, right in itertools.combinations(one, 2):
        assert not torch.equal(one[left].reshape(-1)[:5], one[right].reshape(-1)[:5])


def test_no_warning_on_plain_use(gan: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = Masks.dense(gan)
        assert (~masks).apply_(gan) is gan
