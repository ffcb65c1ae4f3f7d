import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaNextImageProcessorPil

from pipeline.engine.network.vision import normalise
from pipeline.preprocess.geometry import Resample
from pipeline.preprocess.image import FORMATS, ImageLimits, _scans, _to_rgb, decode, tile_image
from pipeline.preprocess.pixels import read_scale
from schemas.errors import RowError
from tests.images import encoded, noise, random_sizes, real_images
from tests.preprocess.test_geometry import LLAVA, PINPOINTS

LIMITS = ImageLimits()
SIZES = [
    *((1, 1), (1, 1000), (1000, 1), (3000, 40), (40, 3000), (336, 336), (337, 671), (671, 337), (672, 672)),
    *((335, 337), (1008, 336), (336, 1008), (2, 7), (5000, 3), (640, 480), (480, 640), (1024, 768), (1920, 1080)),
    *random_sizes(190, most=1200),
]
RESAMPLES: dict[Resample, int] = {"bicubic": 3, "bilinear": 2}  # with Pillow's numbers
CHECKPOINT = {
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
    "image_grid_pinpoints": PINPOINTS,
}


@pytest.mark.parametrize("resample", RESAMPLES)
def test_normalised_tiles_are_bit_for_bit_those_of_transformers_with_torchvision(resample: Resample) -> None:
    pytest.importorskip("torchvision")
    from transformers import LlavaNextImageProcessor

    processor = LlavaNextImageProcessor(**CHECKPOINT, resample=RESAMPLES[resample])
    scale, anyres = read_scale(processor), replace(LLAVA, resample=resample)
    differing = []
    for width, height in [*SIZES, (4000, 3000)]:
        image = noise(width, height)
        expected = processor(image, return_tensors="pt")["pixel_values"][0]
        if not torch.equal(normalise(torch.from_numpy(tile_image(image, anyres)), scale), expected):
            differing.append((width, height))
    assert not differing


@pytest.mark.parametrize("resample", RESAMPLES)
def test_tiles_are_within_two_levels_of_transformers_with_pillow(resample: Resample) -> None:
    # Pillow resizes a tall image by height first, torch by width first always: only where values reach the ends of
    # their range, and are clipped between the two, does that make more of a difference than rounding.
    raw = {"do_rescale": False, "do_normalize": False, "resample": RESAMPLES[resample]}
    processor = LlavaNextImageProcessorPil(**CHECKPOINT, **raw)
    anyres = replace(LLAVA, resample=resample)
    differing = {}
    for width, height in [*SIZES, (4000, 3000)]:
        image = noise(width, height, low=80, high=176)
        expected = processor(image, return_tensors="np")["pixel_values"][0].transpose(0, 2, 3, 1)
        levels = np.abs(tile_image(image, anyres).astype(np.int16) - expected).max()
        if levels > 2:
            differing[width, height] = levels
    assert len(SIZES) >= 200
    assert not differing


def test_tiles_of_real_pictures_are_within_two_levels_of_transformers_with_pillow() -> None:
    processor = LlavaNextImageProcessorPil(**CHECKPOINT, do_rescale=False, do_normalize=False)
    for path in real_images():
        image = decode(path.read_bytes(), LIMITS)
        expected = processor(image, return_tensors="np")["pixel_values"][0].transpose(0, 2, 3, 1)
        far = np.abs(tile_image(image, LLAVA).astype(np.int16) - expected) > 2
        assert far.mean() < 1e-4, path.name  # black print on white is clipped in a few places


def test_the_base_tile_comes_first_and_the_others_row_by_row() -> None:
    image = Image.new("RGB", (672, 672))
    for place, shade in (((0, 0), 50), ((336, 0), 100), ((0, 336), 150), ((336, 336), 200)):
        image.paste((shade, shade, shade), (*place, place[0] + 336, place[1] + 336))
    tiles = tile_image(image, LLAVA)
    assert tiles.shape == (5, 336, 336, 3)
    assert tiles[0, [0, 0, -1, -1], [0, -1, 0, -1], 0].tolist() == [50, 100, 150, 200]
    assert tiles[1:].mean((1, 2, 3)).tolist() == [50, 100, 150, 200]


