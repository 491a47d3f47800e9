"""The scans as PyTorch operators: schema, tracing, compilation, export, FLOPs, arguments."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from support.golden import relative_error
from support.operands import selective_operands, ss2d_operands
from vmamba.ops import decomposed, selective_scan, ss2d_scan
from vmamba.ops.routes import PATTERNS

# opcheck itself looks at .grad of tensors that are not leaves.
quiet_opcheck = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@quiet_opcheck
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_opcheck_ss2d(pattern: str, dtype: torch.dtype) -> None:
    operands = [t.requires_grad_() for t in ss2d_operands(2, 3, 4, 4, 2, 2, pattern, dtype)]
    torch.library.opcheck(torch.ops.vmamba.ss2d_scan.default, (*operands, pattern))


@quiet_opcheck
@pytest.mark.parametrize("optional", [True, False])
def test_opcheck_selective(optional: bool) -> None:
    operands: dict[str, Any] = selective_operands(2, 4, 9, 2, 2, torch.float32)
    if not optional:
        operands |= {"D": None, "delta_bias": None}
    arguments = tuple(t if t is None else t.requires_grad_() for t in operands.values())
    torch.library.opcheck(torch.ops.vmamba.selective_scan.default, (*arguments, True))


@quiet_opcheck
def test_opcheck_backward_operators() -> None:
    operands = ss2d_operands(2, 3, 4, 4, 2, 2, "cross", torch.float32)
    torch.library.opcheck(torch.ops.vmamba.ss2d_scan_backward.default, (operands[0], *operands, "cross"))
    sequence = selective_operands(2, 4, 9, 2, 2, torch.float32)
    arguments = (sequence["u"], torch.zeros(2, 4, 2), *sequence.values(), True)
    torch.library.opcheck(torch.ops.vmamba.selective_scan_backward.default, arguments)


def test_compile_in_one_graph() -> None:
    operands = [t.requires_grad_() for t in ss2d_operands(2, 3, 4, 4, 2, 2, "cross", torch.float32)]
    sequence = {name: t.requires_grad_() for name, t in selective_operands(2, 4, 9, 2, 2, torch.float32).items()}

    def run(operands: list[Tensor], sequence: dict[str, Tensor]) -> Tensor:
        return ss2d_scan(*operands).sin().sum() + selective_scan(**sequence, delta_softplus=True).sum()

    leaves = [*operands, *sequence.values()]
    expected = torch.autograd.grad(run(operands, sequence), leaves)
    got = torch.autograd.grad(torch.compile(run, fullgraph=True, backend="aot_eager")(operands, sequence), leaves)
    for gradient, truth in zip(got, expected, strict=True):
        torch.testing.assert_close(gradient, truth)


class Scan(nn.Module):
    def forward(self, *operands: Tensor) -> Tensor:
        return ss2d_scan(*operands)


class SelectiveScan(nn.Module):
    def forward(self, *operands: Tensor) -> Any:
        u, delta, A, B, C, D = operands
        return selective_scan(u, delta, A, B, C, D, delta_softplus=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")  # PyTorch 2.11's own
@pytest.mark.parametrize("module", [Scan(), SelectiveScan()], ids=["ss2d", "selective"])
def test_export_keeps_the_operator_or_holds_plain_pytorch(module: nn.Module) -> None:
    def operands(batch: int) -> tuple[Tensor, ...]:
        if isinstance(module, Scan):
            return tuple(ss2d_operands(batch, 3, 4, 4, 2, 2, "cross", torch.float32))
        return tuple(selective_operands(batch, 4, 9, 2, 2, torch.float32).values())[:6]

    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if t.shape[0] == 5 else {} for t in operands(5))
    program = torch.export.export(module, operands(5), dynamic_shapes=(shapes,))
    assert "vmamba" in program.graph_module.code
    with decomposed(), torch.no_grad():
        plain = torch.export.export(module, operands(5), dynamic_shapes=(shapes,)).run_decompositions()
    assert "vmamba" not in plain.graph_module.code
    for exported in (program, plain):
        assert relative_error(exported.module()(*operands(3)), module(*operands(3))) < 1e-6


def test_meta_tensors_give_shapes() -> None:
    operands = [t.to("meta") for t in ss2d_operands(2, 3, 4, 4, 2, 2, "cross", torch.bfloat16)]
    y = ss2d_scan(*operands)
    assert (y.device.type, y.shape, y.dtype) == ("meta", (2, 3, 4, 4), torch.bfloat16)


def test_flops_are_counted() -> None:
    """9 L D N per route for the scan, L D for the skip (the count of the paper), and the Δ projection."""
    batch, height, width, channels, states, rank = 2, 3, 4, 6, 5, 2
    operands = [t.requires_grad_() for t in ss2d_operands(batch, height, width, channels, states, rank, "cross")]
    tokens = 4 * batch * height * width
    forward = tokens * channels * (9 * states + 1) + 2 * tokens * channels * rank
    with FlopCounterMode(display=False) as counter:
        y = ss2d_scan(*operands)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 3 * forward

    sequence = selective_operands(2, 6, 10, 3, 1)
    with FlopCounterMode(display=False) as counter:
        selective_scan(**sequence)
    assert counter.get_total_flops() == 2 * 10 * 6 * (9 * 3 + 1)


def test_selective_scan_forms_agree() -> None:
    """B and C per channel, per step and per group; the gate; the last state."""
    o = selective_operands(2, 4, 9, 3, 1)
    u, delta, A, B, C, D, bias = o.values()
    y = selective_scan(u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True)
    same = selective_scan(u, delta, A, B[:, 0], C[:, 0], D, delta_bias=bias, delta_softplus=True)
    torch.testing.assert_close(same, y)
    repeated = selective_scan(u, delta, A, B.repeat(1, 2, 1, 1), C, D, delta_bias=bias, delta_softplus=True)
    torch.testing.assert_close(repeated, y)
    constant = torch.randn(4, 3, dtype=torch.float64)
    expanded = constant[None, :, :, None].expand(2, 4, 3, 9)
    torch.testing.assert_close(selective_scan(u, delta, A, constant, C, D), selective_scan(u, delta, A, expanded, C, D))
    z = torch.randn_like(u)
    gated = selective_scan(u, delta, A, B, C, D, z, bias, True)
    torch.testing.assert_close(gated, y * z * torch.sigmoid(z))
    first, state = selective_scan(u[..., :1], delta[..., :1], A, B[..., :1], C[..., :1], return_last_state=True)
    torch.testing.assert_close((state * C[:, 0, :, 0].unsqueeze(1)).sum(-1, keepdim=True), first)


@pytest.mark.parametrize("compiled", [False, True])
def test_selective_scan_takes_the_operands_in_both_orders(compiled: bool) -> None:
    """``mamba_ssm``'s has a gate before the bias, VMamba's authors' a hint for their kernels at the end."""
    torch.compiler.reset()
    operands = list(selective_operands(2, 4, 9, 2, 2, torch.float32).values())
    u, bias = operands[0], operands[6]
    scan = torch.compile(selective_scan, backend="aot_eager", fullgraph=True) if compiled else selective_scan
    softplus, plain = selective_scan(*operands[:6], None, bias, True), selective_scan(*operands[:6], None, bias, False)
    for arguments, keywords in (
        ((bias, True), {}),
        ((bias, True, 1), {}),
        ((bias,), {"delta_softplus": True, "nrows": 4}),
        ((), {"delta_bias": bias, "delta_softplus": True, "nrows": 1}),
    ):
        assert torch.equal(scan(*operands[:6], *arguments, **keywords), softplus)
    for arguments in ((bias, False), (bias, False, 1), (bias,)):
        assert torch.equal(scan(*operands[:6], *arguments), plain)
    assert torch.equal(scan(*operands[:6], None, True), selective_scan(*operands[:6], delta_softplus=True))
    y, last = scan(*operands[:6], bias, True, return_last_state=True)
    assert torch.equal(y, softplus)
    assert last.shape == (2, 4, 2)
    gated = selective_scan(*operands[:6], u, bias, True)
    assert not torch.equal(gated, softplus)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(3, 4, 6)}, ValueError, "x must have 4 dimensions (B, H, W, D), got shape (3, 4, 6)"),
        ({"x": torch.zeros(2, 0, 4, 6)}, ValueError, "with H ≥ 1, got (2, 0, 4, 6)"),
        (
            {"x": torch.zeros(2, 3, 4, 6, dtype=torch.int64)},
            TypeError,
            "x must be float64, float32, bfloat16 or float16, got torch.int64",
        ),
        (
            {"x": torch.zeros(2, 3, 4, 6, dtype=torch.complex64)},
            TypeError,
            "x must be float64, float32, bfloat16 or float16",
        ),
        ({"dbc": torch.zeros(2, 3, 4, 4, 7)}, ValueError, "(B, H, W, K, R+2N) with R+2N = 6, got (2, 3, 4, 4, 7)"),
        ({"dt_weight": torch.zeros(4, 5, 2)}, ValueError, "dt_weight must have shape (K, D, R) with D = 6"),
        ({"A": torch.zeros(2, 6, 2)}, ValueError, "A must have shape (K, D, N) with K = 4, got (2, 6, 2)"),
        ({"D": torch.zeros(4, 6, device="meta")}, ValueError, "D is on meta, the first operand on cpu"),
        ({"pattern": "diagonal"}, ValueError, "unknown scan pattern 'diagonal'; choose one of cross"),
    ],
)
def test_wrong_arguments_of_ss2d(change: dict[str, object], error: type[Exception], message: str) -> None:
    names = ("x", "dbc", "dt_weight", "A", "D", "dt_bias")
    operands = dict(zip(names, ss2d_operands(2, 3, 4, 6, 2, 2, "cross", torch.float32), strict=True))
    with pytest.raises(error, match=re.escape(message)) as caught:
        ss2d_scan(**(operands | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"u": torch.zeros(4, 9)}, ValueError, "u must have 3 dimensions (B, D, L), got shape (4, 9)"),
        ({"u": [1.0]}, TypeError, "u must be a tensor of shape (B, D, L), got list"),
        ({"delta": torch.zeros(2, 4, 8)}, ValueError, "delta must have shape (B, D, L) with L = 9, got (2, 4, 8)"),
        ({"B": torch.zeros(2, 3, 2, 9)}, ValueError, "B has 3 groups, which do not divide 4 channels"),
        ({"C": torch.zeros(2, 5, 9)}, ValueError, "C must have shape (B, N, L) with N = 2, got (2, 5, 9)"),
        ({"z": torch.zeros(2, 4, 8)}, ValueError, "z must have shape (B, D, L) with L = 9"),
        ({"A": torch.zeros(4, 2, dtype=torch.complex64)}, TypeError, "A is complex; only real states are computed"),
        ({"C": torch.zeros(2, 2, 9, dtype=torch.complex64)}, TypeError, "C is complex; only real states are computed"),
        ({"z": torch.zeros(4)}, ValueError, "z must have 3 dimensions (B, D, L), got shape (4,)"),
        ({"delta_bias": torch.zeros(3)}, ValueError, "delta_bias must have shape (D) with D = 4, got (3,)"),
    ],
)
def test_wrong_arguments_of_selective_scan(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        selective_scan(**(selective_operands(2, 4, 9, 2, 2, torch.float32) | change))
    assert "\n" not in str(caught.value)
