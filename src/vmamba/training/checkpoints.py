"""The checkpoints in a run's folder: whole or not there, and proved whole before they are used."""

from __future__ import annotations

import json
import os
import re
import reprlib
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, JsonValue, Strict, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from vmamba.errors import CheckpointError
from vmamba.files import atomic_write, remove_leftovers, require_file
from vmamba.training.state import Position

FORMAT = 1
_NAME = re.compile(r"step_(\d+)\.pt")


class Checkpoints:
    """The folder of a run's checkpoints: ``step_00001234.pt``, the newest few, and ``best.pt``.

    Args:
        folder: Where they are.
        keep: How many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[Path]:
        """All but the best, oldest first."""
        paths = self.folder.glob("step_*.pt") if self.folder.is_dir() else iter(())
        return sorted((p for p in paths if _NAME.fullmatch(p.name)), key=lambda p: int(p.stem.split("_")[1]))

    def save(self, state: Mapping[str, Any], position: Position, recipe: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove the oldest beyond `keep`; the path.

        Raises:
            CheckpointError: If it cannot be written; the earlier ones are untouched.
        """
        path = self.folder / f"step_{position.step:08d}.pt"
        content = {"format": FORMAT, "recipe": dict(recipe), "position": asdict(position), **state}
        try:
            with atomic_write(path) as file:
                torch.save(content, file)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as either
            earlier = [p for p in self.steps() if p != path]
            kept = f"{earlier[-1]} is untouched" if earlier else "there is no earlier checkpoint"
            raise CheckpointError(
                f"{path}: cannot save the checkpoint: {_reason(error)}; {kept}: make room and continue with "
                "--resume auto"
            ) from None
        for old in self.steps()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def mark_validated(self, position: Position, best: bool) -> None:
        """Note that the epoch that ends in the newest checkpoint is validated, and whether it is the best so far.

        Raises:
            CheckpointError: If that cannot be written.
        """
        try:
            if best:
                self._copy_as_best(self.steps()[-1])
            with atomic_write(self._validated) as file:
                file.write(json.dumps({"step": position.step, "best": position.best}).encode())
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: cannot write: {_reason(error)}; step {position.step} is saved: make room and continue "
                "with --resume auto"
            ) from None

    def newest(self) -> tuple[Path, dict[str, Any], list[str]] | None:
        """The newest checkpoint that can be read, its content, and why newer ones could not; None without any.

        Raises:
            CheckpointError: If there are some and none can be read.
        """
        problems: list[str] = []
        for path in reversed(self.steps()):
            try:
                return path, self.read(path), problems
            except CheckpointError as error:
                problems.append(str(error))
        if problems:
            raise CheckpointError(f"{problems[0]}; no other one is left: start again in another --output folder")
        return None

    def read(self, path: Path) -> dict[str, Any]:
        """`read_run_checkpoint`, with what `mark_validated` has added."""
        content = read_run_checkpoint(path)
        position = content["position"]
        with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):  # else the epoch is validated again
            validated = json.loads(self._validated.read_bytes())
            if validated["step"] == position["step"]:
                content["position"] = {**position, "best": validated["best"], "to_validate": False}
        return content

    def remove_leftovers(self) -> None:
        """Remove what killed writers have left, those of the first release, too."""
        remove_leftovers(self.folder)
        for leftover in (*self.folder.glob(".step_*.pt.*"), *self.folder.glob(".best.pt.new")):
            leftover.unlink(missing_ok=True)

    @property
    def _validated(self) -> Path:
        return self.folder / "validated.json"

    def _copy_as_best(self, path: Path) -> None:
        name = self.folder / "best.pt"
        temporary = self.folder / ".writing-best.pt"
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            with path.open("rb") as source, atomic_write(name) as target:
                shutil.copyfileobj(source, target)
        else:
            os.replace(temporary, name)
            temporary.unlink(missing_ok=True)  # two names of one file are left as they are


def read_run_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of a run, its checksums verified.

    Raises:
        CheckpointError: If it cannot be read, is damaged, or is something else.
    """
    try:
        require_file(path)
        _verify(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:  # torch raises nearly anything on a damaged file
        raise CheckpointError(f"{path}: cannot read the checkpoint: {_reason(error)}") from None
    if not isinstance(content, dict) or not {"format", "recipe", "position", "model"} <= content.keys():
        raise CheckpointError(f"{path}: not the state of a training run; give weights as --checkpoint instead")
    if content["format"] != FORMAT:
        version = reprlib.repr(content["format"])
        raise CheckpointError(f"{path}: written by another version of vmamba (format {version})")
    try:
        return {**content, **_STATE.validate_python(content)}
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        place, got = ".".join(map(str, details["loc"])), reprlib.repr(details["input"])
        raise CheckpointError(f"{path}: not the state of a training run: {place} is {got}") from None


_Count = Annotated[int, Strict(), Field(ge=0, le=2**53)]


class _Position(TypedDict, total=False):
    """`Position`, as it is stored; the first release had fewer fields."""

    step: _Count
    epoch: _Count
    step_in_epoch: _Count
    best: Annotated[float, Strict()] | None
    to_validate: Annotated[bool, Strict()]


class _State(TypedDict):
    """The structure of a run's checkpoint; whether the tensors fit is seen when they are loaded."""

    recipe: dict[str, JsonValue]
    position: _Position
    model: dict[str, Any]
    model_ema: NotRequired[dict[str, Any] | None]
    optimizer: NotRequired[dict[str, Any]]
    scaler: NotRequired[dict[str, Any]]


_STATE = TypeAdapter(_State)


def _verify(path: Path) -> None:
    """Compare the contents of a zip file, which `torch.save` writes, with their checksums; torch does not."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"its checksum does not fit ({damaged}): the file is damaged")


def _reason(error: BaseException) -> str:
    for candidate in (error, error.__context__):
        if isinstance(candidate, OSError) and candidate.strerror:
            return candidate.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__
