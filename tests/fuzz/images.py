"""Encoded images that were damaged: `python -m tests.fuzz.images --inputs 100000`."""

from __future__ import annotations

import io
import random

import numpy as np
from PIL import Image, features

from gentickets.data.decoding import Example, decode, is_grey
from tests.fuzz.hunt import Attempt, main
from tests.fuzz.mutations import damaged


def bases() -> list[bytes]:
    """Whole images of the kinds that people have, each in several modes."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)
    colour = Image.fromarray(noise)
    grey = Image.fromarray(noise[..., 0])
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    clear = Image.fromarray(np.concatenate([noise, noise[..., :1]], axis=2))
    palette = colour.quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        _encoded(colour, "PNG", exif=exif), _encoded(clear, "PNG"), _encoded(deep, "PNG"), _encoded(palette, "PNG"),
        _encoded(colour, "JPEG", exif=exif), _encoded(grey, "JPEG"), _encoded(colour.convert("CMYK"), "JPEG"),
        _encoded(colour, "JPEG", progressive=True),
        _encoded(palette, "GIF", transparency=0), _encoded(palette, "GIF", save_all=True, append_images=[palette] * 2),
        _encoded(colour, "WEBP"), _encoded(clear, "WEBP", lossless=True),
        *(_encoded(colour, "TIFF", compression=kind) for kind in (None, "tiff_lzw", "tiff_deflate", "jpeg")),
        _encoded(deep, "TIFF"), _encoded(clear, "TIFF"),
        _encoded(colour, "BMP"), _encoded(palette, "BMP"), _encoded(colour, "PPM"), _encoded(grey, "PPM"),
        _encoded(colour, "TGA"), _encoded(palette, "PCX"), _encoded(grey, "SGI"), _encoded(colour, "QOI"),
        _encoded(grey, "PNG", transparency=3), _encoded(colour, "PNG", transparency=(1, 2, 3)), _encoded(clear, "TGA"),
        *(_encoded(of, "JPEG2000") for of in (deep, colour) if features.check("jpg_2000")),
    ]  # fmt: skip


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **{name: value for name, value in options.items() if value is not None})
    return file.getvalue()


def prepare() -> Attempt:
    whole = bases()

    def attempt(rng: random.Random) -> None:
        raw = rng.choice(whole)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            # Most of what decides is in the first bytes.
            raw = damaged(rng, raw[:64]) + raw[64:] if rng.random() < 0.4 else damaged(rng, raw)
        example = Example("it", raw, None)
        is_grey(example)
        channels = rng.choice((1, 3))
        pixels = decode(example, 8, channels, rng.choice((None, 8))).pixels
        assert pixels.shape == (channels, 8, 8), f"pixels of {pixels.shape}"
        assert pixels.dtype == np.uint8, f"pixels of {pixels.dtype}"

    return attempt


if __name__ == "__main__":
    main("images", prepare)
