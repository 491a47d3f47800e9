"""Operands that do not fit never reach a kernel, whichever way the operator is called."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from support.operands import selective_operands, ss2d_operands
from vmamba.ops import BACKENDS, selective_scan, ss2d_scan, use_backend
from vmamba.ops.backends import unavailable

ops = torch.ops.vmamba
FLOATS = "must be float64, float32, bfloat16 or float16"
Change = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def forget_compiled_code() -> None:
    """Sizes become symbols where code was compiled for others before."""
    torch.compiler.reset()


def lengthen(dim: int) -> Change:
    return lambda t: torch.cat([t, t.narrow(dim, 0, 1)], dim)


def shorten(dim: int) -> Change:
    return lambda t: t.narrow(dim, 0, t.shape[dim] - 1)


def to(kind: torch.dtype | str) -> Change:
    return lambda t: t.to(kind)


#: Of u, delta (2, 4, 9), A (4, 3), B, C (2, 2, 3, 9), D, delta_bias (4).
SEQUENCE_FAULTS: dict[str, tuple[str, Change, str]] = {
    "short delta": ("delta", shorten(2), "delta must have shape (B, D, L) with L = 9, got (2, 4, 8)"),
    "long delta": ("delta", lengthen(2), "delta must have shape (B, D, L) with L = 9, got (2, 4, 10)"),
    "delta of one image": ("delta", shorten(0), "delta must have shape (B, D, L) with B = 2"),
    "short A": ("A", shorten(0), "A must have shape (D, N) with D = 4, got (3, 3)"),
    "A of one dimension": ("A", lambda t: t[:, 0], "A must have 2 dimensions (D, N)"),
    "more states in A": ("A", lengthen(1), "with N = 4, got (2, 2, 3, 9)"),
    "no states": ("A", lambda t: t[:, :0], "A must have shape (D, N) with N ≥ 1"),
    "short B": ("B", shorten(3), "B must have shape (B, G, N, L) with L = 9"),
    "fewer states in B": ("B", shorten(2), "B must have shape (B, G, N, L) with N = 3"),
    "B of one image": ("B", shorten(0), "B must have shape (B, G, N, L) with B = 2"),
    "no groups": ("B", lambda t: t[:, :0], "B must have shape (B, G, N, L) with G ≥ 1"),
    "short C": ("C", shorten(3), "C must have shape (B, G, N, L) with L = 9"),
    "fewer states in C": ("C", shorten(2), "C must have shape (B, G, N, L) with N = 3"),
    "short D": ("D", shorten(0), "D must have shape (D) with D = 4, got (3,)"),
    "D of two dimensions": ("D", lambda t: t[None], "D must have 1 dimensions (D), got shape (1, 4)"),
    "short bias": ("delta_bias", shorten(0), "delta_bias must have shape (D) with D = 4, got (3,)"),
    "empty sequence": ("u", lambda t: t[..., :0], "u must have shape (B, D, L) with L ≥ 1"),
    "integers": ("u", to(torch.int32), f"u {FLOATS}, got torch.int32"),
    "integers in B": ("B", to(torch.int32), f"B {FLOATS}, got torch.int32"),
    "float8": ("delta", to(torch.float8_e4m3fn), f"delta {FLOATS}, got torch.float8_e4m3fn"),
    "float8 u": ("u", to(torch.float8_e5m2), f"u {FLOATS}, got torch.float8_e5m2"),
    "complex u": ("u", to(torch.complex64), f"u {FLOATS}, got torch.complex64"),
    "two devices": ("A", to("meta"), "on meta"),
}
#: Of x (2, 3, 5, 6), dbc (2, 3, 5, 4, 2 + 2·3), dt_weight (4, 6, 2), A (4, 6, 3), D, dt_bias (4, 6).
IMAGE_FAULTS: dict[str, tuple[str, Change, str]] = {
    "narrow dbc": ("dbc", shorten(2), "dbc must have shape (B, H, W, K, R+2N) with W = 5"),
    "short dbc": ("dbc", shorten(4), "with R+2N = 8, got (2, 3, 5, 4, 7)"),
    "three routes": ("dbc", shorten(3), "with K = 4, got (2, 3, 5, 3, 8)"),
    "short A": ("A", shorten(1), "A must have shape (K, D, N) with D = 6"),
    "more states": ("A", lengthen(2), "with R+2N = 10"),
    "short dt_weight": ("dt_weight", shorten(1), "dt_weight must have shape (K, D, R) with D = 6"),
    "short D": ("D", shorten(1), "D must have shape (K, D) with D = 6"),
    "short bias": ("dt_bias", shorten(0), "dt_bias must have shape (K, D) with K = 4"),
    "no columns": ("x", lambda t: t[:, :, :0], "x must have shape (B, H, W, D) with W ≥ 1"),
    "integers": ("x", to(torch.int32), f"x {FLOATS}, got torch.int32"),
    "float8": ("dbc", to(torch.float8_e4m3fn), f"dbc {FLOATS}, got torch.float8_e4m3fn"),
    "two devices": ("D", to("meta"), "on meta"),
}


def sequence(fault: str) -> tuple[dict[str, Any], str]:
    operands: dict[str, Any] = dict(selective_operands(2, 4, 9, 3, 2, torch.float32))
    name, change, message = SEQUENCE_FAULTS[fault]
    return operands | {name: change(operands[name])}, message


def image(fault: str) -> tuple[list[Tensor], str]:
    names = ("x", "dbc", "dt_weight", "A", "D", "dt_bias")
    operands = dict(zip(names, ss2d_operands(2, 3, 5, 6, 3, 2, "cross", torch.float32), strict=True))
    name, change, message = IMAGE_FAULTS[fault]
    return list((operands | {name: change(operands[name])}).values()), message


def refuses(call: Callable[..., Any], *arguments: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", SEQUENCE_FAULTS)
def test_selective_scan(fault: str) -> None:
    """The function, the operator and its adjoint, with data and without."""
    operands, message = sequence(fault)
    dy, dlast = torch.zeros(2, 4, 9), torch.zeros(2, 4, 3)
    refuses(ops.selective_scan, *operands.values(), True, message=message)
    refuses(ops.selective_scan_backward, dy, dlast, *operands.values(), True, message=message)
    if fault != "two devices":
        refuses(lambda: selective_scan(**operands, delta_softplus=True), message=message)
        fake = [t.to("meta") for t in operands.values()]
        refuses(ops.selective_scan, *fake, True, message=message)
        refuses(ops.selective_scan_backward, dy.to("meta"), dlast.to("meta"), *fake, True, message=message)


@pytest.mark.parametrize("fault", [name for name in SEQUENCE_FAULTS if name != "two devices"])
def test_compiled_selective_scan(fault: str) -> None:
    """Dynamo reports an error in its own words where it traces the check; what counts is that nothing runs."""
    operands, message = sequence(fault)
    refuses(lambda: torch.compile(selective_scan, backend="aot_eager")(**operands), message=message)
    raw = torch.compile(lambda *args: ops.selective_scan(*args, False), backend="aot_eager")
    with pytest.raises(Exception, match=re.escape(message)):
        raw(*operands.values())


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_ss2d_scan(fault: str) -> None:
    operands, message = image(fault)
    dy = torch.zeros(2, 3, 5, 6)
    refuses(ss2d_scan, *operands, message=message)
    refuses(ops.ss2d_scan, *operands, "cross", message=message)
    refuses(ops.ss2d_scan_backward, dy, *operands, "cross", message=message)
    if fault != "two devices":
        with pytest.raises(Exception, match=re.escape(message)):
            torch.compile(ss2d_scan, backend="aot_eager")(*operands)


@pytest.mark.parametrize(
    ("dy", "dlast", "message"),
    [
        ((2, 4, 8), (2, 4, 3), "dy must have shape (B, D, L) with L = 9, got (2, 4, 8)"),
        ((1, 4, 9), (2, 4, 3), "dy must have shape (B, D, L) with B = 2, got (1, 4, 9)"),
        ((2, 36), (2, 4, 3), "dy must have 3 dimensions (B, D, L), got shape (2, 36)"),
        ((2, 4, 9), (2, 4, 2), "dlast must have shape (B, D, N) with N = 3, got (2, 4, 2)"),
        ((2, 4, 9), (2, 3, 3), "dlast must have shape (B, D, N) with D = 4, got (2, 3, 3)"),
        ((2, 4, 9), (2, 4), "dlast must have 3 dimensions (B, D, N), got shape (2, 4)"),
    ],
)
def test_gradients_of_the_wrong_shape(dy: tuple[int, ...], dlast: tuple[int, ...], message: str) -> None:
    operands = list(selective_operands(2, 4, 9, 3, 2, torch.float32).values())
    for device in ("cpu", "meta"):
        moved = [t.to(device) for t in (torch.zeros(dy), torch.zeros(dlast), *operands)]
        refuses(ops.selective_scan_backward, *moved, True, message=message)


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 3, 5, 6), (2, 3, 5, 5), (2, 15, 6)])
def test_gradients_of_the_wrong_shape_of_an_image(shape: tuple[int, ...]) -> None:
    operands = ss2d_operands(2, 3, 5, 6, 3, 2, "cross", torch.float32)
    for device in ("cpu", "meta"):
        moved = [t.to(device) for t in (torch.zeros(shape), *operands)]
        refuses(ops.ss2d_scan_backward, *moved, "cross", message="dy must have ")


@pytest.mark.parametrize("name", BACKENDS)
def test_no_backend_is_asked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (problem := unavailable(name)) is not None:
        pytest.skip(problem)
    operands = selective_operands(2, 4, 9, 3, 2, torch.float32)
    operands["B"] = operands["B"][:, :, :, :5]
    with use_backend(name):
        refuses(ops.selective_scan, *operands.values(), True, message="B must have shape (B, G, N, L) with L = 9")


def test_groups_must_divide_the_channels() -> None:
    operands = selective_operands(2, 4, 9, 3, 3, torch.float32)
    message = "B has 3 groups, which do not divide 4 channels"
    refuses(ops.selective_scan, *operands.values(), True, message=message)
    refuses(lambda: selective_scan(**operands), message=message)


@pytest.mark.parametrize("dynamic", [True, None])
def test_sizes_may_stay_symbols(dynamic: bool | None) -> None:
    """Checks neither fix the sizes nor are lost."""

    def run(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Any:
        return selective_scan(u, delta, A, B, C, delta_softplus=True)

    def operands(length: int) -> list[Tensor]:
        return list(selective_operands(2, 4, length, 3, 2, torch.float32).values())[:5]

    graphs = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(run, backend=graphs, fullgraph=True, dynamic=dynamic)
    for length in (9, 12, 31, 64):
        torch.testing.assert_close(compiled(*operands(length)), run(*operands(length)))
    assert graphs.frame_count == (1 if dynamic else 2)

    u, delta, *rest = operands(31)
    compiled = torch.compile(run, dynamic=dynamic, backend="aot_eager")
    refuses(compiled, u, delta[..., :5], *rest, message="delta must have shape (B, D, L) with L = 31")


def test_sizes_that_only_data_decide() -> None:
    def run(x: Tensor, mask: Tensor) -> Any:
        tokens = x[mask][None].transpose(1, 2)
        ones = torch.ones_like(tokens[:, :1])
        return selective_scan(tokens, tokens.abs(), -torch.ones(4, 1), ones, ones)

    x, mask = torch.randn(20, 4), torch.arange(20) % 3 > 0
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, mask), run(x, mask))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": (6, 1, 3, 3)}, "weight must have shape (C, 1, 3, 3) with C = 8, got (6, 1, 3, 3)"),
        ({"weight": (8, 1, 5, 5)}, "weight must have shape (C, 1, 3, 3) with 3 = 3, got (8, 1, 5, 5)"),
        ({"bias": (7,)}, "bias must have shape (C) with C = 8, got (7,)"),
        ({"x": (2, 3, 8)}, "x must have 4 dimensions (B, H, W, C), got shape (2, 3, 8)"),
        ({"dy": (2, 3, 4, 8)}, "dy must have shape (B, H, W, C) with W = 5, got (2, 3, 4, 8)"),
    ],
)
def test_depthwise_silu(change: dict[str, tuple[int, ...]], message: str) -> None:
    shapes = {"dy": (2, 3, 5, 8), "x": (2, 3, 5, 8), "weight": (8, 1, 3, 3), "bias": (8,)} | change
    for device in ("cpu", "meta"):
        dy, *operands = (torch.zeros(shape, device=device) for shape in shapes.values())
        refuses(ops.depthwise_silu_backward, dy, *operands, message=message)
        if "dy" not in change:
            refuses(ops.depthwise_silu, *operands, message=message)


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        ((6, 9), (6,), "weight must have shape (M, C) with C = 8, got (6, 9)"),
        ((8,), None, "weight must have 2 dimensions (M, C), got shape (8,)"),
        ((6, 8), (5,), "bias must have shape (M) with M = 6, got (5,)"),
    ],
)
def test_linear(weight: tuple[int, ...], bias: tuple[int, ...] | None, message: str) -> None:
    for device in ("cpu", "meta"):
        x, w = torch.zeros(2, 3, 5, 8, device=device), torch.zeros(weight, device=device)
        b = None if bias is None else torch.zeros(bias, device=device)
        refuses(ops.onednn_linear, x, w, b, message=message)


@pytest.mark.parametrize(
    ("weights", "biases", "residual", "message"),
    [
        ([(6, 8)], [], None, "expected as many biases as weights, got 1 and 0"),
        ([], [], None, "expected as many biases as weights, got 0 and 0"),
        ([(6, 8), (8, 5)], [None, None], None, "weights[1] must have shape (M, C) with C = 6, got (8, 5)"),
        ([(6, 8)], [(5,)], None, "biases[0] must have shape (M) with M = 6, got (5,)"),
        ([(8, 8)], [None], (1, 3, 5, 8), "residual must have shape (B, H, W, C) with B = 2, got (1, 3, 5, 8)"),
        ([(6, 8)], [None], (2, 3, 5, 8), "residual must have shape (B, H, W, C) with C = 6, got (2, 3, 5, 8)"),
    ],
)
def test_branch(weights: Any, biases: Any, residual: Any, message: str) -> None:
    with FakeTensorMode():
        fake = branch_operands(weights, biases, residual)
        refuses(ops.onednn_branch, *fake, message=message)
    real = branch_operands(weights, biases, residual)
    refuses(ops.onednn_branch, *real, message=message)


def branch_operands(weights: Any, biases: Any, residual: Any) -> tuple[Any, ...]:
    def zeros(shape: tuple[int, ...] | None) -> Tensor | None:
        return None if shape is None else torch.zeros(shape)

    norm = [torch.ones(8), torch.zeros(8)]
    linear = [zeros(w) for w in weights], [zeros(b) for b in biases]
    return torch.zeros(2, 3, 5, 8), *norm, 1e-6, *linear, zeros(residual)
