"""Smaller networks of one's own class as files: what comes back is what was saved, or a refusal in one line."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import gentickets as gt
from gentickets.errors import TicketError
from gentickets.masks.examples import named_tensors


class Plain(nn.Module):
    """Convolutions, a norm over groups and a number that the code reads."""

    def __init__(self, width: int = 8, act: type = nn.SiLU):
        super().__init__()
        self.channels = width
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.GroupNorm(4, width)
        self.act = act()
        self.gain = nn.Parameter(torch.rand(width, 1, 1) + 0.5)
        self.last = nn.Conv2d(width, 3, 3, padding=1, bias=False)
        self.register_buffer("shift", torch.zeros(3, 1, 1))
        self.register_buffer("drawn", torch.randn(3, 1, 1), persistent=False)

    def forward(self, x):
        h = self.act(self.norm(self.first(x))) * self.gain
        assert h.shape[1] == self.channels
        return {"image": self.last(h) + self.shift + self.drawn, "parts": (x.mean(), [x])}


class Block(nn.Module):
    """A block of a transformer, whose heads and hidden width can go, with one matrix in two places."""

    def __init__(self, width: int = 16, heads: int = 4, words: int = 12):
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.words = nn.Embedding(words, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens)
        batch, length, _ = x.shape
        q, k, v = (
            part.reshape(batch, length, self.heads, self.head_dim).transpose(1, 2)
            for part in self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, self.heads * self.head_dim))
        return self.head(x + self.mlp(self.norms[1](x)))


def normed(norm) -> nn.Module:
    return nn.Sequential(
        norm(nn.Conv1d(2, 8, 3)), nn.ReLU(), norm(nn.Conv1d(8, 8, 3)), nn.ReLU(), norm(nn.Conv1d(8, 2, 3))
    )


IMAGES, TOKENS, SOUND = torch.randn(2, 3, 6, 6), torch.randint(0, 12, (2, 5)), torch.randn(2, 2, 12)
KINDS = {
    "plain": (Plain, IMAGES),
    "components": (lambda: {"net": Plain(), "twin": nn.Sequential(nn.Linear(4, 4))}, {"net": IMAGES}),
    "transformer": (Block, TOKENS),
    "bfloat16": (lambda: Plain().to(torch.bfloat16), IMAGES.bfloat16()),
    "float64": (lambda: Plain().double(), IMAGES.double()),
    "weight norm": (lambda: normed(weight_norm), SOUND),
    "spectral norm": (lambda: normed(spectral_norm), SOUND),
    "old weight norm": (lambda: normed(old_weight_norm), SOUND),
    "old spectral norm": (lambda: normed(old_spectral_norm), SOUND),
}


def halved(net, inputs, fraction: float = 0.5) -> nn.Module:
    groups = gt.channel_groups(net, inputs)
    masks = gt.prune(gt.magnitude(net), fraction=fraction, scope="layer", granularity="channel", groups=groups)
    return gt.shrink(net, masks, inputs)


def outputs(net: nn.Module, inputs) -> list[torch.Tensor]:
    torch.manual_seed(0)
    parts = inputs.items() if isinstance(inputs, dict) else [("", inputs)]
    with torch.no_grad():
        return [t for name, x in parts for _, t in named_tensors((getattr(net, name) if name else net).eval()(x))]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", list(KINDS))
def test_what_was_saved_comes_back(kind, tmp_path):
    make, inputs = KINDS[kind]
    torch.manual_seed(0)
    whole = gt.Masks.dense(made := make()) and made
    small = halved(whole, inputs)
    assert sum(p.numel() for p in small.parameters()) < 0.75 * sum(
        p.numel() for p in (nn.ModuleDict(whole) if isinstance(whole, dict) else whole).parameters()
    )
    path = tmp_path / "small.safetensors"
    gt.save_small(small, path, make, inputs)
    state = torch.get_rng_state()
    again = gt.load_small(path, make_model=make)
    assert torch.equal(state, torch.get_rng_state())
    assert not again.training
    expected, found = outputs(small, inputs), outputs(again, inputs)
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    for (_, one), (_, other) in zip(small.named_modules(), again.named_modules(), strict=True):
        assert one.extra_repr() == other.extra_repr()
    plain = load_file(path)  # what any tool reads
    kept = {name: tensor for name, tensor in small.state_dict().items() if name in plain}
    assert {id(t) for t in small.state_dict(keep_vars=True).values()} == {
        id(t) for name, t in small.state_dict(keep_vars=True).items() if name in kept
    }
    assert all(torch.equal(plain[name], tensor) for name, tensor in kept.items())
    again.load_state_dict(small.state_dict())  # later weights of the same class
    sum(
        t.float().sum()
        for _, t in named_tensors(again.train()(inputs) if not isinstance(inputs, dict) else again.net(IMAGES))
    ).backward()
    gt.save_small(again, tmp_path / "again.safetensors", make)
    assert gt.load_small(tmp_path / "again.safetensors", make_model=make)


def test_one_tensor_in_two_places_stays_one(tmp_path):
    small = halved(Block(), TOKENS)
    gt.save_small(small, tmp_path / "s.safetensors", Block)
    again = gt.load_small(tmp_path / "s.safetensors", make_model=Block)
    assert again.head.weight is again.words.weight
    assert again.heads == small.heads == 2


def test_a_network_that_was_cut_twice_and_one_that_was_not_cut_at_all(tmp_path):
    whole = Plain()
    for net in (whole, halved(halved(whole, IMAGES), IMAGES)):
        gt.save_small(net, tmp_path / "s.safetensors", Plain)
        again = gt.load_small(tmp_path / "s.safetensors", make_model=Plain)
        assert again.channels == net.channels
        assert torch.equal(outputs(net, IMAGES)[0], outputs(again, IMAGES)[0])


SCRIPT = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "gentickets":
            raise ImportError("gentickets is blocked")
sys.meta_path.insert(0, Blocked())
import torch
from safetensors.torch import load_file
weights = load_file(sys.argv[1])
print(sorted((name, tuple(tensor.shape)) for name, tensor in weights.items())[:1], len(weights))
program = torch.export.load(sys.argv[2]).module()
image = program(torch.ones(3, 3, 6, 6))["image"]
print(tuple(image.shape), round(image.sum().item(), 3))
"""


