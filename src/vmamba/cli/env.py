"""``vmamba env``: versions, devices, scan backends."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from typing import TYPE_CHECKING, cast

import torch
from rich.table import Table

from vmamba.ops.backends import BACKENDS, select, unavailable
from vmamba.terminal import console

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba env"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "env", help="show versions, devices, and which scan kernels run and why", epilog=EXAMPLES
    )
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    devices = [torch.device("cpu")]
    if torch.accelerator.is_available():
        devices.append(cast(torch.device, torch.accelerator.current_accelerator()))
    table = Table(show_header=False, title="environment")
    for package in ("vmamba", "torch", "torchvision", "timm", "safetensors", "triton"):
        table.add_row(package, _version(package))
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    table.add_row("processor", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    table.add_section()
    for name, backend in BACKENDS.items():
        problem = unavailable(name)
        table.add_row(
            f"scan backend {name}", f"{backend.description}; " + (f"unavailable: {problem}" if problem else "available")
        )
    table.add_section()
    for device in devices:
        choice = select(device)
        table.add_row(f"scans on {device.type}", f"{choice.name}: {choice.reason}")
    console().print(table)
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
