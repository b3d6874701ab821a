"""An image is what a viewer shows, or it is refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

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


def png(bits, kind, row, key=None, palette=None):
    """8 x 8 pixels, every row alike."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, kind, 0, 0, 0))]
    parts += [chunk(b"PLTE", palette)] if palette else []
    parts += [chunk(b"tRNS", key)] if key else []
    return b"".join([*parts, chunk(b"IDAT", zlib.compress((b"\0" + row) * 8)), chunk(b"IEND", b"")])


def words(*values, order=">"):
    return struct.pack(f"{order}{len(values)}H", *values)


def ends(content, channels=1):
    """The colours of the first pixel and of the last, as numbers where they are grey."""
    pixels = shown(content, channels, 8)
    colours = [tuple(map(int, pixels[:, 0, at])) for at in (0, -1)]
    return [colour[0] for colour in colours] if channels == 1 else colours


GREEN_RED_BLUE = bytes([0, 255, 0, 255, 0, 0, 0, 0, 255])


@pytest.mark.parametrize(("content", "channels", "expected"), [
    (png(1, 0, b"\x0f", words(1)), 1, [0, 255]),
    (png(1, 0, b"\x0f", words(0)), 1, [255, 255]),
    (png(2, 0, b"\x55\xaa", words(1)), 1, [255, 170]),
    (png(4, 0, b"\x11\x11\x33\x33", words(1)), 1, [255, 51]),
    (png(4, 0, b"\x11\x11\x33\x33", words(17)), 1, [255, 51]),  # what is above the file's bits does not count
    (png(8, 0, b"\5\5\5\5\7\7\7\7", words(5)), 1, [255, 7]),
    (png(16, 0, words(*[0] * 4, *[30000] * 4), words(0)), 1, [255, 116]),
    (png(16, 0, words(*[257] * 4, *[256] * 4), words(257)), 1, [255, 0]),
    (png(8, 2, bytes([1, 2, 3] * 4 + [4, 5, 6] * 4), words(1, 2, 3)), 3, [(255, 255, 255), (4, 5, 6)]),
    (png(16, 2, words(*[0x1234, 0, 0] * 4, *[0x3400, 0, 0] * 4), words(0x1234, 0, 0)), 3,
     [(255, 255, 255), (0x34, 0, 0)]),
    (png(16, 2, words(*[0x1234, 0, 0] * 4, *[0x1200, 0, 0] * 4), words(0x1234, 0, 0)), 3,
     [(255, 255, 255), (0x12, 0, 0)]),
    (png(2, 3, b"\x55\xaa", b"\0\xff\x80", GREEN_RED_BLUE), 3, [(255, 0, 0), (127, 127, 255)]),
    (png(8, 3, bytes([0] * 4 + [1] * 4), b"\0", GREEN_RED_BLUE), 3, [(255, 255, 255), (255, 0, 0)]),
], ids=["1bit_white", "1bit_black", "2bit", "4bit", "4bit_more", "8bit", "16bit_black", "16bit_near", "rgb",
        "rgb16_low", "rgb16_high", "palette_part", "palette_short"])  # fmt: skip
def test_the_transparent_colour_of_a_png_is_in_the_files_own_bits(content, channels, expected):
    assert ends(content, channels) == expected


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


