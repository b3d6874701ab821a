"""An image is what a viewer shows, or it is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from gentickets.data.decoding import Example, decode
from gentickets.errors import DataError


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shown(content, channels=3, size=16):
    return decode(Example("it", content, None), size, channels, None).pixels


def square(mode, outside, inside):
    image = Image.new(mode, (16, 16), outside)
    image.paste(inside, (4, 4, 12, 12))
    return image


def palette_square():
    """A palette whose entry 0, green, is transparent; the square is its entry 1, red."""
    image = square("P", 0, 1)
    image.putpalette([0, 255, 0, 255, 0, 0] + [0] * 762)
    return image


@pytest.mark.parametrize(("content", "inside"), [
    (encoded(square("RGBA", (0, 0, 0, 0), (0, 0, 0, 255))), (0, 0, 0)),
    (encoded(square("RGBA", (0, 255, 0, 0), (255, 0, 0, 255))), (255, 0, 0)),
    (encoded(square("LA", (9, 0), (7, 255))), (7, 7, 7)),
    (encoded(palette_square(), transparency=0), (255, 0, 0)),
    (encoded(palette_square(), "GIF", transparency=0), (255, 0, 0)),
    (encoded(square("L", 3, 7), transparency=3), (7, 7, 7)),
    (encoded(square("RGB", (1, 2, 3), (4, 5, 6)), transparency=(1, 2, 3)), (4, 5, 6)),
], ids=["black", "hidden_colour", "grey", "palette", "gif", "grey_key", "colour_key"])  # fmt: skip
def test_what_is_transparent_shows_white_and_no_hidden_colour(content, inside):
    pixels = shown(content)
    assert tuple(pixels[:, 8, 8]) == inside
    assert tuple(pixels[:, 0, 0]) == (255, 255, 255)
    assert (shown(content, channels=1)[0, 0, 0]) == 255


def test_half_transparent_is_half_white():
    assert abs(int(shown(encoded(Image.new("RGBA", (16, 16), (0, 0, 0, 128))))[0, 0, 0]) - 127) <= 1


def test_opaque_images_are_as_they_were():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(shown(encoded(Image.fromarray(pixels))), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_holds_for_bytes_as_for_files(tmp_path, orientation):
    half = Image.new("L", (16, 16))
    half.paste(255, (0, 0, 8, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(half, exif=exif)
    (tmp_path / "it.png").write_bytes(content)
    assert np.array_equal(shown(content, 1), shown(tmp_path / "it.png", 1))
    turned = shown(content, 1)[0]
    means = [half.mean() for half in (turned[:, :8], turned[:, 8:], turned[:8], turned[8:])]
    white = {1: 0, 2: 1, 3: 1, 4: 0, 5: 2, 6: 2, 7: 3, 8: 3}[orientation]
    assert means[white] == 255


@pytest.mark.parametrize(("image", "mode"), [
    (Image.fromarray(np.full((16, 16), 0.5, np.float32)), "F"),
    (Image.fromarray(np.full((16, 16), 1000.0, np.float32)), "F"),
    (Image.fromarray(np.full((16, 16), np.nan, np.float32)), "F"),
    (Image.fromarray(np.full((16, 16), 200, np.int32)), "I"),
])  # fmt: skip
def test_numbers_of_no_known_range_are_refused(image, mode):
    with pytest.raises(DataError, match=rf"it has 32 bits a pixel \(mode {mode}, .* to .*\).*bring it to 8 or 16 bits"):
        shown(encoded(image, "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_brought_to_eight(kind):
    image = Image.fromarray(np.full((16, 16), 257 * 100, np.uint16))
    assert (shown(encoded(image, kind), 1) == 100).all()
