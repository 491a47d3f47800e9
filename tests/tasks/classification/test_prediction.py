from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import vmamba
from vmamba.errors import ImageError
from vmamba.tasks.classification.prediction import class_names, eval_transform, predict


class MeanColour(nn.Module):
    """Logits are the mean red, green and blue of the normalised image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.fixture
def colours(tmp_path: Path) -> list[Path]:
    paths = []
    for name, colour in (("r", (255, 0, 0)), ("g", (0, 255, 0)), ("b", (0, 0, 255))):
        paths.append(tmp_path / f"{name}.png")
        Image.new("RGB", (50, 40), colour).save(paths[-1])
    return paths


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_predictions_come_in_order_and_sorted(colours: list[Path], batch_size: int) -> None:
    model = MeanColour()
    predictions = list(predict(model, colours, transform=eval_transform(model, 32), topk=2, batch_size=batch_size))
    assert [p.path for p in predictions] == colours
    assert [p.classes[0] for p in predictions] == [0, 1, 2]
    for prediction in predictions:
        assert len(prediction.classes) == 2
        assert prediction.probabilities[0] > prediction.probabilities[1] > 0


def test_topk_is_at_most_all_and_probabilities_sum_to_one(colours: list[Path]) -> None:
    model = MeanColour()
    (first, *_) = predict(model, colours, transform=eval_transform(model, 32), topk=10)
    assert sorted(first.classes) == [0, 1, 2]
    assert sum(first.probabilities) == pytest.approx(1)


def test_unreadable_images_are_reported_and_the_others_done(colours: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    paths = [colours[0], tmp_path / "broken.png", colours[2]]
    model, failures = MeanColour(), []

    def on_error(path: str, error: Exception) -> None:
        failures.append((path, error))

    predictions = list(predict(model, paths, transform=eval_transform(model, 32), on_error=on_error))
    assert [p.path for p in predictions] == [colours[0], colours[2]]
    ((path, error),) = failures
    assert path == str(paths[1])
    assert isinstance(error, ImageError)
    with pytest.raises(ImageError, match=r"broken\.png"):
        list(predict(model, paths, transform=eval_transform(model, 32)))


def test_impossible_numbers(colours: list[Path]) -> None:
    with pytest.raises(ValueError, match="topk must be at least 1, got 0"):
        list(predict(MeanColour(), colours, transform=eval_transform(MeanColour()), topk=0))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        predict(MeanColour(), colours, transform=eval_transform(MeanColour()), batch_size=0)


def test_transform_is_the_published_preprocessing() -> None:
    """Short side to 256, bicubic; centre 224; ImageNet mean and deviation."""
    ramp = np.linspace(0, 255, 512 * 512 * 3).reshape(512, 512, 3).astype(np.uint8)
    image = Image.fromarray(ramp)
    model = vmamba.create_model("vmamba_pico")
    resized = image.resize((256, 256), Image.Resampling.BICUBIC).crop((16, 16, 240, 240))
    pixels = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(eval_transform(model)(image), (pixels - mean) / std, atol=1e-6, rtol=0)
    assert eval_transform(model, 64)(image).shape == (3, 64, 64)


def test_class_names(tmp_path: Path) -> None:
    assert class_names(1000)[0].startswith("tench")
    assert class_names(2) == ["class 0", "class 1"]
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    assert class_names(2, labels) == ["cat", "dog"]
    with pytest.raises(ValueError, match=r"labels\.txt: has 2 labels, the model 3 classes; one per line"):
        class_names(3, labels)
    with pytest.raises(ValueError, match="cannot read labels: No such file"):
        class_names(2, tmp_path / "none.txt")
