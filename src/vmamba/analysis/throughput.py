"""Images per second and peak memory, measured in pairs: all models in one process, taking turns.

What disturbs one then disturbs all, so ratios are worth more than times. A model is timed only after its output has
been checked: finite, and for ours equal to that of the definition of the scan.

A busy neighbour costs more than its part of the processor. The threads of a parallel loop wait for each other at its
end, thousands of times a forward pass; where one of them has no core, all wait for a time slice of the system. Two
OpenMP threads beside one busy process have been seen to run at a thirtieth of their speed. So `Timing` has the slowest
call, and `environment` the load of the machine.
"""

from __future__ import annotations

import functools
import itertools
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vmamba.analysis.models import load_model
from vmamba.errors import OptionError
from vmamba.model.backbone import VMamba
from vmamba.ops import select, use_backend

#: Relative error against the definition that a model may have, by the precision of its products.
_TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "int8": 2e-1}


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median, the first and third quartile, and the slowest."""

    median: float
    low: float
    high: float
    slowest: float = math.nan

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high, max(seconds))


@dataclass(frozen=True)
class Speed:
    """The speed of a model.

    Attributes:
        model: Its name.
        image_size: (H, W) in pixels.
        batch: Images per step.
        training: Forward, backward and AdamW; otherwise the forward pass in evaluation mode.
        timing: Seconds per step.
    """

    model: str
    image_size: tuple[int, int]
    batch: int
    training: bool
    timing: Timing

    @property
    def images_per_second(self) -> float:
        """By the median."""
        return self.batch / self.timing.median


def alternate(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    device: torch.device | str = "cpu",
    *,
    seconds: float = math.inf,
    between: Callable[[], object] | None = None,
    settle: bool = False,
) -> dict[str, Timing]:
    """Time every case `rounds` times, one call each in turn, the order reversed every other round.

    Args:
        cases: Functions to call.
        rounds: Calls of each case that are timed.
        warmup: Calls of each case beforehand.
        device: Of the cases. On a GPU its own clock is read, before and after the call in its queue.
        seconds: Stop after this time, but not before the third round.
        between: Called before every timed call, not timed, as to empty the caches.
        settle: Call every case once, not timed, before each timed call of it. Threads of another runtime, which spin
            for some time after their last work, then take no core from it: without this, the case that follows
            another runtime's looks slower than one that follows its own.
    """
    clock = _clock(torch.device(device))
    for run in cases.values():
        for _ in range(warmup):
            run()
    taken: dict[str, list[float]] = {name: [] for name in cases}
    start = time.perf_counter()
    for i in _counted(rounds, " · ".join(cases)[:60]):
        for name in list(cases) if i % 2 == 0 else reversed(list(cases)):
            if settle:
                cases[name]()
            taken[name].append(clock(cases[name], between))
        if i >= 2 and time.perf_counter() - start > seconds:
            break
    return {name: Timing.of(values) for name, values in taken.items()}


def _counted(rounds: int, description: str) -> Iterator[int]:
    """``range(rounds)`` with a progress bar, or without where rich is not installed, as on borrowed GPUs."""
    try:
        from vmamba.progress import progress_bar
    except ImportError:
        yield from range(rounds)
        return
    with progress_bar("rounds") as bar:
        yield from bar.track(range(rounds), description=description)


def measure(
    names: Sequence[str],
    image_sizes: Sequence[tuple[int, int]] = ((224, 224),),
    batch: int = 8,
    *,
    training: bool = False,
    rounds: int = 11,
    channels_last: bool = False,
    device: torch.device | str = "cpu",
) -> list[Speed]:
    """Time models against each other, every one at every image size taking turns, with random weights and images.

    Args:
        names: As for `load_model`. ONNX Runtime runs exported files with as many threads as PyTorch has.
        image_sizes: (H, W) in pixels, one or several.
        batch: Images per step.
        training: Time training steps instead of inference.
        rounds: Steps of each model that are timed; at least 2.
        channels_last: Give timm's models and their images channels-last memory; ours arrange theirs themselves.
        device: Of the models.

    Raises:
        OptionError: For an unknown model, fewer than 2 rounds, or a wrong output, which is not timed.
    """
    if rounds < 2:
        raise OptionError(f"rounds must be at least 2 for a median with quartiles, got {rounds}")
    if training and (files := [name for name in names if name.endswith(".onnx")]):
        raise OptionError(f"{files[0]}: exported files are for inference; leave training out with --mode inference")
    cases, speeds = {}, {}
    for size, name in itertools.product(image_sizes, names):
        model = load_model(name, image_size=size, device=device)
        images = torch.randn(batch, 3, *size, device=device)
        if channels_last and not isinstance(model, VMamba):
            model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
        check(name, model, images)
        case = "{} at {}×{}".format(name, *size)
        cases[case], speeds[case] = step(model, images, training), functools.partial(Speed, name, size, batch, training)
    timings = alternate(cases, rounds, device=device)
    return [speeds[case](timing) for case, timing in timings.items()]


@torch.inference_mode()
def check(name: str, model: nn.Module, images: Tensor) -> None:
    """Check that the output is finite and, for ours, that of the definition on a corner of one image.

    Raises:
        OptionError: If it is not.
    """
    if not model(images[:1]).isfinite().all():
        raise OptionError(f"{name} gives outputs that are not finite; nothing was timed")
    if not isinstance(model, VMamba):
        return
    corner = images[:1, :, :64, :64]
    got = model(corner)
    with use_backend("reference"):
        expected = model(corner)
    error = float((got - expected).norm() / expected.norm())
    if not error < _TOLERANCES[getattr(model, "_precision", "float32")]:
        raise OptionError(f"{name} is wrong by {error:.1e} against the definition of the scan; nothing was timed")


def step(model: nn.Module, images: Tensor, training: bool, autocast: torch.dtype | None = None) -> Callable[[], object]:
    """A function to time: a forward pass, or a whole step of training (in mixed precision, given a dtype)."""
    if not training:
        model.eval()

        def infer() -> object:
            with torch.inference_mode():
                return model(images)

        return infer

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def train() -> None:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return train


def peak_memory(
    name: str,
    image_sizes: Sequence[tuple[int, int]],
    batch: int,
    *,
    training: bool = False,
    device: torch.device | str = "cpu",
) -> list[int | None]:
    """Largest memory of a step above that of the loaded model, in bytes, for each image size.

    On a CPU a fresh process is started and its resident size read (Linux only); on CUDA its allocator is asked.
    None where neither is possible.
    """
    sizes = sorted(image_sizes)
    if torch.device(device).type == "cpu":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks = pool.apply(_peaks_on_cpu, (name, sizes, batch, training, torch.get_num_threads()))
    elif torch.device(device).type == "cuda":
        peaks = [_peak_on_cuda(name, size, batch, training, torch.device(device)) for size in sizes]
    else:
        peaks = [None] * len(sizes)
    return [dict(zip(sizes, peaks, strict=True))[size] for size in image_sizes]


def _peaks_on_cpu(
    name: str, sizes: list[tuple[int, int]], batch: int, training: bool, threads: int
) -> list[int | None]:
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists() or not forget.exists():
        return [None] * len(sizes)
    torch.set_num_threads(threads)

    def resident(key: str) -> int:
        return int(status.read_text().split(f"{key}:")[1].split()[0]) * 1024

    warm = load_model(name, image_size=sizes[0])
    step(warm, torch.randn(1, 3, *sizes[0]), training=False)()  # what libraries set up on their first call
    loaded, peaks = resident("VmRSS"), []
    for size in sizes:  # ascending: what one size leaves behind the next one needs
        model = warm if size == sizes[0] else load_model(name, image_size=size)
        forget.write_text("5")  # the peak so far
        step(model, torch.randn(batch, 3, *size), training)()
        peaks.append(max(0, resident("VmHWM") - loaded))
    return list(peaks)


def _peak_on_cuda(name: str, size: tuple[int, int], batch: int, training: bool, device: torch.device) -> int:
    model = load_model(name, image_size=size, device=device)
    run = step(model, torch.randn(batch, 3, *size, device=device), training)
    loaded = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) - loaded


def environment(device: torch.device | str = "cpu") -> dict[str, str]:
    """Facts that figures depend on, for the head of a report."""
    choice = select(torch.device(device))
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": _device_name(torch.device(device)),
        "processor": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
        "load": f"{os.getloadavg()[0]:.2f} in the last minute" if hasattr(os, "getloadavg") else "not known",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}",
        "scan backend": f"{choice.name} ({choice.reason})",
    }


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    properties = torch.cuda.get_device_properties(device)
    toolkit = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {toolkit}"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _clock(device: torch.device) -> Callable[[Callable[[], object], Callable[[], object] | None], float]:
    """A function that times a call on a device, in seconds, after all earlier work there is done."""

    def wall(run: Callable[[], object], between: Callable[[], object] | None) -> float:
        wait: Callable[[], object] = (lambda: None) if device.type == "cpu" else torch.accelerator.synchronize
        if between is not None:
            between()
        wait()
        start = time.perf_counter()
        run()
        wait()
        return time.perf_counter() - start

    def on_device(run: Callable[[], object], between: Callable[[], object] | None) -> float:
        events: Any = torch.get_device_module(device)
        start, end = (events.Event(enable_timing=True) for _ in range(2))
        torch.accelerator.synchronize()
        if between is not None:
            between()  # meanwhile the call is prepared: what is timed is the device, not Python
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return on_device if device.type in ("cuda", "xpu") else wall
