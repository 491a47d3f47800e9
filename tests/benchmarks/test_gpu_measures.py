"""What `benchmarks/gpu.py` measures, on tiny shapes on the CPU: what it refuses, and what its rows hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_bench import baseline, convolution, cross, models, scans
from gpu_bench.context import Context
from gpu_bench.plan import FULL, SMOKE, Shape
from gpu_bench.scans import WrongScanError
from gpu_bench.steps import schedule
from paired import Timing
from torch import Tensor

from support.golden import relative_error
from support.operands import ss2d_operands
from vmamba.ops import select, ss2d_scan, use_backend
from vmamba.ops.backends import reference
from vmamba.ops.operands import SS2DOperands

pytestmark = pytest.mark.slow

SMALL = Shape("small", 2, 3, 5, 8, 2, 2, torch.float32)


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return []


def context(step: str, rows: list[dict[str, Any]], *cases: str) -> Context:
    return Context(SMOKE, step, cases or tuple(schedule(SMOKE)[step].cases), "cpu", 3, rows.append)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about the interpreter")
def test_the_unfused_pipeline_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(cross, "TILE", (2, 4, 1))
    operands = [t.requires_grad_() for t in ss2d_operands(2, 3, 5, 4, 2, 2, "cross")]
    pipeline = baseline.Pipeline(baseline.selective_scan)  # the sequences in float64 by PyTorch's operations
    usual = pipeline(*pipeline.operands(operands)).permute(0, 2, 3, 1)
    expected = reference.ss2d_scan(SS2DOperands(*operands, "cross"))
    assert relative_error(usual, expected) < 1e-6  # the kernel adds up in float32
    dy = torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad(y, operands, dy) for y in (usual, expected)), strict=True):
        assert relative_error(a, b) < 1e-6


def test_the_unfused_pipeline_is_never_a_loop(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def sequences(u: Tensor, delta: Tensor, *rest: Tensor, delta_bias: Tensor, delta_softplus: bool) -> Tensor:
        used.append(select(u.device).name)
        return (u * delta + sum(t.sum() for t in (*rest, delta_bias))).to(u.dtype)

    monkeypatch.setattr(cross, "TILE", (2, 4, 1))
    monkeypatch.setattr(scans, "pipelines", lambda: {"unfused": baseline.Pipeline(sequences)})
    scans.scan(context("scan", rows))
    assert set(used) == {"triton"}
    timed = {(r["case"], r["what"]) for r in rows if "ms" in r}
    assert timed == {
        ("copy", "memory"),
        *((case, what) for case in ("fused", "unfused") for what in ("forward", "forward + backward")),
    }
    assert all(0 < r["ms_low"] <= r["ms"] <= r["ms_high"] for r in rows)


def test_a_baseline_that_fails_is_flagged(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Tensor, **__: Any) -> Tensor:
        raise RuntimeError("no kernel image\nwith a long story")

    monkeypatch.setattr(cross, "TILE", (2, 4, 1))
    monkeypatch.setattr(scans, "pipelines", lambda: {"unfused": baseline.Pipeline(broken)})
    scans.scan(context("scan", rows))
    statuses = {(r["case"], r["what"]): r["status"] for r in rows}
    assert statuses["unfused", "forward"] == "failed: RuntimeError: no kernel image"
    assert statuses["fused", "forward"] == "ok"


def test_the_floor() -> None:
    shape = Shape("stage 1", 128, 56, 56, 96, 6)
    assert shape.minimum_bytes(backward=False) / shape.values == pytest.approx(2 * 2 + 4 * 8 * 2 / 96)
    backward = shape.minimum_bytes(backward=True) - shape.minimum_bytes(backward=False)
    assert backward / shape.values == pytest.approx(3 * 2 + 2 * 4 * 8 * 2 / 96)
    assert shape.exponentials(backward=False) == 8 * shape.values  # 77 µs on an H100: 132 · 16 · 1.98 GHz
    assert shape.exponentials(backward=False) / (132 * 16 * 1.98e9) == pytest.approx(74e-6, rel=0.01)


def test_the_copy_is_of_random_data(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[Tensor] = []

    def compare(self: Context, cases: Any, *_: Any) -> Any:
        copied.append(cases["copy"]())
        return {"copy": Timing(1.0, 1.0, 1.0)}

    monkeypatch.setattr(Context, "compare", compare)
    assert scans.copy_speed(context("scan", rows)) == 2 * SMOKE.copied
    assert len(copied[0].unique()) == 256


def test_the_caches_are_emptied_by_reading(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before every timed scan, from a buffer that is larger than the caches of any GPU; the copy has its own."""
    before: list[Any] = []

    def compare(self: Context, cases: Any, seconds: float, between: Any = None) -> Any:
        before.append(between)
        return dict.fromkeys(cases, Timing(1.0, 1.0, 1.0))

    monkeypatch.setattr(Context, "compare", compare)
    monkeypatch.setattr(Context, "add", lambda self, cases, name, *_, **__: cases.update({name: int}))
    scans.scan(context("scan", rows))
    assert before[0] is None
    assert [(read.__name__, read.__self__.nbytes) for read in before[1:]] == 2 * [("amax", SMOKE.copied // 4)]
    assert FULL.copied // 4 >= 256 * 2**20


def test_a_right_scan_is_right(rows: list[dict[str, Any]]) -> None:
    errors = scans.check(SMALL, "cpu")
    assert list(errors) == ["y", *scans.NAMES]
    assert 0 < max(errors.values()) < 1e-5
    scans.correctness(context("correctness", rows))
    assert [(r["case"], r["status"]) for r in rows] == [("small", "ok"), ("one token", "ok")]
    assert all(0 < r["value"] < 1 for r in rows)


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
        (Distorted(gradient=1e-3), "the gradient of dt_weight is wrong by 1.0e-03"),
        (Distorted(gradient=1e-3, every=2), "the gradient of dt_weight differs between two runs"),
    ],
)
def test_a_wrong_scan_is_refused(
    scan: Distorted, message: str, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "ss2d_scan", scan)
    with pytest.raises(WrongScanError, match=message):
        scans.check(SMALL, "cpu")
    if scan.output:
        scans.correctness(context("correctness", rows, "one token"))
        assert rows[0]["status"].startswith("wrong: ")


