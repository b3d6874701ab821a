"""What values show of themselves: a line, and in a notebook a small table; never a wall, and nothing that is markup."""

import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import gentickets as gt


class Balanced(HTMLParser):
    """Whether every tag is closed, in order; the tags and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def net(name="body<b>&", deep=40):
    """A network of many layers whose component has an awkward name."""
    layers = [layer for _ in range(deep) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))]
    return nn.ModuleDict({name: nn.Sequential(*layers), "head": nn.Sequential(nn.Flatten(), nn.Linear(48, 2))})


class AClassOfAVeryLongNameThatGoesOnAndOnAndOnAndOnAndOnAndOnAndOnAndOnAndOnAndOnAndOnAndOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 3)


@pytest.fixture(scope="module")
def values():
    model = net()
    image = torch.randn(1, 3, 4, 4)
    inputs = {"body<b>&": image, "head": image}
    scores = gt.magnitude(model)
    masks = gt.prune(scores, fraction=0.3)
    facts = {f"fact <i>{number}": "<script>" * 50 for number in range(40)}
    ticket = gt.Ticket(masks, model, facts)
    bird, fresh = gt.EarlyBird(0.3), gt.EarlyBird(0.3)
    for _ in range(3):
        bird.observe(net())
    optimizers = [torch.optim.Adam(part.parameters()) for part in model["body<b>&"] if list(part.parameters())]
    hold = masks.hold(model, *optimizers)
    long = AClassOfAVeryLongNameThatGoesOnAndOnAndOnAndOnAndOnAndOnAndOnAndOnAndOnAndOnAndOnAndOn()
    with hold:
        pass
    return {
        "masks": masks,
        "no masks": gt.Masks({}),
        "ticket": ticket,
        "bare ticket": gt.Ticket(masks),
        "level": gt.Level(3, masks, model, ticket, span=(10, 2000), averaged=model),
        "level of a long name": gt.Level(0, gt.Masks.dense(long), long, gt.Ticket(gt.Masks.dense(long))),
        "scores": scores,
        "cost": gt.cost(model, inputs, masks),
        "groups": gt.channel_groups(model, inputs),
        "hold": hold,
        "bird": bird,
        "fresh bird": fresh,
        "overlap": gt.overlap(masks, gt.random_like(masks, 1)),
    }


NAMES = [
    "masks",
    "no masks",
    "ticket",
    "bare ticket",
    "level",
    "level of a long name",
    "scores",
    "cost",
    "groups",
    "hold",
    "bird",
    "fresh bird",
    "overlap",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_value_is_a_line_and_a_small_table(name, values):
    value = values[name]
    assert len(repr(value)) < 200
    assert "\n" not in repr(value)
    html = value._repr_html_()
    shown = Balanced(html)
    assert set(shown.tags) <= {"p", "table", "thead", "tbody", "tr", "th", "td"}
    assert shown.tags.count("tr") <= 40
    assert len(html) < 12_000
    assert "<script" not in html


def test_what_the_tables_say(values):
    masks = values["masks"]
    counts = masks.counts()
    first = next(iter(masks))
    text = Balanced(masks._repr_html_()).text
    assert text[0] == repr(masks)
    assert text[6:11] == [first, "3 × 3 × 3 × 3", str(counts[first]), "81", f"{1 - counts[first] / 81:.2%}"]
    assert text[-1] == f"and {len(masks) - 16} more"
    assert "nothing" in repr(values["bare ticket"])
    assert "Level 3, trained from step 10 to 2,000, with averages" in Balanced(values["level"]._repr_html_()).text
    score = values["scores"][first]
    text = Balanced(values["scores"]._repr_html_()).text
    assert text[5:9] == [first, "81", f"{score.min():.4g}", f"{score.max():.4g}"]
    cost = values["cost"]
    text = Balanced(cost._repr_html_()).text
    assert f"{cost.parameters:,}" in text
    assert {"all", "body<b>&", "head"} <= set(text)
    assert re.search(rf"{cost.parameters:,} parameters, {cost.alive_parameters:,} alive", repr(cost))
    text = Balanced(values["bird"]._repr_html_()).text
    farthest = max(values["bird"].distances[-1]["head"])
    assert text[text.index("head") + 1] == f"{farthest:.4f}"


def test_what_is_accelerated_says_how_much_of_it(autoencoder):
    masks = gt.prune(gt.magnitude(autoencoder), fraction=0.5)
    with gt.accelerate(autoencoder, masks, {"encoder": torch.zeros(2, 10), "decoder": torch.zeros(2, 3)}) as fast:
        said = r"Accelerated\(Autoencoder, \d of 4 layers on their live weights(: dense is faster.*)?\)"
        assert re.fullmatch(said, repr(fast))


def test_frechet_distances_of_features_as_they_are():
    features = gt.random_features(1)
    real, fake = (torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(s)) * 2 - 1 for s in (0, 1))
    near = gt.frechet_distance(features(real), features(fake))
    assert 0 < near < gt.frechet_distance(features(real), features(fake / 4))
    assert gt.frechet_distance(features(real), features(real)) == pytest.approx(0, abs=1e-9)
    # One number by hand: means 1 apart, variances 2 and 2 / 9.
    one, other = torch.tensor([[0.0], [2.0]]), torch.tensor([[5 / 3], [7 / 3]])
    assert gt.frechet_distance(one, other) == pytest.approx(1 + 2 + 2 / 9 - 2 * (2 * 2 / 9) ** 0.5)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (torch.zeros(4, 3), "3 features on one side and 2"),
        (torch.zeros(4), r"a tensor \(4,\)"),
        ([1.0], "a list"),
        (torch.zeros(1, 2), "two or more"),
        (torch.full((4, 2), torch.nan), "not finite"),
    ],
)
def test_what_has_no_frechet_distance_is_one_line(one, said):
    with pytest.raises(gt.DataError, match=said):
        gt.frechet_distance(one, torch.zeros(4, 2))


def test_the_bases_of_what_one_writes_oneself_are_public():
    from gentickets.objectives import Around, Objective
    from gentickets.search.method import Method
    from gentickets.training import Hook

    assert (gt.Method, gt.Objective, gt.Around, gt.Hook) == (Method, Objective, Around, Hook)
    assert gt.testing.check_method.__doc__
