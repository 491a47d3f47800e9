"""Broken data of every kind, each read as a task would read it: it is refused in one line, or read rightly."""

from __future__ import annotations

import io
import json
import math
import random
import re
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from support.coco import content, perfect_detections
from support.fuzzing import mutate_bytes, mutate_json, mutate_value
from vmamba import VMambaConfig
from vmamba.cli.explanation import explain
from vmamba.data.coco import CocoInstances, Split
from vmamba.data.image_dataset import read_file
from vmamba.data.image_folder import ImageFolder
from vmamba.data.images import read_image
from vmamba.data.label_maps import label_table, read_labels
from vmamba.data.masks import encode_mask
from vmamba.data.shard_files import find_shards
from vmamba.data.shards import read_shards
from vmamba.errors import ImageError, VMambaError
from vmamba.tasks.detection.average_precision import average_precision
from vmamba.terminal import printable

#: Larger images are refused, so that thousands can be tried.
MAX_PIXELS = 1 << 20
#: Formats in which Pillow writes what it reads.
FORMATS = ("png", "jpg", "gif", "bmp", "tiff", "webp", "ppm", "ico", "jp2", "tga", "pcx", "sgi", "dds", "icns")


#: In no message: the words of a system or of Python, and what would move the cursor.
_UNFIT = re.compile(r"Traceback|\[Errno| object at 0x|[\x00-\x1f\x7f]")


def refused(read: Callable[[], object], place: Path) -> bool:
    """True where `read` ends in an error that a user can cause; other errors are raised.

    Args:
        read: Reads an input.
        place: A file or folder that the error must name, in one short line.
    """
    try:
        read()
    except (VMambaError, OSError) as error:
        message = explain(error) or ""
        assert str(place) in message, message
        assert not _UNFIT.search(printable(message)), message
        assert "\n" not in message, message
        assert len(message) < 3000, message
        return True
    return False


class CocoFuzzer:
    """Annotation files, trained on and evaluated with a detector that makes no error.

    Args:
        folder: For the files.
    """

    def __init__(self, folder: Path) -> None:
        self.split = Split(folder / "instances_val.json", folder / "val")
        self.split.images.mkdir(parents=True)
        self.content = content()
        mask = torch.zeros(40, 50, dtype=torch.uint8)
        mask[3:20, 10:30] = 1
        runs = encode_mask(mask)
        plain = {"size": [40, 50], "counts": [403, 17, *[23, 17] * 19, 820]}
        for i, segmentation in ((7, runs), (8, plain)):
            entry = {"image_id": i, "category_id": 3, "bbox": [10.0, 3.0, 20.0, 17.0], "iscrowd": i - 7}
            self.content["annotations"].append({"id": i, "area": 340.0, "segmentation": segmentation, **entry})
            Image.new("RGB", (50, 40)).save(self.split.images / f"{i}.png")
        self.content["categories"].append({"id": 4, "name": "other"})
        self._use(json.dumps(self.content).encode())

    def run(self, rng: random.Random) -> bool:
        """Try one; True where it was refused."""
        self.split.annotations.write_bytes(mutate_json(rng, self.content))
        return refused(lambda: self._use(self.split.annotations.read_bytes()), self.split.images.parent)

    def _use(self, text: bytes) -> None:
        self.split.annotations.write_bytes(text)
        evaluated = CocoInstances(self.split, training=False)
        evaluated.summary("val")
        seen = set()
        for i in range(len(evaluated)):
            try:
                seen.add(evaluated[i]["id"])
            except ImageError:
                continue
        numbers = average_precision(evaluated.file, perfect_detections(evaluated.file, seen), seen)
        for name in ("box_ap", "mask_ap"):
            assert math.isnan(numbers[name]) or numbers[name] > 99.9, numbers
        trained = CocoInstances(self.split, training=True)
        for i in range(len(trained)):
            try:
                sample = trained[i]
            except ImageError:
                continue
            self._check(sample)

    def _check(self, sample: dict[str, Any]) -> None:
        height, width = sample["size"]
        boxes = sample["boxes"]
        assert boxes.isfinite().all()
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert sample["masks"].shape == (len(boxes), height, width)
        assert sample["masks"].max() <= 1


