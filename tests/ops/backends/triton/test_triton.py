"""The Triton kernels against the definition in float64: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from support.golden import relative_error
from support.marks import exhaustive
from support.operands import selective_operands, ss2d_operands
from vmamba.ops import select, selective_scan, ss2d_scan, use_backend
from vmamba.ops.backends import reference
from vmamba.ops.operands import SS2DOperands
from vmamba.ops.routes import PATTERNS

triton = pytest.importorskip("triton")

from support.interpreter import scan_whole_slices  # noqa: E402
from vmamba.ops.backends import triton as kernels  # noqa: E402
from vmamba.ops.backends.triton import selective_backward as selective_backward_kernels  # noqa: E402
from vmamba.ops.backends.triton import selective_forward as selective_kernels  # noqa: E402
from vmamba.ops.backends.triton import ss2d_backward as ss2d_backward_kernels  # noqa: E402
from vmamba.ops.backends.triton import ss2d_forward as ss2d_kernels  # noqa: E402
from vmamba.ops.backends.triton import ss2d_walk_backward as walk_back_kernels  # noqa: E402
from vmamba.ops.backends.triton import ss2d_walk_forward as walk_kernels  # noqa: E402
from vmamba.ops.backends.triton import walk_launch  # noqa: E402
from vmamba.ops.backends.triton.launch import INTERPRETED  # noqa: E402

pytestmark = pytest.mark.slow

DEVICE = "cpu" if INTERPRETED else "cuda"
# One patch, a row of patches, several both ways, with a remainder.
GRIDS = [(1, 1), (3, 4), (1, 9), (5, 6)]
# Storage rounds x once on the way in and y once on the way out; gradients collect several such roundings.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def triton_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Patches and blocks small enough for images of a few tokens to need several."""
    if INTERPRETED:
        monkeypatch.setattr(ss2d_kernels, "tile", lambda *sizes: ({"P": 4, "BLOCK": 4}, 1))
        monkeypatch.setattr(ss2d_kernels, "CHAIN", (2, 4))
        monkeypatch.setattr(ss2d_backward_kernels, "TILE", (4, 4, 1))
        monkeypatch.setattr(selective_kernels, "TILE", (4, 4, 1))
        monkeypatch.setattr(selective_backward_kernels, "TILE", (2, 4, 1))
        scan_whole_slices(monkeypatch)
    with use_backend("triton"):
        yield


