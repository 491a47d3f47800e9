"""Image files: which ones are meant, and each of them as plain RGB."""

from __future__ import annotations

import glob
import os
import stat
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

from vmamba.data.walk import by_ending, walk
from vmamba.errors import ImageError

# Formats that Pillow recognizes but decodes only with the help of another program, if at all; it would run that.
_UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

# Formats whose grey values of more than 8 bits Pillow scales to 16.
_SCALED = {"PPM", "JPEG2000"}

# EXIF orientation → transposition of the stored pixels that shows them upright.
_TRANSPOSE = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def image_endings() -> frozenset[str]:
    """Endings of the files that are images, ``.jpg`` …, in lower case: of every format that Pillow can read.

    Every command and every kind of data set goes by this one list.
    """
    formats = image_formats()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)


def image_formats() -> list[str]:
    """Pillow's names of the formats that are read: those that it decodes itself."""
    Image.init()
    return [name for name in Image.ID if name in Image.OPEN and name not in _UNREADABLE]


def find_images(sources: Sequence[str | Path]) -> list[Path]:
    """The image files that `sources` mean, in the order of `sources`, each file once.

    Args:
        sources: Any mix of files (taken whatever their ending), folders (searched through all levels for
            `image_endings`, as `vmamba.data.walk.walk` does) and glob patterns (the same endings, sorted; ``**``
            matches any number of folders). A path that exists is never taken for a pattern.

    Raises:
        ImageError: For a missing file, a folder without images, a pattern that matches no image.
        OSError: If a folder cannot be read.
    """
    return list(dict.fromkeys(Path(name) for source in sources for name in expand(str(source), image_endings())))


def expand(source: str, endings: frozenset[str]) -> Iterator[str]:
    """The files that a file, folder or glob pattern means, one by one; see `find_images`.

    Args:
        source: The file, folder or pattern.
        endings: Of the files in a folder and of a pattern's matches.

    Raises:
        ImageError: If there are none.
        OSError: If a folder cannot be read.
    """
    ignored, empty = Counter[str](), True
    if os.path.isdir(source):
        for name in by_ending(walk(source, ignored), endings, ignored):
            empty = False
            yield str(Path(source, name))
        if empty:
            raise ImageError(f"no images in the folder {source}: name a folder that holds .jpg, .png or other images")
    elif os.path.lexists(source):
        yield source
    elif not glob.has_magic(source):
        raise ImageError(f"no such file or folder: {source}; check the spelling and the current folder {os.getcwd()}")
    else:
        matches = sorted(glob.glob(source, recursive=True))
        for name in by_ending(matches, endings, ignored):
            if os.path.isfile(name):
                empty = False
                yield name
        if empty:
            what = "names no image among its matches" if matches else "matches nothing"
            raise ImageError(
                f"the pattern {source} {what}: check it, or give the folder itself to search all its levels"
            )


def read_image(
    path: str | Path, content: IO[bytes] | None = None, *, exif_transpose: bool = True, max_pixels: int | None = None
) -> Image.Image:
    """Read one image file as Pillow image of mode RGB, without metadata.

    EXIF orientation is applied. Transparent pixels are composed onto white. Of an animation or a file of several pages
    the first is read. Grey images of more than 8 bits keep their range, see `_white`.

    Args:
        path: The file, or the name by which an error calls it.
        content: The file's content, where it does not lie at `path`: inside an archive.
        exif_transpose: Apply EXIF orientation; without it the pixels come as they are stored.
        max_pixels: Refuse larger images, which may be decompression bombs; None for Pillow's limit, twice
            ``PIL.Image.MAX_IMAGE_PIXELS``.

    Raises:
        ImageError: For a file that is missing, not readable, not an image, empty, truncated or broken, has too many
            pixels, or is no ordinary file (a pipe would wait for a writer).
    """
    with open_image(path, content, max_pixels=max_pixels) as image:
        orientation = _orientation(image)
        rgb = _rgb(image)
    if exif_transpose and orientation in _TRANSPOSE:
        rgb = rgb.transpose(_TRANSPOSE[orientation])
    rgb.info.clear()  # it describes the pixels of the file; its orientation must not be applied again
    return rgb


