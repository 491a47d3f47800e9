"""The C++ kernels against the definition: autograd through the plain loop, in float64.

Every buffer that the kernels write, and all memory they use on the way, is filled with NaN beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from vmamba.errors import OptionError
from vmamba.ops import backends, orders, select, selective_scan, ss2d_scan, use_backend
from vmamba.ops.backends import native, reference
from vmamba.ops.backends.native import _native
from vmamba.ops.gathered_scan import gathered_scan
from vmamba.ops.operands import RoutesOperands, SelectiveScanOperands, SS2DOperands
from vmamba.ops.routes import PATTERNS, Route

STORAGE = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
FORWARD = {torch.float32: 1e-6, torch.float64: 1e-13, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
GRADIENT = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 2e-6, torch.float16: 2e-6}


@pytest.fixture(autouse=True)
def _nan_everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def empty(*size: Any, dtype: torch.dtype) -> Tensor:
        return torch.full(size[0] if len(size) == 1 else size, float("nan"), dtype=dtype)

    monkeypatch.setattr(native.torch, "empty", empty)
    _native.poison_memory(True)
    yield
    _native.poison_memory(False)


@pytest.fixture(params=native.INSTRUCTION_SETS)
def _instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_isa", request.param)


def relative_error(got: Tensor, expected: Tensor) -> float:
    got, expected = got.detach().double(), expected.detach().double()
    norm = expected.norm()
    return float((got - expected).norm() / (norm if norm > 0 else 1))


def assert_close(names: str, got: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for name, a, b in zip(names.split(), got, expected, strict=True):
        assert a.shape == b.shape, name
        error = relative_error(a, b)
        assert error <= tolerance, f"{name}: relative error {error:.2e}"  # a NaN fails too


def image_operands(
    grid: tuple[int, int],
    *,
    pattern: str = "cross",
    batch: int = 2,
    channels: int = 20,
    rank: int = 3,
    states: int = 1,
    dtype: torch.dtype = torch.float32,
    bias: float = -2.0,
) -> list[Tensor]:
    torch.manual_seed(sum(grid) + channels + 7 * states)
    routes = len(PATTERNS[pattern])
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    return [
        torch.randn(batch, *grid, channels, dtype=torch.float64).to(dtype),
        torch.randn(batch, *grid, routes, rank + 2 * states, dtype=torch.float64).to(dtype),
        (torch.randn(routes, channels, rank) * rank**-0.5).to(parameters),
        -torch.rand(routes, channels, states).add(0.1).to(parameters),
        torch.randn(routes, channels).to(parameters),
        torch.randn(routes, channels).add(bias).to(parameters),
    ]


def sequence_operands(
    length: int, *, batch: int = 2, channels: int = 24, states: int = 1, groups: int = 1, dtype: Any = torch.float32
) -> list[Tensor]:
    torch.manual_seed(length + states + groups)
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    return [
        torch.randn(batch, channels, length, dtype=torch.float64).to(dtype),
        torch.randn(batch, channels, length, dtype=torch.float64).sub(1).to(dtype),
        -torch.rand(channels, states).add(0.1).to(parameters),
        torch.randn(batch, groups, states, length, dtype=torch.float64).to(dtype),
        torch.randn(batch, groups, states, length, dtype=torch.float64).to(dtype),
        torch.randn(channels).to(parameters),
        torch.rand(channels).to(parameters),
    ]


def leaves(operands: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().double().requires_grad_() for t in operands]


def check_image(operands: list[Tensor], pattern: str, autograd: bool = True) -> None:
    """Against autograd, or where its cost (quadratic in the tokens) is too high against the adjoint of `reference`."""
    dtype = operands[0].dtype
    exact = leaves(operands)
    with torch.set_grad_enabled(autograd):
        y = reference.ss2d_scan(SS2DOperands(*exact, pattern))
    dy = torch.randn(y.shape, dtype=torch.float64).to(dtype)
    assert_close("y", [native.ss2d_scan(SS2DOperands(*operands, pattern))], [y], FORWARD[dtype])
    grads = native.ss2d_scan_backward(dy, SS2DOperands(*operands, pattern))
    assert all(g.dtype == reference.accumulation_dtype(dtype) for g in grads)
    if autograd:
        expected = torch.autograd.grad(y, exact, dy.double())
    else:
        with torch.no_grad():
            expected = reference.ss2d_scan_backward(dy.double(), SS2DOperands(*exact, pattern))
    assert_close("x dbc dt_weight A D dt_bias", grads, expected, GRADIENT[dtype])


def check_sequence(operands: list[Tensor], softplus: bool = True) -> None:
    dtype = operands[0].dtype
    exact = leaves(operands)
    y, last = reference.selective_scan(SelectiveScanOperands(*exact, softplus))
    dy, dlast = torch.randn(y.shape, dtype=torch.float64).to(dtype), torch.randn_like(last)
    got, got_last = native.selective_scan(SelectiveScanOperands(*operands, softplus))
    assert got.dtype == dtype
    assert_close("y", [got], [y], FORWARD[dtype])
    assert_close("last", [got_last], [last], GRADIENT[dtype])
    dlast = dlast.to(got_last.dtype)
    grads = native.selective_scan_backward(dy, dlast, SelectiveScanOperands(*operands, softplus))
    expected = torch.autograd.grad((y, last), exact, (dy.double(), dlast.double()))
    assert_close("u delta A B C D delta_bias", grads, expected, GRADIENT[dtype])


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize("states", [1, 2, 8, 16])
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (5, 3), (9, 7)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_image(pattern: str, grid: tuple[int, int], states: int) -> None:
    check_image(image_operands(grid, pattern=pattern, states=states), pattern)


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("channels", [1, 16, 70, 96, 200])
def test_image_channels_and_storage(channels: int, dtype: torch.dtype) -> None:
    for states in (1, 3):
        check_image(image_operands((6, 7), channels=channels, rank=13, states=states, dtype=dtype), "cross")


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_and_decays_of_all_sizes(dtype: torch.dtype) -> None:
    """Two tokens, the second without input: Δ, and exp(Δ A) Δ, of every channel by itself."""
    bias, A = torch.linspace(-15, 100, 461), -torch.logspace(-3, 3, 461)
    x = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1).expand(-1, -1, -1, 461).to(dtype).contiguous()
    dbc = torch.tensor([0.0, 1.0, 1.0]).expand(1, 1, 2, 1, 3).to(dtype).contiguous()
    zeros = torch.zeros(1, 461)

    def scan() -> Tensor:
        operands = [x, dbc, zeros[..., None], A.view(1, 461, 1), zeros, bias[None]]
        return native.ss2d_scan(SS2DOperands(*operands, "rows"))[0, 0].double()

    step = torch.nn.functional.softplus(bias.double())
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8}[dtype]
    expected = torch.stack([step, (step * A.double()).exp() * step])
    assert ((scan() - expected).abs() / step).max() < tolerance
    bias[3] = torch.nan
    assert scan()[:, 3].isnan().all()


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize("rank", [1, 6, 24, 100])
def test_image_ranks(rank: int) -> None:
    check_image(image_operands((7, 8), rank=rank, channels=48), "cross")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_large_image(pattern: str) -> None:
    check_image(image_operands((56, 56), pattern=pattern, batch=1), pattern, autograd=False)


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize("states", [1, 2, 8, 16])
@pytest.mark.parametrize("length", [1, 2, 63, 500])
def test_sequence(length: int, states: int) -> None:
    check_sequence(sequence_operands(length, states=states))


def test_long_sequence() -> None:
    check_sequence(sequence_operands(3136, batch=1))


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("groups", [1, 2, 3, 144])
def test_sequence_groups_and_storage(groups: int, dtype: torch.dtype) -> None:
    check_sequence(sequence_operands(45, channels=144, groups=groups, states=2, dtype=dtype))


def test_sequence_without_softplus() -> None:
    operands = sequence_operands(50)
    operands[1] = operands[1].abs()
    check_sequence(operands, softplus=False)


def test_sequence_without_skip_and_bias() -> None:
    u, delta, A, B, C, _, _ = sequence_operands(40)
    y, _ = native.selective_scan(SelectiveScanOperands(u, delta, A, B, C, None, None, True))
    expected, _ = reference.selective_scan(
        SelectiveScanOperands(*(t.double() for t in (u, delta, A, B, C)), None, None, True)
    )
    assert_close("y", [y], [expected], 1e-6)
    dlast = torch.zeros(2, 24, 1)
    grads = native.selective_scan_backward(u, dlast, SelectiveScanOperands(u, delta, A, B, C, None, None, True))
    dy, dlast, *exact = (t.double() for t in (u, dlast, u, delta, A, B, C))
    expected_grads = reference.selective_scan_backward(dy, dlast, SelectiveScanOperands(*exact, None, None, True))
    assert_close("u delta A B C D delta_bias", grads, expected_grads, 2e-6)


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize("bias", [50.0, 300.0, -15.0, -40.0])
def test_extreme_steps(bias: float) -> None:
    # Where Δ = e^z, rounding z to float32 alone changes it by |z| 2^-24.
    tolerance = 1e-6 + 2.0**-24 * max(0.0, -bias)
    for states in (1, 2):
        operands = image_operands((9, 8), bias=bias, states=states)
        operands[4].zero_()  # the skip would hide what a tiny Δ does
        exact = leaves(operands)
        y = reference.ss2d_scan(SS2DOperands(*exact, "cross"))
        got = native.ss2d_scan(SS2DOperands(*operands, "cross"))
        grads = native.ss2d_scan_backward(torch.ones_like(operands[0]), SS2DOperands(*operands, "cross"))
        assert all(t.isfinite().all() for t in (got, *grads))
        assert_close("y", [got], [y], tolerance)
        expected = torch.autograd.grad(y, exact, torch.ones_like(y))
        assert_close("x dbc", grads[:2], expected[:2], 2 * tolerance)


@pytest.mark.usefixtures("_instruction_set")
def test_softplus_and_exp_pointwise() -> None:
    # One line of two tokens for each of many z: the first shows Δ, the second, without input, decay · Δ.
    z = torch.cat([torch.linspace(-80, 80, 20001), torch.linspace(-1, 1, 2001)])
    lines = len(z)
    x = torch.tensor([1.0, 0.0]).expand(lines, 2)[None, :, :, None].contiguous()
    dbc = torch.ones(1, lines, 2, 1, 3)
    dbc[..., 0] = z[None, :, None, None]
    for rate in (-1.0, -0.01, 0.25):
        one = torch.ones(1, 1)
        y = native.ss2d_scan(
            SS2DOperands(x, dbc, one[..., None], rate * one[..., None], 0 * one, 0 * one, "rows")
        ).double()
        step = torch.nn.functional.softplus(z.double(), threshold=1e9)
        decay = torch.exp(rate * step)
        assert ((y[0, :, 0, 0] - step) / step).abs().max() < 4e-7
        normal = decay > 1e-36
        assert ((y[0, :, 1, 0] / step - decay) / decay)[normal].abs().max() < 1e-5  # Δ of 80 is rounded
        small = (rate * step).abs() < 1
        assert ((y[0, :, 1, 0] / step - decay) / decay)[small].abs().max() < 5e-7


def test_growing_state_is_infinite_not_wrong() -> None:
    operands = image_operands((1, 60), bias=50.0)
    operands[3].abs_().add_(1)
    assert not native.ss2d_scan(SS2DOperands(*operands, "unidirectional")).isfinite().all()


def test_nan_comes_through() -> None:
    for position in range(2):
        operands = image_operands((4, 4))
        operands[position][0, 2, 2] = float("nan")
        y = native.ss2d_scan(SS2DOperands(*operands, "cross"))
        assert y[0, 2, 2].isnan().all()
        assert y[1].isfinite().all()


def test_half_precision_infinities_and_subnormals() -> None:
    operands = image_operands((1, 3), dtype=torch.float16, channels=16)
    operands[0].fill_(2.0**-24)
    y = native.ss2d_scan(SS2DOperands(*operands, "cross")).double()
    assert_close("y", [y], [reference.ss2d_scan(SS2DOperands(*(t.double() for t in operands), "cross")).half()], 1e-2)
    operands[0][0, 0, 1, 3] = float("inf")
    assert not native.ss2d_scan(SS2DOperands(*operands, "cross"))[0, 0, 1, 3].isfinite()


def test_non_contiguous_operands() -> None:
    operands = image_operands((6, 5))
    expected = native.ss2d_scan(SS2DOperands(*operands, "cross"))
    scattered = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in operands]
    assert not any(t.is_contiguous() for t in scattered[:2])
    assert torch.equal(native.ss2d_scan(SS2DOperands(*scattered, "cross")), expected)
    dy = torch.randn_like(operands[0])
    for a, b in zip(
        native.ss2d_scan_backward(dy.expand_as(dy), SS2DOperands(*scattered, "cross")),
        native.ss2d_scan_backward(dy, SS2DOperands(*operands, "cross")),
        strict=True,
    ):
        assert torch.equal(a, b)
    sequence = sequence_operands(30, groups=2)
    scattered = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in sequence]
    for a, b in zip(
        native.selective_scan(SelectiveScanOperands(*scattered, True)),
        native.selective_scan(SelectiveScanOperands(*sequence, True)),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_operands_of_different_storage() -> None:
    operands = image_operands((4, 5))
    operands[1] = operands[1].bfloat16()
    expected = reference.ss2d_scan(SS2DOperands(*(t.double() for t in operands), "cross"))
    assert_close("y", [native.ss2d_scan(SS2DOperands(*operands, "cross"))], [expected], 1e-6)


@pytest.mark.parametrize("pattern", ["cross", "columns"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("channels", [24, 96, 192])
def test_threads_do_not_change_results(channels: int, batch: int, pattern: str) -> None:
    operands = image_operands((14, 15), pattern=pattern, channels=channels, states=2, batch=batch)
    sequence = sequence_operands(100, channels=channels, groups=2, states=2, batch=batch)
    dy, du, dlast = (torch.randn(t) for t in (operands[0].shape, sequence[0].shape, (batch, channels, 2)))
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8, 1):
            torch.set_num_threads(threads)
            results.append(
                [
                    native.ss2d_scan(SS2DOperands(*operands, pattern)),
                    *native.ss2d_scan_backward(dy, SS2DOperands(*operands, pattern)),
                    *native.selective_scan(SelectiveScanOperands(*sequence, True)),
                    *native.selective_scan_backward(du, dlast, SelectiveScanOperands(*sequence, True)),
                ]
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("states", [1, 3])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_more_threads_than_blocks(pattern: str, states: int) -> None:
    operands = image_operands((40, 37), pattern=pattern, batch=1, channels=21, states=states)
    expected = native.ss2d_scan(SS2DOperands(*(t.double() for t in operands), pattern))
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 5, 8):
            torch.set_num_threads(threads)
            results.append(native.ss2d_scan(SS2DOperands(*operands, pattern)))
    finally:
        torch.set_num_threads(before)
    assert_close("y", results[:1], [expected], 1e-6)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_runs_on_the_threads_of_pytorch() -> None:
    assert native.SHARES_THREADS or not torch.backends.openmp.is_available()


def test_it_answers_on_a_cpu() -> None:
    assert select(torch.device("cpu")).name == "native"
    assert native.describe().startswith("C++ kernels for ")
    operands = image_operands((3, 4))
    assert torch.equal(ss2d_scan(*operands), native.ss2d_scan(SS2DOperands(*operands, "cross")))
    sequence = sequence_operands(9)
    y = selective_scan(*sequence[:6], delta_bias=sequence[6], delta_softplus=True)
    assert torch.equal(y, native.selective_scan(SelectiveScanOperands(*sequence, True))[0])


def test_other_devices_are_refused() -> None:
    operands = [t.to("meta") for t in image_operands((2, 2))]
    with pytest.raises(ValueError, match="the native kernels run on the CPU"):
        native.ss2d_scan(SS2DOperands(*operands, "cross"))


def test_unavailable_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = backends._import
    monkeypatch.setattr(backends, "_import", lambda name: (None, "no compiler") if name == "native" else found(name))
    monkeypatch.setattr(backends, "_automatic", {})
    with pytest.raises(OptionError, match=r"^backend 'native' is unavailable: no compiler$"), use_backend("native"):
        pass
    choice = select(torch.device("cpu"))
    assert choice.name == "chunked"
    assert "no compiler" in choice.reason


def test_routes_are_encoded_as_the_kernels_read_them() -> None:
    assert [native._encode(r) for r in (Route(), Route(columns=True), Route(backward=True), Route(per_line=True))] == [
        0,
        1,
        2,
        4,
    ]


def routes_operands(
    *, channels: int = 20, routes: int = 3, states: int = 2, shared: bool = False, dtype: torch.dtype = torch.float32
) -> RoutesOperands:
    """Tokens 7×9; the order has windows, padding, tokens left out and tokens that come twice."""
    x, dbc, *parameters = image_operands((7, 9), channels=channels, states=states, dtype=dtype)
    weight, A, D, bias = (t.repeat(3, *(1,) * (t.ndim - 1))[:routes] for t in parameters)
    dbc = dbc[:, :, :, 0] if shared else dbc.repeat(1, 1, 1, 3, 1)[:, :, :, :routes]
    order = torch.stack([orders.windows(7, 9, 4), *(torch.randint(-1, 63, (96,)) for _ in range(routes - 1))])
    return RoutesOperands(x, dbc, weight, A, D, bias, order, True)


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("channels", "routes", "states"), [(4, 1, 1), (20, 3, 2), (70, 9, 16)])
@pytest.mark.parametrize("dtype", STORAGE)
def test_routes(dtype: torch.dtype, channels: int, routes: int, states: int, shared: bool) -> None:
    for by_route in (False, True):
        operands = routes_operands(channels=channels, routes=routes, states=states, shared=shared, dtype=dtype)
        operands = operands._replace(by_route=by_route)
        exact = leaves(operands[:6])
        with use_backend("reference"):
            y = gathered_scan(RoutesOperands(*exact, *operands[6:]))
        dy = torch.randn(y.shape, dtype=torch.float64).to(dtype)
        assert_close("y", [native.scan_routes(operands)], [y], FORWARD[dtype])
        expected = torch.autograd.grad(y, exact, dy.double())
        grads = native.scan_routes_backward(dy, operands)
        assert_close("x dbc dt_weight A D dt_bias", grads, expected, GRADIENT[dtype])


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_routes_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    operands = routes_operands(channels=70)
    operands = operands._replace(order=torch.stack([operands.order, operands.order.flip(-1)]))  # one for each sample
    usual = torch.get_num_threads()
    results = []
    for count in (1, threads):
        torch.set_num_threads(count)
        y = native.scan_routes(operands)
        results.append([y, *native.scan_routes_backward(torch.ones_like(y), operands)])
    torch.set_num_threads(usual)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
