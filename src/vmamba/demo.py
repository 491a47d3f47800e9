"""A first look: train `vmamba_pico` on handwritten digits as anyone would train on photographs, and draw what it sees.

The digits are the 1797 images of 8×8 pixels that ship inside scikit-learn, so nothing is downloaded.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vmamba.checkpoints.info import info_of
from vmamba.data.images import find_images, read_image
from vmamba.data.shapes import CLASSES, single_shapes
from vmamba.errors import MissingPackageError
from vmamba.progress import remark
from vmamba.tasks.classification.pictures import Tile, caption, draw_sheet
from vmamba.tasks.classification.prediction import Prediction, eval_transform, predict
from vmamba.training.distributed import Processes
from vmamba.training.loop import train
from vmamba.training.recipe_files import load_recipe
from vmamba.zoo import model_from_checkpoint

#: Of the recipe `scratch`: enough for digits, and quick.
SETTINGS = {"model": "vmamba_pico", "image_size": 64, "warmup_epochs": 0.5, "workers": 1}
#: The same for shapes.
SHAPES_SETTINGS = {**SETTINGS, "warmup_epochs": 1, "epochs": 12, "batch_size": 32, "lr": 2e-3, "hflip": 0.5}
SHOWN = 24


@dataclass(frozen=True)
class DemoFiles:
    """Results of the demo.

    Attributes:
        weights: The trained model, with its description beside it.
        images: Folder of the held-out digits that it is least sure of.
        picture: Drawing of these, with predictions.
        accuracy: Fraction of the held-out digits that are classified correctly.
        photograph: A natural image, of which the model knows nothing.
    """

    weights: Path
    images: Path
    picture: Path
    accuracy: float
    photograph: Path


@dataclass(frozen=True)
class DemoShapes:
    """A model that tells shapes apart.

    Attributes:
        weights: The trained model, with its description beside it.
        images: Some held-out pictures of every class.
    """

    weights: Path
    images: list[Path]


def run(output: Path, *, epochs: int = 12, seed: int = 0, device: torch.device | None = None) -> DemoFiles:
    """Write the digits as class folders, train, and look at the predictions for those held out.

    Args:
        output: Folder for everything. A demo that was stopped there goes on, a finished one is only shown.
        epochs: Passes over the 1437 training images.
        seed: Of the weights, the order of the images and the augmentation; the split is always the same.
        device: Where to train; None for the CPU.

    Raises:
        MissingPackageError: If scikit-learn or matplotlib are not installed.
    """
    digits = write_digits(output / "digits")
    recipe = load_recipe("scratch", {**SETTINGS, "data": digits, "epochs": epochs, "seed": seed})
    train(recipe, output / "run", Processes(device or torch.device("cpu")), resume="auto")

    weights = output / "run" / "weights" / "model.safetensors"
    model = model_from_checkpoint(weights)
    names = info_of(model).class_names
    paths = find_images([digits / "val"])
    predictions = list(predict(model, paths, transform=eval_transform(model), topk=1, batch_size=64))
    right = [names[p.classes[0]] == _truth(p.path) for p in predictions]
    accuracy = sum(right) / len(right)
    remark(f"accuracy on {len(right)} held-out digits: {accuracy:.1%}")

    hardest = sorted(predictions, key=lambda p: p.probabilities[0])[:SHOWN]
    photograph = write_photograph(output / "flower.png")
    files = DemoFiles(weights, output / "images", output / "predictions.png", accuracy, photograph)
    files.images.mkdir(exist_ok=True)
    for earlier in files.images.glob("digit_*_is_*.png"):  # and nothing else that may lie there
        earlier.unlink()
    for prediction in hardest:
        shutil.copy(prediction.path, files.images / f"digit_{prediction.path.stem}_is_{_truth(prediction.path)}.png")
    draw(files.picture, hardest, accuracy)
    remark(f"wrote the {SHOWN} hardest held-out digits into {files.images}, a picture of them: {files.picture}")
    return files


def run_shapes(output: Path) -> DemoShapes:
    """Train on pictures of single shapes, to tell discs, squares, triangles and stars apart.

    Args:
        output: As for `run`.
    """
    folder = output / "single_shapes"
    for split, number, seed in (("train", 1600, 0), ("val", 200, 1)):
        for i, (image, label) in enumerate(single_shapes(number, 64, seed=seed)):
            path = folder / split / label / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    recipe = load_recipe("scratch", {**SHAPES_SETTINGS, "data": folder})
    train(recipe, output / "run_shapes", Processes(torch.device("cpu")), resume="auto")
    weights = output / "run_shapes" / "weights" / "model.safetensors"
    return DemoShapes(weights, [path for label in CLASSES for path in sorted((folder / "val" / label).iterdir())[:3]])


def write_digits(folder: Path) -> Path:
    """Write scikit-learn's digits, 64×64 pixels, as ``train/CLASS/*.png`` and a fifth of them as ``val/CLASS/*.png``.

    Raises:
        MissingPackageError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise MissingPackageError("scikit-learn", "demo") from None
    digits = load_digits()
    splits = train_test_split(np.arange(len(digits.target)), test_size=0.2, random_state=0, stratify=digits.target)
    for split, chosen in zip(("train", "val"), splits, strict=True):
        for i in chosen:
            path = folder / split / str(digits.target[i]) / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            _picture(digits.images[i]).save(path)
    return folder


def write_photograph(path: Path) -> Path:
    """Write the flower that ships inside scikit-learn, "flower.jpg" by dany13 (CC BY 2.0), cropped to a square.

    Raises:
        MissingPackageError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_sample_image
    except ImportError:
        raise MissingPackageError("scikit-learn", "demo") from None
    image = Image.fromarray(load_sample_image("flower.jpg"))  # 640×427
    image.crop((107, 0, 534, 427)).resize((224, 224)).save(path)
    return path


def draw(path: Path, predictions: list[Prediction], accuracy: float) -> None:
    """Draw digits with what they are taken for, mistakes in bold.

    Raises:
        MissingPackageError: If matplotlib is not installed.
    """
    tiles = []
    for prediction in predictions:
        guess, truth = str(prediction.classes[0]), _truth(prediction.path)
        text = caption(guess, prediction.probabilities[0]) + ("" if guess == truth else f"\nis {truth}")
        tiles.append(Tile(np.asarray(read_image(prediction.path)), text, wrong=guess != truth))
    title = f"The {len(tiles)} held-out digits that vmamba_pico is least sure of · {accuracy:.1%} correct overall"
    draw_sheet(path, tiles, title, extra="demo")


def _truth(path: Path) -> str:
    """The class of an image: its folder."""
    return path.parent.name


def _picture(pixels: NDArray[np.float64]) -> Image.Image:
    """8×8 ink from 0 to 16 → 64×64 RGB, dark ink on white."""
    grey = (255 - pixels * (255 / 16)).round().astype(np.uint8)
    return Image.fromarray(grey).resize((64, 64), Image.Resampling.BICUBIC).convert("RGB")