def truth_and_result(operands: list[Tensor], pattern: str) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of the float64 definition, by autograd, and of the operator as it is."""
    leaves = [t.detach().to(DEVICE).requires_grad_() for t in operands]
    exact = [t.detach().double().requires_grad_() for t in operands]
    dy = torch.randn(operands[0].shape, generator=torch.Generator().manual_seed(1)).to(operands[0].dtype)
    y_exact = reference.ss2d_scan(SS2DOperands(*exact, pattern))
    truth = [y_exact.detach(), *torch.autograd.grad(y_exact, exact, dy.double())]
    y = ss2d_scan(*leaves, pattern)
    return truth, [t.cpu() for t in (y.detach(), *torch.autograd.grad(y, leaves, dy.to(DEVICE)))]


def check(operands: list[Tensor], pattern: str = "cross") -> None:
    tolerance = TOLERANCE[operands[0].dtype]
    names = ("y", "x", "dbc", "dt_weight", "A", "D", "dt_bias")
    for name, expected, got, like in zip(
        names, *truth_and_result(operands, pattern), [operands[0], *operands], strict=True
    ):
        assert got.dtype == like.dtype
        assert relative_error(got, expected) < tolerance, name


@pytest.mark.parametrize(("grid", "states"), [(grid, 1) for grid in GRIDS] + [((3, 4), 3), ((5, 2), 2)], ids=str)
def test_ss2d(grid: tuple[int, int], states: int) -> None:
    check(ss2d_operands(2, *grid, 6, states, 2, "cross", torch.float32))


@pytest.mark.parametrize("grid", [(3, 4), (5, 2)], ids=str)
@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "cross"])
def test_patterns(pattern: str, grid: tuple[int, int]) -> None:
    check(ss2d_operands(1, *grid, 5, 1, 3, pattern, torch.float32), pattern)


@pytest.mark.parametrize(
    ("grid", "channels", "rank", "pattern", "chains"),
    [
        ((1, 1), 8, 1, "cross", 0),
        ((1, 9), 24, 9, "cross", 16),  # warps of a program hold different channels, the last ones of which none
        ((9, 1), 8, 8, "cross", 1),
        ((2, 3), 8, 15, "cross", 1),  # b and c are added up by different warps, or by one warp in two turns
        exhaustive((2, 3), 8, 14, "cross", 1),
        ((2, 3), 40, 20, "cross", 1),
        ((5, 6), 40, 3, "cross", 32),  # a block of channels with a remainder
        ((7, 7), 16, 17, "cross", 0),  # several images a program, of which two exist
        exhaustive((9, 8), 16, 7, "cross", 0),
        ((6, 5), 16, 2, "bidirectional", 4),
        exhaustive((3, 5), 16, 2, "unidirectional", 4),
    ],
    ids=str,
)
def test_walk(
    monkeypatch: pytest.MonkeyPatch, grid: tuple[int, int], channels: int, rank: int, pattern: str, chains: int
) -> None:
    """The walking kernels alone, in float32, with the chains that they would choose (0) or with others."""
    if chains:
        size = {"CHAINS": chains, "G": max(1, chains // 16), "C": 16}
        monkeypatch.setattr(walk_launch, "shape", lambda *sizes: size | {"SPLIT": False})
        split = {"G": 2, "SPLIT": True} if chains <= 16 and rank > 6 else {"SPLIT": False}
        monkeypatch.setattr(walk_launch, "shape_back", lambda *sizes: size | split)
    operands = [t.to(DEVICE) for t in ss2d_operands(2, *grid, channels, 1, rank, pattern, torch.float32)]
    dy = torch.randn(operands[0].shape, generator=torch.Generator().manual_seed(1))
    exact = SS2DOperands(*(t.cpu().double() for t in operands), pattern)
    expected = [reference.ss2d_scan(exact), *reference.ss2d_scan_backward(dy.double(), exact)]
    got = [walk_kernels.ss2d_scan(*operands, pattern)]
    got += walk_back_kernels.ss2d_scan_backward(dy.to(DEVICE), *operands, pattern)
    for value, truth in zip(got, expected, strict=True):
        assert relative_error(value.cpu(), truth) < TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    ("grid", "channels", "states", "rank", "pattern", "chains"),
    [
        ((1, 1), 8, 2, 1, "cross", 1),
        ((1, 3), 40, 8, 6, "cross", 1),  # warps that hold no channels
        ((3, 2), 8, 16, 3, "bidirectional", 4),
        ((2, 3), 24, 4, 17, "cross", 4),
        exhaustive((9, 3), 40, 2, 6, "unidirectional", 8),
    ],
    ids=str,
)
def test_walk_with_several_states(
    monkeypatch: pytest.MonkeyPatch,
    grid: tuple[int, int],
    channels: int,
    states: int,
    rank: int,
    pattern: str,
    chains: int,
) -> None:
    """In float32, of three images: so programs of one chain have rows to spare."""
    size = {"CHAINS": chains, "G": 2, "SPLIT": True}
    monkeypatch.setattr(walk_launch, "shape", lambda *sizes: size | {"C": 8})
    monkeypatch.setattr(walk_launch, "shape_back", lambda *sizes: size | {"C": 16, "AT_ONCE": min(4, states)})
    operands = [t.to(DEVICE) for t in ss2d_operands(3, *grid, channels, states, rank, pattern, torch.float32)]
    dy = torch.randn(operands[0].shape, generator=torch.Generator().manual_seed(1))
    exact = SS2DOperands(*(t.cpu().double() for t in operands), pattern)
    expected = [reference.ss2d_scan(exact), *reference.ss2d_scan_backward(dy.double(), exact)]
    got = [walk_kernels.ss2d_scan(*operands, pattern)]
    got += walk_back_kernels.ss2d_scan_backward(dy.to(DEVICE), *operands, pattern)
    for value, truth in zip(got, expected, strict=True):
        assert relative_error(value.cpu(), truth) < TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    ("rank", "channels", "states", "dtype"),
    [
        exhaustive(6, 32, 1, torch.float16),
        (12, 40, 1, torch.bfloat16),
        (6, 16, 2, torch.bfloat16),
        exhaustive(6, 16, 2, torch.float16),
    ],
)
def test_walk_storage_types(rank: int, channels: int, states: int, dtype: torch.dtype) -> None:
    check(ss2d_operands(2, 5, 3, channels, states, rank, "cross", dtype))


def test_which_kernels_walk() -> None:
    """Those for patches keep some numbers of states, lines that begin anew, large maps that occupy few programs."""

    def takes(
        *shape: int, rank: int = 6, states: int = 1, pattern: str = "cross", dtype: Any = torch.bfloat16
    ) -> list[bool]:
        x, dbc = (torch.empty(*shape, *more, dtype=dtype, device="meta") for more in ((), (1,)))
        weight, A = (torch.empty(4, shape[3], n, device="meta") for n in (rank, states))
        operands = SS2DOperands(x, dbc, weight, A, A, A, pattern)
        return [walk_launch.takes(operands), walk_launch.takes(operands, backward=True)]

    assert takes(1, 32, 32, 96) == [True, True]
    assert takes(32, 56, 56, 96, pattern="unidirectional") == [True, True]
    assert takes(1, 56, 56, 96) == [False, False]
    assert takes(1, 32, 32, 96, states=16) == [True, True]
    assert takes(1, 32, 32, 96, states=3) == [False, False]
    assert takes(1, 56, 56, 96, states=16) == [False, False]
    assert takes(1, 32, 32, 96, pattern="rows") == [False, False]
    assert takes(1, 8, 8, 12) == [False, False]
    assert takes(64, 40, 40000, 96) == [False, False]
    assert takes(1, 32, 32, 96, rank=48) == [True, True]
    assert takes(1, 32, 32, 96, rank=64) == [True, False]
    assert takes(1, 8, 8, 96, rank=64) == [True, True]
    assert takes(1, 32, 32, 96, rank=48, dtype=torch.float16) == [True, False]
    assert takes(1, 32, 32, 96, dtype=torch.float32) == [True, False]
    assert takes(1, 32, 32, 96, rank=48, dtype=torch.float32) == [False, False]
    assert takes(1, 32, 32, 96, rank=24, states=16, dtype=torch.float32) == [False, False]
    assert takes(1, 32, 32, 96, states=16, dtype=torch.float16) == [True, False]


def test_division_by_the_height_in_one_multiplication() -> None:
    """What kernels compute where the interpreter divides (`walk.image_order`), up to the largest of the maps taken."""
    for height in [*range(1, 300), 1023, 1024, 46340]:
        *_, inverse = walk_launch.sizes(torch.empty(1, height, 1, 8, device="meta"), 1)
        limit = 2**31 // height - 1
        s = torch.cat([torch.arange(min(limit, 5000)), torch.arange(max(0, limit - 5000), limit)])
        assert torch.equal(2 * s * inverse >> 32, s // height)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_storage_types(dtype: torch.dtype) -> None:
    check(ss2d_operands(1, 5, 3, 6, 1, 2, "cross", dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_storage_as_under_autocast(dtype: torch.dtype) -> None:
    operands = ss2d_operands(1, 4, 3, 4, 1, 2, "cross", torch.float32)
    check([*(t.to(dtype) for t in operands[:2]), *operands[2:]])


@pytest.mark.parametrize(("channels", "rank"), [(4, 2), (8, 2), (8, 12)])
def test_weights_keep_their_bits_beside_half_precision_activations(channels: int, rank: int) -> None:
    """Only x and dbc are stored in bfloat16, and given: what is computed from them is exact to float32 until stored."""
    operands = ss2d_operands(1, 3, 4, channels, 1, rank, "cross", torch.float32)
    operands[1] = operands[1].bfloat16()
    y = kernels.ss2d_scan(SS2DOperands(*(t.to(DEVICE) for t in operands), "cross"))
    assert relative_error(y.cpu(), reference.ss2d_scan(SS2DOperands(*(t.double() for t in operands), "cross"))) < 2e-5


@pytest.mark.parametrize(("channels", "states"), [(4, 2), (8, 1), (8, 2)])
@pytest.mark.parametrize("step", [50.0, -50.0], ids=["large Δ", "tiny Δ"])
def test_extreme_steps_stay_finite_and_right(step: float, channels: int, states: int) -> None:
    operands = ss2d_operands(1, 5, 4, channels, states, 2, "cross", torch.float32, step=step)
    for expected, got in zip(*truth_and_result(operands, "cross"), strict=True):
        assert got.isfinite().all()
        assert relative_error(got, expected) < 1e-5  # Δ of exp(-50): rounding z changes it by 50 · 2^-24


def test_long_steps_leave_short_ones_their_bits() -> None:
    """The state is forgotten at every fifth token, where Δ is 10⁴ times as long; nothing else may change."""
    operands = ss2d_operands(1, 5, 6, 4, 1, 2, "cross", torch.float32)
    x, dbc, weight = operands[:3]
    weight.fill_(0.5)
    x.flatten(1, 2)[:, 2::5] = 0
    dbc.flatten(1, 2)[:, 2::5, :, :2] = 1e4
    for expected, got in zip(*truth_and_result(operands, "cross"), strict=True):
        assert relative_error(got, expected) < TOLERANCE[torch.float32]


def test_non_contiguous_operands() -> None:
    operands = ss2d_operands(2, 3, 4, 4, 1, 3, "cross", torch.float32)
    check([t.transpose(0, -1).contiguous().transpose(0, -1) for t in operands])


@pytest.mark.parametrize("channels", [12, 16])
def test_gradients_are_the_same_bit_for_bit(channels: int) -> None:
    operands = [t.to(DEVICE) for t in ss2d_operands(2, 4, 3, channels, 1, 2, "cross", torch.bfloat16)]
    first = kernels.ss2d_scan_backward(operands[0], SS2DOperands(*operands, "cross"))
    for a, b in zip(first, kernels.ss2d_scan_backward(operands[0], SS2DOperands(*operands, "cross")), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("shape", "channels", "states"), [((2, 4, 3), 12, 1), ((2, 3, 2), 40, 1), ((17, 1, 2), 72, 2)], ids=str
)
def test_blocks_of_channels_share_the_gradient_of_dbc(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], channels: int, states: int
) -> None:
    """Few programs with several blocks and images each, or one program per block: the same sums."""
    operands = [t.to(DEVICE) for t in ss2d_operands(*shape, channels, states, 2, "cross", torch.float32)]
    walks = channels % 8 == 0
    backward = walk_back_kernels if walks else ss2d_backward_kernels
    limit = (walk_launch, "ENOUGH_WARPS") if walks else (ss2d_backward_kernels, "ENOUGH_PROGRAMS")
    exact = SS2DOperands(*(t.cpu().double() for t in operands), "cross")
    expected = reference.ss2d_scan_backward(exact.x, exact)
    for programs in (1, 1024):
        monkeypatch.setattr(*limit, programs)
        got = backward.ss2d_scan_backward(operands[0], *operands, "cross")
        assert all(relative_error(a.cpu(), b) < 5e-6 for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    ("length", "states", "groups", "optional"),
    [(1, 1, 1, True), (3, 1, 8, True), (4, 2, 2, True), (37, 3, 1, True), (7, 1, 2, False)],  # up to three chunks
)
def test_selective_scan(length: int, states: int, groups: int, optional: bool) -> None:
    operands = selective_operands(2, 8, length, states, groups, torch.float32)
    if not optional:
        operands["delta"] = operands["delta"].abs()
        del operands["D"], operands["delta_bias"]
    exact = {n: t.double().requires_grad_() for n, t in operands.items()}
    leaves = {n: t.to(DEVICE).requires_grad_() for n, t in operands.items()}
    with use_backend("reference"):
        truth: Any = selective_scan(**exact, delta_softplus=optional, return_last_state=True)
    dy, dlast = (torch.randn(t.shape) for t in truth)
    truth = [*truth, *torch.autograd.grad(truth, list(exact.values()), (dy.double(), dlast.double()))]
    result: Any = selective_scan(**leaves, delta_softplus=optional, return_last_state=True)
    result = [*result, *torch.autograd.grad(result, list(leaves.values()), (dy.to(DEVICE), dlast.to(DEVICE)))]
    for expected, got in zip(truth, result, strict=True):
        assert relative_error(got.cpu(), expected) < TOLERANCE[torch.float32]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_opcheck() -> None:
    operands = [t.to(DEVICE).requires_grad_() for t in ss2d_operands(1, 3, 5, 4, 1, 2, "cross", torch.float32)]
    torch.library.opcheck(torch.ops.vmamba.ss2d_scan.default, (*operands, "cross"), atol=1e-4, rtol=1e-4)


def test_float64_is_left_to_chunked() -> None:
    operands = [t.to(DEVICE) for t in ss2d_operands(1, 3, 4, 4, 1, 2, "cross")]
    y = ss2d_scan(*operands)
    assert y.dtype == torch.float64
    assert relative_error(y.cpu(), reference.ss2d_scan(SS2DOperands(*(t.cpu() for t in operands), "cross"))) < 1e-12


def test_it_answers_on_a_gpu() -> None:
    with use_backend("triton"):
        assert select(torch.device("cpu")).name == "triton"
    assert kernels.describe().startswith(f"kernels of Triton {triton.__version__}")


def test_other_devices_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    with pytest.raises(ValueError, match="the triton kernels run on a GPU, the operands are on cpu") as caught:
        ss2d_scan(*ss2d_operands(1, 2, 2, 4, 1, 2, "cross", torch.float32))
    assert "\n" not in str(caught.value)