class ImageFuzzer:
    """Image files of every format that Pillow writes.

    Args:
        folder: For the files.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "image"
        noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
        self.files = []
        for ending in FORMATS:
            for mode in ("RGB", "P", "L", "I;16", "1", "CMYK", "RGBA"):
                image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257) if mode == "I;16" else None
                buffer = io.BytesIO()
                try:
                    (image or Image.fromarray(noise).convert(mode)).save(
                        buffer, Image.registered_extensions()[f".{ending}"], exif=_exif()
                    )
                except (OSError, ValueError, KeyError, TypeError):  # not in this mode
                    continue
                self.files.append(buffer.getvalue())

    def run(self, rng: random.Random) -> bool:
        """Try one; True where it was refused."""
        self.path.write_bytes(mutate_bytes(rng, rng.choice(self.files)))
        return refused(self._use, self.path)

    def _use(self) -> None:
        image = read_image(self.path, max_pixels=MAX_PIXELS)
        assert image.mode == "RGB"
        assert image.width * image.height <= MAX_PIXELS
        assert np.asarray(image).shape == (image.height, image.width, 3)
        assert not image.info


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


class LabelMapFuzzer:
    """Label maps: those read hold nothing but classes.

    Args:
        folder: For the files.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "labels.png"
        values = np.random.default_rng(0).integers(0, 4, (24, 32), np.uint8)
        self.files = []
        for image in (
            Image.fromarray(values),
            Image.fromarray(values.astype(np.uint16)),
            Image.fromarray(values % 2 > 0),
        ):
            for kind in ("PNG", "TIFF", "BMP"):
                buffer = io.BytesIO()
                try:
                    image.save(buffer, kind)
                except OSError:  # not in this mode
                    continue
                self.files.append(buffer.getvalue())

    def run(self, rng: random.Random) -> bool:
        """Try one; True where it was refused."""
        self.path.write_bytes(mutate_bytes(rng, rng.choice(self.files)))
        return refused(self._use, self.path)

    def _use(self) -> None:
        labels = read_labels(self.path, label_table(3), max_pixels=MAX_PIXELS)
        assert labels.ndim == 2
        assert set(np.unique(labels).tolist()) <= {0, 1, 2, 255}


class TarFuzzer:
    """Tar files of class folders, and tar files within.

    Args:
        folder: For the files.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "train.tar"
        picture = io.BytesIO()
        Image.new("RGB", (8, 8)).save(picture, "PNG")
        self.whole = _tar({f"{name}/{i}.png": picture.getvalue() for name in ("cat", "dog", "é" * 120) for i in (1, 2)})
        self.whole = _tar({"cat/1.png": picture.getvalue(), "dog.tar": self.whole})

    def run(self, rng: random.Random) -> bool:
        """Try one; True where it was refused."""
        self.path.write_bytes(mutate_bytes(rng, self.whole))
        return refused(self._use, self.path)

    def _use(self) -> None:
        files = ImageFolder(self.path)
        assert len(files) == len(files.labels) > 0
        assert set(files.labels.tolist()) == set(files.classes.values())
        for i in range(len(files)):
            refused(partial(read_file, files, i), self.path)


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class RecipeFuzzer:
    """Recipes: those that are accepted survive being written and read again.

    Args:
        folder: For the files.
    """

    def __init__(self, folder: Path) -> None:
        from vmamba.training.recipe_files import list_recipes, load_recipe

        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.load = folder / "recipe.yaml", load_recipe
        self.recipes = [load_recipe(name).as_dict() for name in list_recipes()]

    def run(self, rng: random.Random) -> bool:
        """Try one; True where it was refused."""
        import yaml

        values = rng.choice(self.recipes)
        text = yaml.safe_dump(mutate_value(rng, values), allow_unicode=True).encode("utf-8", "replace")
        self.path.write_bytes(text if rng.random() < 0.8 else mutate_bytes(rng, yaml.safe_dump(values).encode()))
        return refused(self._use, self.path)

    def _use(self) -> None:
        recipe = self.load(str(self.path))
        self.path.write_text(recipe.to_yaml(), encoding="utf-8")
        assert self.load(str(self.path)) == recipe


class CheckpointFuzzer:
    """Checkpoints, see `support.checkpoint_fuzzing`.

    Args:
        folder: For the files.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def run(self, rng: random.Random) -> bool:
        """Try one; True where it was refused."""
        from support import checkpoint_fuzzing

        path = checkpoint_fuzzing.write(rng.randrange(2**40), self.folder)
        outcome = checkpoint_fuzzing.outcome(path)
        for file in self.folder.iterdir():
            file.unlink()
        return outcome == "refused"


