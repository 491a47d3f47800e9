"""The page's JavaScript in Node, against PyTorch and Pillow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vmamba
from support.golden import relative_error
from vmamba.analysis.attention import Scan, attention_rows, scans_of
from vmamba.explorer import Exhibit, describe_preprocessing
from vmamba.explorer import describe_block as describe
from vmamba.explorer.model import write_operand_model
from vmamba.export import export
from vmamba.tasks.classification.prediction import eval_transform

Javascript = Callable[..., Any]


def scans(pattern: str, states: int) -> list[Scan]:
    torch.manual_seed(1)
    routes, channels, rank = (4 if pattern in ("cross", "bidirectional") else 1), 5, 2
    made = scans_of(
        torch.randn(1, 4, 6, channels).double(),
        torch.randn(1, 4, 6, routes, rank + 2 * states).double(),
        torch.randn(routes, channels, rank).double(),
        -torch.rand(routes, channels, states).double(),
        torch.randn(routes, channels).double(),
        torch.randn(routes, channels).double(),
        pattern,
    )
    return [dataclasses.replace(scan, mirrored=routes == 1 and scan.route.backward) for scan in made]


@pytest.mark.parametrize("states", [1, 3])
@pytest.mark.parametrize("pattern", ["cross", "bidirectional", "rows", "columns", "rows_backward", "columns_backward"])
def test_rows(pattern: str, states: int, javascript: Javascript) -> None:
    block = scans(pattern, states)
    delta = [torch.nn.functional.softplus(s.low_rank @ s.dt_weight.T + s.dt_bias) for s in block]
    operands = {
        "delta": torch.stack(delta, 2).flatten().tolist(),
        "b": torch.stack([s.b for s in block], 2).flatten().tolist(),
        "c": torch.stack([s.c for s in block], 2).flatten().tolist(),
        "A": torch.stack([s.A for s in block]).flatten().tolist(),
        "routes": len(block),
        "channels": 5,
        "states": states,
    }
    rows = javascript("rows", describe("block", block), operands, [2, 1])
    result = torch.tensor(rows, dtype=torch.float64)  # (K, 2, H·W)
    for i, magnitude in enumerate((False, True)):
        expected = attention_rows(block, (2, 1), magnitude=magnitude).flatten(1)
        assert relative_error(result[:, i], expected) < 1e-12


@pytest.mark.parametrize("size", [(90, 61), (31, 200), (48, 48), (300, 10), (129, 128)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preprocessing(size: tuple[int, int], interpolation: str, javascript: Javascript) -> None:
    model = vmamba.create_model("vmamba_pico")
    config = {"crop_pct": 0.9, "interpolation": interpolation, "input_size": (3, 40, 40)}
    setattr(model, "pretrained_cfg", config)  # noqa: B010 (no tensor, as its type would have it)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    expected = eval_transform(model)(image)
    picture = {"data": np.asarray(image).flatten().tolist(), "width": size[0], "height": size[1]}
    _, values = javascript("preprocess", picture, describe_preprocessing(Exhibit("", model)))
    torch.testing.assert_close(torch.tensor(values).view(3, 40, 40), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_exported_models(runtime: Path, javascript: Javascript, tmp_path: Path) -> None:
    """The files of ``vmamba export``, their scans as functions, in ONNX Runtime for browsers."""
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", num_classes=7).eval()
    path = export(model, tmp_path / "model.onnx", image_size=64).path
    images = torch.randn(2, 3, 40, 72)
    result = javascript("run", str(runtime), str(path), images.flatten().tolist(), list(images.shape))
    with torch.no_grad():
        assert relative_error(torch.tensor(result).view(2, 7), model(images)) < 1e-5


@pytest.mark.slow
def test_operand_model(runtime: Path, javascript: Javascript, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", num_classes=7).eval()
    blocks = write_operand_model(model, tmp_path / "model.onnx", 64)
    assert [block[0].grid for block in blocks.values()] == [(16, 16), (8, 8), (4, 4), (4, 4), (2, 2)]
    images = torch.randn(1, 3, 64, 64)
    result = javascript("run", str(runtime), str(tmp_path / "model.onnx"), images.flatten().tolist(), [1, 3, 64, 64])
    with torch.no_grad():
        assert relative_error(torch.tensor(result).view(1, 7), model(images)) < 1e-5
