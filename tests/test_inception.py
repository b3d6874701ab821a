"""The FID network against what is publicly known of it, its weights files, and who may be called FID."""

from __future__ import annotations

import hashlib
import urllib.error
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentickets import DataError
from gentickets.metrics import inception as inception_module
from gentickets.metrics import inception_features
from gentickets.metrics.inception import InceptionFeatures
from gentickets.metrics.inception_net import FIDInception, average, maximum

# TorchScript is what one of the published files is, however torch now speaks of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

# (inputs, outputs, kernel height, kernel width) of every convolution by its name in the port.
E_BLOCK = (
    "branch1x1 {i} 320 1 1", "branch3x3_1 {i} 384 1 1", "branch3x3_2a 384 384 1 3", "branch3x3_2b 384 384 3 1",
    "branch3x3dbl_1 {i} 448 1 1", "branch3x3dbl_2 448 384 3 3", "branch3x3dbl_3a 384 384 1 3",
    "branch3x3dbl_3b 384 384 3 1", "branch_pool {i} 192 1 1",
)  # fmt: skip
A_BLOCK = (
    "branch1x1 {i} 64 1 1", "branch5x5_1 {i} 48 1 1", "branch5x5_2 48 64 5 5", "branch3x3dbl_1 {i} 64 1 1",
    "branch3x3dbl_2 64 96 3 3", "branch3x3dbl_3 96 96 3 3", "branch_pool {i} {p} 1 1",
)  # fmt: skip
C_BLOCK = (
    "branch1x1 {i} 192 1 1", "branch7x7_1 {i} {p} 1 1", "branch7x7_2 {p} {p} 1 7", "branch7x7_3 {p} 192 7 1",
    "branch7x7dbl_1 {i} {p} 1 1", "branch7x7dbl_2 {p} {p} 7 1", "branch7x7dbl_3 {p} {p} 1 7",
    "branch7x7dbl_4 {p} {p} 7 1", "branch7x7dbl_5 {p} 192 1 7", "branch_pool {i} 192 1 1",
)  # fmt: skip
BLOCKS = {
    "Mixed_5b": (A_BLOCK, 192, 32), "Mixed_5c": (A_BLOCK, 256, 64), "Mixed_5d": (A_BLOCK, 288, 64),
    "Mixed_6a": (
        ("branch3x3 288 384 3 3", "branch3x3dbl_1 288 64 1 1", "branch3x3dbl_2 64 96 3 3",
         "branch3x3dbl_3 96 96 3 3"), 0, 0,
    ),
    "Mixed_6b": (C_BLOCK, 768, 128), "Mixed_6c": (C_BLOCK, 768, 160), "Mixed_6d": (C_BLOCK, 768, 160),
    "Mixed_6e": (C_BLOCK, 768, 192),
    "Mixed_7a": (
        ("branch3x3_1 768 192 1 1", "branch3x3_2 192 320 3 3", "branch7x7x3_1 768 192 1 1",
         "branch7x7x3_2 192 192 1 7", "branch7x7x3_3 192 192 7 1", "branch7x7x3_4 192 192 3 3"), 0, 0,
    ),
    "Mixed_7b": (E_BLOCK, 1280, 0), "Mixed_7c": (E_BLOCK, 2048, 0),
}  # fmt: skip
STEM = (
    "Conv2d_1a_3x3 3 32 3 3", "Conv2d_2a_3x3 32 32 3 3", "Conv2d_2b_3x3 32 64 3 3", "Conv2d_3b_1x1 64 80 1 1",
    "Conv2d_4a_3x3 80 192 3 3",
)  # fmt: skip


def convolutions() -> Iterator[tuple[str, tuple[int, ...]]]:
    lines = list(STEM)
    for block, (units, inputs, p) in BLOCKS.items():
        lines += [f"{block}.{unit.format(i=inputs, p=p)}" for unit in units]
    for line in lines:
        name, inputs, outputs, *kernel = line.split()
        yield name, (int(outputs), int(inputs), *map(int, kernel))


