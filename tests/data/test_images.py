"""Every kind of file that can be read, with the pixels it must give, and every kind that cannot, with its message."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from vmamba.data.images import find_images, read_image, read_image_of_size
from vmamba.errors import ImageError

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def pixels(path: Path) -> np.ndarray:
    """(height, width, 3) uint8 of what `read_image` returns."""
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def row(path: Path) -> list[tuple[int, ...]]:
    """The pixels of an image of height 1."""
    (values,) = pixels(path).tolist()
    return [tuple(value) for value in values]


def strip(mode: str, values: list) -> Image.Image:
    """An image of height 1."""
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


def tiff(bits: int, sample_format: int, data: bytes, width: int) -> bytes:
    """A grey TIFF file of height 1, for the sample types that Pillow reads and does not write."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(data), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data += bytes(-len(data) % 2)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory


def one_line(error: pytest.ExceptionInfo[ImageError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# Reading: modes


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm"])
def test_rgb_is_unchanged(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    expected = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(expected).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(pixels(path), expected)


def test_jpeg(tmp_path):
    Image.new("RGB", (16, 8), (200, 100, 50)).save(tmp_path / "a.jpg")
    values = pixels(tmp_path / "a.jpg")
    assert values.shape == (8, 16, 3)
    np.testing.assert_allclose(values.reshape(-1, 3), np.tile([200, 100, 50], (128, 1)), atol=2)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "RGBA", "LA", "I;16"])
def test_one_pixel(tmp_path, mode):
    white = {"RGB": WHITE, "RGBA": (*WHITE, 255), "LA": (255, 255), "I;16": 65535, "P": 0}.get(mode, 255)
    image = strip(mode, [white])
    if mode == "P":
        image.putpalette([255, 255, 255])
    image.save(tmp_path / "a.png")
    assert row(tmp_path / "a.png") == [WHITE]


def test_grey_and_bilevel(tmp_path):
    strip("L", [0, 7, 255]).save(tmp_path / "l.png")
    strip("1", [0, 255]).save(tmp_path / "1.png")
    assert row(tmp_path / "l.png") == [BLACK, (7, 7, 7), WHITE]
    assert row(tmp_path / "1.png") == [BLACK, WHITE]


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "png"), ("I;16", "tiff"), ("I;16B", "tiff"), ("I", "tiff")])
def test_16_bit_ramp_keeps_its_range(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    strip(mode, [level * 257 for level in range(256)]).save(path)
    assert row(path) == [(level,) * 3 for level in range(256)]


def test_16_bit_is_rounded_to_the_nearest_level(tmp_path):
    strip("I;16", [128, 129, 385, 386, 65535]).save(tmp_path / "a.png")
    assert row(tmp_path / "a.png") == [(0,) * 3, (1,) * 3, (1,) * 3, (2,) * 3, WHITE]


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_fewer_bits_in_16_are_not_black(tmp_path, bits):
    """White is that of the smallest usual number of bits that holds the brightest pixel."""
    white = 2**bits - 1
    for suffix in ("png", "tif"):
        strip("I;16", [0, 100, white - 5]).save(tmp_path / f"a.{suffix}")
        assert row(tmp_path / f"a.{suffix}") == [(round(255 * v / white),) * 3 for v in (0, 100, white - 5)]


def test_a_dark_pgm_stays_dark(tmp_path):
    """Its header says what white is."""
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 4095\n" + struct.pack(">2H", 0, 819))
    assert row(tmp_path / "a.pgm") == [BLACK, (51,) * 3]


def test_16_bit_pgm(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 257 * 100, 65535))
    assert row(tmp_path / "a.pgm") == [BLACK, (100,) * 3, WHITE]


def test_12_bit_tiff_is_white_at_4095(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(12, 1, bytes.fromhex("000fff"), 2))
    assert row(tmp_path / "a.tif") == [BLACK, WHITE]


def test_signed_16_bit_tiff_is_black_below_zero(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(16, 2, struct.pack("<3h", -30000, 0, 257 * 100), 3))
    assert row(tmp_path / "a.tif") == [BLACK, BLACK, (100,) * 3]


def test_32_bit_beyond_65535_is_white_at_its_peak(tmp_path):
    strip("I", [0, 100_000, 200_000]).save(tmp_path / "a.tiff")
    assert row(tmp_path / "a.tiff") == [BLACK, (128,) * 3, WHITE]


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),
        ([-1.0, 0.2, 0.4], [0, 51, 102]),
        ([0.0, 51.0, 255.0], [0, 51, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([0.0, 1e6, 2e6], [0, 128, 255]),
        ([float("nan"), 0.2, float("inf")], [0, 51, 255]),
        ([float("nan"), float("-inf"), -3.0], [0, 0, 0]),
    ],
)
def test_float(tmp_path, values, levels):
    strip("F", values).save(tmp_path / "a.tiff")
    assert row(tmp_path / "a.tiff") == [(level,) * 3 for level in levels]


