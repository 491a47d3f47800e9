"""Packages of PyTorch, run by processes that never import vmamba."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torchvision.transforms.functional import normalize, to_tensor

import vmamba
from support.examples import EXAMPLES, build, write_ppm
from support.golden import relative_error
from support.operands import ss2d_operands
from vmamba.errors import OptionError
from vmamba.export import export, library_path
from vmamba.model.config import VMambaConfig
from vmamba.ops.routes import PATTERNS
from vmamba.tasks.segmentation.upernet import UperNet, UperNetConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler"),
]

ALONE = """
import sys
import torch
library, package, folder = sys.argv[1:]
torch.ops.load_library(library)
model = torch._inductor.aoti_load_package(package)
examples = torch.load(f"{folder}/examples.pt", weights_only=True)
torch.save([model(images) for images in examples], f"{folder}/results.pt")
assert model.get_metadata()["task"] == '"classification"'
assert "vmamba" not in sys.modules
"""


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return vmamba.VMamba(VMambaConfig(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=7)).eval()


@pytest.fixture(scope="module")
def package(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "model.pt2"
    exported = export(model, path, format="torch", image_size=64, metadata={"task": "classification"})
    assert exported.error < 1e-5
    assert len(exported.shapes) == 4
    return exported.path


@pytest.mark.exhaustive  # as ONNX files all tasks are exported, and a classifier here
def test_segmenters_of_any_size(tmp_path: Path) -> None:
    backbone = VMambaConfig(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    config = UperNetConfig(backbone, ("a", "b", "c"), channels=8, auxiliary_channels=8)
    exported = export(UperNet(config), tmp_path / "model.pt2", format="torch", image_size=64)
    assert exported.error < 1e-5
    assert (2, 3, 65, 97) in exported.shapes


def test_a_process_without_this_package(model: nn.Module, package: Path, tmp_path: Path) -> None:
    examples = [torch.randn(shape) for shape in [(1, 3, 32, 32), (2, 3, 64, 64), (3, 3, 65, 97), (1, 3, 160, 40)]]
    torch.save(examples, tmp_path / "examples.pt")
    command = [sys.executable, "-c", ALONE, library_path("torch"), str(package), str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"})
    for images, result in zip(examples, torch.load(tmp_path / "results.pt", weights_only=True), strict=True):
        with torch.no_grad():
            assert relative_error(result, model(images)) < 1e-5, images.shape


def test_a_program_in_cpp(model: nn.Module, package: Path, tmp_path: Path) -> None:
    program = build(EXAMPLES / "libtorch", tmp_path, f"-DTORCH={torch.__path__[0]}")
    image = write_ppm(tmp_path / "photo.ppm", height=75, width=110)
    command = [str(program), str(package), library_path("torch"), str(tmp_path / "photo.ppm")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pixels = normalize(to_tensor(image), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    with torch.no_grad():
        expected = model(pixels[None]).softmax(-1)[0]
    lines = [line.split() for line in printed.splitlines()]
    assert [int(index) for index, _ in lines] == expected.topk(5).indices.tolist()
    assert [float(p) for _, p in lines] == pytest.approx(expected.topk(5).values.tolist(), abs=2e-6)

    missing = subprocess.run([*command[:2], "none.so", command[3]], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert missing.stderr.startswith("classify: none.so:")


def test_the_operator_takes_what_ours_takes() -> None:
    torch.ops.load_library(library_path("torch"))
    for pattern in PATTERNS:
        x, *rest = (t.float() for t in ss2d_operands(2, 5, 6, 5, 2, 2, pattern))
        expected = torch.ops.vmamba.ss2d_scan(x, *rest, pattern)
        assert torch.equal(torch.ops.vmamba_cpp.ss2d_scan(x, *rest, pattern), expected)
        strided = x.transpose(1, 2).contiguous().transpose(1, 2)
        assert torch.equal(torch.ops.vmamba_cpp.ss2d_scan(strided, *rest, pattern), expected)
    for operands, message in [
        ((x, *rest, "zigzag"), "unknown scan pattern 'zigzag'"),
        ((x.double(), *rest, pattern), "must be float32"),
        ((x[0], *rest, pattern), "wrong number of axes"),
        ((x[:1], *rest, pattern), "do not fit together"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.vmamba_cpp.ss2d_scan(*operands)
    assert torch.ops.vmamba_cpp.ss2d_scan(x[:0], rest[0][:0], *rest[1:], pattern).shape == (0, 5, 6, 5)


def test_what_a_package_cannot_be(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="packages of PyTorch are float32"):
        export(model, tmp_path / "model.pt2", format="torch", image_size=64, precision="float16")
    with pytest.raises(OptionError, match=r"must end in \.pt2"):
        export(model, tmp_path / "model.onnx", format="torch", image_size=64)


def test_the_library_alone_says_what_it_needs() -> None:
    """Loaded where PyTorch is not, it says so and ends nothing."""
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    loaded = subprocess.run(
        [sys.executable, "-c", code, library_path("torch")], check=True, capture_output=True, text=True
    )
    assert loaded.stderr == "load PyTorch before the operators of vmamba\n"
