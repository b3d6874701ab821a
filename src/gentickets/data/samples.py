"""What the numbers of an opened image stand for, by its file's own header, where Pillow takes them for something else.

Pillow hands out some files' samples as they lie there: 12 bits in 16, black and white exchanged, a transparent colour
in other bits than the samples that it is compared with. Here they become 8 bits a sample, 0 black and 255 white.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageOps

from gentickets.errors import DataError

_BITS, _PHOTOMETRIC, _COLOUR_MAP, _SAMPLE_FORMAT = 258, 262, 320, 339  # tags of a TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2  # their values
_CODESTREAM = b"\xff\x4f\xff\x51"  # begins a JPEG 2000 image, within whatever boxes


def deep(image: Image.Image) -> bool:
    """Whether the image has more than 8 bits a sample, as far as Pillow has kept them."""
    return image.mode.startswith("I") or image.mode == "F"


def in_bytes(image: Image.Image, where: str) -> Image.Image:
    """The image loaded, in a mode of 8 bits a sample; a transparent colour of the file has become alpha.

    Raises `DataError` that names `where`, if nothing says which number is black and which white, or which is
    transparent; and whatever Pillow raises for a broken file.
    """
    read = _OF_FORMAT.get(image.format)
    if read is not None:
        image = read(image, where)
    image.load()
    if deep(image):
        low, high = np.min(numbers := np.asarray(image)), np.max(numbers)
        raise DataError(
            f"{where} has {16 if ';16' in image.mode else 32} bits a pixel (mode {image.mode}, {low} to {high}), and "
            f"nothing says which is black and which white: bring it to 8 or 16 bits"
        )
    # Without colour this mode converts to nothing else.
    return image.convert("LA") if image.mode == "La" else image


def _head(image: Image.Image, size: int = -1) -> bytes | None:
    """The first bytes of the file; None where Pillow has let go of it, once loaded."""
    file = image.fp if hasattr(image, "fp") else None
    if file is None:
        return None
    place = file.tell()
    file.seek(0)
    head: bytes = file.read(size)
    file.seek(place)
    return head


def _grey(numbers: np.ndarray, most: int, alpha: np.ndarray | None = None) -> Image.Image:
    """Numbers from 0, black, to `most`, white; shown where `alpha` is true."""
    grey = (np.clip(numbers, 0, most).astype(np.uint32) * 255 // most).astype(np.uint8)
    return Image.fromarray(grey) if alpha is None else _with_alpha(grey[..., None], alpha)


def _with_alpha(colours: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.concatenate([colours, np.where(alpha, 255, 0).astype(np.uint8)[..., None]], axis=-1))


def _png(image: Image.Image, where: str) -> Image.Image:
    """One colour of a PNG may be transparent: it is told in the file's own bits, and Pillow leaves it so."""
    key = image.info.get("transparency")
    if image.mode.startswith("I"):
        numbers = np.asarray(image)
        return _grey(numbers, 65535, None if key is None else numbers != key)
    if key is None or image.mode not in ("L", "RGB"):
        return image
    content = _head(image)
    if content is None:
        raise DataError(
            f"{where} has a transparent colour, and no longer its file, which says in how many bits: save it with an "
            f"alpha channel"
        )
    bits = content[24]
    colours = np.asarray(image).reshape(image.height, image.width, -1)
    if bits == 16:
        samples = colours.astype(np.uint16) << 8 | _low_bytes(content)
    else:
        samples = colours // (255 // (2**bits - 1))
    return _with_alpha(colours, (samples != np.bitwise_and(key, 2**bits - 1)).any(axis=-1))


def _low_bytes(content: bytes) -> np.ndarray:
    """The lower halves of the 16-bit colours of a PNG, of which Pillow gives the upper ones."""
    with Image.open(io.BytesIO(content)) as image:
        image.tile = [(*tile[:3], "RGB;16L") for tile in image.tile]  # type: ignore[misc]
        return np.asarray(image)


