"""Files: what is no file is not opened, and errors of writing say where."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from vmamba import VMambaConfig, files
from vmamba.checkpoints.info import read_info
from vmamba.cli.explanation import explain
from vmamba.data.class_names import read_class_list
from vmamba.data.coco_file import read_coco
from vmamba.data.segmentation_folder import class_list
from vmamba.data.shard_files import find_shards
from vmamba.data.tar import list_tar
from vmamba.errors import system_reason
from vmamba.files import atomic_write, require_file
from vmamba.tasks.classification.prediction import class_names
from vmamba.training.checkpoints import read_run_checkpoint
from vmamba.training.recipe_files import load_recipe
from vmamba.training.tables import Table

READERS: dict[str, Callable[[Path], object]] = {
    "recipe.yaml": lambda path: load_recipe(str(path)),
    "authors.yaml": VMambaConfig.from_author_yaml,
    "labels.txt": lambda path: class_names(3, path),
    "names.txt": read_class_list,
    "classes.txt": lambda path: class_list(path.parent),
    "run.pt": read_run_checkpoint,
    "train.json": read_coco,
    "train.tar": lambda path: list_tar(str(path), Counter()),
    "shard_val.tar": lambda path: find_shards(str(path.parent), "val"),
    "weights.json": lambda path: read_info(path.with_suffix(".safetensors")),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such things here")
@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_refused_instead_of_waiting(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises((OSError, ValueError, RuntimeError)) as caught:
        READERS[name](tmp_path / name)
    line = explain(caught.value) or ""
    assert line.startswith(str(tmp_path / name))
    assert line.endswith("it is a pipe, socket or device, not a file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such things here")
def test_a_pipe_beside_weights_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    assert read_info(tmp_path / "weights.safetensors") is None


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        require_file(tmp_path)
    assert explain(caught.value) == f"{tmp_path}: it is a folder; name a file, not a folder"
    with pytest.raises(FileNotFoundError) as missing:
        require_file(tmp_path / "none")
    assert explain(missing.value) == (
        f"{tmp_path}/none: No such file or directory; check the spelling and the current folder"
    )


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_while_a_file_is_written(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system names no file then; the error does, and says what to do."""

    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    path = tmp_path / "results.csv"
    path.write_text("before")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="results") as caught, atomic_write(path) as file:
        file.write(b"after")
    assert (explain(caught.value) or "").startswith(f"{path}: {os.strerror(code)}; make room")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["before"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_a_disk_that_is_full_while_a_table_grows(tmp_path: Path) -> None:
    table = Table(tmp_path / "steps.csv")
    table.path = Path("/dev/full")
    with pytest.raises(OSError, match="full") as caught:
        table.add({"step": 1, "loss": 2})
    assert (explain(caught.value) or "").startswith("/dev/full: No space left on device; make room on the disk")


def test_remedies_are_for_errors_of_the_system() -> None:
    assert system_reason(OSError("odd")) == "odd"
    assert system_reason(OSError(errno.EIO, "Input/output error")) == "Input/output error"


@pytest.mark.skipif(os.name != "posix", reason="other systems have other permissions")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_are_those_of_other_files(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "a") as file:
            file.write(b"a")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    with pytest.raises(IsADirectoryError) as caught, atomic_write(tmp_path / "results") as file:
        file.write(b"a")
    assert explain(caught.value) == f"{tmp_path}/results: Is a directory; name a file, not a folder"
    assert [p.name for p in tmp_path.iterdir()] == ["results"]
