"""Probes on features whose classes are known, and the command on images of four colours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import vmamba
from support.runs import write_images
from vmamba.checkpoints.info import Preprocessing
from vmamba.checkpoints.saving import save_weights
from vmamba.cli import main
from vmamba.errors import DataError
from vmamba.model.backbone import VMamba
from vmamba.studies.feature_pictures import component_maps, nearest
from vmamba.studies.features import Features, untrained
from vmamba.studies.probing import Score, choose, probe, summary
from vmamba.tables import read_csv


def features(count: int, noise: float, seed: int) -> Features:
    """Three classes at the corners of a triangle, and features that know nothing."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    corners = 4 * np.eye(3)[labels]
    values = {
        "good": (corners + noise * generator.normal(size=(count, 3))).astype(np.float32),
        "bad": generator.normal(size=(count, 3)).astype(np.float32),
    }
    return Features(values, labels, tuple(map(str, range(count))))


def test_probes_tell_good_features_from_bad() -> None:
    scores = list(probe(features(300, 0.3, 0), features(200, 0.3, 1), [1, None], seeds=4))
    assert len(scores) == 2 * 2 * (4 + 1)
    for score in scores:
        if score.features == "good":
            assert score.accuracy > 97
        else:
            assert 15 < score.accuracy < 55


def test_chosen_labels() -> None:
    """As many of each class as asked for, or all there are; others with another seed."""
    labels: NDArray[np.int64] = np.array([0] * 10 + [1] * 10 + [5] * 2)
    chosen = choose(labels, 4, 0)
    assert np.bincount(labels[chosen], minlength=6).tolist() == [4, 4, 0, 0, 0, 2]
    assert len(set(chosen.tolist())) == 10
    assert not np.array_equal(chosen, choose(labels, 4, 1))
    assert np.array_equal(chosen, choose(labels, 4, 0))
    assert len(choose(labels, None, 0)) == 22


def test_summary() -> None:
    scores = [Score("pixels", "knn", 2, seed, accuracy) for seed, accuracy in enumerate((50.0, 60.0, 70.0))]
    (row,) = summary(scores)
    assert row == {
        "labels_per_class": 2, "probe": "knn", "features": "pixels",
        "accuracy": 60.0, "lowest": 50.0, "highest": 70.0, "seeds": 3,
    }  # fmt: skip


def test_one_class() -> None:
    alone = Features({"good": np.ones((4, 2), np.float32)}, np.zeros(4, np.int64), tuple("abcd"))
    with pytest.raises(DataError, match="nothing to tell apart"):
        list(probe(alone, alone, [None]))


def test_nearest() -> None:
    train = np.array([[1, 0], [0, 1], [2, 2], [-1, 0]], np.float32)
    assert nearest(train, np.array([[5, 1]], np.float32), 3).tolist() == [[0, 2, 1]]


def test_component_maps() -> None:
    """From the last stage with 8×8 tokens, in the range of colours; a fresh model differs from another one."""
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", num_classes=0).eval()
    assert isinstance(model, VMamba)
    maps = component_maps(model, torch.randn(2, 3, 128, 160))
    assert maps.shape == (2, 8, 10, 3)
    assert maps.min() == 0
    assert maps.max() == 1
    fresh, other = untrained(model), untrained(model, 1)
    assert fresh.config == model.config
    assert not torch.equal(fresh.stem.conv1.weight, other.stem.conv1.weight)


@pytest.mark.slow
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, count in (("train", 6), ("val", 4)):
        write_images(tmp_path / "images", split, count)
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", num_classes=0, dims=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    weights = save_weights(model, tmp_path / "model.safetensors", preprocessing=Preprocessing(32))
    command = ["probe", "--data", tmp_path / "images", "--checkpoint", weights, "--output", tmp_path / "probe"]
    command += ["--labels-per-class", 2, "all", "--seeds", 2, "--workers", 0, "--device", "cpu"]
    assert main([*map(str, command), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2 * 2 * 3
    assert {row["features"] for row in rows} == {"checkpoint", "untrained", "pixels"}
    pixels = [row for row in rows if row["features"] == "pixels" and row["labels_per_class"] == "all"]
    assert all(row["accuracy"] > 70 for row in pixels)  # of colours
    assert len(read_csv(tmp_path / "probe" / "probe.csv")) == 3 * 2 * 3
    for name in ("probe.png", "features.png"):
        assert (tmp_path / "probe" / name).stat().st_size > 5000