def random_state(counters: bool) -> dict[str, Tensor]:
    """A state dict as the port publishes it, with numbers that keep the activations in range."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, std: float = 1.0, mean: float = 0.0) -> Tensor:
        return torch.randn(shape, generator=generator) * std + mean

    state = {}
    for name, shape in convolutions():
        state[f"{name}.conv.weight"] = drawn(*shape, std=(2 / np.prod(shape[1:])) ** 0.5)
        state[f"{name}.bn.weight"] = drawn(shape[0], std=0.1, mean=1.0)
        state[f"{name}.bn.bias"] = drawn(shape[0], std=0.1)
        state[f"{name}.bn.running_mean"] = drawn(shape[0], std=0.1)
        state[f"{name}.bn.running_var"] = drawn(shape[0], std=0.05, mean=1.0)
        if counters:
            state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
    return state | {"fc.weight": drawn(1008, 2048, std=0.02), "fc.bias": drawn(1008)}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state(counters=False)


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def network(state) -> FIDInception:
    network = FIDInception()
    network.load(state, "here")
    return network.eval().requires_grad_(False)


def test_it_has_the_known_size_and_names(network, state) -> None:
    """27,161,264 parameters has torchvision's Inception v3, 3,326,696 of them in its auxiliary head, 1,000 classes."""
    parameters = sum(weight.numel() for weight in network.parameters())
    assert parameters == 27_161_264 - 3_326_696 + 8 * 2049
    assert len(list(convolutions())) == 94
    names = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    assert names == set(state)
    assert len(names) == 5 * 94 + 2
    assert all(unit.eps == 1e-3 for unit in network.modules() if isinstance(unit, nn.BatchNorm2d))


@pytest.mark.parametrize("counters", [False, True], ids=["without counters", "with counters"])
def test_both_layouts_load_and_give_features_and_logits(tmp_path, counters) -> None:
    path = tmp_path / "weights.pth"
    torch.save(random_state(counters), path)
    extractor = inception_features(path)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = extractor(images)
    assert features.shape == (2, 2048)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    assert features.std() > 0
    assert extractor.head(features).shape == (2, 1008)
    assert not any(weight.requires_grad for weight in extractor.parameters())


def test_the_way_of_an_image_is_that_of_the_port(weights, network, state) -> None:
    """Saved as bytes, resized in [0, 1] about pixel centres, then scaled to [-1, 1]; logits without the bias."""
    extractor = inception_features(weights)
    grey = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    pixels = ((grey + 1) * 127.5).round().expand(1, 3, 8, 8).double().numpy()[0] / 255
    places = ((np.arange(299) + 0.5) * 8 / 299 - 0.5).clip(0, 7)
    low = np.minimum(places.astype(int), 6)
    share = places - low
    rows = pixels[:, low] * (1 - share)[:, None] + pixels[:, low + 1] * share[:, None]
    resized = rows[:, :, low] * (1 - share) + rows[:, :, low + 1] * share
    features = network(torch.from_numpy(2 * resized - 1).float()[None])
    assert torch.allclose(extractor(grey), features, atol=1e-4)
    assert torch.allclose(extractor.head(features), features @ state["fc.weight"].T, atol=1e-5)


def pool_by_loops(x: Tensor, reduce) -> Tensor:
    found = torch.empty_like(x)
    height, width = x.shape[2:]
    for i in range(height):
        for j in range(width):
            window = x[:, :, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].flatten(2)
            found[:, :, i, j] = reduce(window)
    return found


def test_pools_leave_the_padding_out() -> None:
    x = torch.randn(2, 3, 5, 4) - 3  # negative: zeros of a padding would show in the maximum
    assert torch.allclose(average(x), pool_by_loops(x, lambda window: window.mean(2)))
    assert torch.equal(maximum(x), pool_by_loops(x, lambda window: window.amax(2)))
    assert not torch.allclose(average(x), F.avg_pool2d(x, 3, 1, 1))


