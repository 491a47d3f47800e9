"""The models against their peers: one graph, whole steps, and growth with the size of the image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from paired import step
from torch import Tensor, nn

import vmamba
from gpu_bench.context import Context, one_line
from gpu_bench.plan import FROZEN
from vmamba.analysis.models import load_model
from vmamba.ops import use_backend

#: Relative difference, in bfloat16, between a model's output as it is timed and in its eager, portable form.
TOLERANCE = 5e-2
#: Images of a batch that are compared.
COMPARED = 16


class WrongModelError(ValueError):
    """A model whose output is not that of its eager, portable form."""


def prepared(name: str, size: int, device: str) -> nn.Module:
    """A model with random weights, in the memory layout that it is meant for; ours arranges its own."""
    torch.manual_seed(0)
    model = load_model(name, image_size=(size, size), device=device)
    return model.to(memory_format=torch.channels_last) if "convnext" in name else model


def images_for(name: str, batch: int, size: int, device: str) -> Tensor:
    """Random images, (batch, 3, size, size), in the memory layout of the model."""
    images = torch.randn(batch, 3, size, size, device=device)
    return images.contiguous(memory_format=torch.channels_last) if "convnext" in name else images


def graph(context: Context) -> None:
    """Into how many graphs torch.compile breaks a model, for inference and for a step of training."""
    for name in context.cases:
        for mode in ("inference", "training"):
            torch.compiler.reset()
            graphs: list[int] = []

            def count(
                module: torch.fx.GraphModule, _: list[Tensor], graphs: list[int] = graphs
            ) -> Callable[..., object]:
                graphs.append(1)
                return module.forward

            model = prepared(name, context.plan.size, context.device).train(mode == "training")
            images = images_for(name, 1, context.plan.size, context.device)
            try:
                with torch.set_grad_enabled(mode == "training"):
                    torch.compile(model, backend=count, dynamic=False)(images)
            except Exception as error:
                context.row(name, mode, one_line(error))
            else:
                context.row(name, mode, value=len(graphs), note="graphs", size=context.plan.size)


def model_case(context: Context, name: str, mode: str, compiled: bool) -> Callable[[], object]:
    """What is timed of a model, after its output has been seen to be right.

    Raises:
        WrongModelError: If it is not.
    """
    plan = context.plan
    model = prepared(name.removesuffix(FROZEN), plan.size, context.device)
    images = images_for(name, plan.batch, plan.size, context.device)
    if mode == "inference":
        model, images = model.bfloat16(), images.bfloat16()
    if name.endswith(FROZEN):
        model = vmamba.freeze(model)
    run = torch.compile(model, dynamic=False, backend=plan.compiler) if compiled else model
    if mode == "inference":
        check(name, model, run, images)
    return step(run, images, mode == "training", torch.bfloat16 if mode == "training" else None)


@torch.inference_mode()
def check(name: str, model: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Compare a model as it is timed with its eager form, ours without kernels of its own.

    Raises:
        WrongModelError: If they differ.
    """
    with use_backend("chunked"):
        expected = model(images[:COMPARED]).float()
    error = float((run(images)[:COMPARED].float() - expected).norm() / expected.norm())
    if not error < TOLERANCE:
        raise WrongModelError(f"{name} is wrong by {error:.1e} against its eager, portable form")


def prepare(context: Context, case: str, mode: str, compiled: bool) -> None:
    """Compile a model and run it once."""
    model_case(context, case, mode, compiled)()


def compare(context: Context, mode: str, compiled: bool, seconds: float = 20) -> None:
    """Images/s of inference with bfloat16 weights, or of training steps (bfloat16 autocast, AdamW), taking turns."""
    cases: dict[str, Callable[[], object]] = {}
    peaks: dict[str, float | str] = {}
    what = "compiled" if compiled else "eager"
    for name in context.cases:
        try:
            run = model_case(context, name, mode, compiled)
            run()
            peaks[name], cases[name] = peak(context, run), run
        except Exception as error:
            context.row(name, what, one_line(error))
    plan = context.plan
    for name, timing in (context.compare(cases, seconds) if cases else {}).items():
        images = round(plan.batch / timing.median, 1)
        more = {"batch": plan.batch, "size": plan.size, "images_per_s": images, "peak_mib": peaks[name]}
        context.timing(name, what, timing, **more)


def peak(context: Context, run: Callable[[], object]) -> float | str:
    """MiB that a step needs above what is there before it; empty where nobody can tell."""
    if not context.on_gpu:
        return ""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def growth_case(context: Context, name: str, size: int) -> Callable[[], object]:
    """Inference of one image in bfloat16, eager."""
    model = prepared(name, size, context.device).bfloat16()
    return step(model, images_for(name, 1, size, context.device).bfloat16(), training=False)


def prepare_growth(context: Context, case: str) -> None:
    """Compile the kernels of a model for every size."""
    for size in context.plan.sizes:
        growth_case(context, case, size)()


def growth(context: Context) -> None:
    """Time and memory of one image against its size, as one CUDA graph; kernels have been compiled before."""
    for size in context.plan.sizes:
        cases: dict[str, Callable[[], object]] = {}
        peaks: dict[str, float | str] = {}
        for name in context.cases:
            try:
                run = growth_case(context, name, size)
                run()
                peaks[name], cases[name] = peak(context, run), context.graphed(run)
            except Exception as error:
                context.row(name, "inference", one_line(error), batch=1, size=size)
        for name, timing in (context.compare(cases, 3) if cases else {}).items():
            nanoseconds = round(timing.median / size**2 * 1e9, 3)
            more = {"batch": 1, "size": size, "images_per_s": round(1 / timing.median, 1), "peak_mib": peaks[name]}
            context.timing(name, "inference", timing, note=f"{nanoseconds} ns/pixel", **more)
