"""Many small images through ``vmamba predict``: flat memory, killed ten times, every image once.

    python benchmarks/scale.py

The same command goes on where it was ended, in ``build/campaigns/scale``; ``--fresh`` begins again. Writes
``results/scale.md``. About ten minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from campaign import FOLDER, Record
from paired import RESULTS
from PIL import Image

from vmamba.checkpoints.saving import save_weights
from vmamba.zoo import create_model

SHARD, SIZE = 10_000, 32
#: Largest difference of a probability: batches are cut elsewhere after a kill.
TOLERANCE = 1e-5


def write_shards(folder: Path, images: int) -> list[str]:
    """Noise in JPEG, in archives of ten thousand; one in a thousand is broken."""
    paths = []
    for first in range(0, images, SHARD):
        path = folder / "shards" / f"{first // SHARD:04d}.tar"
        paths.append(str(path))
        if path.is_file():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(first)
        with tarfile.open(path.with_suffix(".part"), "w") as archive:
            for i in range(first, min(first + SHARD, images)):
                content = io.BytesIO(b"broken")
                if i % 1000 != 7:
                    Image.fromarray(draw.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(content, "JPEG")
                member = tarfile.TarInfo(f"{i:07d}.jpg")
                member.size = len(content.getvalue())
                archive.addfile(member, io.BytesIO(content.getvalue()))
        path.with_suffix(".part").rename(path)
    return paths


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def count(path: Path) -> int:
    """Rows so far."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def memory(pid: int) -> float:
    """MB of a process and those that it has started; what they have in common is counted once."""
    total = 0
    with contextlib.suppress(psutil.Error):
        main = psutil.Process(pid)
        for process in (main, *main.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
    return total / 1e6


class Campaign:
    def __init__(self, options: argparse.Namespace) -> None:
        self.images, self.kills = options.images, options.kills
        self.folder = FOLDER / f"scale-{options.images}"
        if options.fresh:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.record = Record(f"scale-{options.images}", {"images": self.images}, None, options.fresh)
        self.shards = write_shards(self.folder, self.images)
        self.weights = self.folder / "model.safetensors"
        if not self.weights.is_file():
            torch.manual_seed(0)
            save_weights(
                create_model("vmamba_pico", num_classes=10, dims=(8, 16, 32, 64), depths=(1, 1, 1, 1)), self.weights
            )

    def start(self, output: Path) -> subprocess.Popen[bytes]:
        options = ["--checkpoint", str(self.weights), "--image-size", str(SIZE), "--batch-size", "128", "--topk", "1"]
        command = [sys.executable, "-m", "vmamba", "predict", *self.shards, *options, "--output", str(output)]
        with (self.folder / f"{output.stem}.log").open("ab") as log:
            return subprocess.Popen([*command, "--resume", "--device", "cpu"], stdout=log, stderr=log)

    def whole(self) -> None:
        """One run from start to end, whose memory is watched."""
        output = self.folder / "whole.jsonl"
        if self.record.counts.get("whole", {}).get("rows") == self.images:
            return
        output.unlink(missing_ok=True)
        with self.record.trying("whole") as counts:
            start, samples = time.monotonic(), list[tuple[int, float]]()
            process = self.start(output)
            while process.poll() is None:
                time.sleep(1)
                samples.append((count(output), memory(process.pid)))
            late = [mb for done, mb in samples if 0.1 * self.images <= done < self.images and mb > 0]
            counts.clear()
            counts.update(rows=count(output), seconds=round(time.monotonic() - start), status=process.returncode)
            counts.update(least_mb=round(min(late)), most_mb=round(max(late)), samples=len(late))

    def killed(self) -> None:
        """A run that is killed at random moments, and started again each time."""
        output, draw = self.folder / "killed.jsonl", random.Random(time.time_ns())
        status = None
        while status not in (0, 1):
            with self.record.trying("killed") as counts:
                begin, process = count(output), self.start(output)
                counts["starts"] += 1
                if counts["kills"] < self.kills:
                    step = (self.images - begin) // (self.kills - counts["kills"] + 1)
                    while process.poll() is None and count(output) < begin + step // 2:
                        time.sleep(0.1)
                    time.sleep(draw.uniform(0, 2))
                    counts["kills"] += process.poll() is None
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    with output.open("rb") as file:  # of the last row, was it torn?
                        file.seek(-1, 2)
                        counts["torn rows"] += file.read() != b"\n"
                else:
                    status = process.wait()
                    counts["status"] = status

    def compare(self) -> dict[str, Any]:
        """Rows of both runs, in any order."""
        whole = {row["image"]: row for row in rows(self.folder / "whole.jsonl")}
        seen, other, largest, failed = set(), 0, 0.0, 0
        doubled = 0
        for row in rows(self.folder / "killed.jsonl"):
            doubled += row["image"] in seen
            seen.add(row["image"])
            truth = whole[row["image"]]
            failed += "error" in row
            if row.get("error") != truth.get("error"):
                other += 1
            elif "error" not in row:
                (one,), (two,) = row["predictions"], truth["predictions"]
                difference = abs(one["probability"] - two["probability"])
                largest = max(largest, difference)
                other += difference > TOLERANCE or (one["index"] != two["index"] and difference > 0)
        return {
            "rows": len(seen),
            "missing": len(whole.keys() - seen),
            "twice": doubled,
            "different": other,
            "largest difference of a probability": f"{largest:.1e}",
            "failed images, the same in both": failed,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--fresh", action="store_true", help="begin again")
    campaign = Campaign(parser.parse_args())
    campaign.whole()
    campaign.killed()
    whole, killed = campaign.record.counts["whole"], campaign.record.counts["killed"]
    found = campaign.compare()
    text = (
        f"# {campaign.images:,} images through `vmamba predict`\n\n{campaign.record.head()}\n"
        f"Noise of {SIZE} × {SIZE} pixels in JPEG, {len(campaign.shards)} tar archives, one in a thousand broken;\n"
        "`vmamba_pico` with 8 channels and one block a stage. `whole` ran from start to end; `killed` was ended by\n"
        "SIGKILL at random moments and given again with `--resume`.\n\n| | |\n|---|---|\n"
        f"| whole: images a second, with start and end | {campaign.images / whole['seconds']:.0f} |\n"
        f"| memory of all processes from 10 % to the end, MB (PSS) | {whole['least_mb']} to {whole['most_mb']} "
        f"({whole['samples']} samples) |\n"
        f"| kills · starts · torn last rows | {killed['kills']} · {killed['starts']} · {killed['torn rows']} |\n"
        + "".join(f"| killed: {name} | {value} |\n" for name, value in found.items())
    )
    if campaign.images == 200_000:
        (RESULTS / "scale.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