class ShardFuzzer:
    """WebDataset shards, with and without an information file.

    Args:
        folder: For the files.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path, self.information = folder, folder / "train.tar", folder / "_info.json"
        picture = io.BytesIO()
        Image.new("RGB", (8, 8)).save(picture, "PNG")
        self.whole = _tar({f"{i}.{e}": d for i in range(4) for e, d in (("png", picture.getvalue()), ("cls", b"1"))})
        self.content = {"splits": {"train": {"filenames": ["train.tar"], "shard_lengths": [4]}}}

    def run(self, rng: random.Random) -> bool:
        """Try one; True where it was refused."""
        self.information.unlink(missing_ok=True)
        described = rng.random() < 0.5
        self.path.write_bytes(self.whole if described and rng.random() < 0.7 else mutate_bytes(rng, self.whole))
        if described:
            self.information.write_bytes(mutate_json(rng, self.content))
        return refused(self._use, self.folder)

    def _use(self) -> None:
        shards = find_shards(str(self.folder), "train")
        assert isinstance(shards.samples, int)
        assert shards.samples >= 0
        good, problems = read_shards(shards, 2, MAX_PIXELS)
        assert good <= 4 * len(shards.urls)
        unfit = [line for line in problems if str(self.folder) not in line or _UNFIT.search(line)]
        assert not unfit, unfit


class ConfigurationFuzzer:
    """The authors' YAML files, and configurations as JSON: those accepted survive being written and read again.

    Args:
        folder: For the files.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "model.yaml"
        vssm = {"EMBED_DIM": 96, "DEPTHS": [2, 2, 8, 2], "SSM_D_STATE": 1, "SSM_DT_RANK": "auto", "SSM_RATIO": 1.0}
        more = {"SSM_CONV": 3, "SSM_CONV_BIAS": False, "SSM_FORWARDTYPE": "v05_noz", "MLP_RATIO": 4.0}
        last = {"DOWNSAMPLE": "v3", "PATCHEMBED": "v2", "NORM_LAYER": "ln2d", "SSM_ACT_LAYER": "silu"}
        model = {"TYPE": "vssm", "NAME": "a", "DROP_PATH_RATE": 0.2, "VSSM": {**vssm, **more, **last}}
        self.authors = {"MODEL": model, "TRAIN": {"EPOCHS": 300}}

    def run(self, rng: random.Random) -> bool:
        """Try one; True where it was refused."""
        import yaml

        if rng.random() < 0.5:
            text = mutate_json(rng, json.loads(VMambaConfig().to_json())).decode("utf-8", "replace")
            return refused(lambda: self._round_trip(text), Path("VMambaConfig"))
        whole = yaml.safe_dump(self.authors).encode()
        changed = yaml.safe_dump(mutate_value(rng, self.authors), allow_unicode=True).encode("utf-8", "replace")
        self.path.write_bytes(changed if rng.random() < 0.8 else mutate_bytes(rng, whole))
        return refused(lambda: self._round_trip(VMambaConfig.from_author_yaml(self.path).to_json()), self.path)

    def _round_trip(self, text: str) -> None:
        config = VMambaConfig.from_json(text)
        assert VMambaConfig.from_json(config.to_json()) == config


class RunFuzzer:
    """Checkpoints of a run that is continued, and its tables.

    Args:
        folder: For the files.
    """

    def __init__(self, folder: Path) -> None:
        from vmamba.training.checkpoints import FORMAT
        from vmamba.training.recipe import Recipe
        from vmamba.training.state import Position

        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path, self.table = folder, folder / "step_00000004.pt", folder / "steps.csv"
        self.recipe = Recipe.of({"epochs": 30})
        state = self._state()
        state.optimizer.step()
        head = {"format": FORMAT, "recipe": self.recipe.as_dict(), "position": asdict(Position(4, 1, 1, 50.0))}
        self.content = {**head, **state.whole()}
        self.rows = "step,epoch,loss\n1,0.2,3.5\n2,0.5,2.5\n3,0.75,1e-3\n4,1,nan\n"

    def _state(self) -> Any:
        from vmamba.training.state import TrainState

        model = torch.nn.Linear(2, 2)
        model(torch.ones(1, 2)).sum().backward()
        return TrainState(model, torch.optim.AdamW(model.parameters()), torch.amp.GradScaler("cpu", enabled=False))

    def run(self, rng: random.Random) -> bool:
        """Try one; True where it was refused."""
        buffer = io.BytesIO()
        torch.save(mutate_value(rng, self.content) if rng.random() < 0.6 else self.content, buffer)
        self.path.write_bytes(mutate_bytes(rng, buffer.getvalue()) if rng.random() < 0.5 else buffer.getvalue())
        self.table.write_bytes(mutate_bytes(rng, self.rows.encode()))
        self._mend()
        return refused(self._use, self.path)

    def _use(self) -> None:
        from vmamba.training.distributed import Processes
        from vmamba.training.run_folder import RunFolder
        from vmamba.training.state import Position

        content = RunFolder(self.folder, 2).read(str(self.path), self.recipe, lambda line: None)
        assert content is not None
        position = Position(**content["position"])
        assert min(position.step, position.epoch, position.step_in_epoch) >= 0
        state = self._state()
        state.optimizer.zero_grad()
        state.load(content, Processes(torch.device("cpu")))
        state.optimizer.step()

    def _mend(self) -> None:
        from vmamba.training.tables import Table, read_table

        table = Table(self.table, 4)
        table.add({"step": 5, "epoch": 1.2, "loss": 1.0})
        rows, damaged = read_table(self.table)
        assert not damaged
        assert int(float(rows[-1]["step"])) == 5


#: Kind of input → what tries it.
KINDS: dict[str, Callable[[Path], Any]] = {
    "coco": CocoFuzzer,
    "image": ImageFuzzer,
    "label_map": LabelMapFuzzer,
    "tar": TarFuzzer,
    "recipe": RecipeFuzzer,
    "checkpoint": CheckpointFuzzer,
    "shard": ShardFuzzer,
    "configuration": ConfigurationFuzzer,
    "run": RunFuzzer,
}


def generator(kind: str, seed: int, number: int) -> random.Random:
    """The random numbers of one input, whatever was tried before it."""
    return random.Random(f"{kind}/{seed}/{number}")
