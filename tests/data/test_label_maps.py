"""Label maps in every form, and values that cannot be meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vmamba.data.label_maps import IGNORE_INDEX, VALUES, check_values, label_table, read_labels, read_values
from vmamba.errors import DataError, ImageError, OptionError

TABLE = label_table(2)


def write(path: Path, values: Any, mode: str | None = None) -> Path:
    image = Image.fromarray(np.asarray(values))
    (image.convert(mode) if mode else image).save(path)
    return path


def test_zero_and_255_are_no_class(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", np.array([[0, 1, 2, 255]], np.uint8))
    assert read_labels(path, TABLE).tolist() == [[255, 0, 1, 255]]


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_values_of_every_form(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 1], [2, 255]], np.uint8)
    assert read_values(write(tmp_path / f"a.{suffix}", values)).tolist() == values.tolist()


def test_palettes_are_read_by_index(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    image.save(tmp_path / "a.png", transparency=0)
    assert read_values(tmp_path / "a.png").tolist() == [[0, 1, 2]]


def test_16_bits_1_bit_and_equal_channels(tmp_path: Path) -> None:
    assert read_values(write(tmp_path / "a.png", np.array([[0, 26001]], np.uint16))).tolist() == [[0, 26001]]
    assert read_values(write(tmp_path / "b.png", np.array([[False, True]]))).tolist() == [[0, 1]]
    for mode in ("RGB", "RGBA", "LA"):
        assert read_values(write(tmp_path / "c.png", np.array([[0, 2, 255]], np.uint8), mode)).tolist() == [[0, 2, 255]]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[3, 1]], np.uint8), "has the value 3, where classes are 1 to 2 and 0 and 255 no class"),
        (np.array([[300, 1]], np.uint16), "has the value 300"),
        (np.array([[[1, 2, 3]]], np.uint8), "this one has mode RGB; write the number of its class into each pixel"),
        (np.array([[0.5]], np.float32), "one channel of whole numbers, this one has mode F"),
        (np.array([[-1, 70000]], np.int32), "has values from -1 to 70000; labels are from 0 to 65535"),
    ],
)
def test_maps_that_cannot_be_used(tmp_path: Path, values: Any, reason: str) -> None:
    path = write(tmp_path / "a.tif", values)
    with pytest.raises(ImageError, match=reason) as error:
        read_labels(path, TABLE)
    assert str(path) in str(error.value)
    path.write_bytes(b"II*\0")
    with pytest.raises(ImageError, match="cannot read the image"):
        read_labels(path, TABLE)


def test_values_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", np.array([[0, 255, 7]], np.uint8))
    assert read_labels(path, label_table(3, [255, 0, 7])).tolist() == [[1, 0, 2]]
    assert read_labels(path, label_table(2, [7, 0])).tolist() == [[1, IGNORE_INDEX, 0]]
    for values, reason in (
        ([1], "names 1 values, but there are 2"),
        ([1, 1], "different numbers"),
        ([0, -1], "from 0"),
    ):
        with pytest.raises(OptionError, match=reason):
            label_table(2, values)


def counts(**pixels: int) -> Any:
    result = np.zeros(VALUES, np.int64)
    for name, count in pixels.items():
        result[int(name[1:])] = count
    return result


NAMES = ("background", "lesion")


@pytest.mark.parametrize(
    ("found", "names", "reason", "remedy"),
    [
        (counts(v0=90, v255=10), NAMES, "0 (90.0%), 255 (10.0%)", "label_values=[0,255]"),
        (counts(v1=90, v255=10), NAMES, "so 'background' is the only class", "label_values=[1,255]"),
        (counts(v0=90, v1=10), NAMES, "so 'background' is the only class", "if 0 is 'background', 1 is 'lesion', add"),
        (
            counts(v0=90, v1=5, v2=5),
            (*NAMES, "c"),
            "so 'c' never occurs",
            "label_values=[0,1,2], or if 0 is no class",
        ),
        (counts(v0=9, v1=5, v2=5, v255=1), (*NAMES, "c"), "so 'c' never occurs", "label_values=[0,1,2], or if"),
        (counts(v0=100), NAMES, "so no pixel has a class", "give the values of the 2 classes by --set label_values"),
        (counts(v0=90, v255=10), tuple(map(str, range(150))), "classes are 1 to 150", "name yours in classes.txt"),
    ],
)
def test_values_that_cannot_be_meant(found: Any, names: tuple[str, ...], reason: str, remedy: str) -> None:
    with pytest.raises(DataError) as error:
        check_values(Path("maps"), found, names, None, training=True)
    assert "maps: the label maps have the value" in str(error.value)
    assert reason in str(error.value)
    assert remedy in str(error.value)


@pytest.mark.parametrize(
    ("found", "names", "label_values", "training"),
    [
        (counts(v1=90, v2=10), NAMES, None, True),
        (counts(v0=5, v1=90, v2=10, v255=5), NAMES, None, True),
        (counts(v0=5, v1=9, v2=9, v4=9), ("a", "b", "c", "d"), None, True),  # a class that is missing, but not the last
        (counts(v1=9, v2=9), (*NAMES, "c"), None, True),
        (counts(v0=9, v1=9, v2=9), (*NAMES, "c"), [1, 2, 3], True),  # as confirmed
        (counts(v0=90, v255=10), NAMES, [0, 255], True),
        (counts(v1=100), NAMES, None, False),  # few images to validate on
    ],
)
def test_values_that_can_be_meant(found: Any, names: Any, label_values: Any, training: bool) -> None:
    check_values(Path("maps"), found, names, label_values, training=training)


def test_given_values_must_occur() -> None:
    with pytest.raises(DataError, match="so no pixel has a class"):
        check_values(Path("maps"), counts(v0=9), NAMES, [1, 2], training=False)
    with pytest.raises(DataError, match="so 'background' is the only class"):
        check_values(Path("maps"), counts(v0=9), NAMES, [0, 255], training=True)
