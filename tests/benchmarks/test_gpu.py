"""The benchmark for a GPU, all but its timing: what it refuses, compares and writes, on tiny shapes on the CPU."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu
import gpu_report
import gpu_scan
import pytest
import torch
from gpu_scan import Shape, WrongScanError
from torch import Tensor

from support.golden import relative_error
from support.operands import ss2d_operands
from vmamba.ops import ss2d_scan, use_backend
from vmamba.ops.backends import reference
from vmamba.ops.operands import SS2DOperands
from vmamba.tables import read_csv

pytestmark = pytest.mark.slow

SMALL = Shape("small", 2, 3, 5, 8, 2, 2, torch.float32)


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    code = gpu.main([*arguments, "--plan", "smoke", "--device", "cpu", "--rounds", "3", "--output", str(folder)])
    return code, (folder / "gpu.md").read_text(encoding="utf-8")


def test_the_usual_way_computes_the_same() -> None:
    operands = [t.requires_grad_() for t in ss2d_operands(2, 3, 5, 4, 2, 2, "cross")]
    usual = gpu_scan.unfused(*gpu_scan.unfused_operands(operands)).permute(0, 2, 3, 1)
    expected = reference.ss2d_scan(SS2DOperands(*operands, "cross"))
    assert relative_error(usual, expected) < 1e-12
    dy = torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad(y, operands, dy) for y in (usual, expected)), strict=True):
        assert relative_error(a, b) < 1e-12


def test_least_bytes_are_those_of_the_kernels_docstrings() -> None:
    shape = Shape("stage 1", 128, 56, 56, 96, 6)
    values = 128 * 56 * 56 * 96
    assert shape.least_bytes(backward=False) / values == pytest.approx(2 * 2 + 4 * 8 * 2 / 96)
    backward = shape.least_bytes(backward=True) - shape.least_bytes(backward=False)
    assert backward / values == pytest.approx(3 * 2 + 2 * 4 * 8 * 2 / 96)


def test_a_right_scan_is_right() -> None:
    errors = gpu_scan.check(SMALL, "cpu")
    assert list(errors) == ["y", *gpu_scan.NAMES]
    assert max(errors.values()) < 1e-5


class Distorted:
    """The scan with something wrong in every second call that is not made for the truth, which is in float64."""

    def __init__(self, output: float = 0.0, gradient: float = 0.0, every: int = 1) -> None:
        self.output, self.gradient, self.every, self.calls = output, gradient, every, 0

    def __call__(self, *operands: Tensor) -> Tensor:
        if operands[0].dtype == torch.float64:
            return ss2d_scan(*operands)
        self.calls += 1
        amount = self.gradient if self.calls % self.every == 0 else 0.0
        x, dbc, weight, *rest = operands
        weight = weight + amount * (weight - weight.detach())  # leaves the value, changes the gradient
        return ss2d_scan(x, dbc, weight, *rest) * (1 + self.output)


@pytest.mark.parametrize(
    ("scan", "message"),
    [
        (Distorted(output=1e-3), "wrong by"),
        (Distorted(output=float("nan")), "the output is wrong by inf"),
        (Distorted(gradient=1e-3), "small: the gradient of dt_weight is wrong by 1.0e-03; not timed"),
        (Distorted(gradient=1e-3, every=2), "the gradient of dt_weight differs between two runs; not timed"),
    ],
)
def test_a_wrong_scan_is_refused(scan: Distorted, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_scan, "ss2d_scan", scan)
    with pytest.raises(WrongScanError, match=message):
        gpu_scan.check(SMALL, "cpu")


def test_a_wrong_scan_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_scan, "ss2d_scan", Distorted(output=0.5))
    code, text = run(tmp_path, "scan", "inference")
    assert code == 1
    assert "the scan is wrong at these shapes; not timed" in text
    assert {row["section"] for row in read_csv(tmp_path / "gpu.csv")} == {"copy"}


def test_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sections; only what torch.compile would do is left out."""
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    code, text = run(tmp_path, "--commit", "abc1234")
    assert code == 0
    rows = read_csv(tmp_path / "gpu.csv")
    assert {row["section"] for row in rows} == set(gpu.SECTIONS) - {"correctness"}
    assert all(0 < float(row["ms_low"]) <= float(row["ms"]) <= float(row["ms_high"]) for row in rows)
    training = {row["case"] for row in rows if row["section"] == "training"}
    assert training == {f"{name} {how}" for name in ("vmamba_pico", "test_convnext") for how in ("eager", "compiled")}
    for words in ("commit: abc1234", "torch " + torch.__version__, "## Relative error", "against chunked"):
        assert words in text
    assert "Left out" not in text
    assert (tmp_path / "gpu.png").stat().st_size > 10_000