@pytest.mark.parametrize("suffix", ["tiff", "jpg"])
def test_cmyk(tmp_path, suffix):
    """The inks of JPEG files with Adobe's marker, as Photoshop and Pillow write them, are stored inverted."""
    path = tmp_path / f"a.{suffix}"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path)
    assert (b"Adobe" in path.read_bytes()) == (suffix == "jpg")
    np.testing.assert_allclose(pixels(path).reshape(-1, 3), np.tile(RED, (64, 1)), atol=3)


def test_lab(tmp_path):
    profiles = [ImageCms.createProfile(space) for space in ("sRGB", "LAB")]
    colour = Image.new("RGB", (4, 4), (200, 100, 50))
    ImageCms.profileToProfile(colour, *profiles, outputMode="LAB").save(tmp_path / "a.tif")
    np.testing.assert_allclose(pixels(tmp_path / "a.tif").reshape(-1, 3), np.tile([200, 100, 50], (16, 1)), atol=2)


# Reading: transparency


def test_palette(tmp_path):
    image = strip("P", [0, 1, 2])
    image.putpalette([*RED, *GREEN, *BLUE])
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.gif")
    assert row(tmp_path / "a.png") == row(tmp_path / "a.gif") == [RED, GREEN, BLUE]


@pytest.mark.parametrize(
    ("transparency", "suffix", "expected"),
    [
        (1, "gif", [RED, WHITE, BLUE]),
        (1, "png", [RED, WHITE, BLUE]),
        (bytes([255, 0, 51]), "png", [RED, WHITE, (204, 204, 255)]),  # Pillow warns of these on conversion to RGB
    ],
)
def test_transparent_palette_is_composed_onto_white(tmp_path, transparency, suffix, expected):
    path = tmp_path / f"a.{suffix}"
    image = strip("P", [0, 1, 2])
    image.putpalette([*RED, *GREEN, *BLUE])
    image.save(path, transparency=transparency)
    assert row(path) == expected


def test_alpha_is_composed_onto_white(tmp_path):
    strip("RGBA", [(*RED, 255), (*RED, 0), (*RED, 51)]).save(tmp_path / "rgba.png")
    strip("LA", [(0, 255), (0, 0), (0, 51)]).save(tmp_path / "la.png")
    strip("RGB", [RED, GREEN]).save(tmp_path / "key.png", transparency=RED)
    assert row(tmp_path / "rgba.png") == [RED, WHITE, (255, 204, 204)]
    assert row(tmp_path / "la.png") == [BLACK, WHITE, (204,) * 3]
    assert row(tmp_path / "key.png") == [WHITE, GREEN]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_first_of_several_frames(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    first, *others = (Image.new("RGB", (4, 4), color) for color in (RED, GREEN, BLUE))
    first.save(path, save_all=True, append_images=others, **({"lossless": True} if suffix == "webp" else {}))
    image: Any
    with Image.open(path) as image:
        assert image.n_frames == 3
    np.testing.assert_array_equal(pixels(path), np.full((4, 4, 3), RED))


# Reading: orientation

# What is stored for [[A, B, C], [D, E, F]] to be seen upright (EXIF 2.3, figure of tag 0x0112).
STORED = {
    1: ["ABC", "DEF"],
    2: ["CBA", "FED"],
    3: ["FED", "CBA"],
    4: ["DEF", "ABC"],
    5: ["AD", "BE", "CF"],
    6: ["CF", "BE", "AD"],
    7: ["FC", "EB", "DA"],
    8: ["DA", "EB", "FC"],
}


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(tmp_path, orientation, suffix):
    path = tmp_path / f"a.{suffix}"
    grey = {letter: 40 * index for index, letter in enumerate("ABCDEF")}
    stored = np.array([[grey[letter] for letter in line] for line in STORED[orientation]], np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).convert("RGB").save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(pixels(path)[..., 0], [[0, 40, 80], [120, 160, 200]])


def test_orientation_cannot_be_applied_twice(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg", exif=exif)
    image = read_image(tmp_path / "a.jpg")
    assert image.size == (2, 4)
    assert not image.getexif()


def test_as_stored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2)).save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png", exif_transpose=False).size == (4, 2)
    assert read_image_of_size(tmp_path / "a.png", 2, 4).size == (2, 4)
    assert read_image_of_size(tmp_path / "a.png", 4, 2).size == (4, 2)
    with pytest.raises(ImageError, match=r"a\.png: is 2×4 pixels, its annotation says 4×3"):
        read_image_of_size(tmp_path / "a.png", 4, 3)


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"])
def test_broken_exif_does_not_cost_the_image(tmp_path, exif):
    Image.new("RGB", (8, 8), RED).save(tmp_path / "a.jpg", exif=exif)
    np.testing.assert_allclose(pixels(tmp_path / "a.jpg").reshape(-1, 3), np.tile(RED, (64, 1)), atol=3)


