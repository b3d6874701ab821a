"""A ticket as one safetensors file, so that a file from a stranger can be opened without running any of it.

- tensor `mask/<name>`: the packed bits of a mask, uint8 (one bit a weight, most significant bit first);
- tensor `weight/<name>`: a parameter or buffer as it was at the rewind step;
- metadata: `format`, `shapes` (JSON: mask name → shape), `origin` (JSON), and `digest`, the SHA-256 of the
  whole file with the digest's own 64 characters set to `0`; of a signed one `signature` (JSON).

The digest finds every changed bit. It is no signature: it says that the file is whole, not who made it. A signature is
over the fingerprint of what the file holds (`fingerprint_of`), so it fits however the file is laid out, and a reader
that knows of none reads the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor

from gentickets.errors import TicketError
from gentickets.masks.signing import Signature
from gentickets.masks.value import Masks
from gentickets.memory import bytes_of
from gentickets.sealed import DIGEST, fits, tensor_pieces

FORMAT = "gentickets.ticket/1"
FORMATS = (FORMAT, "gentickets.masks.ticket/1")
"""By which names a file of this layout may go: the second was written for some days."""
BROKEN = (
    TicketError,
    SafetensorError,
    LookupError,
    ValueError,
    TypeError,
    ArithmeticError,
    RuntimeError,
)
"""What reading a file raises that somebody wrote who need not have been `written`."""
_CONTENT = b"gentickets.ticket.content/1\n"
_SHORT = 2**20
"""Bytes of a header that is parsed without a digest, to say what the file is."""


@dataclass(frozen=True)
class Content:
    """What a file holds. `origin`: as JSON."""

    masks: Masks
    weights: Mapping[str, Tensor]
    origin: str
    signature: Signature | None = None


def fingerprint_of(content: Content) -> str:
    """A SHA-256 over masks, weights and origin: equal for equal content, however its file is laid out."""
    digest = hashlib.sha256(_CONTENT)
    for head, part in _parts_in_order(content):
        digest.update(f"{json.dumps([*head, part.nbytes])}\n".encode())
        digest.update(part)
    return digest.hexdigest()


def _parts_in_order(content: Content) -> Iterator[tuple[list[Any], memoryview]]:
    yield ["origin"], memoryview(content.origin.encode())
    for name, bits in sorted(content.masks.packed.items()):
        yield ["mask", name, content.masks.shapes[name]], bits.data
    for name, tensor in sorted(content.weights.items()):
        yield ["weight", name, list(tensor.shape), str(tensor.dtype)], bytes_of(tensor)


# -- writing --------------------------------------------------------------------------------------------------


def written(content: Content) -> list[bytes | memoryview]:
    """The file in pieces, header first. The weights are those of the content itself and not copies."""
    metadata = {
        "format": FORMAT,
        "origin": content.origin,
        "shapes": json.dumps(dict(content.masks.shapes)),
    }
    if content.signature is not None:
        metadata["signature"] = json.dumps(content.signature.as_json())
    parts: dict[str, Any] = {f"mask/{name}": bits for name, bits in content.masks.packed.items()}
    parts |= {f"weight/{name}": tensor for name, tensor in content.weights.items()}
    return tensor_pieces(parts, metadata)


# -- reading --------------------------------------------------------------------------------------------------


def read(raw: bytes, path: Path) -> Content:
    """What is in the bytes of a file. Raises `TicketError` that names it, for one that is damaged or no ticket."""
    # The digest before anything is parsed: a long header of nonsense would cost seconds.
    header = raw[: 8 + int.from_bytes(raw[:8], "little")]
    digests = DIGEST.findall(header)
    if len(digests) == 1 and not fits(raw, header, digests[0].decode()):
        raise TicketError(f"{path} is damaged or was changed: its digest does not fit its content")
    meta = _metadata(raw) if digests or len(header) < _SHORT else {}
    if meta.get("format") not in FORMATS:
        found = f"format {meta['format'][:40]!r}" if "format" in meta else "it has no format"
        raise TicketError(f"{path} is damaged, or no ticket that this version reads: {found}")
    if len(digests) != 1:
        raise TicketError(f"{path} has no digest: it was changed, or written by another tool")
    try:
        return _content(raw, meta)
    except BROKEN as error:
        raise TicketError(f"{path} is no ticket: {' '.join(str(error).split())}") from None


def _content(raw: bytes, meta: Mapping[str, str]) -> Content:
    tensors = dict(sorted(from_safetensors(raw).items()))  # the library's order changes from run to run
    bits = {key[5:]: tensor.numpy() for key, tensor in tensors.items() if key.startswith("mask/")}
    weights = {key[7:]: tensor for key, tensor in tensors.items() if key.startswith("weight/")}
    shapes = dict(json.loads(meta["shapes"]))
    masks = Masks.from_packed({name: bits[name] for name in shapes}, shapes)
    if "signature" not in meta:
        return Content(masks, weights, meta["origin"])
    strange = set(meta) - {"digest", "format", "origin", "shapes", "signature"}
    strange |= {key for key in tensors if key.partition("/")[0] not in ("mask", "weight")} | (set(bits) - set(shapes))
    if strange:
        raise TicketError(f"it holds {sorted(strange)[0]!r}, which its signature does not cover")
    return Content(masks, weights, meta["origin"], Signature.of_json(json.loads(meta["signature"])))


def _metadata(raw: bytes) -> dict[str, str]:
    """The metadata of a safetensors file; empty where it has none or is no such file."""
    try:
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        meta = header.get("__metadata__", {})
        return {key: value for key, value in meta.items() if isinstance(value, str)}
    except (ValueError, AttributeError, RecursionError):
        return {}
