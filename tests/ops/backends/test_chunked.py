"""The chunked scans against the definition in float64: forward and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.golden import relative_error
from support.operands import selective_operands, ss2d_operands
from vmamba.ops import selective_scan, ss2d_scan, use_backend
from vmamba.ops.backends import chunked, reference
from vmamba.ops.operands import SelectiveScanOperands, SS2DOperands
from vmamba.ops.routes import PATTERNS

GRIDS = [(1, 1), (1, 2), (1, 7), (5, 3), (9, 7), (20, 25), (1, 500), (3, 250), (131, 2)]
# Storage rounds x once on the way in and y once on the way out; gradients collect several such roundings.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True, scope="module")
def chunked_answers() -> Iterator[None]:
    with use_backend("chunked"):
        yield


def truth_and_result(operands: list[Tensor], pattern: str) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of the float64 definition, by autograd, and of the operator as it is."""
    leaves = [t.detach().requires_grad_() for t in operands]
    exact = [t.detach().double().requires_grad_() for t in operands]
    dy = torch.randn(operands[0].shape, generator=torch.Generator().manual_seed(1)).to(operands[0].dtype)
    y_exact = reference.ss2d_scan(SS2DOperands(*exact, pattern))
    truth = [y_exact.detach(), *torch.autograd.grad(y_exact, exact, dy.double())]
    y = ss2d_scan(*leaves, pattern)
    return truth, [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    ("pattern", "states"),
    [*((pattern, states) for pattern in PATTERNS for states in (1, 2)), ("cross", 8), ("cross", 16)],
)
def test_ss2d(pattern: str, grid: tuple[int, int], states: int) -> None:
    truth, result = truth_and_result(ss2d_operands(2, *grid, 6, states, 2, pattern), pattern)
    for expected, got in zip(truth, result, strict=True):
        assert relative_error(got, expected) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", [(1, 1), (5, 3), (14, 14), (1, 500)], ids=str)
def test_ss2d_storage_types(grid: tuple[int, int], dtype: torch.dtype) -> None:
    operands = ss2d_operands(2, *grid, 6, 2, 2, "cross", dtype)
    truth, result = truth_and_result(operands, "cross")
    for expected, got, operand in zip(truth, result, [operands[0], *operands], strict=True):
        assert got.dtype == operand.dtype
        assert relative_error(got, expected) < TOLERANCE[dtype]


@pytest.mark.slow
def test_ss2d_of_an_image_as_large_as_a_first_stage() -> None:
    truth, result = truth_and_result(ss2d_operands(1, 56, 56, 3, 1, 2, "cross", torch.float32), "cross")
    for expected, got in zip(truth, result, strict=True):
        assert relative_error(got, expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mixed_storage_as_under_autocast(dtype: torch.dtype) -> None:
    operands = ss2d_operands(2, 6, 5, 4, 1, 2, "cross", torch.float32)
    operands[:2] = [t.to(dtype) for t in operands[:2]]
    truth, result = truth_and_result(operands, "cross")
    assert [t.dtype for t in result[1:]] == [t.dtype for t in operands]
    for expected, got in zip(truth, result, strict=True):
        assert relative_error(got, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("step", [50.0, -50.0], ids=["large Δ", "tiny Δ"])
def test_extreme_steps_stay_finite_and_right(step: float, dtype: torch.dtype) -> None:
    operands = ss2d_operands(1, 9, 8, 4, 4, 2, "cross", dtype, step=step)
    truth, result = truth_and_result(operands, "cross")
    for expected, got in zip(truth, result, strict=True):
        assert got.isfinite().all()
        if expected.abs().max() > torch.finfo(dtype).smallest_normal:  # not all rounded to zero in storage
            assert relative_error(got, expected) < TOLERANCE[dtype]


def test_non_contiguous_operands() -> None:
    operands = ss2d_operands(2, 6, 7, 4, 2, 3, "cross")
    strided = [
        operands[0].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),  # NCHW memory
        *(torch.stack([t, t], dim=-1)[..., 0] for t in operands[1:]),
    ]
    assert not any(t.is_contiguous() for t in strided)
    for expected, got in zip(*truth_and_result(strided, "cross"), strict=True):
        assert relative_error(got, expected) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("grid", [(6, 7), (1, 150)], ids=str)
def test_nothing_is_read_before_it_is_written(grid: tuple[int, int]) -> None:
    """Uninitialised memory filled with NaN must not reach a result."""
    operands = ss2d_operands(2, *grid, 4, 2, 3, "cross")
    dy = torch.randn_like(operands[0])
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        image = SS2DOperands(*operands, "cross")
        got = [chunked.ss2d_scan(image), *chunked.ss2d_scan_backward(dy, image)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(t.isfinite().all() for t in got)


def same_with_any_number_of_threads(compute: Callable[[], Sequence[Tensor]]) -> None:
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(compute())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# Work is divided from 32768 elements upwards, anywhere.
few = settings(max_examples=8, deadline=None, derandomize=True)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


@pytest.mark.slow
@few
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 130), st.integers(1, 2), st.integers(1, 5), dtypes)
@example(1, 500, 111, 1, 1, torch.float32)  # a sequence of its own chunks, projections that are vectors
@example(2, 100, 193, 1, 6, torch.float32)  # fewer chunks than threads
@example(1, 1, 96, 2, 6, torch.float32)
def test_threads_do_not_change_images(
    height: int, width: int, channels: int, states: int, rank: int, dtype: torch.dtype
) -> None:
    operands = SS2DOperands(*ss2d_operands(1, height, width, channels, states, rank, "cross", dtype), "cross")
    same_with_any_number_of_threads(
        lambda: [chunked.ss2d_scan(operands), *chunked.ss2d_scan_backward(operands.x, operands)]
    )