def test_a_wide_image_is_centred_on_black() -> None:
    tiles = tile_image(Image.new("RGB", (1000, 101), "white"), LLAVA)[1:]
    used = np.flatnonzero(tiles[0, :, 0, 0])
    assert used[[0, -1]].tolist() == [117, 218]  # 102 rows of 336; the odd row of padding goes below


@pytest.mark.parametrize("size", [(1000, 101), (101, 1000), (1, 1), (672, 672), (671, 500), (337, 335)], ids=str)
def test_tiles_are_the_same_where_pixels_of_another_image_were(size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 90).convert("RGB")
    tiles = tile_image(image, LLAVA, lambda shape: np.full(shape, 255, np.uint8))
    assert np.array_equal(tiles, tile_image(image, LLAVA, lambda shape: np.zeros(shape, np.uint8)))


def test_tiles_do_not_share_memory_with_the_image() -> None:
    image = Image.new("RGB", (672, 672), "white")
    tiles = tile_image(image, LLAVA)
    image.paste((0, 0, 0), (0, 0, 672, 672))
    assert tiles.min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright_by_its_exif_orientation(orientation) -> None:
    upright = noise(8, 6)
    turned = upright.transpose(STORED_AS[orientation]) if orientation in STORED_AS else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        image = decode(encoded(turned, format, exif=exif, **options), LIMITS)
        assert np.array_equal(image, upright), format


@pytest.mark.parametrize(("mode", "value", "rgb"), [
    ("L", 100, (100, 100, 100)),
    ("1", 1, (255, 255, 255)),
    ("LA", (100, 255), (100, 100, 100)),
    ("LA", (100, 0), (255, 255, 255)),
    ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
    ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
    ("I;16", 65535, (255, 255, 255)),
    ("I;16", 32768, (128, 128, 128)),
    ("I;16", 256, (1, 1, 1)),
])  # fmt: skip
def test_a_png_of_any_mode_becomes_rgb_on_white(mode, value, rgb) -> None:
    assert colours(encoded(Image.new(mode, (3, 2), value))) == {rgb}


@pytest.mark.parametrize(("values", "grey"), [
    pytest.param(np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255], id="floats up to one"),
    pytest.param(np.array([[0.0, 50.0, 100.0]], np.float32), [0, 128, 255], id="larger floats"),
    pytest.param(np.array([[np.nan, -1.0, 1.0]], np.float32), [0, 0, 255], id="not a number, negative"),
    pytest.param(np.array([[np.inf, 0.0, 1.0]], np.float32), [0, 0, 255], id="infinite"),
    pytest.param(np.array([[0, 100, 255]], np.int32), [0, 100, 255], id="integers of 8 bits"),
    pytest.param(np.array([[0, 32768, 40000]], np.int32), [0, 128, 156], id="integers of 16 bits"),
    pytest.param(np.array([[-5, 2**29, 2**30]], np.int32), [0, 128, 255], id="integers of 32 bits"),
])  # fmt: skip
def test_a_tiff_of_32_bits_is_scaled_not_clipped(values, grey) -> None:
    image = decode(encoded(Image.fromarray(values), "TIFF"), LIMITS)
    assert np.asarray(image)[0, :, 0].tolist() == grey


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    red, green, blue = decode(data, LIMITS).getpixel((4, 4))
    assert red > 250
    assert green < 5
    assert blue < 5


def test_a_palette_becomes_its_colours_and_its_transparent_entry_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert list(pixels(encoded(image))) == [(10, 20, 30), (40, 50, 60)]
    assert list(pixels(encoded(image, transparency=1))) == [(10, 20, 30), (255, 255, 255)]
    assert list(pixels(encoded(image, transparency=bytes([255, 0])))) == [(10, 20, 30), (255, 255, 255)]
    assert list(pixels(encoded(image, "GIF", transparency=1))) == [(10, 20, 30), (255, 255, 255)]


def test_a_transparent_colour_key_becomes_white() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    assert list(pixels(encoded(image, transparency=(9, 9, 9)))) == [(1, 2, 3), (255, 255, 255)]
    assert list(pixels(encoded(Image.new("L", (1, 1), 7), transparency=7))) == [(255, 255, 255)]
    assert list(pixels(encoded(Image.new("I;16", (1, 1), 700), transparency=700))) == [(255, 255, 255)]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(format) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    assert colours(encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)) == {(255, 0, 0)}


