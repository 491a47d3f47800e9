"""The teacher's answers, the losses against closed forms, and a student that has no labels to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from support.runs import CLASSES, write_images
from vmamba.checkpoints.info import Preprocessing
from vmamba.checkpoints.saving import save_weights
from vmamba.errors import CheckpointError, OptionError
from vmamba.tasks.classification.distillation import Teacher, features_loss, logits_loss
from vmamba.tasks.classification.options import ClassificationOptions
from vmamba.tasks.classification.task import Classification
from vmamba.tasks.protocol import Job
from vmamba.zoo import create_model

OURS: dict[str, Any] = {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}


@pytest.fixture
def convnext(tmp_path: Path) -> tuple[torch.nn.Module, Path]:
    torch.manual_seed(0)
    model = timm.create_model("test_convnext", num_classes=4).eval()
    path = tmp_path / "convnext.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    return model, path


def test_teacher_of_timm(convnext: tuple[torch.nn.Module, Path]) -> None:
    """It sees the image in its own normalisation and size, and is not trained."""
    model, path = convnext
    prepared = Preprocessing(32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    cfg: Any = model.pretrained_cfg
    pixels = torch.rand(3, 3, 64, 64)

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    logits, features = Teacher("test_convnext", str(path), 4, prepared)(normalised(prepared.mean, prepared.std))
    torch.testing.assert_close(logits, model(normalised(cfg["mean"], cfg["std"])), rtol=1e-4, atol=1e-5)
    assert features.ndim == 2
    assert not logits.requires_grad
    resized, _ = Teacher("test_convnext", str(path), 4, prepared, 96)(normalised(prepared.mean, prepared.std))
    assert resized.shape == (3, 4)
    assert not torch.allclose(resized, logits)


def test_teacher_of_ours(tmp_path: Path) -> None:
    model = create_model("vmamba_pico", num_classes=4).eval()
    path = save_weights(model, tmp_path / "model.safetensors", preprocessing=Preprocessing())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(Teacher("vmamba_pico", str(path), 4, Preprocessing())(images)[0], model(images))
    with pytest.raises(CheckpointError, match="the teacher knows 4 classes, the data have 7"):
        Teacher("vmamba_pico", str(path), 7, Preprocessing())


def test_errors(convnext: tuple[torch.nn.Module, Path]) -> None:
    _, path = convnext
    with pytest.raises(OptionError, match="timm has no model 'test_convnex'; do you mean 'test_convnext"):
        Teacher("test_convnex", str(path), 4, Preprocessing())
    with pytest.raises(CheckpointError, match="does not fit the teacher test_convnext with 5 classes") as caught:
        Teacher("test_convnext", str(path), 5, Preprocessing())
    assert "\n" not in str(caught.value)
    with pytest.raises(OptionError, match="teacher and teacher_checkpoint go together"):
        ClassificationOptions(teacher="resnet18")


def test_logits_loss() -> None:
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    p, q = (torch.softmax(x.double() / 4, 1) for x in (teacher, student))
    expected = 16 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(logits_loss(student, teacher, 4.0).double(), expected, rtol=1e-5, atol=1e-7)
    assert logits_loss(teacher + 3, teacher, 2.0).abs() < 1e-6  # the softmax knows no shift


def test_features_loss() -> None:
    """Nothing for the same features turned, scaled or embedded in more dimensions; 4 for opposite similarities."""
    features = torch.randn(6, 4)
    turn = torch.linalg.qr(torch.randn(9, 9)).Q[:4]
    assert features_loss(3 * features @ turn, features) < 1e-5
    assert features_loss(torch.randn(6, 4), features) > 0.1
    one = torch.tensor([[1.0], [1.0]])
    assert features_loss(one, torch.tensor([[1.0], [-1.0]])) == pytest.approx(2.0)


def test_student(convnext: tuple[torch.nn.Module, Path], tmp_path: Path) -> None:
    """Its loss is made of three, reaches every parameter, and goes down without any label; the teacher stays."""
    teacher, path = convnext
    write_images(tmp_path / "images", "train", 4)
    write_images(tmp_path / "images", "val", 2)
    job = Job(data=str(tmp_path / "images"), model="vmamba_pico", model_options=OURS, batch_size=16, workers=0)
    options = ClassificationOptions(
        teacher="test_convnext", teacher_checkpoint=str(path), teacher_weight=1.0, image_size=32, label_smoothing=0.0
    )
    task = Classification(job, options)
    task.setup()
    torch.manual_seed(0)
    model = task.build_model().train()
    assert len(CLASSES) == task.num_classes == 4
    assert set(model.state_dict()) == set(create_model("vmamba_pico", num_classes=4, **OURS).state_dict())
    batch: Any = next(iter(task.train_loader().batches(0)))
    losses = task.loss(model, batch)
    assert losses["loss"] == losses["teacher_logits"] + losses["teacher_features"]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(30):
        loss = task.loss(model, batch)["loss"]
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.5 * losses["loss"]
    for name, weights in teacher.state_dict().items():
        assert task._teacher is not None
        assert torch.equal(weights, task._teacher.model.state_dict()[name])