@pytest.mark.slow
@few
@given(st.integers(1, 3000), st.integers(1, 20), st.integers(1, 3), st.integers(1, 2), dtypes)
@example(4099, 33, 2, 1, torch.float32)
@example(4096, 16, 1, 1, torch.float32)  # a square: nothing is padded
def test_threads_do_not_change_sequences(
    length: int, channels: int, groups: int, states: int, dtype: torch.dtype
) -> None:
    operands = selective_operands(2, groups * channels, length, states, groups, dtype)
    scan = SelectiveScanOperands(**operands, delta_softplus=True)
    dlast = torch.ones(2, groups * channels, states)
    same_with_any_number_of_threads(
        lambda: [*chunked.selective_scan(scan), *chunked.selective_scan_backward(scan.u, dlast, scan)]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "states", "groups"), [*product([1, 2, 63, 500], [1, 2, 8, 16], [1, 2, 6]), (3136, 1, 2), (3136, 16, 1)]
)
def test_selective_scan(length: int, states: int, groups: int) -> None:
    operands = {n: t.requires_grad_() for n, t in selective_operands(2, 6, length, states, groups).items()}
    leaves = list(operands.values())
    y, last = reference.selective_scan(SelectiveScanOperands(**operands, delta_softplus=True))
    dy, dlast = torch.randn_like(y), torch.randn_like(last)
    truth = [y, last, *torch.autograd.grad((y, last), leaves, (dy, dlast))]
    y, last = selective_scan(**operands, delta_softplus=True, return_last_state=True)
    result = [y, last, *torch.autograd.grad((y, last), leaves, (dy, dlast))]
    for expected, got in zip(truth, result, strict=True):
        assert relative_error(got, expected) < TOLERANCE[torch.float64]


def test_backward_keeps_no_states() -> None:
    """Between forward and backward nothing is held but the inputs."""
    operands = [t.requires_grad_() for t in ss2d_operands(1, 8, 8, 4, 16, 2, "cross")]
    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        ss2d_scan(*operands, "cross")
    assert {t.data_ptr() for t in held} <= {t.data_ptr() for t in operands}


def test_steps_in_python_grow_with_the_side_not_with_the_tokens() -> None:
    """4 × the tokens may cost about 2 × the Python steps."""

    def calls(side: int) -> int:
        with torch.profiler.profile() as profile:
            chunked.ss2d_scan(SS2DOperands(*ss2d_operands(1, side, side, 2, 1, 1, "cross", torch.float32), "cross"))
        return sum(event.count for event in profile.key_averages())

    assert calls(64) < 2.5 * calls(32)