def test_of_a_jpeg_with_several_pictures_the_first_is_taken() -> None:
    pictures = [Image.new("RGB", (16, 16), shade) for shade in ("white", "black")]
    assert colours(encoded(pictures[0], "MPO", save_all=True, append_images=pictures[1:])) == {(255, 255, 255)}


def test_colours_that_16_bits_a_channel_hold_are_scaled() -> None:
    data = png(1, 1, struct.pack(">HHH", 65535, 32768, 256), bits=16)
    assert colours(data) == {(255, 128, 1)}


def test_every_format_that_is_named_can_be_opened() -> None:
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)


def test_every_real_picture_is_decoded_to_rgb_of_its_size() -> None:
    for path in real_images():
        image = decode(path.read_bytes(), LIMITS)
        with Image.open(path) as original:
            assert (image.mode, image.size) == ("RGB", original.size), path.name


@pytest.mark.parametrize(("data", "kind", "message"), [
    pytest.param(b"", "EmptyImage", "the image has no bytes", id="empty"),
    pytest.param(b"<!DOCTYPE html><html>", "NotAnImage", "look like HTML, they are no readable", id="a web page"),
    pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9", "NotAnImage", "no readable JPEG", id="PostScript"),
    pytest.param(encoded(noise(99, 99), "JPEG")[:2000], "BrokenImage", "truncated", id="truncated JPEG"),
    pytest.param(encoded(noise(99, 99), "JPEG")[:100], "BrokenImage", "", id="JPEG without a whole header"),
    pytest.param(encoded(noise(99, 99), "PNG")[:2000], "BrokenImage", "truncated", id="truncated PNG"),
    pytest.param(encoded(noise(99, 99), "BMP")[:2000], "BrokenImage", "truncated", id="truncated BMP"),
    pytest.param(encoded(noise(99, 99), "WEBP")[:2000], "BrokenImage", "", id="truncated WebP"),
    pytest.param(encoded(noise(99, 99), "TIFF")[:2000], "BrokenImage", "", id="truncated TIFF"),
    pytest.param(b"\xff\xd8\xff" + bytes(99), "NotAnImage", "", id="noise that begins like a JPEG"),
])  # fmt: skip
def test_bytes_that_are_no_whole_image_are_a_row_error(data, kind, message) -> None:
    with pytest.raises(RowError) as caught:
        decode(data, LIMITS)
    assert (caught.value.failure.stage, caught.value.failure.type) == ("decode", kind)
    assert message in caught.value.failure.message


@pytest.mark.parametrize("side", [12_000, 100_000], ids=["over our limit", "over Pillow's own"])
def test_too_many_pixels_are_refused_by_the_header_alone(side) -> None:
    with pytest.raises(RowError) as caught:
        decode(png(side, side, b""), LIMITS)
    assert caught.value.failure.type == "TooManyPixels"


def test_a_pixel_limit_names_the_size_and_the_limit() -> None:
    data = encoded(noise(40, 30))
    assert decode(data, ImageLimits(max_pixels=1200)).size == (40, 30)
    with pytest.raises(RowError, match="the image has 40x30 pixels, the limit is 1199 in all"):
        decode(data, ImageLimits(max_pixels=1199))


def test_a_byte_limit_names_the_bytes_and_the_limit() -> None:
    data = encoded(noise(40, 30))
    assert decode(data, ImageLimits(max_bytes=len(data))).size == (40, 30)
    with pytest.raises(RowError, match=f"the image has {len(data)} bytes, the limit is 99"):
        decode(data, ImageLimits(max_bytes=99))


def test_a_size_that_pillow_warns_of_is_judged_by_our_limit_alone() -> None:
    with pytest.raises(RowError, match="truncated|Truncated"):  # so its pixels were read; a warning would be an error
        decode(png(9_500, 9_500, b""), LIMITS)


