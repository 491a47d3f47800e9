"""`scan_routes` against a loop over tokens, and against `ss2d_scan` where that knows the routes."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.golden import relative_error
from vmamba.ops import orders, scan_routes, ss2d_scan, use_backend

NAMES = ("x", "dbc", "dt_weight", "A", "D", "dt_bias")


def operands(
    routes: int, batch: int = 2, height: int = 5, width: int = 7, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """x, dbc, dt_weight, A, D, dt_bias with 4 channels, 3 states and rank 2."""
    generator = torch.Generator().manual_seed(routes + 10 * height)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    made = (
        normal(batch, height, width, 4),
        normal(batch, height, width, routes, 2 + 2 * 3),
        normal(routes, 4, 2),
        -torch.exp(normal(routes, 4, 3)),
        normal(routes, 4),
        normal(routes, 4) - 2,
    )
    return [t.to(dtype).requires_grad_() for t in made]


def loop(x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, order: Tensor) -> Tensor:
    """The definition, one token after the other: (B, K, H·W, D)."""
    batch, height, width, channels = x.shape
    x, dbc = x.flatten(1, 2), dbc.flatten(1, 2)
    order = order.expand(batch, -1, -1)
    samples = []
    for i in range(batch):
        maps = []
        for k in range(A.shape[0]):
            y, h = [torch.zeros(channels, dtype=x.dtype)] * (height * width), torch.zeros_like(A[k])
            for l in order[i, k].tolist():  # noqa: E741 (the field's name)
                token, parts = (x[i, l], dbc[i, l, k]) if l >= 0 else (0 * x[i, 0], 0 * dbc[i, 0, k])
                r, b, c = parts.split([2, 3, 3])
                step = F.softplus(dt_weight[k] @ r + dt_bias[k])
                h = torch.exp(step[:, None] * A[k]) * h + (step * token)[:, None] * b
                if l >= 0:
                    y[l] = y[l] + h @ c + D[k] * token
            maps.append(torch.stack(y))
        samples.append(torch.stack(maps))
    return torch.stack(samples)


ORDERS = {
    "rows": orders.rows(5, 7)[None],
    "eight directions": orders.eight_directions(5, 7),
    "windows 2": orders.windows(5, 7, 2)[None],
    "windows 3, both ways": torch.stack([orders.windows(5, 7, 3), orders.windows(5, 7, 3, by_columns=True).flip(-1)]),
    "strided": orders.strided(5, 7, 2),
    "hilbert": orders.hilbert(5, 7)[None],
    "per sample": torch.stack([orders.cross(5, 7)[:2], torch.stack([orders.zigzag(5, 7), orders.z_order(5, 7)])]),
    "a few tokens, padding, one token twice": torch.tensor([[3, -1, -1, 9, 3, 0, -1], [-1, 34, 2, 1, 0, -1, 5]]),
    "a single token": torch.tensor([[17]]),
    "nothing but padding": torch.tensor([[-1, -1]]),
}


@pytest.mark.parametrize("backend", ["native", "chunked"])
@pytest.mark.parametrize("name", ORDERS)
def test_against_the_loop(name: str, backend: str) -> None:
    order = ORDERS[name]
    inputs = operands(order.shape[-2])
    expected = loop(*inputs, order)
    zero = sum(t.sum() for t in inputs) * 0  # where nothing but padding is visited the loop touches no operand
    with use_backend(backend):
        for reduce, truth in (("sum", expected.sum(1)), (None, expected)):
            y = scan_routes(*inputs, order.int(), reduce)
            assert y.shape == (2, *([order.shape[-2]] if reduce is None else []), 5, 7, 4)
            torch.testing.assert_close(y.flatten(-3, -2), truth)
            cotangent = torch.randn_like(y)
            grads = torch.autograd.grad(y, inputs, cotangent)
            truths = torch.autograd.grad(truth + zero, inputs, cotangent.flatten(-3, -2), retain_graph=True)
            for label, gradient, exact in zip(NAMES, grads, truths, strict=True):
                torch.testing.assert_close(gradient, exact, msg=lambda text, label=label: f"{label}: {text}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (9, 4), (16, 17)])
def test_the_cross_is_ss2d_scan(height: int, width: int, dtype: torch.dtype) -> None:
    inputs = operands(4, 2, height, width, dtype)
    expected, y = ss2d_scan(*inputs), scan_routes(*inputs, orders.cross(height, width))
    assert y.dtype == dtype
    bound = {torch.bfloat16: 8e-3, torch.float16: 1e-3}.get(dtype, 1e-6)  # one rounding where values are stored
    assert relative_error(y, expected) < bound
    cotangent = torch.randn_like(expected)
    truths = torch.autograd.grad(expected, inputs, cotangent)
    for name, got, truth in zip(NAMES, torch.autograd.grad(y, inputs, cotangent), truths, strict=True):
        assert got.dtype == dtype
        assert relative_error(got, truth) < bound, name


def test_padding_decays_like_a_zero_token() -> None:
    """LocalMamba pads features with zeros before its projections: the same scan over the larger image."""
    inputs = [t.detach() for t in operands(1, 1, 5, 7)]
    x, dbc, *parameters = inputs
    larger = F.pad(x, (0, 0, 0, 1, 0, 1)), F.pad(dbc, (0, 0, 0, 0, 0, 1, 0, 1))
    expected = scan_routes(*larger, *parameters, orders.windows(6, 8, 2)[None])[:, :5, :7]
    torch.testing.assert_close(scan_routes(*inputs, orders.windows(5, 7, 2)[None]), expected)
    without = orders.windows(5, 7, 2)
    assert relative_error(scan_routes(*inputs, without[without >= 0][None]), expected) > 1e-3


def test_sequences_of_tokens() -> None:
    inputs = operands(2)
    order = torch.stack([orders.hilbert(5, 7), orders.snake(5, 7)])
    flat = [inputs[0].flatten(1, 2), inputs[1].flatten(1, 2), *inputs[2:]]
    torch.testing.assert_close(scan_routes(*flat, order), scan_routes(*inputs, order).flatten(1, 2))
    torch.testing.assert_close(scan_routes(*flat, order, None), scan_routes(*inputs, order, None).flatten(2, 3))


@pytest.mark.parametrize("backend", ["native", "chunked"])
def test_routes_may_share_what_they_read(backend: str) -> None:
    inputs = operands(2)
    x, dbc, *parameters = inputs
    one = dbc[..., 0, :]
    order = ORDERS["windows 3, both ways"]
    with use_backend(backend):
        expected = scan_routes(x, one.unsqueeze(3).expand(-1, -1, -1, 2, -1), *parameters, order)
        y = scan_routes(x, one, *parameters, order)
        torch.testing.assert_close(y, expected)
        flat = scan_routes(x.flatten(1, 2), one.flatten(1, 2), *parameters, order)
    torch.testing.assert_close(flat, expected.flatten(1, 2))
    truths = torch.autograd.grad(expected.pow(2).sum(), inputs)
    for gradient, truth in zip(torch.autograd.grad(y.pow(2).sum(), inputs), truths, strict=True):
        torch.testing.assert_close(gradient, truth)


def test_second_derivatives() -> None:
    inputs = operands(1, 1, 2, 2)
    order = torch.tensor([[0, -1, 3, 2]])
    assert torch.autograd.gradgradcheck(lambda *t: scan_routes(*t, order), inputs, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # loads forward mode's own formulas
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_other_derivatives_and_transforms() -> None:
    inputs = operands(2, 2, 2, 3)
    order = torch.tensor([[0, -1, 3, 2], [5, 4, 1, 1]])
    x, *rest = primals = [t.detach() for t in inputs]
    tangents = [torch.randn_like(t) for t in primals]
    derivative = torch.func.jvp(lambda *t: scan_routes(*t, order, None), tuple(primals), tuple(tangents))[1]
    step = 1e-5
    ends = [
        scan_routes(*(t + s * step * v for t, v in zip(primals, tangents, strict=True)), order, None) for s in (1, -1)
    ]
    assert relative_error(derivative, (ends[0] - ends[1]) / (2 * step)) < 1e-6
    images = torch.stack([x, 2 * x, -x])
    mapped = torch.func.vmap(lambda x: scan_routes(x, *rest, order))(images)
    torch.testing.assert_close(mapped, torch.stack([scan_routes(x, *rest, order) for x in images]))


def test_an_empty_batch() -> None:
    inputs = operands(2, 0)
    for reduce, shape in (("sum", (0, 5, 7, 4)), (None, (0, 2, 5, 7, 4))):
        y = scan_routes(*inputs, ORDERS["windows 3, both ways"], reduce)
        assert y.shape == shape
        grads = torch.autograd.grad(y.sum(), inputs)
        assert [g.shape for g in grads] == [t.shape for t in inputs]
        assert not any(g.any() for g in grads)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("by_route", [False, True])
def test_opcheck(by_route: bool) -> None:
    inputs = operands(2, dtype=torch.float32)
    torch.library.opcheck(torch.ops.vmamba.scan_routes, (*inputs, ORDERS["strided"][:2], by_route))


class Scan(nn.Module):
    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return scan_routes(x, *rest, orders.windows(x.shape[1], x.shape[2], 2, x.device)[None])


def test_compile_and_export() -> None:
    inputs = operands(1, dtype=torch.float32)
    expected = Scan()(*inputs)
    compiled = torch.compile(Scan(), fullgraph=True, backend="aot_eager")
    y = compiled(*inputs)
    torch.testing.assert_close(y, expected)
    truths = torch.autograd.grad(expected.sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), inputs), truths)
    height, width = (torch.export.Dim(name, min=3, max=64) for name in ("height", "width"))
    dynamic = {0: torch.export.Dim("batch"), 1: height, 2: width}
    detached = tuple(t.detach() for t in inputs)
    program = torch.export.export(Scan(), detached, dynamic_shapes=(dynamic, (dynamic, {}, {}, {}, {})))
    other = tuple(t.detach() for t in operands(1, 3, 8, 9, torch.float32))
    torch.testing.assert_close(program.module()(*other), Scan()(*other))


def test_autocast_rounds_nothing() -> None:
    inputs = operands(2, dtype=torch.float32)
    order = ORDERS["windows 3, both ways"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scan_routes(*inputs, order), scan_routes(*inputs, order))
        y = scan_routes(*inputs, order)
    torch.testing.assert_close(y, scan_routes(*inputs, order))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 5, 4)}, ValueError, "dbc must have 4 dimensions (B, T, K, R+2N), got shape"),
        ({"A": torch.zeros(3, 4, 3)}, ValueError, "A must have shape (K, D, N) with K = 2, got (3, 4, 3)"),
        ({"order": torch.zeros(2, 9)}, TypeError, "order must be a tensor of int64 or int32, got torch.float32"),
        ({"order": [[0], [1]]}, TypeError, "order must be a tensor of int64 or int32, got list"),
        ({"order": torch.zeros(3, 9, dtype=torch.long)}, ValueError, "(B, K, L) with K = 2 and B = 2, got (3, 9)"),
        ({"order": torch.zeros(3, 2, 9, dtype=torch.long)}, ValueError, "with K = 2 and B = 2, got (3, 2, 9)"),
        ({"order": torch.zeros(2, 0, dtype=torch.long)}, ValueError, "the routes of order are empty"),
        ({"order": torch.tensor([[0], [35]])}, ValueError, "order must be from -1 to 34, got 0 to 35"),
        ({"order": torch.tensor([[0], [-2]])}, ValueError, "order must be from -1 to 34, got -2 to 0"),
        ({"order": torch.zeros(2, 9, dtype=torch.long, device="meta")}, ValueError, "order is on meta"),
        ({"reduce": "mean"}, ValueError, "reduce must be 'sum' or None, got 'mean'"),
    ],
)  # fmt: skip
def test_wrong_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = dict(zip(NAMES, operands(2), strict=True)) | {"order": ORDERS["windows 3, both ways"]}
    with pytest.raises(error, match=re.escape(message)) as caught:
        scan_routes(**(arguments | change))
    assert str(caught.value).startswith("scan_routes: ")
    assert "\n" not in str(caught.value)
