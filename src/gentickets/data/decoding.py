"""One encoded image → one small uint8 array."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from gentickets.data import samples
from gentickets.errors import DataError

BACKGROUND = (255, 255, 255, 255)
"""What shows through where an image is transparent: white, as on a page."""

MOST_PIXELS = 2**26
"""Of one image. A header of a few bytes may tell of any size; each thread holds an image several times over."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Example(NamedTuple):
    """One image as its source has it: where it lies (for messages), what is to be decoded, its label.

    A function is one that reads the bytes, on the thread that decodes them.
    """

    where: str
    content: bytes | Path | np.ndarray | Callable[[], bytes]
    label: int | None


class Decoded(NamedTuple):
    """An image as it is trained on, and what it was: its mode, (width, height), and what was `done` to it.

    `pixels`: uint8 (channels, size, size). `done`: some of "transparent", "turned", "deep", "frames", "cropped" and
    "resized".
    """

    pixels: np.ndarray
    mode: str
    size: tuple[int, int]
    done: tuple[str, ...]


def decode(example: Example, size: int, channels: int, crop: int | None) -> Decoded:
    """As a viewer shows it, then centre crop, resize (antialiased), grey or RGB.

    What is transparent shows `BACKGROUND`, whatever colours lie hidden under it. Of several frames the first is taken.
    Without `crop` the largest centred square is. Raises `DataError` that names the image where it is broken, smaller
    than `crop`, or of numbers whose range nothing says.
    """
    done: list[str] = []
    with _opened(example) as opened:
        mode = opened.mode
        image = as_shown(opened, example.where, channels, done)
    shown = image.size
    side = min(image.size) if crop is None else crop
    if side > min(image.size):
        width, height = image.size
        raise DataError(f"crop: {crop} is larger than {example.where}, which is {width}x{height}: take a smaller one")
    if image.size != (side, side):
        done.append("cropped")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        done.append("resized")
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return Decoded(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1), mode, shown, tuple(done))


def as_shown(image: Image.Image, where: str, channels: int, done: list[str] | None = None) -> Image.Image:
    """An opened image as a viewer shows it, over `BACKGROUND`, grey or RGB; what was done to it is added to `done`.

    Raises `DataError` that names the image by `where`, if it is broken or of numbers whose range nothing says.
    """
    done = [] if done is None else done
    try:
        if getattr(image, "is_animated", False):
            done.append("frames")
        if samples.deep(image):
            done.append("deep")
        return _composited(_upright(image, where, done), done).convert("L" if channels == 1 else "RGB")
    except DataError:
        raise
    except Exception as error:  # Pillow lets through whatever its many decoders raise
        raise _broken(where, error) from error


def is_grey(example: Example) -> bool | None:
    """Whether the image itself has one channel. Reads its header only; None where there is none to read."""
    try:
        with _opened(example) as image:
            return has_one_channel(image)
    except DataError:
        return None


def has_one_channel(image: Image.Image) -> bool:
    """By its mode, whatever its colours; alpha is none."""
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def _opened(example: Example) -> Image.Image:
    content = example.content
    try:
        if isinstance(content, np.ndarray):
            return Image.fromarray(content)
        if isinstance(content, Path):
            image: Image.Image = Image.open(content)
        else:
            image = Image.open(io.BytesIO(content if isinstance(content, bytes) else content()))
    except Exception as error:
        raise _broken(example.where, error) from error
    if image.width * image.height > MOST_PIXELS:
        width, height = image.size
        image.close()
        raise DataError(f"{example.where} is {width}x{height}, over {MOST_PIXELS:,} pixels: make it smaller")
    return image


def _upright(image: Image.Image, where: str, done: list[str]) -> Image.Image:
    """Loaded, of 8 bits a sample, and turned as its EXIF says."""
    # A TIFF is turned as it is loaded, and forgets how; of a PNG the EXIF may come last.
    told = _orientation(image) if image.format == "TIFF" else None
    upright = samples.in_bytes(image, where)
    left = _orientation(image)
    if told in _TURNS or left in _TURNS:
        done.append("turned")
    return upright.transpose(_TURNS[left]) if left in _TURNS else upright


def _orientation(image: Image.Image) -> int | None:
    """None too where the EXIF cannot be read: viewers then show the image as it lies."""
    with contextlib.suppress(Exception):
        return image.getexif().get(_ORIENTATION)
    return None


def _composited(image: Image.Image, done: list[str]) -> Image.Image:
    """The image over the background, where it is transparent anywhere or might be."""
    if not image.has_transparency_data:
        return image
    shown = image.convert("RGBA")
    if shown.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
        done.append("transparent")
    return Image.alpha_composite(Image.new("RGBA", shown.size, BACKGROUND), shown).convert("RGB")


def _broken(where: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if re.search(r"<.* object at 0x", reason):  # Pillow names the object that the bytes were wrapped in
        reason = "its bytes are no image that Pillow knows"
    return DataError(f"{where} is no image that can be read ({reason}): mend it or leave it out")
