"""Arguments that several analyses take."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from torch import nn

from vmamba.analysis import draw
from vmamba.analysis.attention import ss2d_layers
from vmamba.analysis.models import load_model
from vmamba.analysis.throughput import Speed
from vmamba.cli.arguments import add_device, device, positive
from vmamba.cli.printing import print_json
from vmamba.files import refuse_overwriting
from vmamba.progress import remark
from vmamba.tables import Row
from vmamba.terminal import console

#: VMamba-T and its peers in timm.
PEERS = ("vmamba_tiny_s1l8", "resnet50", "convnext_tiny", "swin_tiny_patch4_window7_224", "deit_small_patch16_224")
MODES = ("inference", "training")
#: A slowest call above so many medians is remarked upon.
DISTURBED = 3


def size(text: str) -> tuple[int, int]:
    """``224`` or ``224x320`` (height × width) in pixels."""
    height, _, width = text.partition("x")
    return positive(height), positive(width or height)


def position(text: str) -> tuple[float, float]:
    """``0.5,0.25``: fractions of the height and the width."""
    y, x = map(float, text.split(","))
    if not (0 <= y <= 1 and 0 <= x <= 1):
        raise ValueError
    return y, x


def token(at: tuple[float, float], grid: tuple[int, int]) -> tuple[int, int]:
    """The token of a grid that lies at these fractions."""
    return min(int(at[0] * grid[0]), grid[0] - 1), min(int(at[1] * grid[1]), grid[1] - 1)


def block(text: str) -> str:
    """``2.7`` (stage and block) as the block's name in a model."""
    stage, index = map(int, text.split("."))
    return f"stages.{stage}.blocks.{index}"


def last_block_of_third_stage(model: nn.Module) -> str:
    """The block where semantics and resolution meet; of a model with fewer stages the last block there is."""
    blocks = list(ss2d_layers(model))
    return next((name for name in reversed(blocks) if name.startswith("stages.2.")), blocks[-1] if blocks else "")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME", help="default: what the checkpoint says or looks like")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights, the authors' or ours")
    source.add_argument("--pretrained", action="store_true", help="the published weights of --model, downloaded once")
    add_device(parser)


def model(options: argparse.Namespace) -> nn.Module:
    """The model of the arguments of `add_model`, on its device; says so where its weights are random."""
    target = device(options.device)
    if options.checkpoint is None and not options.pretrained:
        remark("no --checkpoint or --pretrained: the weights are random")
    return load_model(
        options.model,
        checkpoint=options.checkpoint,
        pretrained=options.pretrained,
        image_size=options.image_size,
        device=target,
    )


def output_files(options: argparse.Namespace, name: str, table: str, inputs: Sequence[Path | None] = ()) -> list[Path]:
    """The table of an analysis, ``NAME.csv`` or ``.json``, and its pictures' common stem, in the output folder.

    Args:
        options: With ``output``.
        name: Of the analysis.
        table: Ending of the table.
        inputs: Files that it reads.

    Raises:
        OptionError: If an output would be written over an input.
    """
    stem = options.output / name
    outputs = [stem.with_name(name + ending) for ending in (table, *draw.ENDINGS)]
    refuse_overwriting(outputs, [path for path in inputs if path is not None])
    return [outputs[0], stem]


def add_image_size(parser: argparse.ArgumentParser, default: str = "224") -> None:
    parser.add_argument(
        "--image-size",
        type=size,
        default=default,
        metavar="PIXELS",
        help=f"one number, or HxW (default {default})",
    )


def add_timing(parser: argparse.ArgumentParser, modes: Sequence[str] = MODES) -> None:
    parser.add_argument(
        "models",
        nargs="*",
        default=PEERS,
        metavar="MODEL",
        help=f"ours, timm's, or exported .onnx files (default: {' '.join(PEERS)})",
    )
    parser.add_argument("--mode", nargs="+", choices=MODES, default=modes, help=f"default: {' '.join(modes)}")
    parser.add_argument("--rounds", type=positive, default=11, metavar="N", help="timed steps of each (default 11)")
    parser.add_argument("--channels-last", action="store_true", help="give timm's models channels-last memory")
    add_device(parser)


def speed_row(speed: Speed, memory: int | None) -> Row:
    """A line of a table of speeds."""
    timing = speed.timing
    return {
        "model": speed.model,
        "mode": MODES[speed.training],
        "height": speed.image_size[0],
        "width": speed.image_size[1],
        "batch": speed.batch,
        "images_per_s": round(speed.images_per_second, 3),
        "ms": round(timing.median * 1e3, 3),
        "ms_low": round(timing.low * 1e3, 3),
        "ms_high": round(timing.high * 1e3, 3),
        "ms_slowest": round(timing.slowest * 1e3, 3),
        "peak_memory_mib": "" if memory is None else round(memory / 2**20, 1),
    }


def print_speeds(rows: Sequence[Row], *, as_json: bool) -> None:
    table = Table("model", "mode", "image", "batch", "images/s", "ms (quartiles; slowest)", "peak memory, MiB")
    for i, row in enumerate(rows):
        after = rows[i + 1] if i + 1 < len(rows) else row
        table.add_row(
            str(row["model"]),
            str(row["mode"]),
            f"{row['height']}×{row['width']}",
            str(row["batch"]),
            f"{row['images_per_s']:.4g}",
            f"{row['ms']:.4g} ({row['ms_low']:.4g} – {row['ms_high']:.4g}; {row['ms_slowest']:.4g})",
            str(row["peak_memory_mib"]),
            end_section=(row["mode"], row["height"]) != (after["mode"], after["height"]),
        )
    if as_json:
        print_json(rows)
    else:
        console().print(table)
    remark_on_spread([(str(row["model"]), float(str(row["ms_slowest"])) / float(str(row["ms"]))) for row in rows])


def remark_on_spread(ratios: Sequence[tuple[str, float]]) -> None:
    """Say so where a call took much longer than the median, given the ratio of each case."""
    name, ratio = max(ratios, key=lambda pair: pair[1])
    if ratio > DISTURBED:
        remark(
            f"the slowest call of {name} took {ratio:.0f} times the median: something else was busy on this machine, "
            "and threads that wait for each other lose most by that; trust the ratios, or measure again"
        )


def report(paths: Sequence[Path]) -> None:
    """Say what was written."""
    remark("wrote " + ", ".join(map(str, paths)))