# Reading: what cannot be read


def test_missing(tmp_path):
    with pytest.raises(ImageError, match="no such file") as error:
        read_image(tmp_path / "a.png")
    assert str(tmp_path / "a.png") in one_line(error)


def test_directory(tmp_path):
    with pytest.raises(ImageError, match="it is a folder") as error:
        read_image(tmp_path)
    assert str(tmp_path) in one_line(error)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"not an image", "not an image"), (b"\x89PNG\r\n\x1a\n", "not an image")],
)
def test_no_image(tmp_path, content, reason):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as error:
        read_image(path)
    assert str(path) in one_line(error)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp", "ppm", "ico", "jp2"])
def test_truncated(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="cannot read the image") as error:
        read_image(path)
    assert str(path) in one_line(error)


def test_permission_denied(tmp_path, monkeypatch):
    def denied(path, **_):  # chmod would not stop root
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a.png").touch()
    monkeypatch.setattr(Image, "open", denied)
    with pytest.raises(ImageError, match="permission denied") as error:
        read_image(tmp_path / "a.png")
    assert str(tmp_path / "a.png") in one_line(error)


def bomb(side: int) -> bytes:
    """A PNG file that claims to be of side × side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_decompression_bomb(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(bomb(100_000))
    with pytest.raises(ImageError, match=r"it has more than [0-9,]+ pixels, the limit") as error:
        read_image(path)
    assert str(path) in one_line(error)


def test_max_pixels(tmp_path, monkeypatch):
    Image.new("RGB", (10, 10), RED).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="it has more than 98 pixels"):
        read_image(tmp_path / "a.png", max_pixels=98)
    assert read_image(tmp_path / "a.png", max_pixels=100).size == (10, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(ImageError, match="it has more than 80 pixels"):
        read_image(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=100).size == (10, 10)
    assert Image.MAX_IMAGE_PIXELS == 40


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such files")
def test_pipes_sockets_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.png"))
        for path in (tmp_path / "pipe.png", tmp_path / "socket.png", "/dev/zero"):
            with pytest.raises(ImageError, match="it is a pipe, socket or device, not a file"):
                read_image(path)
    with pytest.raises(ImageError, match="no images in the folder"):
        find_images([tmp_path])


def test_large_image_is_read_without_a_warning(tmp_path, monkeypatch):
    Image.new("RGB", (10, 10), RED).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # Pillow warns above it and refuses above twice as much
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.full((10, 10, 3), RED))


def test_no_other_program_is_run(tmp_path, monkeypatch):
    """Whatever its name, a file that only Ghostscript can draw is none of ours."""

    def run(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", run)
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="not an image of a format Pillow knows"):
        read_image(tmp_path / "a.png")


def test_files_are_closed(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    read_image(tmp_path / "a.png").load()
    os.replace(tmp_path / "a.png", tmp_path / "b.png")  # fails on Windows, and warns elsewhere, if it is open
    np.testing.assert_array_equal(pixels(tmp_path / "b.png"), np.zeros((4, 4, 3)))


# Finding


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in (
        "b.jpg",
        "a.PNG",
        "sub/c.webp",
        "sub/deep/d.tif",
        "notes.txt",
        "sub/data.h5",
        ".hidden.jpg",
        ".x/e.jpg",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["."], ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.tif"]),
        ([Path("sub")], ["sub/c.webp", "sub/deep/d.tif"]),
        (["notes.txt"], ["notes.txt"]),  # named by the user: taken at their word
        (["*.jpg"], ["b.jpg"]),
        (["*"], ["a.PNG", "b.jpg"]),
        (["sub/*"], ["sub/c.webp"]),
        (["**/*.tif"], ["sub/deep/d.tif"]),
        (["sub/**"], ["sub/c.webp", "sub/deep/d.tif"]),
        (["sub", "b.jpg", "sub/c.webp", "./b.jpg"], ["sub/c.webp", "sub/deep/d.tif", "b.jpg"]),
        ([], []),
    ],
)
def test_find(tree, sources, expected):
    assert find_images(sources) == [Path(name) for name in expected]


def test_find_absolute(tree):
    assert find_images([tree / "sub"]) == [tree / "sub/c.webp", tree / "sub/deep/d.tif"]


def test_a_file_whose_name_looks_like_a_pattern(tree):
    (tree / "a[1].jpg").touch()
    assert find_images(["a[1].jpg"]) == [Path("a[1].jpg")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.jpg", "no such file or folder: gone.jpg; check"),
        ("empty", "no images in the folder empty: name a folder"),
        ("*.bmp", r"the pattern \*.bmp matches nothing: check it"),
        ("*.txt", r"the pattern \*.txt names no image among its matches"),
    ],
)
def test_find_nothing(tree, source, message):
    with pytest.raises(ImageError, match=message) as error:
        find_images(["b.jpg", source])
    one_line(error)