@contextmanager
def open_image(
    path: str | Path, content: IO[bytes] | None = None, *, max_pixels: int | None = None
) -> Iterator[Image.Image]:
    """Open an image file and decode it as it is; the arguments are those of `read_image`.

    Raises:
        ImageError: If it cannot be read, or the ``with`` block fails.
    """
    try:
        if content is None and not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise ValueError("it is a pipe, socket or device, not a file")
        if content is not None and not content.seek(0, os.SEEK_END):
            raise ValueError("the file is empty")
        with _pixel_limit(max_pixels), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata and merely large images: the pixels are fine
            with Image.open(content or path, formats=image_formats()) as image:
                image.load()  # TIFF files are turned upright by this, and have no orientation any more
                yield image
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        raise ImageError(f"cannot read the image {path}: {_reason(path, error, max_pixels)}") from error


def read_image_of_size(path: str | Path, width: int, height: int, *, max_pixels: int | None = None) -> Image.Image:
    """Read the image that annotations of this size belong to: upright, or else as stored.

    Tools that annotate disagree about EXIF orientation; the size tells which pixels theirs are.

    Raises:
        ImageError: If the image cannot be read, or has another size either way.
    """
    image = read_image(path, max_pixels=max_pixels)
    if image.size != (width, height) and image.size == (height, width):
        image = read_image(path, exif_transpose=False, max_pixels=max_pixels)
    if image.size != (width, height):
        raise ImageError(f"{path}: is {image.width}×{image.height} pixels, its annotation says {width}×{height}")
    return image


def pixel_limit() -> int:
    """Pixels above which Pillow refuses to read an image."""
    return 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else sys.maxsize


# Pillow has one limit for all; nobody else may read while it is another one.
_LIMIT_LOCK = threading.RLock()


@contextmanager
def _pixel_limit(pixels: int | None) -> Iterator[None]:
    """Inside, Pillow refuses images of more than `pixels`; None leaves its limit alone."""
    if pixels is None:
        yield
        return
    with _LIMIT_LOCK:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = -(-pixels // 2)  # Pillow warns above it and refuses above twice as many
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where the EXIF data is missing or broken."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a photograph is worth reading without its metadata
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode → mode RGB."""
    if image.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=np.inf)
        levels = np.rint(np.clip(values / _white(image, values), 0.0, 1.0) * 255.0)
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _white(image: Image.Image, values: NDArray[np.float32]) -> float:
    """The value that is white in a grey image of modes I;16*, I, F, where 0 is black.

    It is what the file format says, or else the smallest usual white that no pixel exceeds: that of 8, 10, 12, 14 or
    16 bits for integers (cameras and microscopes store 12 bits in 16), 1 or that of 8 or 16 bits for floats. Above
    all of these it is the brightest pixel.
    """
    finite = values[np.isfinite(values)]
    peak = float(finite.max(initial=0.0))
    bits = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, (16,))[0]
    if image.mode == "F":
        usual = [1.0, 255.0, 65535.0]
    elif image.format in _SCALED:
        usual = [65535.0]
    elif bits < 16:
        usual = [2.0**bits - 1]
    else:
        usual = [2.0**bits - 1 for bits in (8, 10, 12, 14, 16)]
    return next((level for level in usual if peak <= level), peak)


def _reason(path: str | Path, error: Exception, max_pixels: int | None) -> str:
    if os.path.isdir(path):
        return "it is a folder"
    if isinstance(error, Image.DecompressionBombError):
        limit = pixel_limit() if max_pixels is None else max_pixels
        return (
            f"it has more than {limit:,} pixels, the limit that protects against decompression bombs; where it is what "
            "it says, raise max_pixels (--max-pixels N for images, --set max_pixels=N for data sets)"
        )
    if isinstance(error, UnidentifiedImageError):
        empty = os.path.isfile(path) and os.path.getsize(path) == 0
        return "the file is empty" if empty else "it is not an image of a format Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
