"""Two versions of this package against each other, each in a process of its own, taking turns.

    python benchmarks/versions.py OTHER/src --batch 1 8

OTHER is a checkout of another commit with its own built kernels. This version runs as it is and frozen, the other one
as it is; `--command` says what else another version shall do. Stop other work first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from paired import environment
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parents[1] / "src"

WORKER = """
import sys, time, torch, vmamba
torch.set_num_threads({threads})
model = vmamba.create_model({model!r}).eval()
for seed, (name, parameter) in enumerate(sorted(model.named_parameters())):
    torch.manual_seed(seed)  # the same weights, whatever the order of creation
    if name.endswith("bias") or (parameter.ndim > 1 and not name.endswith("A_log")):
        torch.nn.init.normal_(parameter, std=0.02)
model = {form}
x = torch.randn({batch}, 3, {size}, {size})
with torch.inference_mode():
    for _ in range(3):
        y = model(x)
    print(float(y.norm()), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        model(x)
        print(time.perf_counter() - start, flush=True)
"""


class Case:
    """One version of the model in a process that runs it once whenever it is asked to."""

    def __init__(self, source: Path, form: str, **options: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER.format(form=form, **options)],
            env=os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": str(options["threads"])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.norm = self._read()
        self.seconds: list[float] = []

    def run(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.seconds.append(self._read())

    def _read(self) -> float:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a version stopped; see its error above")
        return float(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="src/ of the other version")
    parser.add_argument("--model", default="vmamba_tiny_s1l8")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--command", default="model", metavar="EXPRESSION", help="form of the other's model")
    options = parser.parse_args()
    for name, value in environment().items():
        print(f"{name}: {value}")
    table = Table("batch", "version", "ms, median (quartiles)", "images/s", "time against the other's, median of pairs")
    for batch in options.batch:
        settings = {"model": options.model, "batch": batch, "size": options.size, "threads": options.threads}
        cases = {
            "other": Case(options.other, options.command, **settings),
            "this": Case(HERE, "model", **settings),
            "this, frozen": Case(HERE, "vmamba.freeze(model)", **settings),
        }
        norms = [case.norm for case in cases.values()]
        if max(norms) - min(norms) > 1e-4 * max(norms):
            raise SystemExit(f"the versions disagree: norms of the logits are {norms}; nothing was timed")
        for _ in range(options.rounds):
            for case in cases.values():
                case.run()
        for name, case in cases.items():
            low, median, high = statistics.quantiles(case.seconds, n=4)
            ratio = statistics.median(a / b for a, b in zip(case.seconds, cases["other"].seconds, strict=True))
            times = f"{median * 1e3:.1f} ({low * 1e3:.1f} … {high * 1e3:.1f})"
            table.add_row(str(batch), name, times, f"{batch / median:.2f}", f"{ratio:.3f}")
            case.close()
        table.add_section()
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