@pytest.mark.parametrize("block", ["Mixed_5b", "Mixed_6b", "Mixed_7b", "Mixed_7c"])
def test_which_block_pools_how(network, block) -> None:
    """The last channels of a block are its pooled path: average everywhere, maximum in the last block."""
    module = network.get_submodule(block)
    unit = module.get_submodule("branch_pool")
    x = torch.randn(1, unit.conv.in_channels, 4, 5, generator=torch.Generator().manual_seed(1))
    reduce = (lambda window: window.amax(2)) if block == "Mixed_7c" else (lambda window: window.mean(2))
    expected = unit(pool_by_loops(x, reduce))
    assert torch.allclose(module(x)[:, -unit.conv.out_channels :], expected, atol=1e-5)


def naive(state: dict[str, Tensor], name: str, x: Tensor, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
    x = F.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=padding)
    mean, var = (state[f"{name}.bn.running_{what}"][:, None, None] for what in ("mean", "var"))
    gain, bias = (state[f"{name}.bn.{what}"][:, None, None] for what in ("weight", "bias"))
    return ((x - mean) / (var + 1e-3).sqrt() * gain + bias).relu()


def test_paths_are_in_the_ports_order(network, state) -> None:
    """A block that forks, written out; and one that halves."""
    x = torch.randn(1, 1280, 5, 5, generator=torch.Generator().manual_seed(2))
    at = "Mixed_7b.branch"
    stem = naive(state, f"{at}3x3_1", x)
    dbl = naive(state, f"{at}3x3dbl_2", naive(state, f"{at}3x3dbl_1", x), padding=(1, 1))
    expected = [
        naive(state, f"{at}1x1", x),
        naive(state, f"{at}3x3_2a", stem, padding=(0, 1)),
        naive(state, f"{at}3x3_2b", stem, padding=(1, 0)),
        naive(state, f"{at}3x3dbl_3a", dbl, padding=(0, 1)),
        naive(state, f"{at}3x3dbl_3b", dbl, padding=(1, 0)),
    ]
    assert torch.allclose(network.Mixed_7b(x)[:, :-192], torch.cat(expected, 1), atol=1e-4)

    x = torch.randn(1, 768, 7, 7, generator=torch.Generator().manual_seed(3))
    at = "Mixed_7a.branch"
    long = naive(state, f"{at}7x7x3_2", naive(state, f"{at}7x7x3_1", x), padding=(0, 3))
    long = naive(state, f"{at}7x7x3_4", naive(state, f"{at}7x7x3_3", long, padding=(3, 0)), stride=2)
    expected = [naive(state, f"{at}3x3_2", naive(state, f"{at}3x3_1", x), stride=2), long, F.max_pool2d(x, 3, 2)]
    assert torch.allclose(network.Mixed_7a(x), torch.cat(expected, 1), atol=1e-4)


def test_weights_that_do_not_fit_are_refused_by_the_first_key(state) -> None:
    def complaint(changed: dict[str, Tensor]) -> str:
        with pytest.raises(DataError) as caught:
            FIDInception().load(changed, "w.pth")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    key = "Mixed_6c.branch7x7_2.bn.running_var"
    assert f"w.pth: no weights of the FID Inception network: {key} is missing" in complaint(
        {name: tensor for name, tensor in state.items() if name not in (key, "fc.bias")}
    )
    torchvision = {**state, "fc.weight": torch.zeros(1000, 2048)}
    assert "fc.weight is (1000, 2048), not (1008, 2048)" in complaint(torchvision)
    assert "AuxLogits.fc.bias is unknown there" in complaint({**state, "AuxLogits.fc.bias": torch.zeros(1)})


# -- files and names --------------------------------------------------------------------------------------------


