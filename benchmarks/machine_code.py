"""Executed instructions of a kernel, counted from its machine code for NVIDIA's GPUs. Needs no GPU.

The compiler's own `nvdisasm`, which Triton brings, lists the instructions of a cubin. Between two branches they follow
each other, so a warp executes each of them once per pass through the loops around it. A *loop* is what a branch to an
earlier address spans; the address order of loops is that of the source. How often a loop turns is not in the code: the
caller knows it from the launch. Counted as executed are predicated instructions, which take their issue slot, and both
sides of a branch forward; not the branch to itself that follows the code, and the padding behind it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

#: Kinds of instructions → the names that they begin with.
KINDS = {
    "special": ("MUFU",),
    "tensor": ("HMMA", "IMMA", "DMMA", "HGMMA"),
    "shared": ("LDS", "STS", "LDSM", "STSM", "ATOMS"),
    "shuffles": ("SHFL", "MOVM"),
    "barriers": ("BAR", "BARRIER"),
    "local": ("LDL", "STL"),
}
#: Of loads and stores of a lane, by the end of their name; 32 where there is none of these.
WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128}

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_LABEL = re.compile(r"^(\.L_x_\w+):")


@dataclass(frozen=True)
class Instruction:
    """One line of the listing.

    Attributes:
        name: With its modifiers: ``LDG.E.128``.
        target: Index of the instruction that a branch goes to; -1 for others.
    """

    name: str
    target: int = -1

    @property
    def kinds(self) -> list[str]:
        """Where it counts, apart from `instructions`; of global memory also by the bits of a lane."""
        base, *modifiers = self.name.split(".")
        kinds = [kind for kind, names in KINDS.items() if base in names]
        if base in ("LDG", "STG"):
            width = next((WIDTHS[m] for m in modifiers if m in WIDTHS), 32)
            kinds.append(f"{'loads' if base == 'LDG' else 'stores'}_{width}")
        return kinds


def disassembled(cubin: bytes) -> list[Instruction]:
    """The instructions of the only kernel of a cubin, up to the branch to itself that ends them."""
    lines = _run("nvdisasm", "-c", cubin=cubin).splitlines()
    labels: dict[str, int] = {}
    instructions: list[tuple[str, str]] = []
    for line in lines:
        if label := _LABEL.match(line.strip()):
            labels[label[1]] = len(instructions)
        elif match := _LINE.search(line):
            instructions.append((match[2], match[3]))
    listing = []
    for i, (name, operands) in enumerate(instructions):
        label = re.search(r"\.L_x_\w+", operands) if name.startswith("BRA") else None
        if label and labels[label[0]] == i:
            break
        listing.append(Instruction(name, labels[label[0]] if label else -1))
    return listing


def loops(listing: Sequence[Instruction]) -> list[tuple[int, int]]:
    """First and last instruction of every loop, outer before inner, in the order of their addresses."""
    spans: dict[int, int] = {}
    for i, instruction in enumerate(listing):
        if 0 <= instruction.target <= i:
            spans[instruction.target] = i
    return sorted(spans.items(), key=lambda span: (span[0], -span[1]))


def executed(listing: Sequence[Instruction], trips: Sequence[float]) -> Counter[str]:
    """Instructions that a warp executes: in all, and of every kind.

    Args:
        listing: Of the kernel.
        trips: Of every one of its `loops` each time that it is entered; averages where they differ.

    Raises:
        ValueError: For a number of loops that is not that of the trips: the compiler unrolled one, or left one out.
    """
    spans = loops(listing)
    if len(spans) != len(trips):
        raise ValueError(f"the machine code has {len(spans)} loops, trips are given for {len(trips)}")
    counts: Counter[str] = Counter()
    for i, instruction in enumerate(listing):
        times = 1.0
        for (first, last), trip in zip(spans, trips, strict=True):
            times *= trip if first <= i <= last else 1.0
        for kind in ("instructions", *instruction.kinds):
            counts[kind] += times  # type: ignore[assignment]
    return counts


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of local memory per thread; shared memory that was reserved at compile time is not in it."""
    listing = _run("cuobjdump", "-res-usage", cubin=cubin)
    used = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", listing)}
    return {"registers": used["REG"], "spilled": used["STACK"] + used["LOCAL"]}


def occupancy(registers: int, warps: int, shared: int) -> int:
    """Warps that a multiprocessor of an H100 holds: 64 Ki registers, 227 KiB of shared memory, 32 programs.

    Args:
        registers: Per thread. A warp is given them in units of 8 a thread.
        warps: Per program.
        shared: Bytes per program, to which the system adds 1 KiB.
    """
    by_registers = 65536 // (-(-registers // 8) * 8 * 32) // warps
    by_shared = 227 * 1024 // (shared + 1024)
    return min(by_registers, by_shared, 64 // warps, 32) * warps


def _run(tool: str, option: str, *, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([TOOLS / tool, option, file.name], capture_output=True, text=True, check=True).stdout
