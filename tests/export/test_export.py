"""Exported models against PyTorch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import vmamba
from support.golden import relative_error
from vmamba.checkpoints.info import ModelInfo
from vmamba.errors import ExportError, MissingPackageError, OptionError
from vmamba.export import FORMATS, export
from vmamba.model.config import VMambaConfig
from vmamba.ort import OnnxModel, runner
from vmamba.tasks.detection.exported import ExportedDetector
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig
from vmamba.tasks.segmentation.upernet import UperNet, UperNetConfig

pytestmark = pytest.mark.slow

SHAPES = [(1, 3, 32, 32), (1, 3, 64, 64), (3, 3, 65, 33), (2, 3, 96, 160), (1, 3, 384, 64), (5, 3, 40, 48)]


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"d_state": 4, "gate": True, "mlp_ratio": 0.0, "stem": "patchify", "downsample": "patch_merging"},
        {"scan": "cascade", "out_norm": "softmax", "downsample": "conv2x2"},
        {"pos_embed_size": 64, "ssm_conv": 0},
    ],
)
def test_one_file_for_any_batch_and_size(overrides: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", num_classes=7, **overrides).eval()
    exported = export(model, tmp_path / "model.onnx", image_size=64, metadata={"classes": ["a", "ü"]})
    assert exported.error < 1e-5
    content = onnx.load(exported.path)
    assert {entry.key: json.loads(entry.value) for entry in content.metadata_props}["classes"] == ["a", "ü"]
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    depthwise = [node for node in content.graph.node if node.op_type == "DepthwiseSilu"]
    assert len(depthwise) == len(convolutions)
    run = runner(exported.path)
    for shape in SHAPES:
        images = torch.randn(shape)
        with torch.no_grad():
            assert relative_error(run(images)[0], model(images)) < 1e-5, shape


def test_maps_of_a_backbone_have_names(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = vmamba.create_model("vmamba_pico", features_only=True, out_indices=(1, 3)).train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    path = export(model, tmp_path / "maps.onnx", image_size=64).path
    assert [module.training for module in model.modules()] == modes
    assert capfd.readouterr() == ("", "")  # neither remarks nor warnings
    assert [output.name for output in onnx.load(path).graph.output] == ["map1", "map2"]


def test_segmenters_of_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = VMambaConfig(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    config = UperNetConfig(backbone, ("a", "b", "c"), channels=8, auxiliary_channels=8)
    model = UperNet(config).eval()
    run = runner(export(model, tmp_path / "model.onnx", image_size=64).path)
    for size in [(64, 64), (97, 130), (256, 40)]:
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = model(images)
        (logits,) = run(images)
        assert relative_error(logits, expected) < 1e-5, size
        assert torch.equal(logits.argmax(1), expected.argmax(1)), size


def test_detectors_of_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = VMambaConfig(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    config = MaskRCNNConfig(backbone, ("a", "b"), channels=16, box_channels=32, mask_channels=16, score_threshold=0.965)
    model = MaskRCNN(config).eval()
    model.class_score.weight.data.mul_(30)  # scores of noise, and only of it, pass the threshold
    exported = export(model, tmp_path / "model.onnx", image_size=96)
    outputs = [output.name for output in onnx.load(exported.path).graph.output]
    assert outputs == ["boxes", "scores", "labels", "masks"]
    with pytest.raises(OptionError, match="detectors are exported to ONNX, not to torch"):
        export(model, tmp_path / "model.pt2", format="torch")
    detector = ExportedDetector(OnnxModel(exported.path))
    for scale, (height, width) in [(1, (64, 96)), (5, (75, 128)), (0, (64, 64))]:
        padded = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
        padded[0, :, :height, :width] = scale * torch.randn(3, height, width)
        with torch.no_grad():
            (expected,) = model(padded, [(height, width)])
        (result,) = detector(padded, [(height, width)])
        assert bool(len(expected.labels)) == bool(scale)
        assert torch.equal(result.labels, expected.labels)
        for name in ("boxes", "scores", "masks"):
            torch.testing.assert_close(getattr(result, name), getattr(expected, name), rtol=1e-3, atol=1e-3)


def test_openvino(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    torch.manual_seed(0)
    model: Any = vmamba.create_model("vmamba_pico", num_classes=7, d_state=2).eval()
    model.info = ModelInfo(class_names=("a", "ü"))
    exported = export(model, tmp_path / "model.xml", format="openvino", image_size=(65, 97))
    read = openvino.Core().read_model(exported.path)
    assert json.loads(read.get_rt_info(["vmamba", "class_names"]).astype(str)) == ["a", "ü"]
    run = openvino.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        assert relative_error(torch.from_numpy(run([images.numpy()])[0]), model(images)) < 1e-5
    other = openvino.Core().read_model(exported.path)
    with pytest.raises(RuntimeError, match="incompatible"):  # for one shape, and never silently wrong
        other.reshape([1, 3, 96, 128])
    with pytest.raises(OptionError, match=r"must end in \.xml"):
        export(model, tmp_path / "model.onnx", format="openvino", image_size=64)
    with pytest.raises(OptionError, match="files of openvino are for one shape of images; leave size out"):
        export(model, tmp_path / "model.xml", format="openvino", dynamic=["size"])


def test_inlined_models_are_standard_operators_alone(tmp_path: Path) -> None:
    model = vmamba.create_model("vmamba_pico")
    content = onnx.load(export(model, tmp_path / "model.onnx", image_size=64, inline=True).path)
    assert not content.functions
    assert {node.domain for node in content.graph.node} <= {"", "ai.onnx"}


def test_half_precision(tmp_path: Path) -> None:
    model = vmamba.create_model("vmamba_pico")
    exported = export(model, tmp_path / "model.onnx", image_size=64, precision="float16")
    assert exported.path.stat().st_size < 0.55 * 4 * sum(p.numel() for p in model.parameters())
    assert next(model.parameters()).dtype == torch.float32


def test_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", num_classes=7, pos_embed_size=None).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and not name.endswith("A_log"):
            nn.init.normal_(parameter, std=0.05)
    batches = list(torch.randn(6, 2, 3, 64, 64))
    exported = export(model, tmp_path / "model.onnx", image_size=64, precision="int8", calibration=batches)
    assert 1e-4 < exported.error < 0.1
    content = onnx.load(exported.path)
    integers = {t.name for t in content.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    dense = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.groups == 1]
    assert len(integers) >= len(linear) + len(dense)
    depthwise = [len(layer.weight) for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    filters = [t for t in content.graph.initializer if t.name.endswith(".filters")]
    assert sorted(tuple(t.dims) for t in filters) == sorted((9, channels) for channels in depthwise)
    assert all(t.data_type == onnx.TensorProto.FLOAT for t in filters)
    with torch.no_grad():
        for kernels in (False, True):
            (logits,) = runner(exported.path, kernels=kernels)(batches[0])
            assert 1e-4 < relative_error(logits, model(batches[0])) <= exported.error * 1.01


class Unrepeatable(nn.Module):
    """Gives another result at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3)) + torch.rand(())


