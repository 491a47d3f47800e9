"""A first look: train `vmamba_pico` on handwritten digits, save it, and draw what it sees.

The digits are the 1797 images of 8×8 pixels that ship inside scikit-learn, so nothing is downloaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from vmamba.checkpoints.saving import save_weights
from vmamba.model.backbone import VMamba
from vmamba.tasks.classification.prediction import eval_transform
from vmamba.zoo import create_model

IMAGE_SIZE = 32
TEST_SHARE = 0.2
BATCH_SIZE = 64
SHOWN = 24


@dataclass(frozen=True)
class DemoFiles:
    """What the demo leaves behind.

    Attributes:
        weights: The trained model, with its configuration beside it.
        labels: Class names.
        images: Folder of held-out digits.
        picture: Drawing of predictions.
        accuracy: Share of the test images that were classified correctly.
    """

    weights: Path
    labels: Path
    images: Path
    picture: Path
    accuracy: float


def run(output: Path, *, epochs: int = 30, seed: int = 0) -> DemoFiles:
    """Train, test, save and draw.

    Args:
        output: Folder for the results, created if need be.
        epochs: Passes over the 1437 training images.
        seed: Of the weights, the order of the images and the augmentation; the split is always the same.

    Raises:
        ValueError: If scikit-learn or matplotlib are not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise ValueError("the demo needs scikit-learn and matplotlib: pip install 'vmamba[demo]'") from None

    torch.manual_seed(seed)
    model = cast(VMamba, create_model("vmamba_pico", num_classes=10, drop_path_rate=0.05))
    digits = load_digits()
    images = [_picture(pixels) for pixels in digits.images]
    transform = eval_transform(model, IMAGE_SIZE)
    x, y = torch.stack([transform(image) for image in images]), torch.from_numpy(digits.target)
    train, test = train_test_split(np.arange(len(y)), test_size=TEST_SHARE, random_state=0, stratify=digits.target)

    print(f"training vmamba_pico on {len(train)} handwritten digits, {epochs} epochs")
    _train(model, x[train], y[train], epochs)
    probabilities = _probabilities(model, x[test])
    accuracy = float((probabilities.argmax(1) == y[test]).float().mean())
    print(f"accuracy on {len(test)} held-out digits: {accuracy:.1%}")

    files = DemoFiles(
        output / "vmamba_pico_digits.safetensors",
        output / "labels.txt",
        output / "images",
        output / "predictions.png",
        accuracy,
    )
    save_weights(model, files.weights)
    files.labels.write_text("\n".join(map(str, digits.target_names)) + "\n")
    files.images.mkdir(exist_ok=True)
    hardest = probabilities.amax(1).argsort()[:SHOWN]
    shown = test[hardest]
    for i in shown:
        images[i].save(files.images / f"digit_{i:04d}_is_{digits.target[i]}.png")
    _draw(files.picture, [images[i] for i in shown], y[shown], probabilities[hardest], accuracy)
    print(f"wrote {files.weights}, the {SHOWN} hardest held-out digits in {files.images}, a picture: {files.picture}")
    return files


def _picture(pixels: NDArray[np.float64]) -> Image.Image:
    """8×8 ink from 0 to 16 → 64×64 RGB, dark ink on white."""
    grey = (255 - pixels * (255 / 16)).round().astype(np.uint8)
    return Image.fromarray(grey).resize((64, 64), Image.Resampling.BICUBIC).convert("RGB")


def _train(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = epochs * (len(x) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps, pct_start=0.2)
    model.train()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("loss –", total=steps, rate="")
        for _ in range(epochs):
            order = torch.randperm(len(x))[: steps // epochs * BATCH_SIZE]
            for batch in order.view(-1, BATCH_SIZE):
                loss = F.cross_entropy(model(_jitter(x[batch])), y[batch], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                schedule.step()
                speed = progress.tasks[task].speed or math.nan
                progress.update(
                    task, advance=1, description=f"loss {loss.item():.3f}", rate=f"{speed * BATCH_SIZE:4.0f} images/s"
                )


def _jitter(x: Tensor) -> Tensor:
    """Rotate, scale and shift every image a little: (B, 3, S, S) → (B, 3, S, S)."""
    angle = torch.empty(len(x)).uniform_(-0.2, 0.2)
    scale = torch.empty(len(x)).uniform_(0.9, 1.1)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    shift = torch.empty(len(x), 2, 1).uniform_(-0.12, 0.12)
    rotation = torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2)
    grid = F.affine_grid(torch.cat([rotation, shift], dim=2), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


@torch.inference_mode()
def _probabilities(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    return torch.cat([model(batch).softmax(1) for batch in x.split(BATCH_SIZE)])


def _draw(path: Path, images: list[Image.Image], truth: Tensor, probabilities: Tensor, accuracy: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(4, SHOWN // 4, figsize=(9, 7.2), layout="constrained")
    figure.suptitle(f"The {SHOWN} held-out digits that vmamba_pico is least sure of · {accuracy:.1%} correct overall")
    for axis, image, label, row in zip(grid.flat, images, truth.tolist(), probabilities, strict=True):
        probability, guess = row.max(0)
        right = int(guess) == label
        axis.imshow(image)
        axis.axis("off")
        verdict = f"{int(guess)}  ({probability:.0%})" + ("" if right else f"\nis {label}")
        axis.set_title(
            verdict, fontsize=11, color="black" if right else "#D55E00", fontweight="normal" if right else "bold"
        )
    figure.savefig(path, dpi=120)
    plt.close(figure)
