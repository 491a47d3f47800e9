"""What feeding a model costs: prediction beside a bare loop over decoded batches, and a simulation of larger machines.

    python benchmarks/pipeline.py

Measures decoding, the model, both together; then simulates the pipeline with these times: first as it was measured, to
compare, then with faster models, more decoding processes and a network between. Writes ``results/pipeline.md``. About
two minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import heapq
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from paired import RESULTS, environment
from PIL import Image

from vmamba.data.decoding import DecodedBatches
from vmamba.data.sources import list_images
from vmamba.frozen import freeze
from vmamba.tasks.classification.prediction import classify, eval_transform
from vmamba.zoo import create_model


def write_photographs(folder: Path, count: int) -> int:
    """Smooth pictures of 320 × 240 pixels in JPEG; returns the bytes of one."""
    sizes = []
    for i in range(count):
        small = np.random.default_rng(i).integers(0, 256, (24, 32, 3), np.uint8)
        content = io.BytesIO()
        Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
        (folder / f"{i:05d}.jpg").write_bytes(content.getvalue())
        sizes.append(len(content.getvalue()))
    return round(float(np.mean(sizes)))


def simulate(images: int, batch: int, *, decode: float, model: float, workers: int, fetch: float = 0.0) -> float:
    """Images/s of a pipeline: a link that fetches one image after the other, `workers` that decode, a model.

    Events of whole batches, each worker at most two ahead, as `DecodedBatches` has it; a core for each worker.

    Args:
        images: How many.
        batch: Images per batch.
        decode: Seconds an image and worker.
        model: Seconds an image.
        workers: Decoding processes.
        fetch: Seconds an image on the link.
    """
    free = [0.0] * workers
    heapq.heapify(free)
    link = ready = 0.0
    taken: list[float] = []  # when the model takes each batch
    for number in range(images // batch):
        begin = heapq.heappop(free)
        if number >= 2 * workers:  # no further ahead
            begin = max(begin, taken[number - 2 * workers])
        link = max(link, begin) + fetch * batch
        done = max(begin, link) + decode * batch
        heapq.heappush(free, done)
        taken.append(max(ready, done))
        ready = taken[-1] + model * batch
    return images / ready


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds an image: decoding, a bare loop, the pipeline; and the part of the time that its model waits."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_photographs(folder, options.images)
        torch.manual_seed(0)
        model = freeze(create_model(options.model, num_classes=1000).eval())
        transform, refs = eval_transform(model, 224), list(list_images([folder]))
        start = time.perf_counter()
        held = list(DecodedBatches(refs, transform, torch.stack, batch_size=options.batch_size))
        decode = (time.perf_counter() - start) / len(refs)
        list(classify(model, held[:1]))
        bare, piped, waits = [], [], []
        for _ in range(options.rounds):
            start = time.perf_counter()
            list(classify(model, held))
            bare.append((time.perf_counter() - start) / len(refs))
            batches = DecodedBatches(
                refs, transform, torch.stack, batch_size=options.batch_size, workers=options.workers
            )
            start = time.perf_counter()
            list(classify(model, batches))
            seconds = time.perf_counter() - start
            piped.append(seconds / len(refs))
            waits.append(batches.waited / seconds)
    return {
        "bytes": size,
        "decode": decode,
        "bare": float(np.median(bare)),
        "piped": float(np.median(piped)),
        "waited": float(np.median(waits)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vmamba_tiny_s1l8")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = measure(options)
    # The model and the decoding share the cores here, so that a decoded image costs the model its part of them.
    cores = torch.get_num_threads()
    shared = found["bare"] + found["decode"] / cores
    times = {"decode": found["decode"], "workers": options.workers}
    predicted = simulate(options.images, options.batch_size, model=shared, **times)
    lines = [
        "# The pipeline beside a bare loop",
        "",
        *(f"- {key}: {value}" for key, value in environment().items()),
        "",
        f"`{options.model}`, frozen, at 224², batches of {options.batch_size}, {options.images} JPEG files",
        f"(320 × 240, {found['bytes'] / 1e3:.0f} kB); decoding processes: {options.workers}; "
        f"medians of {options.rounds} rounds in turns.",
        "",
        "| | |",
        "|---|---|",
        f"| decoding and preparing, one process | {1 / found['decode']:.0f} images/s |",
        f"| bare loop over decoded batches | {1 / found['bare']:.2f} images/s |",
        f"| pipeline, with its start | {1 / found['piped']:.2f} images/s |",
        f"| of the bare loop | {found['bare'] / found['piped']:.3f} |",
        f"| of the time the model waits for images | {found['waited']:.1%} |",
        f"| simulated, decoding on the same cores | {predicted:.2f} images/s |",
        "",
        "Simulated with the measured time of decoding, cores of their own for the decoding processes, and a model and",
        "a link as given; images/s, and how busy the model is:",
        "",
        "| model alone | link | 2 processes | 8 | 16 | 64 |",
        "|---|---|---|---|---|---|",
    ]
    for rate in (100, 1_000, 4_000):
        for link, label in ((0.0, "none"), (1.25e9, "10 Gbit/s"), (1.25e8, "1 Gbit/s")):
            row = []
            for workers in (2, 8, 16, 64):
                fetch = found["bytes"] / link if link else 0.0
                speed = simulate(40_000, 64, decode=found["decode"], model=1 / rate, workers=workers, fetch=fetch)
                row.append(f"{speed:.0f} ({speed / rate:.0%})")
            lines.append(f"| {rate} images/s | {label} | " + " | ".join(row) + " |")
    text = "\n".join([*lines, ""])
    if options.images >= 160:
        (RESULTS / "pipeline.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
