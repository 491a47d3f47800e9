"""A stranger's walk: a fresh prefix, the package from a file, and every command of the start page as printed there.

    python benchmarks/strangers_walk.py dist/vmamba-0.1.0-cp311-*.whl dist/vmamba-0.1.0.tar.gz

A wheel is installed and used where PATH holds the prefix alone, so that no compiler is found; sources are built with
what the machine has. Writes ``results/strangers_walk.md``. ``--commands 2`` ends after two commands, ``--python`` picks
another Python, ``--keep`` takes packages from pip's cache.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, REPORT = ROOT / "docs" / "start.md", ROOT / "benchmarks" / "results" / "strangers_walk.md"
#: The kernels answer, and agree with the definition.
KERNELS = """
import torch
from vmamba.ops import selective_scan, use_backend
from vmamba.ops.backends import select
assert select(torch.device("cpu")).name == "native", select(torch.device("cpu"))
operands = torch.randn(2, 8, 50), torch.rand(2, 8, 50), -torch.rand(8, 4), torch.randn(2, 4, 50), torch.randn(2, 4, 50)
with use_backend("reference"):
    truth = selective_scan(*operands)
torch.testing.assert_close(selective_scan(*operands), truth)
from vmamba.ops.libraries import library_path
print(library_path("onnxruntime"))
print(library_path("torch"))
"""


@dataclass(frozen=True)
class Walk:
    """What one file went through.

    Attributes:
        file: Name of the wheel or of the sources.
        python: Version.
        compilers: Those on PATH.
        size: Of the prefix in bytes.
        steps: Commands and the seconds that they took.
    """

    file: str
    python: str
    compilers: str
    size: int
    steps: list[tuple[str, float]]


def printed() -> list[str]:
    """The commands of the start page, in order: how to install, and what is fenced as ``sh``."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks if language in ("", "sh") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def walk(file: Path, python: str, commands: int | None, *, cached: bool) -> Walk:
    """Install a file into a fresh prefix and run the commands in an empty folder.

    Raises:
        SystemExit: If a command fails.
    """
    built = file.suffix != ".whl"
    with tempfile.TemporaryDirectory(prefix="walk") as place:
        prefix, folder = Path(place, "prefix"), Path(place, "folder")
        folder.mkdir()
        subprocess.run([python, "-m", "venv", prefix], check=True)
        path = os.pathsep.join([str(prefix / "bin"), *([os.environ["PATH"]] if built else [])])
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "HTTP", "LANG"))}
        environment = {**kept, "PATH": path, "HOME": str(folder), "TMPDIR": place}
        shell = "/bin/sh"
        steps = []
        for command in printed()[:commands]:
            run = command.replace("vmamba[", f"{file.resolve()}[") if command.startswith("pip ") else command
            if run is not command and not cached:
                run = run.replace("pip install", "pip install --no-cache-dir")
            print(f"{file.name}: {command}", flush=True)
            start = time.monotonic()
            done = subprocess.run(
                [shell, "-c", run], cwd=folder, env=environment, stdin=subprocess.DEVNULL, check=False
            )
            steps.append((command, time.monotonic() - start))
            print(f"{file.name}: {steps[-1][1] / 60:.1f} minutes", flush=True)
            if done.returncode:
                raise SystemExit(f"{file.name}: {command}: exit status {done.returncode}")
        checked = subprocess.run([prefix / "bin" / "python", "-c", KERNELS], cwd=folder, env=environment, check=False)
        if checked.returncode:
            raise SystemExit(f"{file.name}: the kernels are not what answers")
        found = [name for name in ("gcc", "g++", "clang", "cc", "c++", "cmake") if which(name, path)]
        size = sum(entry.stat().st_size for entry in prefix.rglob("*") if entry.is_file() and not entry.is_symlink())
        version = subprocess.run([prefix / "bin" / "python", "--version"], capture_output=True, text=True, check=True)
        return Walk(file.name, version.stdout.split()[1], ", ".join(found) or "none", size, steps)


def which(program: str, path: str) -> bool:
    return any(os.access(Path(folder, program), os.X_OK) for folder in path.split(os.pathsep))


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}" if seconds >= 3 else "< 0.1"


def report(walks: list[Walk]) -> str:
    """The walks beside each other, in Markdown."""
    from paired import environment

    lines = [
        "# A stranger's walk",
        "",
        "A fresh prefix, the package from a file, and every command of [the start page](../../docs/start.md) as it is",
        "printed there, in an empty folder: first prediction, fine-tuning, segmentation, export. Minutes of wall time,",
        "one walk after the other; packages come from a mirror nearby, not from the cache of pip. Each walk ends by",
        "comparing the compiled kernels with the definition.",
        "",
        *(f"- {name}: {value}" for name, value in environment().items()),
        "",
        "| | " + " | ".join(f"`{w.file}`" for w in walks) + " |",
        "|---|" + "---|" * len(walks),
        "| Python | " + " | ".join(w.python for w in walks) + " |",
        "| compilers on PATH | " + " | ".join(w.compilers for w in walks) + " |",
        "| size of the prefix | " + " | ".join(f"{w.size / 1e9:.1f} GB" for w in walks) + " |",
    ]
    for i, (command, _) in enumerate(walks[0].steps):
        lines.append(f"| `{command}` | " + " | ".join(minutes(w.steps[i][1]) for w in walks) + " |")
    lines.append(
        "| **all, minutes** | " + " | ".join(f"**{sum(s for _, s in w.steps) / 60:.1f}**" for w in walks) + " |"
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="wheels and sources")
    parser.add_argument("--python", default=sys.executable, help="default: the one that runs this")
    parser.add_argument("--commands", type=int, metavar="N", help="only the first N, and no report")
    parser.add_argument("--keep", action="store_true", help="let pip take packages from its cache")
    options = parser.parse_args()
    walks = [walk(file, options.python, options.commands, cached=options.keep) for file in options.files]
    if options.commands is None:
        REPORT.write_text(report(walks), encoding="utf-8")
        print(f"wrote {REPORT}")


if __name__ == "__main__":
    main()
