"""``vmamba env``: versions, devices, scan backends."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from typing import TYPE_CHECKING, Any, cast

import torch
from rich.table import Table

from vmamba.cli.printing import print_json
from vmamba.ops.backends import BACKENDS, select, unavailable
from vmamba.terminal import console

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

PACKAGES = ("vmamba", "torch", "torchvision", "timm", "safetensors", "triton")
#: What else a report of a bug should name.
FURTHER = ("numpy", "pillow", "pydantic", "transformers", "accelerate", "onnx", "onnxruntime", "openvino", "mmengine")
#: Variables that change what is computed, and by how many threads.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES", "TORCH_COMPILE_DISABLE")

EXAMPLES = """examples:
  vmamba env
  vmamba env --json
  vmamba env --report"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "env", help="show versions, devices, and which scan kernels run and why", epilog=EXAMPLES
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--report", action="store_true", help="print Markdown for a report of a bug, with more packages")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    facts = _facts()
    if options.json:
        print_json(facts)
        return 0
    if options.report:
        facts["packages"] |= {package: _version(package) for package in FURTHER}
        facts["variables"] = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        print("<details><summary>environment</summary>\n\n```json")
        print_json(facts)
        print("```\n\n</details>")
        return 0
    table = Table(show_header=False, title="environment")
    for package, version in facts["packages"].items():
        table.add_row(package, version or "not installed")
    table.add_row("python", f"{facts['python']} on {facts['platform']}")
    table.add_row("processor", f"{facts['processor']}, {facts['threads']} threads")
    table.add_section()
    for name, backend in facts["backends"].items():
        problem = backend["unavailable"]
        state = f"unavailable: {problem}" if problem else "available"
        table.add_row(f"scan backend {name}", f"{backend['description']}; {state}")
    table.add_section()
    for device, choice in facts["scans"].items():
        table.add_row(f"scans on {device}", f"{choice['backend']}: {choice['reason']}")
    console().print(table)
    return 0


def _facts() -> dict[str, Any]:
    """The environment; null stands for a package that is not installed, and for a backend without a problem."""
    devices = [torch.device("cpu")]
    if torch.accelerator.is_available():
        devices.append(cast(torch.device, torch.accelerator.current_accelerator()))
    choices = {device.type: select(device) for device in devices}
    return {
        "packages": {package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "backends": {
            name: {"description": backend.description, "unavailable": unavailable(name)}
            for name, backend in BACKENDS.items()
        },
        "scans": {name: {"backend": choice.name, "reason": choice.reason} for name, choice in choices.items()},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
