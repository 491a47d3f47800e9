"""Images per second and peak memory, measured in pairs: all models in one process, taking turns.

What disturbs one then disturbs all, so ratios are worth more than times. A model is timed only after its output has
been found right: finite, and for ours equal to that of the definition of the scan.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from vmamba.analysis.models import load_model
from vmamba.model.backbone import VMamba
from vmamba.ops import select, use_backend
from vmamba.progress import progress_bar


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median, and the first and third quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Speed:
    """How fast a model ran.

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
        return self.batch / self.timing.median


def alternate(
    cases: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2, device: torch.device | str = "cpu"
) -> dict[str, Timing]:
    """Time every case `rounds` times, one call each in turn, the order reversed every other round."""
    wait = _waiter(torch.device(device))
    for run in cases.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with progress_bar("rounds") as bar:
        for i in bar.track(range(rounds), description=" · ".join(cases)[:60]):
            for name in list(cases) if i % 2 == 0 else reversed(list(cases)):
                wait()
                start = time.perf_counter()
                cases[name]()
                wait()
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing.of(values) for name, values in seconds.items()}


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
        names: Ours or timm's.
        image_sizes: (H, W) in pixels, one or several.
        batch: Images per step.
        training: Time training steps instead of inference.
        rounds: Steps of each model that are timed; at least 2.
        channels_last: Give timm's models and their images channels-last memory; ours arrange theirs themselves.
        device: Where to run.

    Raises:
        ValueError: For an unknown model, fewer than 2 rounds, or a wrong output, which is not timed.
    """
    if rounds < 2:
        raise ValueError(f"rounds must be at least 2 for a median with quartiles, got {rounds}")
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
    """Refuse a model whose output is not finite or, for ours, not that of the definition on a corner of one image.

    Raises:
        ValueError: Saying which.
    """
    if not model(images[:1]).isfinite().all():
        raise ValueError(f"{name} gives outputs that are not finite; nothing was timed")
    if not isinstance(model, VMamba):
        return
    corner = images[:1, :, :64, :64]
    got = model(corner)
    with use_backend("reference"):
        expected = model(corner)
    error = float((got - expected).norm() / expected.norm())
    if not error < 1e-4:
        raise ValueError(f"{name} is wrong by {error:.1e} against the definition of the scan; nothing was timed")


def step(model: nn.Module, images: Tensor, training: bool) -> Callable[[], object]:
    """What is timed: a forward pass, or a whole step of training."""
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
        nn.functional.cross_entropy(model(images), labels).backward()
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
    None where neither can be told.
    """
    sizes = sorted(image_sizes)
    if torch.device(device).type == "cpu":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(_peaks_on_cpu, (name, sizes, batch, training, torch.get_num_threads()))
    elif torch.device(device).type == "cuda":
        found = [_peak_on_cuda(name, size, batch, training, torch.device(device)) for size in sizes]
    else:
        found = [None] * len(sizes)
    return [dict(zip(sizes, found, strict=True))[size] for size in image_sizes]


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
    """What a figure depends on, for the head of a report."""
    choice = select(torch.device(device))
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": str(device),
        "processor": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}",
        "scan backend": f"{choice.name} ({choice.reason})",
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _waiter(device: torch.device) -> Callable[[], None]:
    """What waits until the device has done all it was asked to do."""
    return (lambda: None) if device.type == "cpu" else torch.accelerator.synchronize