def test_what_breaks_costs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: Any) -> None:
        raise RuntimeError("out of memory\nwith a long story")

    monkeypatch.setitem(gpu.SECTIONS, "scan", broken)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    code, text = run(tmp_path, "copy", "scan", "growth")
    assert code == 0
    assert "- scan broke off: RuntimeError: out of memory\n" in text
    assert {row["section"] for row in read_csv(tmp_path / "gpu.csv")} == {"copy", "growth"}
    assert not (tmp_path / "gpu.png").exists()


def test_a_wrong_model_is_refused() -> None:
    model = gpu.prepared("vmamba_pico", 32, "cpu")
    images = torch.randn(1, 3, 32, 32)
    gpu.check_model("vmamba_pico", model, model, images)
    with pytest.raises(ValueError, match=r"vmamba_pico is wrong by 1\.0e-01 against its eager, portable form"):
        gpu.check_model("vmamba_pico", model, lambda x: 1.1 * model(x), images)


def test_time_is_limited(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(gpu.OutOfTimeError), gpu.within(0.05):
        time.sleep(5)
    assert time.monotonic() - start < 2
    with gpu.within(60):
        pass
    code, text = run(tmp_path, "copy", "growth", "--seconds", "0.1")
    assert code == 0
    assert "- copy: left out, no time\n- growth: left out, no time" in text


def test_preparations() -> None:
    """In processes of their own; one that fails is a line."""
    names = gpu.preparations(gpu.SMOKE, gpu.SECTIONS)
    expected = ["scan small", "scan one patch", "inference vmamba_pico", "inference test_convnext"]
    assert list(names) == [*expected, "training vmamba_pico", "training test_convnext"]
    assert gpu.main(["--prepare", "scan small", "--plan", "smoke", "--device", "cpu"]) == 0  # what a process does
    bench = gpu.Bench(gpu.SMOKE, "cpu", 3, time.monotonic() + 100)
    gpu.prepare(bench, ["scan nowhere"], "smoke", 2, 100)
    assert bench.notes == ["not compiled beforehand: scan nowhere: KeyError: 'scan nowhere'"]


def test_it_runs_without_rich() -> None:
    code = (
        "import sys; sys.modules['rich'] = None; sys.path.append(sys.argv[1]); import gpu; gpu.alternate({'a': int}, 3)"
    )
    command = [sys.executable, "-c", code, str(Path(gpu.__file__).parent)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scans"], "unknown section 'scans'; choose from correctness, copy"),
        (["--rounds", "2"], "--rounds must be at least 3 for quartiles, got 2"),
        ([], "no GPU is in reach of PyTorch"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as caught:
        gpu.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_targets() -> None:
    def row(section: str, case: str, what: str, **more: Any) -> dict[str, Any]:
        return {"section": section, "case": case, "what": what, "note": "", **more}

    rows = [
        row("scan", "fused", "forward", ms=2.0, of_copy=0.5, note="224² stage 1"),
        row("scan", "usual", "forward", ms=10.0, of_copy="", note="224² stage 1"),
        row("inference", "vmamba_tiny_s1l8 compiled", "T", images_per_s=150.0),
        row("inference", "swin_tiny_patch4_window7_224 compiled", "T", images_per_s=100.0),
        row("inference", "swin_small_patch4_window7_224 compiled", "S", images_per_s=60.0),
        row("growth", "vmamba_tiny_s1l8", "inference", side=512, ms=1.0),
        row("growth", "vmamba_tiny_s1l8", "inference", side=2048, ms=20.0),
    ]
    assert gpu_report.targets(rows) == [
        ("scan, 224² stage 1, forward: of the copy's speed", "0.50", "≥ 0.6", False),
        ("scan, 224² stage 1, forward: against usual", "5.0 ×", "≥ 4.0 ×", True),
        ("inference, compiled, vmamba_tiny_s1l8 against swin_tiny", "1.50 ×", "≥ 1.36 ×", True),
        ("time per pixel, 2048² against 512²", "1.25 ×", "≤ 1.15 ×", False),
    ]


def test_backends_are_left_as_they_were() -> None:
    with use_backend("reference"):
        gpu.scan_case(SMALL, "fused", "forward + backward", "cpu")()
        assert gpu.select(torch.device("cpu")).name == "reference"
