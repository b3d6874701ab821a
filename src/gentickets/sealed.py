"""Files of state whose every bit is checked before it is used.

A flipped bit in a checkpoint or in stored weights is another state, from which a run goes on to other numbers without a
word. So what is written here carries the SHA-256 of itself, and what does not fit its own is `Damaged`. It is no
signature: it says that the file is whole, not who made it.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from gentickets.errors import GenticketsError
from gentickets.memory import bytes_of

_HEAD = b"gentickets.sealed/1 "
BLANK = "0" * 64
DIGEST = re.compile(rb'"digest":"([0-9a-f]{64})"')
"""A digest in a header of safetensors, and what stands in its place while it is computed: as in tickets."""


_OF_JSON = re.compile(rb'^  "digest": "([0-9a-f]{64})"', re.MULTILINE)
"""The same in JSON for people: a key of the top, which alone is two spaces in."""


class Damaged(GenticketsError):
    """A file of ours that is cut off, or of which a bit is not as it was written."""


def sealed(content: bytes) -> bytes:
    """`content` behind a line with its digest."""
    return _head(content) + content


def _head(content: bytes | memoryview) -> bytes:
    return _HEAD + hashlib.sha256(content).hexdigest().encode() + b"\n"


def unsealed(raw: bytes) -> bytes:
    """What `sealed` was given. Raises `Damaged`."""
    start = len(_HEAD) + 65
    content = memoryview(raw)[start:]
    if not raw.startswith(_HEAD) or raw[:start] != _head(content):
        raise Damaged("its digest does not fit its content")
    return bytes(content)


def sealed_state(state: Mapping[str, Any]) -> bytes:
    """A state of tensors, numbers, text, and lists and dictionaries of them, sealed."""
    return b"".join(sealed_pieces(state))


def sealed_pieces(state: Mapping[str, Any]) -> list[bytes | memoryview]:
    """The same in pieces: a checkpoint is three times as large as its model, and is not to be held twice."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    return [_head(content.getbuffer()), content.getbuffer()]


def unsealed_state(raw: bytes) -> dict[str, Any]:
    """What `sealed_state` was given, on the CPU; no code of a pickle is run. Raises `Damaged`.

    One of before files were sealed, which is a plain archive, is taken as it is.
    """
    content = raw if raw.startswith(b"PK") else unsealed(raw)
    try:
        return dict(torch.load(io.BytesIO(content), weights_only=True, map_location="cpu"))
    except (RuntimeError, ValueError, EOFError, TypeError, pickle.UnpicklingError) as error:
        raise Damaged(f"it holds no state: {' '.join(str(error).split())[:100]}") from None


def sealed_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file of tensors on any device, with its digest among the metadata, as a ticket has it."""
    return b"".join(tensor_pieces(tensors, metadata))


def tensor_pieces(
    tensors: Mapping[str, Tensor | np.ndarray], metadata: Mapping[str, str] | None = None
) -> list[bytes | memoryview]:
    """The same in pieces, header first: the memory of tensors that lie in C order is not copied."""
    parts = {name: part.data if isinstance(part, np.ndarray) else bytes_of(part) for name, part in tensors.items()}
    blank = _blank_header(tensors, parts, {**(metadata or {}), "digest": BLANK})
    digest = hashlib.sha256(blank)
    for name in (ordered := [name for name in json.loads(blank[8:]) if name != "__metadata__"]):
        digest.update(parts[name])
    return [blank.replace(field(BLANK), field(digest.hexdigest()), 1), *(parts[name] for name in ordered)]


def _blank_header(
    tensors: Mapping[str, Tensor | np.ndarray], parts: Mapping[str, memoryview], metadata: Mapping[str, str]
) -> bytes:
    """The header of a file of these parts, its digest still to come; equal tensors give equal bytes.

    The library decides on the order and names the types, from tensors without elements: it would copy whole ones, and
    leave the order of the metadata to chance.
    """
    empty = {name: _empty(part) for name, part in tensors.items()}
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    start = 0
    for name, entry in json.loads(to_safetensors(empty)[8:]).items():
        end = start + parts[name].nbytes
        shape = list(tensors[name].shape)
        header[name], start = {"dtype": entry["dtype"], "shape": shape, "data_offsets": [start, end]}, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _empty(part: Tensor | np.ndarray) -> Tensor:
    return (
        torch.from_numpy(np.empty(0, part.dtype)) if isinstance(part, np.ndarray) else part.detach().cpu().new_empty(0)
    )


def unsealed_tensors(raw: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file; one of before files had digests is taken as it is.

    Raises `Damaged` for a file that is none, or does not fit its digest.
    """
    header = raw[: 8 + int.from_bytes(raw[:8], "little")]
    digests = DIGEST.findall(header)
    if len(digests) != header.count(b'"digest"') or len(digests) > 1:
        raise Damaged("it has no digest that could be read")
    if digests and not fits(raw, header, digests[0].decode()):
        raise Damaged("its digest does not fit its content")
    try:
        metadata = json.loads(header[8:]).get("__metadata__", {})
        return from_safetensors(raw), {key: str(value) for key, value in metadata.items() if key != "digest"}
    except (SafetensorError, ValueError, AttributeError, RecursionError) as error:
        raise Damaged(f"it is no safetensors file: {' '.join(str(error).split())[:100]}") from None


def sealed_json(value: Any) -> bytes:
    """Plain data as JSON that people can read; keys and values get the digest of the whole text as a key more."""
    if not isinstance(value, Mapping):
        return _json(value)
    text = _json({**value, "digest": BLANK})
    return text.replace(_json_field(BLANK), _json_field(hashlib.sha256(text).hexdigest()), 1)


def unsealed_json(raw: bytes) -> Any:
    """What `sealed_json` was given; JSON without a digest is taken as it is. Raises `Damaged`."""
    check_json(raw)
    try:
        value = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"it is no JSON: {' '.join(str(error).split())[:100]}") from None
    if isinstance(value, dict) and _OF_JSON.search(raw):
        del value["digest"]
    return value


def check_json(raw: bytes) -> None:
    """Raises `Damaged` where JSON has a digest that does not fit it."""
    digests = _OF_JSON.findall(raw)
    if raw.count(b'\n  "digest"') != len(digests) or len(digests) > 1:
        raise Damaged("it has no digest that could be read")
    for digest in digests:
        blank = raw.replace(_json_field(digest.decode()), _json_field(BLANK), 1)
        if hashlib.sha256(blank).hexdigest() != digest.decode():
            raise Damaged("its digest does not fit its content")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _json_field(digest: str) -> bytes:
    return f'\n  "digest": "{digest}"'.encode()


def fits(raw: bytes, header: bytes, digest: str) -> bool:
    """Whether a file that begins with this header has this digest, the digest's own place left blank."""
    found = hashlib.sha256(header.replace(field(digest), field(BLANK)))
    found.update(memoryview(raw)[len(header) :])
    return found.hexdigest() == digest


def field(digest: str) -> bytes:
    """The digest's place in the header, as JSON writes it."""
    return f'"digest":"{digest}"'.encode()