def tiff(bits, content, photometric=1, sample_format=1, packed=False, orientation=1, channels=1, **more):
    """8 x 8 pixels, every row alike."""
    content = zlib.compress(content * 8) if packed else content * 8
    tags = {
        256: [8], 257: [8], 258: [bits] * channels, 259: [8 if packed else 1], 262: [photometric], 274: [orientation],
        277: [channels], 278: [8], 279: [len(content)], 339: [sample_format] * channels,
        **{int(tag[1:]): values for tag, values in more.items()},
    }  # fmt: skip
    body, entries = b"II*\0\0\0\0\0" + content, b""
    for tag, values in sorted({**tags, 273: [8]}.items()):
        value = words(*values, order="<").ljust(4, b"\0")
        if len(value) > 4:
            body += b"\0" * (len(body) % 2) + value
            value = struct.pack("<I", len(body) - len(value))
        entries += struct.pack("<HHI", tag, 3, len(values)) + value
    body += b"\0" * (len(body) % 2)
    directory = words(len(entries) // 12, order="<") + entries + b"\0" * 4
    return body[:4] + struct.pack("<I", len(body)) + body[8:] + directory


def little(*values):
    return words(*values, order="<")


TWELVE = bytes([0xFF, 0xFF, 0xFF] * 2 + [0x80, 0x08, 0x00] * 2)  # 4095 four times, 2048 four times


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize(("options", "expected"), [
    ((1, b"\x0f", 1), [0, 255]),
    ((1, b"\x0f", 0), [255, 0]),
    ((4, b"\x11\x11\xff\xff", 0), [238, 0]),
    ((8, bytes([200] * 4 + [0] * 4), 0), [55, 255]),
    ((12, TWELVE, 1), [255, 127]),
    ((16, little(*[30000] * 4, *[0] * 4), 1), [116, 0]),
    ((16, little(*[30000] * 4, *[0] * 4), 0), [139, 255]),
], ids=["1bit", "1bit_white_0", "4bit_white_0", "8bit_white_0", "12bit", "16bit", "16bit_white_0"])  # fmt: skip
def test_a_tiffs_numbers_are_what_its_header_says(options, expected, packed):
    assert ends(tiff(*options, packed=packed)) == expected


@pytest.mark.parametrize(("bits", "content"), [(8, b"\xfb" * 8), (16, little(*[0xFFFB] * 8))])
def test_signed_numbers_of_a_tiff_are_refused(bits, content):
    with pytest.raises(DataError, match=f"it has signed numbers of {bits} bits, .*: bring it to unsigned ones"):
        ends(tiff(bits, content, sample_format=2))


@pytest.mark.parametrize(("bits", "inks"), [(8, bytes([0, 255, 255, 0] * 8)), (16, little(*[0, 65535, 65535, 0] * 8))])
def test_a_tiff_of_inks_is_in_colour(bits, inks):
    assert ends(tiff(bits, inks, 5, channels=4), 3) == [(255, 0, 0)] * 2


def test_a_deep_tiff_is_turned_once():
    content = tiff(16, little(*[65535] * 4, *[0] * 4), orientation=6)
    pixels = decode(Example("it", content, None), 8, 1, None)
    assert np.array_equal(pixels.pixels[0], np.repeat([255, 0], 4)[:, None].repeat(8, 1))
    assert set(pixels.done) == {"deep", "turned"}


def test_a_tiffs_map_of_colours_may_be_of_bytes():
    reds, greens, blues = ([0] * 256 for _ in range(3))
    reds[0], greens[1] = 255, 117
    content = tiff(8, bytes([0] * 4 + [1] * 4), 3, T320=[*reds, *greens, *blues])
    assert ends(content, 3) == [(255, 0, 0), (0, 117, 0)]


def test_grey_times_its_alpha_is_shown_over_white():
    content = tiff(8, bytes([100, 128] * 4 + [0, 0] * 4), channels=2, T338=[1])
    assert ends(content) == [227, 255]


needs_jpeg2000 = pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow has no JPEG 2000")


def jpeg2000(values, stored, bits, signed=False, **options):
    """A row of grey values of so many bits: written with as many as Pillow can, then told otherwise in the header."""
    shift = 2 ** (stored - 1) - (0 if signed else 2 ** (bits - 1))
    row = (np.array(values) + shift).astype(np.uint16 if stored > 8 else np.uint8)
    content = bytearray(encoded(Image.fromarray(np.tile(row, (8, 1))), "JPEG2000", num_resolutions=1, **options))
    size = bits - 1 | (128 if signed else 0)
    content[content.index(b"\xff\x4f\xff\x51") + 42] = size
    if (box := content.find(b"ihdr")) >= 0:
        content[box + 14] = size
    return bytes(content)


@needs_jpeg2000
@pytest.mark.parametrize("options", [{}, {"no_jp2": True}], ids=["boxed", "bare"])
@pytest.mark.parametrize(("values", "stored", "bits", "expected"), [
    ([15] * 4 + [8] * 4, 8, 4, [255, 136]),
    ([200] * 4 + [8] * 4, 8, 8, [200, 8]),
    ([4095] * 4 + [2048] * 4, 16, 12, [255, 127]),
    ([65535] * 4 + [30000] * 4, 16, 16, [255, 116]),
])  # fmt: skip
def test_white_is_white_in_jpeg_2000_of_any_bits(values, stored, bits, expected, options):
    assert ends(jpeg2000(values, stored, bits, **options)) == expected


@needs_jpeg2000
def test_signed_jpeg_2000_is_refused():
    with pytest.raises(DataError, match=r"it has signed numbers, .*: save it as PNG"):
        ends(jpeg2000([-5] * 8, 8, 8, signed=True))


@pytest.mark.parametrize(("content", "expected"), [
    (b"P5 8 8 15\n" + b"\x0f\x0f\x0f\x0f\x08\x08\x08\x08" * 8, [255, 136]),
    (b"P5 8 8 4095\n" + words(*[4095] * 4, *[2048] * 4) * 8, [255, 127]),
    (b"P2 8 8 1000\n" + b"1000 1000 1000 1000 500 500 500 500\n" * 8, [255, 127]),
])  # fmt: skip
def test_a_pgm_goes_up_to_what_it_says(content, expected):
    assert ends(content) == expected


@pytest.mark.parametrize(("bits", "row"), [(8, b"\0\0\0\0\1\1\1\1"), (4, b"\0\0\x11\x11")])
def test_a_bitmap_of_two_colours_and_many_bits_is_refused(bits, row):
    """Pillow reads its bytes as bits."""
    palette = b"\0\0\0\0\xff\xff\xff\0"
    info = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, bits, 0, len(row) * 8, 0, 0, 2, 0)
    head = b"BM" + struct.pack("<IHHI", 62 + len(row) * 8, 0, 0, 62)
    with pytest.raises(DataError, match=f"it is a bitmap of {bits} bits with black and white alone .* save it as PNG"):
        ends(head + info + palette + row * 8)


