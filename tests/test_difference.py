"""Two tickets side by side, each number counted by hand, and beside the chance level that a draw of thousands finds."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import nn

import gentickets as gt
from gentickets import Masks, Ticket, TicketError
from gentickets.cli import main
from gentickets.masks.lineage import begun, continued


def ticket(masks: dict[str, list], weights: dict[str, list] | None = None, origin=None) -> Ticket:
    tensors = {name: torch.tensor(value) for name, value in (weights or {}).items()}
    return Ticket(Masks({name: torch.tensor(value).bool() for name, value in masks.items()}), tensors, origin)


def test_four_numbers_by_hand():
    one = ticket({"w": [1, 1, 1, 0], "v": [1, 0]}, {"w": [1.0, -2.0, 3.0, 4.0], "v": [0.0, 1.0]})
    other = ticket({"w": [1, 1, 0, 0], "v": [1, 1]}, {"w": [2.0, 2.0, 3.0, 4.0], "v": [1.0, 1.0]})
    found = gt.difference(one, other)
    assert found.overlap.distance == found.overlap.by_layer["w"].distance * 4 / 6 + 1 / 6 == pytest.approx(2 / 6)
    assert found.overlap.jaccard == pytest.approx(3 / 5)
    assert found.signs.counts == {"w": (2, 1, 2, 1), "v": (0, 0, 0, 0)}
    assert (found.signs.equal, found.signs.by_chance) == (0.5, 0.5)
    assert math.isnan(found.signs.by_layer["v"].equal)
    assert found.equal_weights == (0, 2)
    rows = list(found.rows())
    assert rows[0] == ("w", "0.2500", "0.5000", "0.6667", "0.4286", "0.5000", "0.5000")
    assert rows[1][-2:] == ("", "")


def test_a_ticket_beside_itself():
    one = ticket({"w": [1, 0, 1]}, {"w": [1.0, -2.0, -3.0]}, {"seed": 1})
    found = gt.difference(one, one)
    assert (found.overlap.distance, found.overlap.jaccard, found.signs.equal) == (0, 1, 1)
    assert (found.equal_weights, found.origins, found.kinship) == ((1, 1), {}, "unknown")


def test_unrelated_tickets_lie_at_their_chance_levels():
    """Drawn with uneven densities and signs: what is found and what is expected by chance agree within the noise."""

    def drawn() -> Ticket:
        masks = {"a": torch.rand(20_000) < 0.1, "b": torch.rand(5_000) < 0.7}
        return Ticket(Masks(masks), {"a": torch.rand(20_000) - 0.2, "b": torch.rand(5_000) - 0.6})

    found = gt.difference(drawn(), drawn())
    assert found.overlap.distance == pytest.approx(found.overlap.chance_distance, abs=0.01)
    assert found.overlap.jaccard == pytest.approx(found.overlap.chance_jaccard, abs=0.01)
    assert found.signs.equal == pytest.approx(found.signs.by_chance, abs=0.03)
    for name, positive in (("a", 0.8), ("b", 0.4)):
        expected = positive**2 + (1 - positive) ** 2
        assert found.signs.by_layer[name].by_chance == pytest.approx(expected, abs=0.05)


def test_origins_are_compared_fact_by_fact():
    one = ticket({"w": [1]}, None, {"recipe": "r", "seed": 1, "versions": {"torch": "2", "x": 1}, "lineage": [1]})
    other = ticket({"w": [1]}, None, {"recipe": "r", "seed": 2, "versions": {"torch": "3"}, "more": {}})
    found = gt.difference(one, other)
    assert found.origins == {
        "seed": (1, 2),
        "versions.torch": ("2", "3"),
        "versions.x": (1, None),
        "more": (None, {}),
    }
    assert found.equal_weights == (0, 0)


def test_who_descends_from_whom_is_read_from_the_links():
    masks = Masks({"w": torch.tensor([True, False])})

    def made(lineage):
        return Ticket(masks, None, {"lineage": lineage})

    root = begun(0, masks, {"seed": 0})
    first, second = continued(root, masks, level=1), continued(root, masks, level=2)
    stranger = begun(0, masks, {"seed": 1})
    kinship = [
        (root, root, "equal", 1),
        (root, first, "ancestor", 1),
        (first, root, "descendant", 1),
        (first, second, "common", 1),
        (continued(first, masks), continued(first, masks, level=2), "common", 2),
        (root, stranger, "none", 0),
        (root, [{"level": 0}], "unknown", 0),
    ]
    for one, other, expected, shared in kinship:
        found = gt.difference(made(one), made(other))
        assert (found.kinship, found.shared_rounds) == (expected, shared)


def test_tickets_of_other_models_are_compared_in_what_they_share_or_refused_in_a_line():
    one = ticket({"w": [1, 0], "u": [1], "x": [1, 1]})
    other = ticket({"w": [1, 1], "v": [1], "x": [[1, 1]]})
    found = gt.difference(one, other)
    assert (list(found.overlap.counts), found.only_one, found.only_other) == (["w"], ("u", "x"), ("v", "x"))
    with pytest.raises(TicketError, match=r"models of other sizes.*'x' is \(2,\) in the one and \(1, 2\) in the other"):
        gt.difference(ticket({"x": [1, 1]}), ticket({"x": [[1, 1]]}))
    with pytest.raises(TicketError, match=r"different models.*: w in the one, v in the other"):
        gt.difference(ticket({"w": [1]}), ticket({"v": [1]}))
    with pytest.raises(TicketError, match="a Masks is none"):
        gt.difference(one, other.masks)


def test_the_command_takes_files_and_levels(tmp_path, monkeypatch, capsys, make_autoencoder):
    def trained(model, masks, start_step, end_step):
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * torch.rand_like(weight)
        masks.apply_(model)

    def make() -> nn.Module:
        return make_autoencoder()

    levels = list(gt.imp(make, trained, steps=2, rounds=2, origin={"seed": 0}))
    for level in levels:
        place = tmp_path / f"level-{level.index:02d}"
        place.mkdir()
        level.ticket.save(place / "ticket.safetensors")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gentickets", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code or 0, *capsys.readouterr()

    code, out, _ = run("diff", tmp_path / "level-01", tmp_path / "level-02" / "ticket.safetensors")
    assert code == 0
    assert "encoder.0.weight" in out
    assert "by chance" in out
    assert "equal bit for bit in 8 of 8 tensors" in out
    assert "A is an ancestor of B" in out
    assert "origin: both say the same" in out
    ticket({"v": [1]}).save(tmp_path / "other")
    code, _, err = run("diff", tmp_path / "level-01", tmp_path / "other")
    assert (code, err.count("\n")) == (2, 1)
    assert "different models" in err
