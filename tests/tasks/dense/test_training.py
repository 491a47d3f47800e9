"""Detection and segmentation on the training engine: falling losses, resuming, files, commands."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vmamba.checkpoints.saving import save_weights
from vmamba.cli import main
from vmamba.data.shapes import write_shapes
from vmamba.tasks.detection.checkpoint import load_detector
from vmamba.tasks.detection.task import Detection, DetectionOptions
from vmamba.tasks.protocol import Job
from vmamba.tasks.segmentation.checkpoint import load_segmenter
from vmamba.tasks.segmentation.task import Segmentation, SegmentationOptions
from vmamba.zoo import create_model

pytestmark = pytest.mark.slow

SMALL = {
    "detection": ["channels=16", "box_channels=32", "mask_channels=16", "proposals=30", "samples=32", "image_size=64"],
    "segmentation": ["channels=16", "auxiliary_channels=8", "crop=64", "image_size=64", "scale=[1,1]"],
}
FORMAT = {"detection": "coco", "segmentation": "ade20k"}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=16, val=4, image_size=64)
    return root


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def train(task: str, shapes: Path, output: Path, *more: object, settings: tuple[str, ...] = ()) -> int:
    chosen = [*SMALL[task], "max_size=128", "workers=0", "warmup_epochs=0", "batch_size=4", "log_every=1"]
    data = shapes / FORMAT[task]
    return run(
        "train", "--recipe", f"shapes/{task}", "--data", data, "--output", output, "--set", *chosen, *settings, *more
    )


def losses(output: Path) -> list[float]:
    with (output / "steps.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(("task", "precision"), [("detection", "bfloat16"), ("segmentation", "float32")])
def test_losses_fall_and_runs_resume(task: str, precision: str, shapes: Path, tmp_path: Path) -> None:
    settings = (f"precision={precision}", "epochs=6")
    assert train(task, shapes, tmp_path / "whole", settings=settings) == 0
    found = losses(tmp_path / "whole")
    assert len(found) == 24
    assert all(map(math.isfinite, found))
    assert sum(found[-8:]) < 0.93 * sum(found[:8])

    # Without its last checkpoint, the run continues from the one before, to the same losses and weights.
    saved = sorted((tmp_path / "whole" / "checkpoints").glob("*step*"))
    weights = (tmp_path / "whole" / "weights" / "model.safetensors").read_bytes()
    shutil.rmtree(saved[-1]) if saved[-1].is_dir() else saved[-1].unlink()
    assert train(task, shapes, tmp_path / "whole", "--resume", "auto", settings=settings) == 0
    assert losses(tmp_path / "whole") == found
    assert (tmp_path / "whole" / "weights" / "model.safetensors").read_bytes() == weights
    load = load_detector if task == "detection" else load_segmenter
    assert len(load(tmp_path / "whole" / "weights" / "model.safetensors").config.classes) in (4, 5)


def test_evaluate_and_look(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("detection", "segmentation"):
        assert train(task, shapes, tmp_path / task, settings=("epochs=1",)) == 0
    detector = tmp_path / "detection" / "weights" / "model.safetensors"
    segmenter = tmp_path / "segmentation" / "weights" / "model.safetensors"
    for task, weights, file in (
        ("detection", detector, "average_precision.csv"),
        ("segmentation", segmenter, "iou.csv"),
    ):
        output = tmp_path / f"evaluated_{task}"
        assert run("evaluate", "--recipe", f"shapes/{task}", "--data", shapes / FORMAT[task], "--checkpoint", weights,
                   "--batch-size", 2, "--workers", 0, "--output", output) == 0  # fmt: skip
        assert (output / file).is_file()
        assert (output / "results.csv").is_file()

    images = shapes / "coco" / "val"
    capsys.readouterr()
    assert run("detect", images, "--checkpoint", detector, "--image-size", 64, "--score", 0.05, "--output",
               tmp_path / "found", "--json") == 0  # fmt: skip
    rows = json.loads(capsys.readouterr().out)
    lines = (tmp_path / "found" / "detections.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    records = [record for row in rows for record in row["detections"]]
    assert records
    assert all(record["category"] in ("disc", "square", "triangle", "star") for record in records)
    assert len(list((tmp_path / "found").glob("*.png"))) == 4

    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no")
    assert run("segment", images, broken, "--checkpoint", segmenter, "--full-size", "--window", 48, "--output",
               tmp_path / "parts") == 1  # fmt: skip
    captured = capsys.readouterr()
    assert "vmamba: failed: cannot read the image" in captured.err
    for path in images.glob("*.jpg"):
        with Image.open(path) as image, Image.open(tmp_path / "parts" / f"{path.stem}_labels.png") as labels:
            assert image.size == labels.size
            assert labels.getextrema()[1] < 5

    for command, wrong, right in (("detect", segmenter, "vmamba segment"), ("segment", detector, "vmamba detect")):
        assert run(command, images, "--checkpoint", wrong) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert right in line


def test_starting_from_weights(shapes: Path, tmp_path: Path) -> None:
    """A classifier gives its backbone; a detector everything but its classes, or with them."""
    classifier = create_model("vmamba_pico", num_classes=3)
    path = save_weights(classifier, tmp_path / "classifier.safetensors")
    stem = classifier.state_dict()["stem.conv1.weight"]
    small = DetectionOptions(channels=16, box_channels=32, mask_channels=16)

    def detection(options: DetectionOptions, **job: Any) -> Any:
        task = Detection(Job(data=str(shapes / "coco"), batch_size=2, **job), options)
        task.setup()
        return task

    task = detection(small, checkpoint=str(path), model_options={"drop_path_rate": 0.1})
    detector = task.build_model()
    assert torch.equal(detector.state_dict()["backbone.stem.conv1.weight"], stem)
    assert detector.config.backbone.drop_path_rate == 0.1
    saved, _ = task.export(detector, tmp_path, {"epochs": 1})
    fresh = detection(small, checkpoint=str(saved)).build_model()
    assert not torch.equal(fresh.class_score.weight, detector.class_score.weight)
    assert torch.equal(fresh.box_head.fc6.weight, detector.box_head.fc6.weight)
    same = detection(DetectionOptions(keep_head=True), checkpoint=str(saved)).build_model()
    assert torch.equal(same.class_score.weight, detector.class_score.weight)

    job = Job(data=str(shapes / "ade20k"), model="vmamba_pico", checkpoint=str(path), batch_size=2)
    segmentation = Segmentation(job, SegmentationOptions(channels=16, auxiliary_channels=8))
    segmentation.setup()
    assert torch.equal(segmentation.build_model().state_dict()["backbone.vmamba.stem.conv1.weight"], stem)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_grey_models_are_refused(task: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(task, shapes, tmp_path / "run", settings=("model_options={in_chans: 1}",)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "in_chans is 1, but images are read as RGB" in line
    assert train(task, shapes, tmp_path / "run", settings=("model_options={dim: 1}",)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "unknown option 'dim'; do you mean 'dims'?" in line


def test_impossible_options(shapes: Path) -> None:
    with pytest.raises(ValueError, match="augmentation must be one of 1x, 3x, got '2x'"):
        DetectionOptions(augmentation="2x")
    with pytest.raises(ValueError, match="image_size must be from 32 to max_size"):
        DetectionOptions(image_size=2000)
    with pytest.raises(ValueError, match="crop must be at least 32"):
        SegmentationOptions(crop=8)
    with pytest.raises(ValueError, match="at least 2 images per process"):
        Segmentation(Job(data=str(shapes / "ade20k"), model="vmamba_pico"), SegmentationOptions()).setup()