def tga(flags, row):
    return struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 8, 8, 32, 0x20 | flags) + row * 8


def test_alpha_of_a_tga_counts_where_it_is_declared():
    blank, half = bytes([3, 2, 1, 0] * 8), bytes([3, 2, 1, 0] * 4 + [3, 2, 1, 255] * 4)
    assert ends(tga(8, half), 3) == [(255, 255, 255), (1, 2, 3)]
    assert ends(tga(0, blank), 3) == [(1, 2, 3), (1, 2, 3)]
    with pytest.raises(DataError, match="it has an alpha channel, of which its header declares 0 bits: save it as PNG"):
        ends(tga(0, half), 3)


def test_deep_numbers_of_a_format_that_tells_no_range_are_refused():
    cards = ["SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 8", "NAXIS2  = 8", "END"]
    content = "".join(card.ljust(80) for card in cards).ljust(2880).encode() + words(*[1000] * 64)
    with pytest.raises(DataError, match=r"it has 16 bits a pixel \(mode I;16, 1000 to 1000\)"):
        ends(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"garbage garbage", b"MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03"])
def test_an_exif_that_cannot_be_read_turns_nothing(kind, exif):
    half = Image.new("RGB", (16, 16))
    half.paste((255, 255, 255), (0, 0, 8, 16))
    pixels = decode(Example("it", encoded(half, kind, exif=b"Exif\0\0" + exif), None), 16, 1, None)
    assert np.array_equal(pixels.pixels[0, 8, [2, 13]] > 128, [True, False])
    assert pixels.done == ()