def test_weights_and_program_are_read_without_gentickets(tmp_path):
    from gentickets.channels.export import export

    small = halved(Plain(), IMAGES)
    gt.save_small(small, tmp_path / "s.safetensors", Plain)
    export(small, IMAGES, tmp_path / "s.pt2")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "s.safetensors"), str(tmp_path / "s.pt2")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second = done.stdout.strip().splitlines()
    assert first == f"[('drawn', (3, 1, 1))] {len(small.state_dict()) + 1}"
    expected = small.eval()(torch.ones(3, 3, 6, 6))["image"]
    assert second == f"(3, 3, 6, 6) {round(expected.sum().item(), 3)}"


# -- what is refused ------------------------------------------------------------------------------------------


class Counted(Plain):
    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale


class Untold(Plain):
    """Keeps a tensor that no state dictionary has."""

    def __init__(self):
        super().__init__()
        self.noise = torch.randn(3)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "small.safetensors"
    gt.save_small(halved(Plain(), IMAGES), path, Plain)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plain(act=nn.ReLU), r"'act' is a ReLU there, and a SiLU in the smaller one"),
        (lambda: Plain(4), "another network: channels is 4 there, and was 8 in what was made smaller"),
        (lambda: Plain(32), "another network: channels is 32 there, and was 8 in what was made smaller"),
        (lambda: Plain(act=lambda: nn.SiLU(inplace=True)), "act.inplace is True there, and was False"),
        (lambda: nn.Linear(3, 2), "the network is a Linear there, and a Plain in the smaller one"),
        (lambda: 3, "a model is one nn.Module .* not a int"),
        (lambda width: Plain(width), "make_model is called without arguments .*lambda: Net"),
        (Plain(), "make_model is a Plain: give what makes the whole network"),
        (lambda: nn.Sequential(Plain()), "the network is a Sequential there"),
        (None, r"is of Plain, a class that no file brings along: gentickets.load_small\(path, make_model=Plain\)"),
    ],
)
def test_a_file_of_another_class_is_refused(make, message, kept):
    with pytest.raises(TicketError, match=message) as caught:
        gt.load_small(kept, make_model=make)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


class Told(nn.Module):
    """What it computes is said by a word, a function, or what has such things in it."""

    def __init__(self, act, place="/data/here", device="cpu"):
        super().__init__()
        self.act, self.place, self.device, self.cache = act, place, device, None
        self.name_or_path = place.rpartition("/")[2]
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, x):
        act = self.act
        act = act["act"] if isinstance(act, dict) else act[0] if isinstance(act, list) else act
        h = self.first(x)
        return self.last(getattr(torch, act)(h) if isinstance(act, str) else h if act is None else act(h))


WORDS = {
    "a word": (lambda: Told("tanh"), lambda: Told("sin"), "act is sin there, and was another in"),
    "a private word": (lambda: Private("tanh"), lambda: Private("sin"), "_mode is sin there, and was another in"),
    "a function": (lambda: Told(torch.tanh), lambda: Told(torch.sin), "act is sin there, and was tanh in"),
    "one of Python": (
        lambda: Told(nn.functional.silu), lambda: Told(nn.functional.relu),
        r"act is relu \(relu\) there, and was silu \(silu\) in",
    ),
    "nothing": (lambda: Told(torch.tanh), lambda: Told(None), "act is None there, and was tanh in"),
    "a lambda": (
        lambda: Told(lambda h: h.tanh()), lambda: Told(lambda h: h.sin()),
        r"act is .*<lambda>.* there, and was .*<lambda>.* in",
    ),
    "a function of several": (
        lambda: Told(partial(nn.functional.leaky_relu, negative_slope=0.1)),
        lambda: Told(partial(nn.functional.leaky_relu, negative_slope=0.2)),
        r"act is .* there, and was .* in",
    ),
    "a list": (lambda: Told(["tanh"]), lambda: Told(["sin"]), r"act is \['sin'\] there, and was another in"),
    "a configuration": (
        lambda: Told({"act": "tanh"}), lambda: Told({"act": "sin"}), r"act is \{'act': 'sin'\} there, and was another",
    ),
    "a size that is not all numbers": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d((None, 1))),
        lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d((1, None))),
        r"1\.output_size is \(1, None\) there, and was \[None, 1\] in",
    ),
    "torch's own": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, activation="relu"),
        lambda: nn.TransformerEncoderLayer(8, 2, 16, activation=nn.functional.silu),
        r"activation is silu \(silu\) there, and was relu",
    ),
}  # fmt: skip