def test_a_text_that_unpacks_to_gigabytes_is_refused() -> None:
    text = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(10**8)))
    data = png(1, 1, bytes(3))
    data = data[:33] + text + data[33:]  # right after the header
    with pytest.raises(RowError, match="too large"):
        decode(data, LIMITS)


@pytest.mark.parametrize(("width", "height"), [(1, 10**8), (10**8, 1), (3, 3001), (2002, 2)])
def test_a_shape_that_is_extreme_is_refused_by_the_header_alone(width, height) -> None:
    with pytest.raises(RowError, match=f"AspectTooLarge: .* {width}x{height} pixels; the limit is 1000"):
        decode(png(width, height, b""), LIMITS)


def test_a_shape_at_the_limit_is_an_image() -> None:
    assert decode(encoded(noise(2000, 2)), LIMITS).size == (2000, 2)
    with pytest.raises(RowError, match="one side is 10 times the other, 20x2 pixels; the limit is 9"):
        decode(encoded(noise(20, 2)), ImageLimits(max_aspect=9))


def jpeg_of_scans(more: int, side: int = 64, **options: object) -> bytes:
    """A JPEG whose last scan is there so many times more."""
    data = encoded(noise(side, side), "JPEG", **options)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * more + b"\xff\xd9"


def test_a_jpeg_that_goes_over_its_pixels_for_ever_is_not_decoded() -> None:
    blank = encoded(Image.new("L", (9000, 9000)), "JPEG", progressive=True)
    last = blank[blank.rindex(b"\xff\xda") : -2]
    with pytest.raises(RowError, match="TooManyScans: the JPEG has 106 scans over 81000000 pixels, the limit is 49"):
        decode(blank[:-2] + last * 100 + b"\xff\xd9", LIMITS)


def test_scans_that_are_few_for_their_pixels_are_read() -> None:
    assert decode(jpeg_of_scans(50, progressive=True), LIMITS).size == (64, 64)


def test_what_only_looks_like_scans_is_not_counted() -> None:
    whole = encoded(noise(8, 8), "JPEG", comment=b"\xff\xda" * 9000) + b"\xff\xda" * 9000
    assert list(_scans(whole)) == [whole.index(b"\xff\xda\x00\x0c")]
    assert (
        len(list(_scans(jpeg_of_scans(7, progressive=True))))
        == len(list(_scans(jpeg_of_scans(0, progressive=True)))) + 7
    )


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "I;16", "I", "F"])
def test_an_image_converted_in_bands_is_the_one_converted_at_once(mode) -> None:
    large = Image.fromarray(np.random.default_rng(0).integers(0, 2**15, (70, 9)).astype(np.int32))
    image = noise(9, 70).convert(mode) if mode in ("P", "LA", "RGBA") else large.convert(mode)
    if mode == "RGBA":
        image.putalpha(noise(9, 70).convert("L"))
    if mode in ("P", "I;16"):
        image.info["transparency"] = image.getpixel((3, 3))
    assert np.array_equal(_to_rgb(image, band=90), _to_rgb(image))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_aspect": 0.5}, "max_aspect must be at least 1, got 0.5"),
        ({"max_bytes": 0}, "max_bytes must be at least 1, got 0"),
        ({"max_pixels": 0}, "max_pixels must be between 1 and 178956970, got 0"),
        ({"max_pixels": 10**9}, "max_pixels must be between 1 and 178956970, got 1000000000"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        ImageLimits(**wrong)


def test_the_same_bytes_fail_with_the_same_words() -> None:
    def message() -> str:
        with pytest.raises(RowError) as caught:
            decode(b"no image at all", LIMITS)
        return caught.value.failure.message

    assert message() == message()


# How a picture lies in a file whose EXIF orientation says how to turn it upright.
STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def pixels(data: bytes) -> list[tuple[int, ...]]:
    """The decoded pixels, row by row."""
    return [tuple(pixel) for pixel in np.asarray(decode(data, LIMITS)).reshape(-1, 3).tolist()]


def colours(data: bytes) -> set[tuple[int, ...]]:
    return set(pixels(data))


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, row: bytes, bits: int = 8) -> bytes:
    """An RGB file that announces a size and holds one row."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    body = zlib.compress(b"\0" + row)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
