"""The depthwise convolution with SiLU: whether it is right, and its time against PyTorch's two layers and the floor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import vmamba.ops  # noqa: F401 (defines the operators)
from gpu_bench.context import Context, one_line
from gpu_bench.plan import Shape
from gpu_bench.scans import copy_speed, relative_error, shapes

#: Largest relative error against float64 in bfloat16; the gradient of x is rounded twice.
TOLERANCE = 1e-2


def operands(shape: Shape, device: str) -> list[Tensor]:
    """dy, x, weight and bias: features in the storage type, parameters in float32."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, device=device, generator=generator)

    tokens = (shape.batch, shape.height, shape.width, shape.channels)
    features = [normal(*tokens).to(shape.dtype) for _ in range(2)]
    return [*features, normal(shape.channels, 1, 3, 3) / 3, normal(shape.channels)]


def layers(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in two layers of PyTorch."""
    z = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[3])
    return F.silu(z).permute(0, 2, 3, 1)


def errors(shape: Shape, device: str) -> dict[str, float]:
    """Relative errors of the output and the gradients against PyTorch's layers in float64."""
    dy, *leaves = operands(shape, device)
    exact = [t.double().requires_grad_() for t in leaves]
    y = layers(*exact)
    truth = [y.detach(), *torch.autograd.grad(y, exact, dy.double())]
    got = [torch.ops.vmamba.depthwise_silu(*leaves), *torch.ops.vmamba.depthwise_silu_backward(dy, *leaves)]
    names = ("y", "x", "weight", "bias")
    return {name: relative_error(a, b) for name, a, b in zip(names, got, truth, strict=True)}


def prepare(context: Context, case: str) -> None:
    """Compile the kernels."""
    for shape in shapes(context):
        dy, *leaves = operands(shape, context.device)
        torch.ops.vmamba.depthwise_silu(*leaves)
        torch.ops.vmamba.depthwise_silu_backward(dy, *leaves)


def convolution(context: Context) -> None:
    """Forward, and backward alone, the caches emptied before."""
    speed = copy_speed(context)
    flood = torch.randint(256, (context.plan.copied // 4,), dtype=torch.uint8, device=context.device)
    for shape in shapes(context):
        try:
            wrong = errors(shape, context.device)
        except Exception as error:
            context.row("fused", "difference", one_line(error), note=shape.label)
            continue
        worst = max(wrong, key=lambda name: wrong[name])
        status = "ok" if wrong[worst] < TOLERANCE else f"wrong: {worst} by {wrong[worst]:.1e}"
        context.row("fused", "difference", status, value=float(f"{wrong[worst] / TOLERANCE:.2g}"), note=shape.label)
        if status != "ok":
            continue
        for what, passes in (("forward", 2), ("backward", 3)):
            cases: dict[str, Callable[[], object]] = {}
            for name in ("fused", "two layers"):
                context.add(cases, name, what, partial(timed, shape, name, what, context.device), note=shape.label)
            floor = passes * shape.values * shape.dtype.itemsize / speed
            for name, timing in (context.compare(cases, 3, flood.amax) if cases else {}).items():
                of_floor = round(floor / timing.median, 3)
                context.timing(name, what, timing, of_floor=of_floor, batch=shape.batch, note=shape.label)


def timed(shape: Shape, name: str, what: str, device: str) -> Callable[[], object]:
    """What is timed: the kernels, or PyTorch's layers with everything in the storage type."""
    dy, *leaves = operands(shape, device)
    if name == "fused":
        if what == "forward":
            return lambda: torch.ops.vmamba.depthwise_silu(*leaves)
        return lambda: torch.ops.vmamba.depthwise_silu_backward(dy, *leaves)
    leaves = [t.to(shape.dtype).requires_grad_() for t in leaves]
    if what == "forward":
        return lambda: layers(*(t.detach() for t in leaves))
    y = layers(*leaves)
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)
