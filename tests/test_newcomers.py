"""What people who brought a network of their own stumbled over: it is done, or told in words that say what to do."""

import warnings

import pytest
import torch
from torch import nn

import gentickets as gt
from gentickets.errors import GenticketsError
from gentickets.lab.widths import width_words


class Branching(nn.Module):
    """Its second head is for rare inputs, and for who calls `features`."""

    def __init__(self):
        super().__init__()
        self.first, self.head, self.rare = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, images):
        hidden = self.first(images).relu()
        return self.head(hidden) + self.rare(hidden) if images.mean() > 50 else self.head(hidden)

    def features(self, images):
        return self.rare(self.first(images))


class Reaching(Branching):
    def forward(self, images):
        return self.head(self.first(images).relu()), self.features(images)


def halved(net, example):
    groups = gt.channel_groups(net, example)
    masks = gt.prune(gt.magnitude(net), fraction=0.5, scope="layer", granularity="channel", groups=groups)
    return gt.shrink(net, masks, example)


def test_layers_that_the_example_does_not_reach_are_told():
    net, usual = Branching(), torch.randn(3, 6)
    assert gt.channel_groups(net, usual).whole["rare"] == "what the example does not reach"
    with pytest.warns(UserWarning, match=r"the example does not reach stay as they are: rare\. .* give an example"):
        small = halved(net, usual)
    assert small.rare.in_features == 8
    with pytest.raises(RuntimeError):
        small.features(usual)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = halved(Reaching(), usual)
    assert small.rare.in_features == 4
    small.features(usual)


def test_layers_whose_weights_code_reads_by_itself_are_reached():
    class Tied(Branching):
        def forward(self, images):
            hidden = self.first(images).relu()
            return self.head(hidden) + nn.functional.linear(hidden, self.rare.weight)

    assert "what the example does not reach" not in gt.channel_groups(Tied(), torch.randn(3, 6)).whole.values()


def test_an_embedding_is_named_by_what_it_keeps_whole():
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.of_class, self.last = nn.Linear(6, 8), nn.Embedding(5, 8), nn.Linear(8, 4)

        def forward(self, images, classes):
            return self.last(self.first(images) + self.of_class(classes))

    groups = gt.channel_groups(Conditional(), (torch.randn(3, 6), torch.tensor([0, 3, 1])))
    assert groups.whole["first"] == "of_class (Embedding)"


class OverTheBatch(nn.Module):
    def forward(self, images):
        return images / images.std(0)


class Frames(nn.Module):
    def forward(self, images, length=2):
        return images.reshape(len(images) // length, length, -1)


class Counting(nn.Module):
    def forward(self, images):
        return images + images.new_zeros(len(images), 1)


def test_what_a_program_cannot_do_is_said_with_the_mend(tmp_path):
    with pytest.raises(GenticketsError, match=r"not finite for a batch of one, .* give an example of 3 or more"):
        gt.export(OverTheBatch(), torch.randn(2, 4), tmp_path / "net.pt2")
    assert gt.export(OverTheBatch(), torch.randn(3, 4), tmp_path / "net.pt2").compared == 3 * 4 + 2 * 4
    with pytest.raises(GenticketsError, match=r"Frames runs on no batch but one of 2, .* takes any \(shape"):
        gt.export(Frames(), torch.randn(2, 4), tmp_path / "none.pt2")
    with pytest.raises(GenticketsError, match="not finite for the example"):
        gt.export(OverTheBatch(), torch.ones(3, 4), tmp_path / "none.pt2")
    with pytest.raises(GenticketsError, match=r"as a fixed number \(3\), as len\(x\) does: write x\.shape\[0\]"):
        gt.export(Counting(), torch.randn(3, 4), tmp_path / "none.pt2")
    with pytest.raises(GenticketsError, match=r"decides by values at `return self\.head"):
        gt.export(Branching(), torch.randn(3, 6), tmp_path / "none.pt2")
    assert not (tmp_path / "none.pt2").exists()


def test_inputs_are_guessed_by_keyword_and_else_asked_for_by_name():
    class ByKeyword(Branching):
        def forward(self, *, images, scale=1.0):
            return {"made": self.head(self.first(images).relu()) * scale}

    class Strange(Branching):
        def forward(self, images: str, *, told=None):
            raise ValueError

    words = [line for line in width_words(ByKeyword(), 8, 1) if isinstance(line, str)]
    assert "guessed: the network 2x6" in words[0]
    assert "remain" in words[-1]
    told = next(iter(width_words(Strange(), 8, 1)))
    assert told.endswith("a function that gives it (the network takes (images, *, told=None))")
