"""Tickets that were damaged, or made by somebody who mends the digest: `python -m tests.fuzz.tickets`."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gentickets as gt
from gentickets.lab.listings import ticket_words
from gentickets.masks.lineage import begun, continued
from gentickets.masks.signing import Signature
from gentickets.sealed import BLANK, DIGEST, field
from gentickets.terminal import Terminal
from tests.fuzz.hunt import Attempt, main
from tests.fuzz.mutations import HOSTILE_TEXT, any_of, damaged, hostile, mutated

TYPES = ("F32", "F64", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "U64", "F4", "C64", "X", "")


class Net(nn.Module):
    """Small, with what tickets hold: linear and convolutional layers, buffers, a number without a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))


def bases() -> list[bytes]:
    """Whole tickets."""
    torch.manual_seed(0)
    net = Net()
    masks = gt.prune(gt.magnitude(net), to_sparsity=0.5)
    lineage = continued(begun(1, masks, {"recipe": "x", "seed": 0}), masks, level=2)
    origin = {"recipe": "x", "seed": 0, "rewind_step": 5, "retrain": "rewind", "level": 2, "lineage": lineage}
    whole = gt.Ticket(masks, net, origin)
    tickets = [whole, gt.Ticket(masks), gt.Ticket(masks, net.bfloat16(), {"a": "ü"})]
    signed = gt.Ticket(masks, net, origin)
    signed.signature = Signature(b"k" * 32, signed.fingerprint, b"v" * 64)  # somebody's; whose is asked by verify alone
    return [ticket.to_bytes() for ticket in (*tickets, signed)]


def header_of(raw: bytes) -> dict[str, Any]:
    return dict(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]))


def with_header(header: Any, raw: bytes) -> bytes:
    """A file with this header over the tensors of another, its digest mended where it has a place for one."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    body = raw[8 + int.from_bytes(raw[:8], "little") :]
    return mended(len(text).to_bytes(8, "little") + text + body)


def mended(raw: bytes) -> bytes:
    """The file with the digest that it should have."""
    end = 8 + int.from_bytes(raw[:8], "little")
    head = raw[:end]
    digests = DIGEST.findall(head)
    if len(digests) != 1:
        return raw
    blank = head.replace(field(digests[0].decode()), field(BLANK)) + raw[end:]
    return blank.replace(field(BLANK), field(hashlib.sha256(blank).hexdigest()), 1)


def hostile_ticket(rng: random.Random, whole: Sequence[bytes]) -> bytes:
    """A file that is almost a ticket."""
    raw = rng.choice(whole)
    kind = rng.random()
    if kind < 0.3:
        return damaged(rng, raw)
    if kind < 0.4:
        return mended(damaged(rng, raw))
    header = header_of(raw)
    if kind < 0.6:
        meta = header["__metadata__"]
        which = any_of(rng, *(key for key in ("origin", "shapes", "format", "signature") if key in meta))
        if which == "format":
            meta[which] = any_of(rng, hostile(rng), rng.choice(HOSTILE_TEXT))
        else:
            meta[which] = any_of(rng, _json(mutated(rng, json.loads(meta[which]))), rng.choice(HOSTILE_TEXT))
    elif kind < 0.9:
        _change_tensor(rng, header)
    else:
        header = mutated(rng, header)
    try:
        return with_header(header, damaged(rng, raw) if rng.random() < 0.1 else raw)
    except (ValueError, RecursionError, IndexError):  # JSON cannot say so
        return damaged(rng, raw)


def _json(value: Any) -> str:
    try:
        return json.dumps(value)
    except (ValueError, RecursionError):
        return "[" * 2000


def _change_tensor(rng: random.Random, header: dict[str, Any]) -> None:
    """Another type, shape, place or name of one tensor, or none."""
    key = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[key]
    kind = rng.randrange(7)
    if kind == 0:
        entry["dtype"] = rng.choice(TYPES)
    elif kind == 1:
        entry["shape"] = any_of(
            rng, mutated(rng, entry["shape"]), [0, *entry["shape"]], entry["shape"][::-1], [2**40] * 9
        )
    elif kind == 2:
        entry["data_offsets"] = mutated(rng, entry["data_offsets"])
    elif kind == 3:
        del header[key]
    elif kind == 4:
        prefix = any_of(rng, "mask/", "weight/", "", "mask//")
        header[prefix + any_of(rng, rng.choice(HOSTILE_TEXT), key.partition("/")[2])] = header.pop(key)
    elif kind == 5:
        # The same bytes seen as another type of the same size.
        same = {"F32": ("I32", "U32"), "U8": ("I8", "BOOL", "F8_E4M3"), "BF16": ("F16", "I16"), "I64": ("F64", "U64")}
        entry["dtype"] = rng.choice(same.get(entry["dtype"], TYPES))
    else:
        shapes = json.loads(header["__metadata__"]["shapes"])
        name = rng.choice(list(shapes))
        shapes[name] = any_of(
            rng, shapes[name][::-1], [1, *shapes[name]], [2**62, 4], [-1], [0], [2**20] * 3, hostile(rng)
        )
        header["__metadata__"]["shapes"] = _json(shapes)


def prepare() -> Attempt:
    whole, net = bases(), Net()
    file = Path(tempfile.mkdtemp()) / "ticket"

    def attempt(rng: random.Random) -> None:
        file.write_bytes(hostile_ticket(rng, whole))
        ticket = gt.Ticket.load(file)
        repr(ticket)
        again = gt.Ticket.load(_written(file, ticket.to_bytes()))
        assert again.masks == ticket.masks, "what was written is not what was read"
        if rng.random() < 0.2:
            console = Terminal(file=io.StringIO(), width=100)
            for words in ticket_words(file):
                console.print(words)
            assert "\x1b" not in console.file.getvalue(), "an escape sequence reached the terminal"  # type: ignore[attr-defined]
        ticket.transfer(net, {name: name for name in ticket.masks.components})
        ticket.install(Net())

    return attempt


def _written(file: Path, raw: bytes) -> Path:
    file.write_bytes(raw)
    return file


if __name__ == "__main__":
    main("tickets", prepare)