def test_relative_error() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert scans.relative_error(zero, zero) == 0
    assert scans.relative_error(one, zero) == scans.relative_error(one / 0, one) == float("inf")
    assert scans.relative_error(1.1 * one, one) == pytest.approx(0.1)


def test_models(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference, training and growth; only what torch.compile would do is left out."""
    compiled: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda model, *, backend, **_: (compiled.append(backend), model)[1])
    steps = schedule(SMOKE)
    for name in ("inference T", "training T", "training T eager", "growth"):
        steps[name].run(context(name, rows))
    assert compiled == ["eager"] * 5
    assert {r["status"] for r in rows} == {"ok"}
    assert [(r["case"], r["what"]) for r in rows[:5]] == [
        *((name, "compiled") for name in ("vmamba_pico", "vmamba_pico, frozen", "test_convnext")),
        *((name, "compiled") for name in ("vmamba_pico", "test_convnext")),
    ]
    assert [r["size"] for r in rows if r["step"] == "growth"] == [32, 64]
    assert all(r["images_per_s"] > 0 for r in rows)


def test_a_peer_that_fails_is_flagged(rows: list[dict[str, Any]]) -> None:
    models.compare(context("inference T eager", rows, "no_such_model", "test_convnext"), "inference", compiled=False)
    assert [(r["case"], r["status"][:2]) for r in rows] == [("no_such_model", "fa"), ("test_convnext", "ok")]


def test_a_wrong_model_is_refused() -> None:
    model = models.prepared("vmamba_pico", 32, "cpu")
    images = torch.randn(1, 3, 32, 32)
    models.check("vmamba_pico", model, model, images)
    with pytest.raises(models.WrongModelError, match=r"vmamba_pico is wrong by 1\.0e-01 against its eager, portable"):
        models.check("vmamba_pico", model, lambda x: 1.1 * model(x), images)


def test_graphs_are_counted(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x + 1
            torch._dynamo.graph_break()
            return x * 2

    monkeypatch.setattr(models, "prepared", lambda *_: Broken())
    models.graph(context("graph", rows))
    assert [r["value"] for r in rows] == [2, 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="about the interpreter")
def test_the_convolution(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    convolution.convolution(context("convolution", rows))
    assert {r["status"] for r in rows} == {"ok"}
    timed = [(r["case"], r["what"]) for r in rows if "ms" in r and r["case"] != "copy"]
    assert timed == [(case, what) for what in ("forward", "backward") for case in ("fused", "two layers")]
    rows.clear()
    monkeypatch.setattr(convolution, "layers", lambda *t: 1.1 * torch.ops.vmamba.depthwise_silu(*t))
    convolution.convolution(context("convolution", rows))
    assert rows[-1]["status"].startswith("wrong: ")


def test_backends_are_left_as_they_were() -> None:
    with use_backend("reference"):
        scans.scan_case(SMALL, "fused", "forward + backward", "cpu")()
        assert select(torch.device("cpu")).name == "reference"