class Private(Told):
    def __init__(self, mode):
        super().__init__(None)
        self._mode = mode

    def forward(self, x):
        return self.last(getattr(torch, self._mode)(self.first(x)))


@pytest.mark.parametrize("kind", list(WORDS))
def test_a_class_that_is_told_something_else_is_another_network(kind, tmp_path):
    make, other, message = WORDS[kind]
    path = tmp_path / "s.safetensors"
    gt.save_small(make(), path, make)
    assert gt.load_small(path, make_model=make)
    with pytest.raises(TicketError, match=f"another network: {message}") as caught:
        gt.load_small(path, make_model=other)
    assert "\n" not in str(caught.value)
    if kind not in ("a private word", "a configuration", "torch's own", "a size that is not all numbers"):
        with pytest.raises(TicketError, match="another network: act"):
            gt.save_small(make(), path, other)


def test_a_file_names_no_place_and_is_read_at_another(tmp_path):
    path = tmp_path / "s.safetensors"
    gt.save_small(made := Told("tanh"), path, lambda: Told("tanh"))
    assert not any(word in path.read_bytes() for word in (b"/data", b"tanh"))
    assert gt.load_small(path, make_model=lambda: Told("tanh", place="/home/there", device="cuda:1"))
    made.cache = {"seen": 3}  # what its code keeps is no word
    gt.save_small(made, path, lambda: Told("tanh"))


def test_a_file_of_before_words_were_kept_is_read(tmp_path, monkeypatch):
    from gentickets.channels import kept

    told = kept._told
    path = tmp_path / "s.safetensors"
    with monkeypatch.context() as at:
        at.setattr(kept, "_told", lambda value, own: told(value, own) if type(value) in (int, float) else kept._UNTOLD)
        gt.save_small(Told("tanh"), path, lambda: Told("tanh"))
    assert gt.load_small(path, make_model=lambda: Told("tanh"))


@pytest.mark.parametrize(
    ("small", "make", "message"),
    [
        (Counted(2.0), Counted, "scale is 1.0 there and 2.0 here"),
        (Untold(), Untold, "noise, a tensor that is no buffer and is another there: register_buffer"),
        (Plain(8), lambda: Plain(4), "another network"),
        (Plain(), Block, "the network is a Block there, and a Plain in the smaller one"),
    ],
)
def test_a_network_that_could_not_be_made_again_is_not_written(small, make, message, tmp_path):
    with pytest.raises(TicketError, match=message):
        gt.save_small(small, tmp_path / "s.safetensors", make)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(TicketError, match="cannot write"):
        gt.save_small(Plain(), tmp_path / "file" / "s.safetensors", Plain)


@settings(max_examples=30)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_any_changed_bit_or_lost_end_is_one_line(where, bit, cut, kept):
    raw = bytearray(kept.read_bytes())
    place = int(where * len(raw))
    if cut:
        del raw[place:]
    else:
        raw[place] ^= 1 << bit
    broken = kept.with_name("broken.safetensors")
    broken.write_bytes(raw)
    with pytest.raises(TicketError) as caught:
        gt.load_small(broken, make_model=Plain)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": {"": {"channels": 2**40}}}, "cannot have channels="),
        ({"sizes": {"": {"channels": "2"}}}, "cannot have channels="),
        ({"sizes": {"nowhere": {"channels": 2}}}, "nowhere cannot have"),
        ({"sizes": {"": {"forward": 2}}}, "cannot have forward"),
        ({"shared": {"gain": "nowhere"}}, "nowhere"),
        ({"sizes": 3}, "small.*forged"),
        ({"said": 3}, "small.*forged"),
        ({"said": {"": [3]}}, "small.*forged"),
        ({"more": 3}, "does not say how to build one"),
    ],
)
def test_a_forged_file_is_refused(change, message, kept, tmp_path):
    from gentickets.sealed import sealed_tensors, unsealed_tensors

    tensors, metadata = unsealed_tensors(kept.read_bytes())
    cuts = json.dumps({**json.loads(metadata["cuts"]), **change})
    path = Path(tmp_path / "small-forged.safetensors")
    path.write_bytes(sealed_tensors(tensors, {**metadata, "cuts": cuts}))
    with pytest.raises(TicketError, match=message):
        gt.load_small(path, make_model=Plain)
