"""Our kernels inside ONNX Runtime. That they agree with the definition is in export/test_onnx_scan.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import vmamba.export
import vmamba.ort
from support.onnx_scans import RANKS, scan_model
from support.operands import ss2d_operands
from vmamba.errors import ExportError
from vmamba.ops.backends import unavailable

pytestmark = pytest.mark.skipif(unavailable("native") is not None, reason="the C++ kernels are not built")


def feeds(height: int, width: int, channels: int = 5, states: int = 1) -> dict[str, np.ndarray]:
    operands = ss2d_operands(2, height, width, channels, states, 2, "cross")
    return {name: t.float().numpy() for name, t in zip(RANKS, operands, strict=True)}


def test_kernels_replace_the_function(tmp_path: Path) -> None:
    """The profile of a run names the nodes that were computed."""

    def operators(kernels: bool) -> set[str]:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "profile")
        if kernels:
            options.register_custom_ops_library(vmamba.ort.library_path())
        run = onnxruntime.InferenceSession(scan_model("cross", 1).SerializeToString(), options)
        run.run(None, feeds(4, 5))
        events = json.loads(Path(run.end_profiling()).read_text(encoding="utf-8"))
        return {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}

    assert operators(kernels=True) == {"SS2DScanCross"}
    assert "Scan" in operators(kernels=False)


def test_same_on_any_number_of_threads() -> None:
    operands = feeds(31, 64, channels=96)
    results = [
        vmamba.ort.session(scan_model("cross", 1), threads=threads).run(None, operands)[0] for threads in (1, 2, 5)
    ]
    assert np.abs(results[0]).max() > 0
    assert all((result == results[0]).all() for result in results)


def test_wrong_shapes_are_statuses() -> None:
    run = vmamba.ort.session(scan_model("cross", 1))
    operands = feeds(4, 5)
    for name, wrong in [
        ("dbc", operands["dbc"][:, :3]),
        ("dt_weight", operands["dt_weight"][:3]),
        ("A", operands["A"][:, :4]),
        ("D", operands["D"][:, :0]),
        ("x", operands["x"][..., :1]),
    ]:
        with pytest.raises(Exception, match="shapes of the operands do not fit together"):
            run.run(None, operands | {name: np.ascontiguousarray(wrong)})
    assert np.isfinite(run.run(None, operands)[0]).all()


def test_empty_batch() -> None:
    operands = feeds(4, 5)
    empty = operands | {name: operands[name][:0] for name in ("x", "dbc")}
    assert vmamba.ort.session(scan_model("cross", 1)).run(None, empty)[0].shape == (0, 4, 5, 5)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match=r"model\.onnx: ONNX Runtime cannot load it: .*"):
        vmamba.ort.session(path)
    path.write_bytes(b"not a model")
    with pytest.raises(ExportError, match=r"model\.onnx: ONNX Runtime cannot load it: .*"):
        vmamba.ort.session(path)


def test_a_library_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of another build, and one that only looks right."""
    monkeypatch.setattr("vmamba.ops.backends.native.LIBRARIES", tmp_path)
    with pytest.raises(ExportError, match=r"no operators for ONNX Runtime in .*; reinstall vmamba"):
        vmamba.ort.library_path()
    library = tmp_path / "libvmamba_onnxruntime.so"
    library.write_bytes(b"operators of an earlier build")
    with pytest.raises(
        ExportError, match=r"libvmamba_onnxruntime\.so: operators of another version of vmamba; reinstall"
    ):
        vmamba.ort.session(scan_model("cross", 1))
    library.write_bytes(b"vmamba operators, interface 2")
    with pytest.raises(ExportError, match=r"libvmamba_onnxruntime\.so: ONNX Runtime .* refuses it: "):
        vmamba.ort.session(scan_model("cross", 1))
    assert vmamba.ort.session(scan_model("cross", 1), kernels=False).run(None, feeds(4, 5))


def test_a_file_of_another_version(tmp_path: Path) -> None:
    content = scan_model("cross", 1)
    entry = content.metadata_props.add()
    entry.key, entry.value = "format", "3"
    path = tmp_path / "model.onnx"
    path.write_bytes(content.SerializeToString())
    with pytest.raises(ExportError, match=r"model\.onnx: format 3 is not known; it takes a newer version of vmamba"):
        vmamba.ort.OnnxModel(path)


def test_functions_of_a_later_version_are_computed_by_the_file() -> None:
    """Kernels of version 1 do not answer for nodes of version 2."""
    content = scan_model("cross", 1)
    for opset in content.opset_import:
        if opset.domain == "vmamba":
            opset.version = 2
    expected = vmamba.ort.session(content, kernels=False).run(None, feeds(4, 5))[0]
    assert np.allclose(vmamba.ort.session(content).run(None, feeds(4, 5))[0], expected, atol=1e-5)


@pytest.mark.slow
def test_a_file_of_one_shape(tmp_path: Path) -> None:
    """Batches are taken apart; other sizes are refused in one line."""
    model = vmamba.create_model("vmamba_pico", num_classes=2).eval()
    path = vmamba.export.export(model, tmp_path / "model.onnx", image_size=64, dynamic=()).path
    exported = vmamba.ort.OnnxModel(path)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(exported(images), model(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(ExportError, match=r"model\.onnx: takes images of shape \(1, 3, 64, 64\), got \(1, 3, 32, 64\)"):
        exported(images[:1, :, :32])