def test_a_model_that_disagrees_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"earlier")
    with pytest.raises(ExportError, match="differs from PyTorch"):
        export(Unrepeatable(), path, image_size=64, dynamic=("batch",))
    assert path.read_bytes() == b"earlier"


@pytest.mark.parametrize(
    ("format", "module", "package", "extra"),
    [
        ("onnx", "onnx", "onnxscript", "export"),
        ("openvino", "openvino", "openvino", "openvino"),
        ("executorch", "executorch", "executorch", "executorch"),
    ],
)
def test_missing_packages(
    format: str, module: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"vmamba.export.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    advice = rf"{package} is not installed; install it with: pip install 'vmamba\[{extra}\]'"
    with pytest.raises(MissingPackageError, match=advice):
        export(vmamba.create_model("vmamba_pico"), tmp_path / f"model{FORMATS[format].suffix}", format=format)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "caffe"}, "unknown export format 'caffe'"),
        ({"precision": "int3"}, "unknown precision 'int3'"),
        ({"precision": "int8"}, "int8 needs images"),
        ({"precision": "int8", "format": "openvino"}, "int8 is for ONNX, not for openvino"),
        ({"dynamic": ("depth",)}, "dynamic of onnx can be batch and size, got depth"),
        ({"image_size": 16}, "at least 32 pixels"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        export(vmamba.create_model("vmamba_pico"), tmp_path / "model.onnx", **options)
