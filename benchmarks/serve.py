"""``vmamba serve`` under load, beside the bare model; and after a thousand malformed or huge requests.

    python benchmarks/serve.py

Writes ``results/serve.md``. About three minutes on two idle cores; ``--seconds`` says how long each part takes.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import RESULTS, environment
from PIL import Image

from vmamba.checkpoints.saving import save_weights
from vmamba.frozen import freeze
from vmamba.zoo import create_model, model_from_checkpoint

MAX_BYTES = 1 << 20
PROGRAM = "import vmamba_command; raise SystemExit(vmamba_command.main())"


def photograph(seed: int) -> bytes:
    """A smooth picture of 320 × 240 pixels in JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return content.getvalue()


class Service:
    def __init__(self, weights: Path, port: int, batch: int) -> None:
        self.port = port
        options = ["--port", str(port), "--batch-size", str(batch), "--max-bytes", str(MAX_BYTES), "--device", "cpu"]
        command = [sys.executable, "-c", PROGRAM, "serve", "--checkpoint", str(weights), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while True:
            try:
                if self.ask(http.client.HTTPConnection("127.0.0.1", port, timeout=60), "GET", "/health")[0] == 200:
                    return
            except OSError:
                time.sleep(0.2)

    @staticmethod
    def ask(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        connection.request(method, path, body, {"content-type": "application/octet-stream"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def load(self, bodies: list[bytes], clients: int, seconds: float) -> dict[str, float]:
        """Throughput and latency with clients that ask again as soon as they are answered."""
        taken: list[tuple[float, int]] = []
        end = time.monotonic() + seconds

        def client(number: int) -> None:
            connection, draw = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120), random.Random(number)
            while time.monotonic() < end:
                start = time.perf_counter()
                status, _ = self.ask(connection, "POST", "/predict", draw.choice(bodies))
                taken.append((time.perf_counter() - start, status))
            connection.close()

        threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall = time.perf_counter() - start
        latency = np.array([t for t, _ in taken])
        return {
            "images/s": len(taken) / wall,
            "p50 ms": 1e3 * float(np.percentile(latency, 50)),
            "p99 ms": 1e3 * float(np.percentile(latency, 99)),
            "other than 200": sum(status != 200 for _, status in taken),
        }

    def bad(self, count: int) -> dict[int, int]:
        """Requests that are cut, empty, huge or no image; how often each status came."""
        draw, good = random.Random(0), photograph(0)
        statuses: dict[int, int] = {}
        for _ in range(count):
            kind = draw.randrange(5)
            body = [
                b"",
                draw.randbytes(999),
                good[: draw.randrange(1, 600)],
                bytes(MAX_BYTES + 1),
                b"GIF89a" + bytes(50),
            ]
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                status = self.ask(connection, "POST", "/predict", body[kind])[0]
            except OSError:  # refused while the rest of a huge body was on its way
                status = 413
            finally:
                connection.close()
            statuses[status] = statuses.get(status, 0) + 1
        return statuses

    def answer(self, body: bytes) -> Any:
        return json.loads(self.ask(http.client.HTTPConnection("127.0.0.1", self.port), "POST", "/predict", body)[1])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait()


def bare(weights: Path, batch: int, seconds: float) -> float:
    """Images/s of the model alone, frozen, in batches."""
    model, x = freeze(model_from_checkpoint(weights)), torch.randn(batch, 3, 224, 224)
    with torch.inference_mode():
        model(x)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            model(x)
            done += batch
        return done / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vmamba_tiny_s1l8")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--requests", type=int, default=1000, help="malformed or huge ones")
    parser.add_argument("--port", type=int, default=8123)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        weights = save_weights(create_model(options.model, num_classes=1000), Path(folder) / "model.safetensors")
        bodies = [photograph(i) for i in range(32)]
        alone = [bare(weights, options.batch_size, options.seconds / 2)]
        service = Service(weights, options.port, options.batch_size)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(service.stop()))
        service.load(bodies, options.batch_size, 3)
        one = service.load(bodies, 1, options.seconds / 2)
        many = service.load(bodies, 2 * options.batch_size, options.seconds)
        before, statuses = service.answer(bodies[0]), service.bad(options.requests)
        same = service.answer(bodies[0]) == before
        after = service.load(bodies, 2 * options.batch_size, options.seconds)
        status = service.stop()
        alone.append(bare(weights, options.batch_size, options.seconds / 2))
    model = sum(alone) / 2
    lines = [
        "# `vmamba serve` under load",
        "",
        *(f"- {key}: {value}" for key, value in environment().items()),
        "",
        f"`{options.model}` at 224², batches of {options.batch_size}, JPEG of 320 × 240 over loopback; the clients run "
        "on the same cores. The bare model, frozen, on ready batches, before and after: "
        f"{alone[0]:.1f} and {alone[1]:.1f} images/s.",
        "",
        "| | images/s | of the bare model | p50 | p99 | other than 200 |",
        "|---|---|---|---|---|---|",
    ]
    clients = 2 * options.batch_size
    for name, row in (
        ("1 client", one),
        (f"{clients} clients", many),
        (f"{clients} clients, after bad requests", after),
    ):
        lines.append(
            f"| {name} | {row['images/s']:.1f} | {row['images/s'] / model:.2f} | {row['p50 ms']:.0f} ms | "
            f"{row['p99 ms']:.0f} ms | {row['other than 200']} |"
        )
    lines += [
        "",
        f"{options.requests} malformed or huge requests were answered "
        + ", ".join(f"{code} ({n} times)" for code, n in sorted(statuses.items()))
        + f"; the answer to a good one was {'the same' if same else 'ANOTHER'} after them. "
        f"Exit status after SIGTERM: {status}.",
        "",
    ]
    if options.requests == 1000:
        (RESULTS / "serve.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
