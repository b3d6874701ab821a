"""One encoded image → one small uint8 array."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from gentickets.errors import DataError


class Example(NamedTuple):
    """One image as its source has it: where it lies (for messages), what is to be decoded, its label."""

    where: str
    content: bytes | Path | np.ndarray
    label: int | None


def decode(example: Example, size: int, channels: int, crop: int | None) -> np.ndarray:
    """uint8 (channels, size, size): centre crop, resize (antialiased), grey or RGB.

    Without `crop` the largest centred square is taken. Raises `DataError` that names the image where it is
    broken, or smaller than `crop`.
    """
    with _opened(example) as image:
        try:
            image = _upright(image, example).convert("L" if channels == 1 else "RGB")
        except Exception as error:  # Pillow lets through whatever its many decoders raise
            raise _broken(example, error) from error
    side = min(image.size) if crop is None else crop
    if side > min(image.size):
        width, height = image.size
        raise DataError(f"crop: {crop} is larger than {example.where}, which is {width}x{height}: take a smaller one")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def is_grey(example: Example) -> bool:
    """True where the image itself has one channel. Reads its header only."""
    with _opened(example) as image:
        return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def _opened(example: Example) -> Image.Image:
    content = example.content
    try:
        if isinstance(content, np.ndarray):
            return Image.fromarray(content)
        return Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)
    except Exception as error:
        raise _broken(example, error) from error


def _upright(image: Image.Image, example: Example) -> Image.Image:
    """As a viewer would show it: turned as its EXIF says, 16 bits brought to 8 (Pillow would clip them)."""
    if isinstance(example.content, Path):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))
    return image


def _broken(example: Example, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{example.where} is no image that can be read ({reason}): mend it or leave it out")