def _of_memory(image: Image.Image, where: str) -> Image.Image:
    """It may be from a PNG whose file is gone: its transparent colour is refused, as all that is deep will be."""
    return image if image.mode.startswith("I") else _png(image, where)


def _tiff(image: Image.Image, where: str) -> Image.Image:
    """Pillow neither scales 12 bits nor turns 16 of which 0 is white, and takes signed bytes as unsigned ones."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits = max(tags.get(_BITS, (1,)))
    if _SIGNED in tags.get(_SAMPLE_FORMAT, (1,)) and bits < 32:
        raise DataError(
            f"{where} has signed numbers of {bits} bits, and nothing says which is black and which white: bring it to "
            f"unsigned ones of 8 or 16 bits"
        )
    colours = tags.get(_COLOUR_MAP, ())
    if image.mode == "P" and colours and max(colours) < 256:  # a map of bytes, as old programs wrote it
        image.load()
        image.putpalette(np.reshape(colours, (3, -1)).T.astype(np.uint8).tobytes())
    if not image.mode.startswith("I") or bits > 16:
        return image
    grey = _grey(np.asarray(image), 2**bits - 1)
    return ImageOps.invert(grey) if tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO else grey


def _jpeg2000(image: Image.Image, where: str) -> Image.Image:
    """Pillow shifts the samples to 8 or 16 bits, so that white is 240 of 4 bits; and signed ones by half."""
    content = _head(image)
    if content is None:
        return image
    start = content.index(_CODESTREAM)
    (channels,) = struct.unpack_from(">H", content, start + 40)
    sizes = content[start + 42 : start + 42 + 3 * channels : 3]
    bits = [(size & 127) + 1 for size in sizes]
    if any(size & 128 for size in sizes):
        raise DataError(f"{where} has signed numbers, and nothing says which is black and which white: save it as PNG")
    if image.mode.startswith("I"):
        most = 2 ** min(16, *bits) - 1
        return _grey(np.asarray(image) // (65536 // (most + 1)), most)
    if min(bits) >= 8:
        return image
    if len(image.getbands()) != channels or image.mode in ("P", "PA"):
        raise DataError(f"{where} is JPEG 2000 of {min(bits)} bits with a palette: save it as PNG")
    scales = [(max(0, 8 - of), 2 ** min(8, of) - 1) for of in bits]
    return image.point([(value >> shift) * 255 // most for shift, most in scales for value in range(256)])


def _bmp(image: Image.Image, where: str) -> Image.Image:
    """Of a palette of black and white alone Pillow concludes that a pixel has one bit."""
    head = _head(image, 30)
    if head is None or image.mode != "1":
        return image
    start = 14 if image.format == "BMP" else 0
    (size,) = struct.unpack_from("<I", head, start)
    (bits,) = struct.unpack_from("<H", head, start + (10 if size == 12 else 14))
    if bits != 1:
        raise DataError(f"{where} is a bitmap of {bits} bits with black and white alone in its palette: save it as PNG")
    return image


def _tga(image: Image.Image, where: str) -> Image.Image:
    """Alpha counts where the header declares all 8 bits of it; else the bits may mean nothing, or the opposite."""
    head = _head(image, 18)
    if head is None or image.mode not in ("LA", "RGBA") or head[17] & 15 == 8:
        return image
    low, high = image.getchannel("A").getextrema()
    if low != high:
        raise DataError(
            f"{where} has an alpha channel, of which its header declares {head[17] & 15} bits: save it as PNG"
        )
    return image.convert(image.mode.removesuffix("A"))


def _ppm(image: Image.Image, _where: str) -> Image.Image:
    """Pillow scales the numbers by the largest that the header tells."""
    return _grey(np.asarray(image), 65535) if image.mode.startswith("I") else image


_OF_FORMAT: Mapping[str | None, Callable[[Image.Image, str], Image.Image]] = {
    None: _of_memory, "PNG": _png, "TIFF": _tiff, "JPEG2000": _jpeg2000, "BMP": _bmp, "DIB": _bmp, "TGA": _tga,
    "PPM": _ppm,
}  # fmt: skip
