"""Preprocessing inside ONNX files against the package's own, which is Pillow's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import vmamba
import vmamba.ort
from support.examples import EXAMPLES, build, write_ppm
from support.golden import relative_error
from vmamba.checkpoints.info import ModelInfo, Preprocessing
from vmamba.errors import ExportError, OptionError
from vmamba.export import export
from vmamba.model.config import VMambaConfig
from vmamba.ops.backends import unavailable
from vmamba.ort import OnnxModel
from vmamba.tasks.classification.prediction import as_pixels, eval_transform

pytestmark = pytest.mark.slow

SMALL = VMambaConfig(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=7)


def small(**preprocessing: Any) -> Any:
    torch.manual_seed(0)
    model: Any = vmamba.VMamba(SMALL).eval()
    model.info = ModelInfo(preprocessing=Preprocessing(image_size=64, **preprocessing))
    model.pretrained_cfg = model.info.pretrained_cfg
    return model


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    return export(small(), path, image_size=64, with_preprocessing=True).path


def photo(height: int, width: int) -> Image.Image:
    patches = np.random.default_rng(height).integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)


def test_images_of_any_size(file: Path) -> None:
    model, exported = small(), OnnxModel(file)
    assert exported.takes_pixels
    transform = eval_transform(model)
    for height, width in [(64, 64), (73, 73), (75, 110), (1, 9), (40, 33), (600, 451), (64, 901)]:
        image = photo(height, width)
        with torch.no_grad():
            expected = model(transform(image)[None])
        assert relative_error(exported(as_pixels(image)[None]), expected) < 2e-3, (height, width)
    batch = torch.stack([as_pixels(photo(75, 110)), as_pixels(photo(75, 110).rotate(180))])
    both = torch.cat([exported(image) for image in batch.split(1)])
    torch.testing.assert_close(exported(batch), both, rtol=1e-5, atol=1e-5)


def test_other_settings(tmp_path: Path) -> None:
    model = small(interpolation="bilinear", crop_pct=0.9, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    exported = OnnxModel(export(model, tmp_path / "model.onnx", image_size=64, with_preprocessing=True).path)
    image = photo(150, 117)
    with torch.no_grad():
        expected = model(eval_transform(model)(image)[None])
    assert relative_error(exported(as_pixels(image)[None]), expected) < 2e-3
    with pytest.raises(OptionError, match="can be bicubic or bilinear, not lanczos"):
        export(small(interpolation="lanczos"), tmp_path / "other.onnx", image_size=64, with_preprocessing=True)


def test_impossible_preprocessing(file: Path, tmp_path: Path) -> None:
    for options, message in [
        ({"format": "openvino"}, "for classifiers in ONNX"),
        ({"image_size": (64, 96)}, "crops squares, got the image_size 64×96"),
    ]:
        with pytest.raises(OptionError, match=message):
            export(small(), tmp_path / "model.onnx", with_preprocessing=True, **options)
    with pytest.raises(ExportError, match=r"takes images of shape \(batch, height, width, 3\), got \(1, 3, 64, 64\)"):
        OnnxModel(file)(torch.zeros(1, 3, 64, 64))


def test_graph_is_checked(file: Path) -> None:
    content = onnx.load(file)
    onnx.checker.check_model(content, full_check=True)
    assert [value.name for value in content.graph.input] == ["pixels"]


def headers() -> Path | None:
    named = os.environ.get("ONNXRUNTIME_INCLUDE")
    places = [Path(named)] if named else [Path(root, "include/onnxruntime") for root in ("/usr", "/usr/local")]
    return next((place for place in places if (place / "onnxruntime_c_api.h").exists()), None)


@pytest.mark.skipif(headers() is None, reason="no headers of ONNX Runtime; ONNXRUNTIME_INCLUDE names their folder")
def test_a_program_in_cpp(file: Path, tmp_path: Path) -> None:
    runtime = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    options = (f"-DONNXRUNTIME_INCLUDE={headers()}", f"-DONNXRUNTIME_LIBRARY={runtime}")
    program = build(EXAMPLES / "onnxruntime", tmp_path, *options)
    image = write_ppm(tmp_path / "photo.ppm", height=75, width=110)
    (tmp_path / "libonnxruntime.so.1").symlink_to(runtime)
    command = [str(program), str(file), str(tmp_path / "photo.ppm")]
    environment = {"LD_LIBRARY_PATH": str(tmp_path)}
    expected = OnnxModel(file)(as_pixels(image)[None])[0].topk(5)
    for library in [[], [vmamba.ort.library_path()]] if unavailable("native") is None else [[]]:
        done = subprocess.run([*command, *library], check=True, capture_output=True, text=True, env=environment)
        lines = [line.split() for line in done.stdout.splitlines()]
        assert [int(index) for index, _ in lines] == expected.indices.tolist()
        assert [float(logit) for _, logit in lines] == pytest.approx(expected.values.tolist(), abs=2e-5)
    failed = subprocess.run([*command[:2], "none.ppm"], capture_output=True, text=True, env=environment, check=False)
    assert failed.returncode == 1
    assert failed.stderr == "classify: none.ppm: not a binary PPM file with 8 bits a channel\n"
