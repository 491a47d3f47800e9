"""Derivatives of every kind against those of the definition, which PyTorch differentiates operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._pytree import tree_leaves

from support.operands import selective_operands, ss2d_operands
from vmamba.ops import BACKENDS, selective_scan, ss2d_scan, use_backend
from vmamba.ops.backends import reference, unavailable
from vmamba.ops.operands import SelectiveScanOperands, SS2DOperands
from vmamba.ops.routes import PATTERNS

Scan = Callable[..., Any]

SCANS: dict[str, tuple[Scan, Scan, list[Tensor]]] = {  # ours, the definition, operands
    "ss2d_scan": (
        lambda *o: torch.ops.vmamba.ss2d_scan(*o, "cross"),
        lambda *o: reference.ss2d_scan(SS2DOperands(*o, "cross")),
        ss2d_operands(1, 2, 3, 2, 2, 1, "cross"),
    ),
    "selective_scan": (
        lambda *o: torch.ops.vmamba.selective_scan(*o, True),
        lambda *o: reference.selective_scan(SelectiveScanOperands(*o, True)),
        list(selective_operands(2, 4, 5, 2, 2).values()),
    ),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning"),  # loads forward mode's own formulas
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]


@pytest.fixture(params=SCANS)
def scan(request: pytest.FixtureRequest) -> tuple[Scan, Scan, list[Tensor]]:
    torch.compiler.reset()
    return SCANS[request.param]


def loss(run: Scan) -> Scan:
    return lambda *operands: sum((y**2).sum() for y in tree_leaves(run(*operands)))


def all_of(operands: Any) -> tuple[int, ...]:
    return tuple(range(len(operands)))


def samples(operands: list[Tensor]) -> list[Tensor]:
    return [torch.stack([t, 1.1 * t, 0.9 * t]) for t in operands]


def assert_same(got: Any, expected: Any) -> None:
    for a, b in zip(tree_leaves(got), tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert a.count_nonzero() > 0


def test_forward_mode(scan: tuple[Scan, Scan, list[Tensor]]) -> None:
    ours, truth, operands = scan
    tangents = tuple(torch.randn_like(t) for t in operands)
    expected = jvp(truth, tuple(operands), tangents)
    assert_same(jvp(ours, tuple(operands), tangents), expected)
    with forward_ad.dual_level():
        duals = ours(*(forward_ad.make_dual(t, v) for t, v in zip(operands, tangents, strict=True)))
        assert_same([forward_ad.unpack_dual(y).tangent for y in tree_leaves(duals)], expected[1])


def test_forward_mode_through_each_operand_alone(scan: tuple[Scan, Scan, list[Tensor]]) -> None:
    """A tangent is never taken for zero, whichever operand it comes through."""
    ours, truth, operands = scan
    for i, operand in enumerate(operands):
        with forward_ad.dual_level(), torch.no_grad():
            dual = forward_ad.make_dual(operand, torch.ones_like(operand))
            changed = [*operands[:i], dual, *operands[i + 1 :]]
            got, expected = (
                [forward_ad.unpack_dual(y).tangent for y in tree_leaves(run(*changed))] for run in (ours, truth)
            )
            for a, b in zip(got, expected, strict=True):
                assert (a is None) == (b is None)
                if b is not None:
                    assert_same(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_forward_mode(backend: str) -> None:
    ours, truth, operands = SCANS["ss2d_scan"]
    torch.compiler.reset()

    def by_transform(run: Scan, *operands: Tensor) -> Any:
        return jvp(run, operands, operands)

    def by_level(run: Scan, *operands: Tensor) -> Any:
        with forward_ad.dual_level():
            y = run(*(forward_ad.make_dual(t, t) for t in operands))
            return forward_ad.unpack_dual(y).tangent

    for differentiate in (by_transform, by_level):
        compiled = torch.compile(lambda *o, d=differentiate: d(ours, *o), backend=backend)
        assert_same(compiled(*operands), differentiate(truth, *operands))


def test_gradients_of_the_gradient(scan: tuple[Scan, Scan, list[Tensor]]) -> None:
    def second(run: Scan) -> Any:
        places = all_of(operands)
        return grad(lambda *o: sum((g**3).sum() for g in grad(loss(run), places)(*o)), places)

    def third(run: Scan) -> Any:
        return grad(lambda *o: sum((g**2).sum() for g in second(run)(*o)), all_of(operands))

    ours, truth, operands = scan
    assert_same(second(ours)(*operands), second(truth)(*operands))
    assert_same(third(ours)(*operands), third(truth)(*operands))


def test_gradient_penalty(scan: tuple[Scan, Scan, list[Tensor]]) -> None:
    """``create_graph=True``, then ``backward``."""
    ours, truth, operands = scan

    def penalty(run: Scan) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in operands]
        first = torch.autograd.grad(loss(run)(*leaves), leaves, create_graph=True)
        sum(g.pow(2).sum() for g in first).backward()  # type: ignore[union-attr]
        return [t.grad for t in leaves]  # type: ignore[misc]

    assert_same(penalty(ours), penalty(truth))


@pytest.mark.filterwarnings("ignore:Input #0 requires gradient")
def test_by_finite_differences() -> None:
    u, delta, A, B, C, D, bias = (t.requires_grad_() for t in selective_operands(1, 2, 3, 1, 1).values())

    def run(*operands: Tensor) -> Any:
        return torch.ops.vmamba.selective_scan(*operands, True)

    operands = (u, delta, A, B, C, D, bias)
    assert gradcheck(run, operands, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(run, operands, check_fwd_over_rev=True, check_batched_grad=True)


def test_absent_operands(scan: tuple[Scan, Scan, list[Tensor]]) -> None:
    """No D, no bias: their gradients do not exist, the others do, to the second order."""
    _, _, operands = SCANS["selective_scan"]
    u, delta, A, B, C = operands[:5]

    def second(run: Scan) -> Any:
        return grad(lambda u: grad(lambda u: (run(u)[0] ** 3).sum())(u).pow(2).sum())(u)

    def ours(u: Tensor) -> Any:
        return torch.ops.vmamba.selective_scan(u, delta.abs(), A, B, C, None, None, False)

    def truth(u: Tensor) -> Any:
        return reference.selective_scan(SelectiveScanOperands(u, delta.abs(), A, B, C, None, None, False))

    assert_same(second(ours), second(truth))
    assert_same(jvp(ours, (u,), (u,)), jvp(truth, (u,), (u,)))


def test_hessians(scan: tuple[Scan, Scan, list[Tensor]]) -> None:
    ours, truth, operands = scan
    rest = operands[1:]
    expected = hessian(lambda x: loss(truth)(x, *rest))(operands[0])
    for outer, inner in ((jacfwd, jacrev), (jacrev, jacrev), (jacfwd, jacfwd), (jacrev, jacfwd)):
        assert_same(outer(inner(lambda x: loss(ours)(x, *rest)))(operands[0]), expected)


def test_vmap(scan: tuple[Scan, Scan, list[Tensor]]) -> None:
    """Over all operands, each alone, along another dimension, twice."""
    ours, truth, operands = scan
    many = samples(operands)
    expected = vmap(truth)(*many)
    assert_same(vmap(ours)(*many), expected)
    assert_same(vmap(ours, -1)(*(t.movedim(0, -1) for t in many)), expected)
    twice = [torch.stack([t, 1.05 * t]) for t in many]
    assert_same(vmap(vmap(ours))(*twice), vmap(vmap(truth))(*twice))
    for i in range(len(operands)):
        dims = tuple(0 if j == i else None for j in range(len(operands)))
        mixed = [many[j] if j == i else operands[j] for j in range(len(operands))]
        assert_same(vmap(ours, dims)(*mixed), vmap(truth, dims)(*mixed))


@pytest.mark.parametrize("batched", [2, None], ids=["features alone", "parameters, too"])
def test_gradients_of_each_sample(scan: tuple[Scan, Scan, list[Tensor]], batched: int | None) -> None:
    ours, truth, operands = scan
    many, places = samples(operands), all_of(operands)
    mixed = [*many[:batched], *operands[len(many[:batched]) :]]
    dims = tuple(0 if a is b else None for a, b in zip(mixed, many, strict=True))
    assert_same(vmap(grad(loss(ours), places), dims)(*mixed), vmap(grad(loss(truth), places), dims)(*mixed))


def test_forward_mode_of_samples(scan: tuple[Scan, Scan, list[Tensor]]) -> None:
    ours, truth, operands = scan
    many = tuple(samples(operands))
    expected = jvp(vmap(truth), many, many)
    assert_same(jvp(vmap(ours), many, many), expected)
    assert_same(vmap(lambda *o: jvp(ours, o, o))(*many), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_transforms(scan: tuple[Scan, Scan, list[Tensor]], backend: str) -> None:
    ours, truth, operands = scan
    many, places = samples(operands), all_of(operands)
    compiled = torch.compile(grad(loss(ours), places), backend=backend)
    assert_same(compiled(*operands), grad(loss(truth), places)(*operands))
    compiled = torch.compile(vmap(grad(loss(ours), places)), backend=backend)
    assert_same(compiled(*many), vmap(grad(loss(truth), places))(*many))


@pytest.mark.parametrize("name", BACKENDS)
def test_empty_batches(name: str) -> None:
    """Empty outputs, gradients of zero for the parameters."""
    if (problem := unavailable(name)) is not None:
        pytest.skip(problem)
    image = [t.requires_grad_() for t in ss2d_operands(0, 3, 4, 4, 2, 2, "cross", torch.float32)]
    sequence = {n: t.requires_grad_() for n, t in selective_operands(0, 4, 9, 2, 2, torch.float32).items()}
    with use_backend(name):
        y = ss2d_scan(*image)
        z, last = selective_scan(**sequence, return_last_state=True)
        (y.sum() + z.sum() + last.sum()).backward()
    assert (y.shape, z.shape, last.shape) == ((0, 3, 4, 4), (0, 4, 9), (0, 4, 2))
    for t in (*image, *sequence.values()):
        assert t.grad is not None
        assert t.grad.shape == t.shape
        assert t.grad.count_nonzero() == 0


@pytest.mark.parametrize("pattern", PATTERNS)
def test_empty_batches_of_long_images_and_compiled(pattern: str) -> None:
    image = [t.requires_grad_() for t in ss2d_operands(0, 1, 200, 4, 2, 2, pattern, torch.float32)]  # own chunks
    y = ss2d_scan(*image, pattern)
    y.sum().backward()
    assert y.shape == (0, 1, 200, 4)
    if pattern != "cross":
        return
    assert torch.compile(ss2d_scan, backend="aot_eager")(*image).shape == (0, 1, 200, 4)
    assert ss2d_scan(*(t.to("meta") for t in image)).shape == (0, 1, 200, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Tangents and second derivatives have the dtypes of what they belong to, and are right to its precision."""
    operands = ss2d_operands(1, 2, 3, 2, 2, 1, "cross", dtype)
    exact = [t.double() for t in operands]
    y, tangent = jvp(SCANS["ss2d_scan"][0], tuple(operands), tuple(operands))
    _, expected = jvp(SCANS["ss2d_scan"][1], tuple(exact), tuple(exact))
    assert tangent.dtype == y.dtype == dtype
    torch.testing.assert_close(tangent.double(), expected, rtol=0.05, atol=0.05)