class StandIn(nn.Module):
    """A TorchScript module that is called as the published one is."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        return images.flatten(1).float()[:, :1].expand(-1, 2048) / 255


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "inception.pt"
    torch.jit.script(StandIn()).save(path)
    return path


def published(path, monkeypatch) -> str:
    """Makes this file one of the published ones; its digest."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(inception_module, "PUBLISHED", {digest})
    return digest


def test_only_published_weights_may_be_called_fid(weights, script, monkeypatch) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    other = inception_features(weights)
    assert not isinstance(other, InceptionFeatures)
    assert (other.name, other.key) == (f"Inception-v3 features of weights {digest[:8]}", f"inception_{digest[:8]}")
    for path in (weights, script):
        published(path, monkeypatch)
        true = inception_features(path)
        assert isinstance(true, InceptionFeatures)
        assert (true.name, true.key, true.num_features) == ("Inception features", "inception", 2048)


class Hostile(nn.Module):
    """Overwrites a file of whoever loads it, without being called."""

    def __init__(self, victim: str):
        super().__init__()
        self.victim, self.kept = victim, torch.zeros(8, dtype=torch.uint8)

    def forward(self, images: Tensor) -> Tensor:
        return images

    @torch.jit.export
    def __getstate__(self):
        return self.victim, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.victim, self.training = state
        self.kept = torch.from_file(self.victim, True, 8, dtype=torch.uint8).fill_(66)


def test_a_stranger_s_program_is_not_loaded(tmp_path, capfd) -> None:
    victim, path = tmp_path / "victim", tmp_path / "weights.pth"
    torch.jit.script(Hostile(str(victim))).save(path)
    victim.write_bytes(b"precious")
    with pytest.raises(DataError, match=r"weights\.pth is a TorchScript program and not the published one"):
        inception_features(path)
    assert victim.read_bytes() == b"precious"
    torch.jit.load(path)  # what it would have done
    assert victim.read_bytes() == b"BBBBBBBB"


def test_the_published_script_sees_bytes_and_has_no_head(script, monkeypatch) -> None:
    published(script, monkeypatch)
    extractor = inception_features(script)
    grey = torch.tensor([-1.0, 1.0, 0.0]).reshape(3, 1, 1, 1).expand(3, 1, 4, 4)
    assert torch.allclose(extractor(grey)[:, 0], torch.tensor([0.0, 1.0, 128 / 255]))
    assert extractor.head is None
    assert len(extractor.weights_hash) == 64


def test_files_that_are_neither_are_refused_in_one_line(tmp_path) -> None:
    class Hostile:
        def __reduce__(self):
            return (print, ("run",))

    with pytest.raises(DataError, match="does not exist: name a local pt_inception"):
        inception_features(tmp_path / "none.pt")
    path = tmp_path / "bad.pth"
    for content in (b"no weights", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.pth cannot be read") as caught:
            inception_features(path)
        assert "\n" not in str(caught.value)
    torch.save({"fc.weight": Hostile()}, path)
    with pytest.raises(DataError, match=r"bad\.pth cannot be read"):
        inception_features(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(DataError, match=r"bad\.pth holds no state dict"):
        inception_features(path)
    torch.save({"layer": torch.zeros(1)}, path)
    with pytest.raises(DataError, match=r"Conv2d_1a_3x3\.conv\.weight is missing"):
        inception_features(path)


def test_without_a_file_the_ports_is_fetched_once_into_the_cache(monkeypatch, tmp_path, weights) -> None:
    monkeypatch.setenv("GENTICKETS_CACHE", str(tmp_path))

    def unreachable(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(DataError, match=r"download failed \(.*no network.*\): name a local"):
        inception_features()

    fetched = []

    def fetch(url, to, hash_prefix, progress):
        fetched.append((url, hash_prefix))
        with open(to, "wb") as file:
            file.write(weights.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    hashes = [inception_features().weights_hash for _ in range(2)]
    assert hashes[0] == hashes[1]
    ((url, prefix),) = fetched
    assert url.endswith("/pt_inception-2015-12-05-6726825d.pth")
    assert prefix == "6726825d"
