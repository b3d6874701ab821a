"""What `inspect --model` says of channels: what could go, what pins the rest, and how much would be left."""

import re
import sys

import pytest
import torch
from torch import nn

import gentickets as gt
from gentickets.catalogue import CATALOGUE, Named
from gentickets.cli import main
from gentickets.lab.task import made_model
from gentickets.lab.widths import guessed_inputs, width_words

MINE = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(4, width)
        self.last = nn.Conv2d(width, 3, 1)
        self.told, self.sums = nn.Linear(5, width), nn.Conv2d(width, 6, 1)

    def forward(self, x, told):
        h = self.norm(self.first(x) + self.told(told)[:, :, None, None])
        return self.last(h), self.sums(h).softmax(1)


class ByValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x):
        return self.layers(x) if x.sum() > 0 else -self.layers(x)


class Drawn(ByValue):
    calls = 0

    def forward(self, x):
        Drawn.calls += 1
        return self.layers(x) + Drawn.calls


def inputs(size, channels):
    return torch.randn(2, 3, size, size), torch.randn(2, 5)


def bad(size):
    return {"nowhere": torch.randn(2, 3)}


class Ends(ByValue):
    def forward(self, x):
        raise SystemExit(5)


def ends():
    raise SystemExit(7)
"""


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """What the program says, in this process, of a file of one's own."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)

    def call(*arguments, expect=0):
        monkeypatch.setattr(sys, "argv", ["gentickets", "inspect", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        done = capsys.readouterr()
        assert (ended.value.code or 0) == expect, done.out + done.err
        return done.out if not expect else done.err

    return call


def cells(text: str) -> list[list[str]]:
    lines = (line for line in text.splitlines() if line.startswith("│"))
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_what_would_go_and_what_pins_the_rest(said):
    text = said("--model", "mine.py:Block", "--example", "mine.py:inputs", "width=16")
    assert "example inputs: those that mine.py:inputs gives" in text
    rows = cells(text)
    # 3*16*9 + 16 of first, 2*16 of norm, 3*16 and 6*16 that read them, 5*16 + 16 of told
    assert ["first", "16, by 4", "16", f"{448 + 32 + 48 + 96 + 96:,}", "told, norm"] in rows
    assert ["last", "the output", "51"] in rows
    assert any(row[0] == "sums" and "softmax" in row[1] for row in rows)
    net, inputs = _block(16), (torch.randn(2, 3, 16, 16), torch.randn(2, 5))
    groups = gt.channel_groups(net, inputs)
    masks = gt.prune(gt.magnitude(net), fraction=0.5, scope="layer", granularity="channel", groups=groups)
    whole, left = (sum(p.numel() for p in one.parameters()) for one in (net, gt.shrink(net, masks, inputs)))
    assert f"at half of the channels of every layer {left:,} of {whole:,} parameters remain: {left / whole:.1%}" in text


def _block(width: int) -> nn.Module:
    space: dict = {}
    exec(MINE, space)
    return space["Block"](width)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine.py:Block"], "no input was found with which it runs: --example my.py:name names a function"),
        (
            ["mine.py:ByValue"],
            r"no channel can go: .*line \d+ \(other numbers as its input make it do something else\)",
        ),
        (["mine.py:Drawn"], "no channel can go: component .* gives something else each time, although chance falls"),
    ],
)
def test_what_cannot_be_followed_is_one_line(arguments, message, said):
    assert re.search(message, " ".join(said("--model", *arguments).split()))


def test_an_example_that_is_none_is_refused(said):
    assert "no component 'nowhere'" in said("--model", "mine.py:Block", "--example", "mine.py:bad", expect=2)
    assert "'badd' is not there" in said("--model", "mine.py:Block", "--example", "mine.py:badd", expect=2)


@pytest.mark.parametrize("name", [name for name in CATALOGUE["model"] if not name.startswith("paper-")])
def test_inputs_are_guessed_for_every_model_of_the_catalogue(name):
    model = made_model(Named("model", name, {"width": 8}), 8, 1).eval()
    inputs, told = guessed_inputs(model, 8, 1)
    assert set(inputs) == {component for component, _ in model.named_children()}
    assert "guessed" in told
    last = list(width_words(model, 8, 1))[-1]
    assert re.match(r"at half of the channels of every layer [\d,]+ of [\d,]+ parameters of", last)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)),
        nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3)),
        nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.Conv3d(4, 2, 3)),
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    ],
    ids=["tokens", "sound", "volume", "sequence"],
)
def test_inputs_are_guessed_for_other_kinds(net):
    model = nn.Sequential(net)
    told = list(width_words(model, 16, 1))
    assert told[0].startswith("example inputs, guessed: the network")
    assert told[-1].startswith("at half of the channels")


def test_a_compiled_network_is_the_one_that_was_compiled():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
    plain, compiled = list(width_words(net, 8, 1)), list(width_words(torch.compile(net), 8, 1))
    assert [part for part in plain if isinstance(part, str)] == [part for part in compiled if isinstance(part, str)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_network_is_priced_and_its_channels_are_refused_in_one_line():
    net, x = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3)), torch.randn(2, 1, 8, 8)
    scripted = torch.jit.script(net)
    assert gt.cost(scripted, x).flops_dense == gt.cost(net, x).flops_dense
    with pytest.raises(gt.GenticketsError, match=r"cannot be traced where it is scripted \(give the module that"):
        gt.channel_groups(scripted, x)
    assert any("scripted" in str(part) for part in width_words(scripted, 8, 1))


def test_a_model_that_ends_the_program_is_said_with_its_line(said):
    assert said("--model", "mine.py:ends", expect=2).strip() == (
        "gentickets: mine.py:ends failed (line 49: SystemExit: 7)"
    )
    assert "mine.py, line 45: SystemExit: 5" in said("--model", "mine.py:Ends", expect=2)
