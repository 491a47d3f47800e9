"""Images for prediction: which files are meant, and each of them as plain upright RGB."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

from vmamba.errors import ImageError

# Formats that Pillow recognizes but decodes only with the help of another program, if at all.
_UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

# EXIF orientation → what turns the stored pixels upright.
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def find_images(sources: Sequence[str | Path]) -> list[Path]:
    """The image files that `sources` mean, in the order of `sources`, each file once.

    Args:
        sources: Any mix of files (taken whatever their extension), folders (searched through all levels for the
            extensions that Pillow can read, hidden files left out, sorted) and glob patterns (the same extensions,
            sorted; ``**`` matches any number of folders). A path that exists is never taken for a pattern.

    Raises:
        ImageError: For a missing file, a folder without images, a pattern that matches no image.
    """
    return list(dict.fromkeys(path for source in sources for path in _expand(str(source))))


def _expand(source: str) -> list[Path]:
    if os.path.isdir(source):
        folder = Path(source)
        names = sorted(path.relative_to(folder) for path in folder.rglob("*"))
        found = _images(folder / name for name in names if not any(part.startswith(".") for part in name.parts))
        if not found:
            raise ImageError(f"no images in the folder {source}: name a folder that holds .jpg, .png or other images")
        return found
    if os.path.exists(source):
        return [Path(source)]
    if not glob.has_magic(source):
        raise ImageError(f"no such file or folder: {source}; check the spelling and the current folder {os.getcwd()}")
    matches = sorted(glob.glob(source, recursive=True))
    found = _images(map(Path, matches))
    if not found:
        what = "names no image among its matches" if matches else "matches nothing"
        raise ImageError(f"the pattern {source} {what}: check it, or give the folder itself to search all its levels")
    return found


def _images(paths: Iterable[Path]) -> list[Path]:
    """Those of `paths` that are files with the extension of a format Pillow can read."""
    formats = Image.registered_extensions()  # also loads the plugins that Image.OPEN lists
    readable = {suffix for suffix, name in formats.items() if name in Image.OPEN and name not in _UNREADABLE}
    return [path for path in paths if path.suffix.lower() in readable and path.is_file()]


def read_image(path: str | Path, content: IO[bytes] | None = None) -> Image.Image:
    """Read one image file as Pillow image of mode RGB, upright, without metadata.

    EXIF rotation is applied. Transparent pixels are composed onto white. Of an animation or a file of several pages
    the first is read. Grey images of more than 8 bits keep their whole range: 16-bit values are divided by 257;
    see `_grey` for 32-bit and float files.

    Args:
        path: The file, or the name by which an error calls it.
        content: The file's content, where it does not lie at `path`: inside an archive.

    Raises:
        ImageError: For a file that is missing, not readable, not an image, empty, truncated or broken, or that has
            so many pixels that Pillow takes it for a decompression bomb (above twice ``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata and merely large images: the pixels are fine
            with Image.open(content or path) as image:
                image.load()  # before the orientation is asked for: TIFF files are turned upright by this
                orientation = _orientation(image)
                rgb = _rgb(image)
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        raise ImageError(f"cannot read the image {path}: {_reason(path, error)}") from error
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    rgb.info.clear()  # it describes the pixels of the file; its orientation must not be applied again
    return rgb


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where the EXIF data is missing or broken."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a photograph is worth reading without its metadata
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode → mode RGB."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_grey(image)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _grey(image: Image.Image) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Grey of modes I;16*, I, F → (height, width) uint8, black at 0.

    White is what the file format says, or else the smallest usual white that no pixel exceeds: 65535 for integers,
    1, 255 or 65535 for floats; the brightest pixel where it exceeds them all. NaN is black.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=np.inf)
    finite = values[np.isfinite(values)]
    peak = float(finite.max(initial=0.0))
    if image.mode == "F":
        usual = [1.0, 255.0, 65535.0]
    else:
        bits = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, (16,))[0]
        usual = [2.0**bits - 1] if bits < 16 else [65535.0]
    white = next((level for level in usual if peak <= level), peak)
    return np.rint(np.clip(values / white, 0.0, 1.0) * 255.0).astype(np.uint8)


def _reason(path: str | Path, error: Exception) -> str:
    if os.path.isdir(path):
        return "it is a folder"
    if isinstance(error, UnidentifiedImageError):
        empty = os.path.isfile(path) and os.path.getsize(path) == 0
        return "the file is empty" if empty else "it is not an image of a format Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
