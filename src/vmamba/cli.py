"""The ``vmamba`` command."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast, get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from vmamba.data.images import ImageError, find_images
from vmamba.model.backbone import VMamba
from vmamba.model.checkpoint import CheckpointError, Weights, config_path, save_weights
from vmamba.model.config import VMambaConfig
from vmamba.model.download import DownloadError
from vmamba.model.zoo import VARIANTS, create_model, model_from_checkpoint
from vmamba.ops.backend import BACKENDS, select, unavailable
from vmamba.tasks.classification import Prediction, class_names, eval_transform, predict


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where some inputs failed, 2 for an error."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (ValueError, CheckpointError, DownloadError, OSError) as error:
        print(f"vmamba: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vmamba: interrupted", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vmamba", description="VMamba, the visual state space model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    models = commands.add_parser("models", help="list the models")
    models.set_defaults(run=_models)

    env = commands.add_parser("env", help="show versions, devices, and which scan kernels run and why")
    env.set_defaults(run=_env)

    predict_ = commands.add_parser("predict", help="classify images")
    predict_.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or quoted glob patterns")
    predict_.add_argument("--model", metavar="NAME", help="default: what the checkpoint says or looks like")
    source = predict_.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights, the authors' or ours")
    source.add_argument("--pretrained", action="store_true", help="the authors' weights for --model, downloaded once")
    predict_.add_argument("--labels", type=Path, metavar="FILE", help="class names, one per line; default: ImageNet's")
    predict_.add_argument("--topk", type=int, default=5, metavar="K", help="classes per image (default 5)")
    predict_.add_argument("--image-size", type=_positive, metavar="PIXELS", help="side of the input (default 224)")
    predict_.add_argument("--batch-size", type=_positive, default=16, metavar="N", help="default 16")
    predict_.add_argument("--device", help="cpu, cuda, mps … (default: the fastest there is)")
    predict_.add_argument("--json", action="store_true", help="print JSON instead of a table")
    predict_.set_defaults(run=_predict)

    convert = commands.add_parser("convert", help="turn a checkpoint into safetensors with its configuration beside it")
    convert.add_argument("source", type=Path, help="the checkpoint")
    convert.add_argument("target", type=Path, nargs="?", help="default: SOURCE with the ending .safetensors")
    convert.add_argument("--model", metavar="NAME", help="default: what the checkpoint looks like")
    convert.add_argument("--config", type=Path, metavar="YAML", help="the authors' YAML of the model instead")
    convert.add_argument("--weights", choices=get_args(Weights), default="auto", help="which of the file's weights")
    convert.add_argument("--force", action="store_true", help="replace the target if it exists")
    convert.set_defaults(run=_convert)

    demo = commands.add_parser("demo", help="train a small model on handwritten digits and look at its predictions")
    demo.add_argument("--output", type=Path, default=Path("demo"), metavar="FOLDER", help="default: demo")
    demo.add_argument("--epochs", type=_positive, default=30, help="default 30, about two minutes on two cores")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_demo)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _models(_: argparse.Namespace) -> int:
    table = Table("model", "parameters", "top-1 %", "input", "weights", title="ImageNet-1K classifiers")
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in VMamba(variant.config).parameters())
        top1 = f"{variant.top1:.1f}" if variant.top1 else "–"
        table.add_row(name, f"{parameters / 1e6:.1f} M", top1, "224×224", "the authors'" if variant.url else "none")
    Console().print(table)
    return 0


def _env(_: argparse.Namespace) -> int:
    devices = [torch.device("cpu")]
    if torch.accelerator.is_available():
        devices.append(cast(torch.device, torch.accelerator.current_accelerator()))
    table = Table(show_header=False, title="environment")
    for package in ("vmamba", "torch", "torchvision", "timm", "safetensors", "triton"):
        table.add_row(package, _version(package))
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    table.add_row("processor", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    table.add_section()
    for name, what in BACKENDS.items():
        problem = unavailable(name)
        table.add_row(f"scan backend {name}", f"{what}; " + (f"unavailable: {problem}" if problem else "available"))
    table.add_section()
    for device in devices:
        choice = select(device)
        table.add_row(f"scans on {device.type}", f"{choice.name}: {choice.reason}")
    Console().print(table)
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _predict(options: argparse.Namespace) -> int:
    paths = find_images(options.images)
    device = _device(options.device)
    model = _classifier(options)
    names = class_names(model.num_classes, options.labels)
    failures: list[ImageError] = []
    predictions = predict(
        model,
        _with_progress(paths),
        transform=eval_transform(model, options.image_size),
        topk=options.topk,
        batch_size=options.batch_size,
        device=device,
        on_error=failures.append,
    )
    done = list(predictions)
    if options.json:
        print(json.dumps([_as_json(p, names) for p in done], indent=2, ensure_ascii=False))
    elif done:
        _print_table(done, names)
    for failure in failures:
        print(f"vmamba: skipped: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _classifier(options: argparse.Namespace) -> VMamba:
    if options.pretrained:
        if options.model is None:
            raise ValueError("--pretrained needs --model NAME; 'vmamba models' lists them")
        return cast(VMamba, create_model(options.model, pretrained=True))
    model = model_from_checkpoint(options.checkpoint, options.model)
    if not model.num_classes:
        raise ValueError(f"{options.checkpoint}: holds a backbone without a classifier, which cannot predict")
    return model


def _device(name: str | None) -> torch.device:
    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def _with_progress(paths: list[Path]) -> Iterator[Path]:
    """The paths, with a bar on the terminal while they are used up."""
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(paths)


def _print_table(predictions: list[Prediction], names: Sequence[str]) -> None:
    table = Table(Column("image", overflow="fold"), "class", "probability")
    for prediction in predictions:
        for i, (index, probability) in enumerate(zip(prediction.classes, prediction.probabilities, strict=True)):
            last = i == len(prediction.classes) - 1
            table.add_row(str(prediction.path) if i == 0 else "", names[index], f"{probability:.1%}", end_section=last)
    Console().print(table)


def _as_json(prediction: Prediction, names: Sequence[str]) -> dict[str, object]:
    classes = zip(prediction.classes, prediction.probabilities, strict=True)
    ranked = [{"index": i, "label": names[i], "probability": p} for i, p in classes]
    return {"image": str(prediction.path), "predictions": ranked}


def _convert(options: argparse.Namespace) -> int:
    target = options.target or options.source.with_suffix(".safetensors")
    if target.exists() and not options.force:
        raise ValueError(f"{target} exists; name another target, or replace it with --force")
    config = VMambaConfig.from_author_yaml(options.config) if options.config else None
    model = model_from_checkpoint(options.source, options.model, weights=options.weights, config=config)
    save_weights(model, target)
    print(f"wrote {target} and {config_path(target)}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from vmamba import demo  # needs scikit-learn and matplotlib, which nothing else here does

    files = demo.run(options.output, epochs=options.epochs, seed=options.seed)
    again = ["predict", str(files.images), "--checkpoint", str(files.weights), "--labels", str(files.labels)]
    again += ["--image-size", str(demo.IMAGE_SIZE), "--topk", "2"]
    print(f"\nThe saved model on the held-out images, as anyone would run it:\n\n  vmamba {' '.join(again)}\n")
    return main(again)
