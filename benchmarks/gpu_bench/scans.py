"""The scans: their operands, whether they are right, and their time against the floor and the unfused pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gpu_bench.baseline import pipelines
from gpu_bench.context import Context, one_line
from gpu_bench.plan import Shape
from vmamba.ops import select, ss2d_scan, use_backend

#: Largest relative error (of norms) against float64: inputs are given, outputs are rounded once to the storage type,
#: and the gradients of the Δ projection are products on the tensor cores.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
NAMES = ("x", "dbc", "dt_weight", "A", "D", "dt_bias")
#: Exponentials per clock of a multiprocessor of NVIDIA's.
EXPONENTIALS = 16


class WrongScanError(ValueError):
    """A scan that must not be timed; one line that says what is wrong with it."""


def operands(shape: Shape, device: str) -> list[Tensor]:
    """x, dbc, dt_weight, A, D, dt_bias; the last four in float32, as under autocast; Δ as Mamba starts with."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, device=device, generator=generator)

    tokens = (shape.batch, shape.height, shape.width)
    x = normal(*tokens, shape.channels).to(shape.dtype)
    dbc = normal(*tokens, 4, shape.rank + 2 * shape.states).to(shape.dtype)
    weight = normal(4, shape.channels, shape.rank) * (0.5 * shape.rank**-0.5)
    A = -torch.exp(0.5 * normal(4, shape.channels, shape.states))
    step = torch.rand(4, shape.channels, device=device, generator=generator)
    step = torch.exp(step * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
    return [x, dbc, weight, A, normal(4, shape.channels), step + torch.log(-torch.expm1(-step))]


def forward_and_backward(leaves: list[Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    """The output and the gradients of the operands."""
    y = ss2d_scan(*leaves)
    return (y.detach(), *torch.autograd.grad(y, leaves, dy))


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Of norms; where nothing but zeros is expected, any other number is infinitely wrong."""
    difference, norm = float((value.double() - expected).norm()), float(expected.norm())
    if not math.isfinite(difference):
        return math.inf
    return difference / norm if norm else (math.inf if difference else 0.0)


def check(shape: Shape, device: str) -> dict[str, float]:
    """Relative error of the output and of every gradient against the portable scan in float64.

    Raises:
        WrongScanError: If one is too large, or two runs give gradients that differ in a bit.
    """
    leaves = [t.requires_grad_() for t in operands(shape, device)]
    dy = torch.randn(leaves[0].shape, device=device, generator=torch.Generator(device).manual_seed(1)).to(shape.dtype)
    got = forward_and_backward(leaves, dy)
    again = forward_and_backward(leaves, dy)
    errors = {}
    with use_backend("chunked"):
        truth = forward_and_backward([t.detach().double().requires_grad_() for t in leaves], dy.double())
    for name, value, expected in zip(("y", *NAMES), got, truth, strict=True):
        errors[name] = relative_error(value, expected)
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] < TOLERANCE[shape.dtype]:
        what = "the output" if worst == "y" else f"the gradient of {worst}"
        raise WrongScanError(f"{what} is wrong by {errors[worst]:.1e}")
    for name, first, second in zip(NAMES, got[1:], again[1:], strict=True):
        if not torch.equal(first, second):
            raise WrongScanError(f"the gradient of {name} differs between two runs")
    return errors


def shapes(context: Context) -> list[Shape]:
    """The scans that are the step's cases."""
    plan = context.plan
    return [shape for shape in (*plan.first, *plan.small, *plan.large) if shape.label in context.cases]


def prepare(context: Context, case: str) -> None:
    """Compile the kernels of a scan."""
    (shape,) = (shape for shape in shapes(context) if shape.label == case)
    values = operands(shape, context.device)
    forward_and_backward([t.requires_grad_() for t in values], torch.ones_like(values[0]))


def correctness(context: Context) -> None:
    """Which scans are right; the others are not timed."""
    for shape in shapes(context):
        try:
            errors = check(shape, context.device)
        except Exception as error:  # one that broke off was not seen to be right
            wrong = f"wrong: {error}" if isinstance(error, WrongScanError) else one_line(error)
            context.row(shape.label, "error", wrong)
            continue
        note = ", ".join(f"{name} {error:.0e}" for name, error in errors.items()) + "; equal gradients in two runs"
        worst = max(errors.values()) / TOLERANCE[shape.dtype]
        context.row(shape.label, "error", value=float(f"{worst:.2g}"), note=note)
        if context.on_gpu:
            torch.cuda.empty_cache()


def copy_speed(context: Context) -> float:
    """What the memory does, in bytes/s: one read and one write of every byte of random data."""
    source = torch.randint(256, (context.plan.copied,), dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    timing = context.compare({"copy": lambda: target.copy_(source)}, 5)["copy"]
    speed = 2 * context.plan.copied / timing.median
    context.timing("copy", "memory", timing, note=f"{speed / 1e9:.0f} GB/s")
    return speed


def exponential_speed(context: Context) -> float:
    """Exponentials/s of the special-function units at the highest clock; infinite, for no bound, where not known."""
    if not context.on_gpu or torch.version.hip:
        return math.inf
    properties = torch.cuda.get_device_properties(context.device)
    clock = getattr(properties, "clock_rate", math.inf)  # kHz
    speed = float(properties.multi_processor_count * EXPONENTIALS * clock * 1e3)
    if math.isfinite(speed):
        note = f"{speed / 1e12:.2f}·10¹²/s at the highest clock, not measured"
        context.row("special functions", "exponentials", note=note)
    return speed


def scan(context: Context) -> None:
    """Forward, and forward + backward, against the floor and the unfused pipelines; the caches are emptied before."""
    speed, exponentials = copy_speed(context), exponential_speed(context)
    flood = torch.randint(256, (context.plan.copied // 4,), dtype=torch.uint8, device=context.device)
    for shape in shapes(context):
        for what in ("forward", "forward + backward"):
            cases: dict[str, Callable[[], object]] = {}
            for name in ("fused", *pipelines()):
                context.add(cases, name, what, partial(scan_case, shape, name, what, context.device), note=shape.label)
            backward = "backward" in what
            floor = max(shape.minimum_bytes(backward) / speed, shape.exponentials(backward) / exponentials)
            # Reading leaves nothing in the caches that would have to be written while the scan is timed.
            for name, timing in (context.compare(cases, 3, flood.amax) if cases else {}).items():
                of_floor = round(floor / timing.median, 3) if name == "fused" else ""
                context.timing(name, what, timing, of_floor=of_floor, batch=shape.batch, note=shape.label)
            if context.on_gpu:
                torch.cuda.empty_cache()


def scan_case(shape: Shape, name: str, what: str, device: str) -> Callable[[], object]:
    """What is timed of a scan: ours, or one of the `pipelines`."""
    values = operands(shape, device)
    function: Callable[..., Tensor] = ss2d_scan
    backend = select(torch.device(device)).name
    if name != "fused":
        pipeline = pipelines()[name]
        values, function, backend = pipeline.operands(values), pipeline, "triton"
    leaves = [t.requires_grad_() for t in values]
    dy = torch.ones_like(leaves[0])

    def forward() -> object:
        with use_backend(backend), torch.no_grad():
            return function(*leaves)

    def both() -> object:
        with use_backend(backend):
            return torch.autograd.grad(function(*leaves), leaves, dy)

    return forward if what == "forward" else both
