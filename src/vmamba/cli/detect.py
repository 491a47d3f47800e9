"""``vmamba detect``: boxes and masks."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

from vmamba.cli.arguments import device, outputs, positive
from vmamba.data.coco import encode_mask
from vmamba.data.images import find_images
from vmamba.errors import ImageError
from vmamba.progress import progress_bar
from vmamba.tasks.dense.checkpoint import load_detector
from vmamba.tasks.dense.pictures import draw_detections
from vmamba.tasks.detection.prediction import Found, detect

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("detect", help="find things in images: boxes and masks")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or quoted glob patterns")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE", help="a detector, the authors' or ours"
    )
    parser.add_argument(
        "--model", metavar="NAME", help="its backbone (default: what the checkpoint says or looks like)"
    )
    parser.add_argument("--output", type=Path, default=Path("detections"), metavar="FOLDER", help="default: detections")
    parser.add_argument(
        "--score", type=float, default=0.5, metavar="S", help="leave out what scores less (default 0.5)"
    )
    parser.add_argument("--image-size", type=positive, default=800, metavar="PIXELS", help="short side (default 800)")
    parser.add_argument("--max-size", type=positive, default=1333, metavar="PIXELS", help="long side (default 1333)")
    parser.add_argument("--device", help="cpu, cuda, mps … (default: the fastest there is)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    paths = find_images(options.images)
    target = device(options.device)
    model = load_detector(options.checkpoint, options.model)
    classes = model.config.classes
    names = outputs(paths)
    failures: list[ImageError] = []
    records: list[dict[str, Any]] = []
    table = Table(Column("image", overflow="fold"), "class", "score", "box")
    with progress_bar("images") as bar:
        for found in detect(
            model,
            bar.track(paths, description="detecting"),
            image_size=options.image_size,
            max_size=max(options.max_size, options.image_size),
            least_score=options.score,
            device=target,
            on_error=failures.append,
        ):
            picture = options.output / f"{names[found.path]}.png"
            draw_detections(picture, found.image, found.boxes, found.scores, found.labels, found.masks, classes)
            mine = _records(found, classes)
            records += mine
            _add_rows(table, found, mine)
    if records or len(failures) < len(paths):
        results = options.output / "detections.json"
        results.write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding="utf-8")
    if options.json:
        print(json.dumps(records, indent=2, ensure_ascii=False))
    elif len(failures) < len(paths):
        Console().print(table)
        print(f"wrote pictures and detections.json (COCO's results format) to {options.output}")
    for failure in failures:
        print(f"vmamba: skipped: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _records(found: Found, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """COCO's results, with file and class names in place of ids."""
    records = []
    things = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), found.masks, strict=True)
    for (x1, y1, x2, y2), score, label, mask in things:
        records.append(
            {
                "image": str(found.path),
                "category": classes[label],
                "category_index": label,
                "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(score, 5),
                "segmentation": encode_mask(mask),
            }
        )
    return records


def _add_rows(table: Table, found: Found, records: list[dict[str, Any]]) -> None:
    if not records:
        table.add_row(str(found.path), "nothing", "", "", end_section=True)
    for i, record in enumerate(records):
        box = " ".join(f"{v:.0f}" for v in record["bbox"])
        last = i == len(records) - 1
        table.add_row("" if i else str(found.path), record["category"], f"{record['score']:.0%}", box, end_section=last)
