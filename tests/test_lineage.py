"""The rounds of a ticket are linked: what is edited, dropped or moved is refused; what older versions wrote loads."""

from __future__ import annotations

import copy
import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gentickets as gt
from gentickets import Masks, Ticket, TicketError
from gentickets.lab.tickets import lineage_words
from gentickets.masks.lineage import begun, continued, rounds_of
from gentickets.sealed import BLANK, DIGEST, field


class Train:
    """Moves every weight, by nothing but the step."""

    def __call__(self, model, masks, start_step, end_step):
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.01 * (end_step - start_step) * weight.sign() * torch.rand_like(weight)
        masks.apply_(model)


def net() -> nn.Module:
    model = nn.Module()
    model.encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model.decoder = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6))
    return model


@pytest.fixture
def levels():
    how = {"steps": 4, "rewind_step": 1, "rounds": 4, "origin": {"recipe": "r", "seed": 3, "data": "d"}}
    return list(gt.imp(net, Train(), **how))


def forged(ticket: Ticket, lineage, path) -> None:
    """The ticket's file with another lineage, and a digest that fits."""
    raw = ticket.to_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    origin = json.loads(header["__metadata__"]["origin"]) | {"lineage": lineage}
    header["__metadata__"]["origin"] = json.dumps(origin, sort_keys=True)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    raw = len(text).to_bytes(8, "little") + text + raw[end:]
    [digest] = DIGEST.findall(raw[: 8 + len(text)])
    blank = raw.replace(field(digest.decode()), field(BLANK))
    path.write_bytes(blank.replace(field(BLANK), field(hashlib.sha256(blank).hexdigest())))


def test_every_round_is_linked_and_loads(levels, tmp_path):
    for level in levels:
        level.ticket.save(tmp_path / "t")
        loaded = Ticket.load(tmp_path / "t")
        lineage = loaded.origin["lineage"]
        assert [entry["level"] for entry in lineage] == list(range(level.index + 1))
        assert lineage[-1]["masks"] == level.masks.fingerprint
        assert len({entry["link"] for entry in lineage}) == len(lineage)
        assert "each linked to the one before" in lineage_words(loaded)
    longest = levels[-1].ticket.origin["lineage"]
    for level in levels:
        assert level.ticket.origin["lineage"] == longest[: level.index + 1]


def test_what_was_edited_dropped_or_moved_is_refused(levels, tmp_path):
    ticket, path = levels[-1].ticket, tmp_path / "t"
    whole = ticket.origin["lineage"]
    forged(ticket, whole, path)
    Ticket.load(path)
    worse = []
    for at in range(len(whole)):
        worse.append(whole[:at] + whole[at + 1 :])
        for key, value in {"level": 7, "sparsity": 0.5, "masks": "ab", "link": "ab", "more": 1}.items():
            worse.append(copy.deepcopy(whole))
            worse[-1][at][key] = value
        for key in whole[at]:
            worse.append(copy.deepcopy(whole))
            del worse[-1][at][key]
        worse.append([*whole[:at], whole[0], *whole[at:]])
        for other in range(at):
            worse.append(list(whole))
            worse[-1][at], worse[-1][other] = whole[other], whole[at]
    # An entry without its link at the head is one of an older version, and its own link is still bound to it.
    unlinked = [{key: value for key, value in whole[0].items() if key != "link"}, *whole[1:]]
    worse.remove(unlinked)
    forged(ticket, unlinked, path)
    Ticket.load(path)
    for lineage in worse:
        forged(ticket, lineage, path)
        with pytest.raises(TicketError, match=r"its lineage (does not hold together|ends at other masks)") as caught:
            Ticket.load(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(TicketError, match="leave `lineage` out of the origin"):
        Ticket(levels[1].masks, None, ticket.origin)


@pytest.mark.parametrize(
    "lineage", [[], [0.2, 0.36], "nonsense", 5, None, [None], [{}], [{"sparsity": 0.2, "level": 1}]]
)
def test_what_has_no_links_loads_and_is_told(lineage, tmp_path):
    ticket = Ticket(Masks({"w": torch.rand(3) < 0.5}), None, {"lineage": lineage})
    ticket.save(tmp_path / "t")
    loaded = Ticket.load(tmp_path / "t")
    assert loaded.origin == ticket.origin
    assert ("not linked" in lineage_words(loaded)) == bool(rounds_of(ticket.origin))


def test_a_search_that_an_older_version_began_goes_on(levels):
    """Its levels have no links: those that follow do, and bind them."""
    old = [{key: entry[key] for key in ("level", "sparsity", "masks")} for entry in levels[1].ticket.origin["lineage"]]
    before = Ticket(levels[1].masks, levels[1].ticket.weights, levels[1].ticket.origin | {"lineage": old})
    after = gt.Level(1, levels[1].masks, levels[1].model, before)
    [second, third] = gt.imp(net, Train(), steps=4, rewind_step=1, rounds=3, after=after)
    assert third.ticket.origin["lineage"][:2] == old
    edited = copy.deepcopy(third.ticket.origin)
    edited["lineage"][0]["sparsity"] = 0.1
    with pytest.raises(TicketError, match="entry 3 of 4"):
        Ticket(third.masks, None, edited)
    assert second.ticket.origin["lineage"] == third.ticket.origin["lineage"][:3]


def test_controls_and_transfers_go_on_with_the_chain(levels):
    level = levels[3]
    lineage = level.ticket.origin["lineage"]
    shuffled = gt.random_mask_control(level, seed=5)
    assert shuffled.origin["lineage"][:-1] == lineage
    assert shuffled.origin["lineage"][-1]["control"] == "random_mask"
    assert gt.redrawn_weights_control(level, net).origin["lineage"] == lineage
    moved = level.ticket.transfer(net(), {"decoder": "decoder"})
    assert moved.origin["lineage"][:-1] == lineage
    assert moved.origin["lineage"][-1]["transfer"] == {"decoder": "decoder"}
    assert "carried over" in lineage_words(moved)
    again = moved.transfer(net(), {"decoder": "decoder"})
    assert len(again.origin["lineage"]) == len(lineage) + 2
    _, trained = gt.transferred(net, Train(), steps=4, tickets=[level.ticket], carry={"decoder": "decoder"})
    assert trained.ticket.origin["lineage"][:-2] == lineage
    [*_, control] = gt.search_controls(trained, net, Train(), steps=4)
    assert control[1].ticket.origin["lineage"] == trained.ticket.origin["lineage"]


def test_two_seeds_begin_two_lineages():
    masks = Masks({"w": torch.ones(3, dtype=torch.bool)})
    one, other = (begun(0, masks, {"recipe": "r", "seed": seed, "rewind_step": 9}) for seed in (0, 1))
    assert one[0]["masks"] == other[0]["masks"]
    assert one[0]["link"] != other[0]["link"]
    assert one == begun(0, masks, {"recipe": "r", "seed": 0, "steps": 5})


@given(st.lists(st.dictionaries(st.text(max_size=3), st.one_of(st.none(), st.integers(), st.text(max_size=3)))))
def test_any_chain_holds_and_survives_json(facts):
    masks = Masks({"w": torch.tensor([True, False])})
    lineage: list = []
    for fact in facts:
        lineage = continued(lineage, masks, **{f"x{key}": value for key, value in fact.items()})
    origin = json.loads(json.dumps({"lineage": lineage}))
    assert Ticket(masks, None, origin).origin == {"lineage": lineage}
